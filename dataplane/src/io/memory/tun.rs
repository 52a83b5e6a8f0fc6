//! A TUN queue in memory.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::lock;
use crate::io::{TunQueue, VNET_HEADER_LEN};

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Bytes>,
    written: VecDeque<Bytes>,
    gone: bool,
    refuse_read: Option<i32>,
    writes: u64,
    refuse: HashMap<u64, i32>,
    /// By `gso_type`.
    refuse_superpackets: HashMap<u8, i32>,
}

/// A TUN queue in memory. Clones are the same queue.
#[derive(Clone, Default)]
pub struct MemoryTun(Arc<Mutex<Queue>>);

impl MemoryTun {
    /// A queue in which nothing waits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `packet`, a virtio header and an IP packet, wait for the next read.
    pub fn push(&self, packet: impl Into<Bytes>) {
        lock(&self.0).waiting.push_back(packet.into());
    }

    /// Packets that wait to be read.
    #[must_use]
    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.len()
    }

    /// Takes what was written first: a virtio header and a packet.
    #[must_use]
    pub fn take(&self) -> Option<Bytes> {
        lock(&self.0).written.pop_front()
    }

    /// Packets that were written and not taken.
    #[must_use]
    pub fn written(&self) -> usize {
        lock(&self.0).written.len()
    }

    /// Refuses the `position`th write from here on, counting from 0, with `errno`.
    pub fn refuse_at(&self, position: u64, errno: i32) {
        let mut queue = lock(&self.0);
        let position = queue.writes + position;
        queue.refuse.insert(position, errno);
    }

    /// Refuses every write of a superpacket of these virtio `gso_type`s with `errno`, and takes all others.
    pub fn refuse_superpackets(&self, gso_types: &[u8], errno: i32) {
        lock(&self.0).refuse_superpackets = gso_types.iter().map(|kind| (*kind, errno)).collect();
    }

    /// Throws away the packet that waits longest and answers the next read with `errno`.
    pub fn refuse_read(&self, errno: i32) {
        lock(&self.0).refuse_read = Some(errno);
    }

    /// Lets the device vanish: reads say that it is gone.
    pub fn vanish(&self) {
        lock(&self.0).gone = true;
    }
}

impl TunQueue for MemoryTun {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut queue = lock(&self.0);
        if queue.gone {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        let packet = queue.waiting.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        if let Some(errno) = queue.refuse_read.take() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // The kernel cuts what does not fit, and says nothing.
        let len = packet.len().min(buffer.len());
        buffer[..len].copy_from_slice(&packet[..len]);
        Ok(len)
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut queue = lock(&self.0);
        let position = queue.writes;
        queue.writes += 1;
        let packet: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        // As in the kernel's tun_get_user: less than a header and an IP version byte is refused.
        let gso_type = match packet.get(..=VNET_HEADER_LEN) {
            Some(head) => head[1],
            None => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        let of_kind = queue.refuse_superpackets.get(&gso_type).copied();
        let refused = queue.refuse.remove(&position).or(of_kind);
        if let Some(errno) = refused {
            return Err(io::Error::from_raw_os_error(errno));
        }
        queue.written.push_back(packet.into());
        Ok(())
    }
}
