//! `sendmmsg(2)` with a `UDP_SEGMENT` and a TOS for each message.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::address::RawAddress;
use super::control::ControlRoom;

/// One message: datagrams of `stride` bytes back to back, the last one possibly shorter, all to one address.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where all the datagrams go.
    pub to: SocketAddr,
    /// Outer TOS or traffic class byte; 0 leaves the socket's default.
    pub tos: u8,
    /// Which of the port's source ports they leave from.
    pub lane: u8,
    /// The datagrams' payloads, back to back.
    pub bytes: &'a [u8],
    /// Bytes of each datagram but the last; `bytes.len()` or more when there is only one.
    pub stride: usize,
}

impl Outgoing<'_> {
    /// True when the kernel has to cut the message into more than one datagram.
    #[must_use]
    pub fn is_train(&self) -> bool {
        self.stride < self.bytes.len()
    }
}

/// The arrays of one `sendmmsg` call, made once.
pub(crate) struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[ControlRoom]>,
}

// SAFETY: the raw pointers in `headers` and `parts` are written and used inside one call of `send`, which holds
// `&mut self`; between calls nothing reads them, so the batch may move to another thread.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Room for `capacity` messages a call, at least one.
    #[must_use]
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            headers: vec![empty_header(); capacity].into(),
            parts: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; capacity].into(),
            addresses: vec![RawAddress::EMPTY; capacity].into(),
            controls: vec![ControlRoom::EMPTY; capacity].into(),
        }
    }

    /// Sends messages from the front of the iterator, at most the capacity, in one system call.
    ///
    /// Returns how many the kernel took, which is at least one unless the iterator is empty.
    ///
    /// # Errors
    /// What the kernel said about the first message; then nothing was sent.
    pub(crate) fn send<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: impl Iterator<Item = Outgoing<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for (at, message) in messages.take(self.headers.len()).enumerate() {
            self.fill(at, &message);
            count = at + 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let fd = fd.as_raw_fd();
        let sent = if count == 1 {
            // SAFETY: `fill` has just pointed header 0 at memory of `self` and of the message, all of which outlives
            // this call; sendmsg only reads it.
            let bytes = unsafe { libc::sendmsg(fd, &raw const self.headers[0].msg_hdr, 0) };
            // One message, however many bytes: an empty datagram counts none.
            if bytes < 0 { -1 } else { 1 }
        } else {
            // SAFETY: `fill` has just pointed the first `count` headers at memory of `self` and of the messages, all
            // of which outlives this call; sendmmsg writes only `msg_len` in the headers.
            unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), count as libc::c_uint, 0) }
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn fill(&mut self, at: usize, message: &Outgoing<'_>) {
        let address = &mut self.addresses[at];
        let name_len = address.set(message.to);
        let control = &mut self.controls[at];
        let mut used = 0;
        if message.is_train() {
            used = control.append(
                used,
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                &(message.stride as u16).to_ne_bytes(),
            );
        }
        if message.tos != 0 {
            let (level, kind) = match message.to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            used = control.append(used, level, kind, &libc::c_int::from(message.tos).to_ne_bytes());
        }
        let part = &mut self.parts[at];
        part.iov_base = message.bytes.as_ptr().cast_mut().cast();
        part.iov_len = message.bytes.len();
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut *address).cast();
        header.msg_namelen = name_len;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = if used == 0 { ptr::null_mut() } else { (&raw mut *control).cast() };
        header.msg_controllen = used as _;
    }
}

/// A header that points nowhere.
pub(super) fn empty_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data (null pointers and zero lengths), for which all-zero is a valid value; it
    // has private padding fields on some targets, so it cannot be written field by field.
    unsafe { std::mem::zeroed() }
}
