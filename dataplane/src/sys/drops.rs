//! How much a socket has dropped: no crate wraps the option (`SO_MEMINFO`, Linux 4.12).

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `SK_MEMINFO_VARS` of linux/sock_diag.h, and the place of `SK_MEMINFO_DROPS`.
const VARS: usize = 9;
const DROPS: usize = 8;

/// Messages that the socket has dropped before they were read since it was opened: for want of room, or because its
/// filter refused them. The kernel's counter wraps at 32 bits.
///
/// # Errors
/// `ENOPROTOOPT` where the kernel does not know the option.
pub(crate) fn dropped(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut vars = [0_u32; VARS];
    let mut len = size_of_val(&vars) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes through the pointer, which is what `vars` has, and the length
    // through the other; both are alive and aligned during the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            vars.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(vars[DROPS]) }
}
