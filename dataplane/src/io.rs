//! What a worker reads from and writes to: a TUN queue and a UDP port, the kernel's or in memory.

use std::io::{self, IoSlice};
use std::time::Duration;

use crate::buffers::ReceiveBuffers;
use guard::Guard;

pub mod guard;
pub mod memory;
pub(crate) mod readiness;
pub(crate) mod ring;
pub(crate) mod tun;
pub(crate) mod udp;

pub use crate::sys::mmsg::{Arrival, Outgoing};
pub use readiness::Ready;
pub use tun::KernelTun;
pub use udp::KernelUdp;

/// Bytes of `struct virtio_net_hdr`, which precedes every packet on a [`TunQueue`].
pub const VNET_HEADER_LEN: usize = dataplane_core::VNET_HDR_LEN;

/// One queue of a TUN device. A packet is always preceded by ten bytes of virtio header, little-endian; a queue
/// whose device has none reads zeros there and leaves them out on write.
pub trait TunQueue: Send {
    /// Reads one virtio header and packet into `buffer` and returns their length. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when no packet waits; anything else means that the device is gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one virtio header and packet, given in parts of which the first holds at least the header. The slice
    /// itself may be changed.
    ///
    /// # Errors
    /// What the device said; the packet is then not delivered.
    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
}

/// A UDP socket that moves batches.
pub trait UdpPort: Send {
    /// Sends messages from the front, as many as one system call takes. Returns how many went out: at least one
    /// unless there is none.
    ///
    /// # Errors
    /// What was said about the first message; then none went out.
    fn send<'a>(&mut self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize>;

    /// Receives into `buffers` from the first slot on and returns how many slots are filled. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    fn receive(&mut self, buffers: &mut ReceiveBuffers) -> io::Result<usize>;

    /// Waits until a send may work, at most `limit`.
    fn wait_writable(&mut self, limit: Duration);

    /// Messages that were lost because nobody received them in time, or refused by a guard, since the port was opened, as
    /// far as it is known.
    fn overflow(&self) -> u32;

    /// Lets the port refuse what `guard` refuses before anybody receives it, or lets everything in again. A port need not
    /// have the means.
    ///
    /// # Errors
    /// When it takes no guard, or did not have one to give up.
    fn set_guard(&mut self, _guard: Option<&Guard>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
