//! `recvmmsg(2)` with the stride, the TOS and the overflow counter of each message.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::address::RawAddress;
use super::control::{ControlRoom, ROOM};
use super::send::empty_header;

/// What the kernel said about one received buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where the datagrams came from.
    pub from: SocketAddr,
    /// Bytes in the buffer.
    pub len: usize,
    /// Bytes of each datagram but the last; `len` when there is only one.
    pub stride: usize,
    /// Outer TOS or traffic class byte, 0 when the socket does not report it.
    pub tos: u8,
    /// The buffer was too small and the tail is lost.
    pub truncated: bool,
}

impl Arrival {
    /// Nothing received yet.
    pub const NONE: Self = Self {
        from: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        len: 0,
        stride: 0,
        tos: 0,
        truncated: false,
    };
}

/// The arrays of one `recvmmsg` call, made once.
pub(crate) struct ReceiveBatch {
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[ControlRoom]>,
    overflow: Option<u32>,
}

// SAFETY: the raw pointers in `headers` and `parts` are written and used inside one call of `receive`, which holds
// `&mut self`; between calls nothing reads them, so the batch may move to another thread.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// Room for `capacity` buffers a call, at least one.
    #[must_use]
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            headers: vec![empty_header(); capacity].into(),
            parts: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; capacity].into(),
            addresses: vec![RawAddress::EMPTY; capacity].into(),
            controls: vec![ControlRoom::EMPTY; capacity].into(),
            overflow: None,
        }
    }

    /// Datagrams that the socket has dropped for want of room since it was opened, if the kernel has said
    /// (`SO_RXQ_OVFL`; the counter wraps at 32 bits).
    #[must_use]
    pub(crate) fn overflow(&self) -> Option<u32> {
        self.overflow
    }

    /// Receives into `buffers` from the front, at most the capacity, in one system call that never waits.
    ///
    /// Fills `arrivals` from the front and returns how many buffers hold something.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits, else what the kernel said.
    pub(crate) fn receive<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        arrivals: &mut [Arrival],
    ) -> io::Result<usize> {
        let mut count = 0;
        for (at, buffer) in buffers.take(self.headers.len().min(arrivals.len())).enumerate() {
            self.fill(at, buffer);
            count = at + 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let fd = fd.as_raw_fd();
        let received = if count == 1 {
            // SAFETY: `fill` has just pointed header 0 at memory of `self` and at a buffer that is borrowed mutably
            // for 'a, which outlives this call.
            let bytes = unsafe { libc::recvmsg(fd, &raw mut self.headers[0].msg_hdr, libc::MSG_DONTWAIT) };
            self.headers[0].msg_len = bytes.max(0) as libc::c_uint;
            // One message, however many bytes: an empty datagram counts none.
            if bytes < 0 { -1 } else { 1 }
        } else {
            let (headers, count) = (self.headers.as_mut_ptr(), count as libc::c_uint);
            // SAFETY: `fill` has just pointed the first `count` headers at memory of `self` and at buffers that are
            // borrowed mutably for 'a, which outlives this call; no timeout is passed.
            unsafe { libc::recvmmsg(fd, headers, count, libc::MSG_DONTWAIT as _, ptr::null_mut()) }
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (at, arrival) in arrivals.iter_mut().enumerate().take(received) {
            *arrival = self.read(at);
        }
        Ok(received)
    }

    fn fill(&mut self, at: usize, buffer: &mut [u8]) {
        let part = &mut self.parts[at];
        part.iov_base = buffer.as_mut_ptr().cast();
        part.iov_len = buffer.len();
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.addresses[at]).cast();
        header.msg_namelen = RawAddress::ROOM;
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.controls[at]).cast();
        header.msg_controllen = ROOM as _;
        header.msg_flags = 0;
    }

    fn read(&mut self, at: usize) -> Arrival {
        let header = &self.headers[at];
        let len = header.msg_len as usize;
        let mut arrival = Arrival {
            from: self.addresses[at].get().unwrap_or(Arrival::NONE.from),
            len,
            stride: len,
            tos: 0,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        #[allow(clippy::unnecessary_cast, reason = "msg_controllen is u32 with musl's headers")]
        let control_len = header.msg_hdr.msg_controllen as usize;
        for (level, kind, data) in self.controls[at].iter(control_len) {
            match (level, kind, data) {
                // The stride is an int; reading it as u16 works on little-endian machines only.
                (libc::SOL_UDP, libc::UDP_GRO, &[a, b, c, d, ..]) => {
                    let stride = i32::from_ne_bytes([a, b, c, d]);
                    if let Ok(stride @ 1..) = usize::try_from(stride) {
                        arrival.stride = stride.min(len);
                    }
                }
                // IPv4 gives one byte, IPv6 an int.
                (libc::IPPROTO_IP, libc::IP_TOS, &[tos, ..]) => arrival.tos = tos,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[a, b, c, d, ..]) => {
                    arrival.tos = i32::from_ne_bytes([a, b, c, d]) as u8;
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &[a, b, c, d, ..]) => {
                    self.overflow = Some(u32::from_ne_bytes([a, b, c, d]));
                }
                _ => {}
            }
        }
        arrival
    }
}
