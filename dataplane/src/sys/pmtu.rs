//! How a socket treats what the path's MTU is said to be: no crate wraps the option (ip(7), `IP_MTU_DISCOVER`).

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Clears the DF bit of an IPv4 socket's datagrams and keeps what ICMP says of a path's MTU from changing them
/// (`IP_PMTUDISC_OMIT`, Linux 3.15).
///
/// # Errors
/// `EINVAL` where the kernel does not know the mode; `ENOPROTOOPT` on a socket of another family.
pub(crate) fn leave_fragments_to_routers(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mode: libc::c_int = libc::IP_PMTUDISC_OMIT;
    // SAFETY: the kernel reads one int through the pointer, which is alive and aligned during the call, and the
    // length given is that int's.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const mode).cast(),
            size_of_val(&mode) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
