//! A queue of a kernel TUN device.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{TunQueue, VNET_HEADER_LEN};
use crate::error::OpenError;
use crate::probe::{Features, Finding, KernelVersion, ladder};
use crate::sys;

/// One queue of a TUN device that this process made. The device goes when the queue is dropped.
pub struct KernelTun {
    device: Arc<SyncDevice>,
    vnet: bool,
    /// The offloads that are on, as `TUN_F_*` bits.
    mask: u32,
}

/// What the device answered: the findings for `tun-vnet-hdr`, `tun-tso` and `tun-uso`.
pub(crate) struct TunFindings(pub(crate) [Finding; 3]);

impl KernelTun {
    /// Makes the TUN device `name`, without address and down, in the network namespace of this thread.
    ///
    /// It is made with multiple queues allowed, so that workers can be added while it lives; with a single queue
    /// no cost could be measured, for the kernel hashes flows only when there are more.
    pub(crate) fn open(name: &str, off: Features) -> Result<(Self, TunFindings), OpenError> {
        check_name(name)?;
        let node = Path::new("/dev/net/tun");
        if let Err(source) = node.metadata() {
            return Err(OpenError::tun(name, source));
        }
        // Opening a multi-queue TUN device of another process would silently share its traffic.
        if nix::net::if_::if_nametoindex(name).is_ok() {
            return Err(OpenError::DeviceNameTaken { device: name.to_owned() });
        }
        let build = |vnet: bool| {
            DeviceBuilder::new()
                .name(name)
                .layer(Layer::L3)
                .multi_queue(true)
                .offload(vnet)
                .packet_information(false)
                .inherit_enable_state()
                .build_sync()
        };
        // The crate asks for TSO at once; a kernel that refuses may still make a plain device.
        let (device, vnet) = ladder::vnet_header(off, build).map_err(|error| OpenError::tun(name, error))?;
        device.set_nonblocking(true).map_err(|source| OpenError::tun(name, source))?;
        let mut tun = Self { device: Arc::new(device), vnet: vnet.on, mask: 0 };
        if !vnet.on {
            let needs = || Finding::off("needs tun-vnet-hdr");
            return Ok((tun, TunFindings([vnet, needs(), needs()])));
        }
        if let Err(error) = tun.shape_header() {
            return Err(OpenError::tun(name, error));
        }
        let set = |mask| sys::tun::set_offload(tun.device.as_fd(), mask);
        let (mask, [tso, uso]) = ladder::tun_offloads(off, KernelVersion::running(), set);
        tun.mask = mask;
        Ok((tun, TunFindings([vnet, tso, uso])))
    }

    fn shape_header(&mut self) -> io::Result<()> {
        sys::tun::set_vnet_header_len(self.device.as_fd(), VNET_HEADER_LEN as i32)?;
        match sys::tun::set_vnet_little_endian(self.device.as_fd()) {
            // Kernels before 4.1 use the machine's own order, which is the right one here.
            Err(_) if cfg!(target_endian = "little") => Ok(()),
            answer => answer,
        }
    }

    /// One more queue of the same device, which has the same features.
    ///
    /// The kernel picks the queue of a packet by a hash of its flow, and follows the queue on which the flow's packets
    /// of the other direction were last written: a worker that keeps to its queue keeps its flows.
    pub(crate) fn another_queue(&self) -> io::Result<Self> {
        let device = self.device.try_clone()?;
        device.set_nonblocking(true)?;
        // The crate makes its own choice of offloads whenever it opens a queue, and they are the whole device's.
        if self.vnet {
            sys::tun::set_offload(device.as_fd(), self.mask)?;
        }
        Ok(Self { device: Arc::new(device), vnet: self.vnet, mask: self.mask })
    }

    /// The same queue for another thread. One may read while the other writes.
    pub(crate) fn share(&self) -> Self {
        Self { device: self.device.clone(), ..*self }
    }

    /// The name that the kernel gave the device.
    pub(crate) fn name(&self) -> io::Result<String> {
        self.device.name()
    }

    /// The descriptor, for readiness.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl TunQueue for KernelTun {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.vnet {
            return Ok(nix::unistd::read(&self.device, buffer)?);
        }
        let Some((header, packet)) = buffer.split_at_mut_checked(VNET_HEADER_LEN) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        header.fill(0);
        Ok(nix::unistd::read(&self.device, packet)? + VNET_HEADER_LEN)
    }

    fn write(&mut self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        if !self.vnet {
            IoSlice::advance_slices(&mut parts, VNET_HEADER_LEN);
        }
        loop {
            match nix::sys::uio::writev(&self.device, parts) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The kernel's rule for link names (`dev_valid_name`), and no `%`, which would make it a pattern.
fn check_name(name: &str) -> Result<(), OpenError> {
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || matches!(name, "." | "..") || name.contains(bad) {
        return Err(OpenError::DeviceNameInvalid { device: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_device_names_are_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a b", "a/b", "tun%d", "0123456789abcdef"] {
            let error = KernelTun::open(name, Features::NONE).err().unwrap();
            assert!(matches!(error, OpenError::DeviceNameInvalid { .. }), "{name:?}: {error}");
        }
        assert!(check_name("flannel0").is_ok());
        assert!(check_name("0123456789abcde").is_ok());
    }
}
