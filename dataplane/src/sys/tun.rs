//! The ioctls of a TUN queue (linux/if_tun.h) that no crate wraps with a choice of values.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Tells the kernel which offloads the reader of this device understands (`TUNSETOFFLOAD`).
///
/// `mask` is a union of `TUN_F_*` bits. It belongs to the device, not to the queue: every queue must set the same.
///
/// # Errors
/// `EINVAL` when the kernel does not know a bit, or wants `TUN_F_CSUM` with it.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value, so no memory is shared with the kernel; the descriptor
    // is alive for the length of the borrow.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) })
}

/// Makes the virtio header little-endian on every machine (`TUNSETVNETLE`).
///
/// # Errors
/// `EINVAL` where the kernel lacks the call (before 4.1); `EBADFD` when the queue is not attached.
pub(crate) fn set_vnet_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    let little: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int through the pointer, which is alive and aligned during the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE, &raw const little) })
}

/// Sets the length of the virtio header, in bytes (`TUNSETVNETHDRSZ`).
///
/// # Errors
/// `EINVAL` for less than 10 bytes.
pub(crate) fn set_vnet_header_len(fd: BorrowedFd<'_>, len: i32) -> io::Result<()> {
    let len: libc::c_int = len;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which is alive and aligned during the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
