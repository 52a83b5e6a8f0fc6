//! A kernel UDP socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::guard::{Guard, Instruction};
use super::{Outgoing, UdpPort};
use crate::buffers::ReceiveBuffers;
use crate::error::OpenError;
use crate::probe::{self, Features, Finding, KernelVersion, ladder};
use crate::sys;
use crate::sys::mmsg::{Arrival, ReceiveBatch, SendBatch};

/// Room for received data: about 7 ms at 10 Gb/s. The kernel counts whole buffers, so small datagrams fill it sooner.
const RECEIVE_ROOM: usize = 8 << 20;
/// Room for data to be sent: 3 ms at 10 Gb/s, for a queue below that holds a burst back. The kernel's usual 212 992 bytes
/// are full after three trains.
const SEND_ROOM: usize = 4 << 20;
/// Most messages in one `sendmmsg`.
const SEND_BATCH: usize = 256;
/// Most buffers in one `recvmmsg`.
const RECEIVE_BATCH: usize = 64;

/// A UDP socket of the network namespace in which it was opened.
pub struct KernelUdp {
    socket: Arc<Socket>,
    /// Messages of one system call, either way.
    batches: (usize, usize),
    /// Sockets to send from, one a source port; none where everything leaves from `socket`.
    lanes: Arc<[Socket]>,
    /// The socket that was sent from last.
    lane: usize,
    sending: SendBatch,
    receiving: ReceiveBatch,
}

/// The kernel's account of what a socket dropped. A worker hears of it only with the next message that it receives.
pub(crate) struct SocketDrops {
    socket: Arc<Socket>,
}

impl SocketDrops {
    /// Messages dropped so far, where the last that is known is `known`.
    pub(crate) fn since(&self, known: u64) -> u64 {
        // A kernel that does not tell (before 4.12) leaves what the worker has heard.
        let more = sys::drops::dropped(self.socket.as_fd()).map_or(0, |now| now.wrapping_sub(known as u32));
        // A worker that has heard of more meanwhile makes it a little negative.
        if more.cast_signed() < 0 { known } else { known + u64::from(more) }
    }
}

/// What the socket answered: the findings for `udp-gso`, `udp-gro` and `mmsg`, and its sizes.
pub(crate) struct UdpFindings {
    pub(crate) findings: [Finding; 3],
    pub(crate) max_segments: usize,
    pub(crate) buffers: (usize, usize),
}

impl KernelUdp {
    /// Opens `count` sockets that share the port of `bind`: the kernel gives all datagrams of one outer source address
    /// and port to the same one. They send from `lanes` source ports that are the kernel's choice, or from their own if
    /// that is 1.
    pub(crate) fn open_group(
        bind: SocketAddr,
        off: Features,
        count: usize,
        lanes: u8,
    ) -> Result<(Vec<Self>, UdpFindings), OpenError> {
        let wrong = |source| OpenError::udp(bind, source);
        let shared = count > 1;
        if shared {
            // Sockets that share a port would also share it with another daemon, without a word.
            Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))
                .and_then(|socket| {
                    if bind.is_ipv6() {
                        socket.set_only_v6(true)?;
                    }
                    socket.bind(&bind.into())
                })
                .map_err(wrong)?;
        }
        let (first, findings) = Self::open_one(bind, off, shared)?;
        let bind = first.local().map_err(wrong)?;
        let mut group = vec![first];
        while group.len() < count {
            group.push(Self::open_one(bind, off, shared)?.0);
        }
        if lanes > 1 {
            let lanes: Arc<[Socket]> =
                (0..lanes).map(|_| open_lane(bind.ip())).collect::<io::Result<_>>().map_err(wrong)?;
            for port in &mut group {
                port.lanes = lanes.clone();
            }
        }
        Ok((group, findings))
    }

    /// Opens a socket bound to `bind`, with every feature that the kernel has and that is not in `off`.
    ///
    /// Over IPv4 the DF bit is clear, as a kernel VXLAN device has it: a datagram that outgrows the path is cut by the
    /// router, and nobody can slow the tunnel down with forged ICMP. Over IPv6 routers do not cut, so there the system's
    /// default stays: the kernel fragments what outgrows the path that it knows.
    ///
    /// Datagrams without a UDP checksum are accepted over IPv4 and refused over IPv6 (RFC 8200), as a kernel VXLAN
    /// device does unless told otherwise.
    fn open_one(bind: SocketAddr, off: Features, shared: bool) -> Result<(Self, UdpFindings), OpenError> {
        let wrong = |source| OpenError::udp(bind, source);
        let socket =
            Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP)).map_err(wrong)?;
        socket.set_nonblocking(true).map_err(wrong)?;
        if bind.is_ipv6() {
            socket.set_only_v6(true).map_err(wrong)?;
            socket.set_recv_tclass_v6(true).map_err(wrong)?;
        } else {
            socket.set_recv_tos_v4(true).map_err(wrong)?;
            // A kernel that does not know it keeps discovering path MTUs, which works too.
            sys::pmtu::leave_fragments_to_routers(socket.as_fd()).ok();
        }
        setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(|errno| wrong(errno.into()))?;
        let buffers = make_room(&socket).map_err(wrong)?;
        let segment = |size| setsockopt(&socket, sockopt::UdpGsoSegment, &size);
        let (gso, max_segments) =
            ladder::udp_gso(off, KernelVersion::running(), segment, probe::max_segments);
        let gro = ladder::udp_gro(off, || setsockopt(&socket, sockopt::UdpGroSegment, &true));
        let mmsg = ladder::mmsg(off, || receive_nothing(bind));
        if shared {
            socket.set_reuse_port(true).map_err(wrong)?;
        }
        // Bound last, so that nothing arrives before the socket has its final shape.
        socket.bind(&bind.into()).map_err(wrong)?;
        let (send, receive) = if mmsg.on { (SEND_BATCH, RECEIVE_BATCH) } else { (1, 1) };
        let udp = Self {
            socket: Arc::new(socket),
            batches: (send, receive),
            lanes: Arc::default(),
            lane: 0,
            sending: SendBatch::new(send),
            receiving: ReceiveBatch::new(receive),
        };
        Ok((udp, UdpFindings { findings: [gso, gro, mmsg], max_segments, buffers }))
    }

    /// The address it is bound to, with the port that the kernel chose if none was asked for.
    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// The same socket for another thread. One may send while the other receives.
    pub(crate) fn share(&self) -> Self {
        let (send, receive) = self.batches;
        Self {
            socket: self.socket.clone(),
            batches: self.batches,
            lanes: self.lanes.clone(),
            lane: self.lane,
            sending: SendBatch::new(send),
            receiving: ReceiveBatch::new(receive),
        }
    }

    /// What asks the kernel how much this socket has dropped.
    pub(crate) fn drops(&self) -> SocketDrops {
        SocketDrops { socket: self.socket.clone() }
    }

    /// The descriptor, for readiness.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl UdpPort for KernelUdp {
    fn send<'a>(&mut self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        if self.lanes.is_empty() {
            return self.sending.send(self.socket.as_fd(), messages);
        }
        let mut messages = messages.peekable();
        let Some(first) = messages.peek().map(|message| message.lane) else { return Ok(0) };
        self.lane = usize::from(first) % self.lanes.len();
        self.sending.send(self.lanes[self.lane].as_fd(), messages.take_while(|message| message.lane == first))
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let (slots, arrivals) = buffers.slots_mut();
        let filled = self.receiving.receive(self.socket.as_fd(), slots, arrivals)?;
        buffers.set_filled(filled);
        Ok(filled)
    }

    fn wait_writable(&mut self, limit: Duration) {
        let socket = self.lanes.get(self.lane).unwrap_or(&self.socket);
        let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        // Whatever it answers, the next send says whether there is room.
        nix::poll::poll(&mut set, timeout).ok();
    }

    fn overflow(&self) -> u32 {
        self.receiving.overflow().unwrap_or(0)
    }

    fn set_guard(&mut self, guard: Option<&Guard>) -> io::Result<()> {
        let Some(Guard { program }) = guard else { return self.socket.detach_filter() };
        let instruction = |&(code, yes, no, k): &Instruction| SockFilter::new(code, yes, no, k);
        self.socket.attach_filter(&program.iter().map(instruction).collect::<Vec<_>>())
    }
}

/// A socket that only sends, from a port that the kernel chooses.
fn open_lane(from: IpAddr) -> io::Result<Socket> {
    let bind = SocketAddr::new(from, 0);
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if bind.is_ipv6() {
        socket.set_only_v6(true)?;
    } else {
        sys::pmtu::leave_fragments_to_routers(socket.as_fd()).ok();
    }
    // Nobody reads it: what strangers send there shall take no memory. The kernel grants its smallest size.
    socket.set_recv_buffer_size(0)?;
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_ROOM).is_err() {
        socket.set_send_buffer_size(SEND_ROOM)?;
    }
    socket.bind(&bind.into())?;
    Ok(socket)
}

/// Asks for big socket buffers, beyond the system's limit where that is allowed. Returns what the kernel granted.
fn make_room(socket: &Socket) -> io::Result<(usize, usize)> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_ROOM).is_err() {
        socket.set_recv_buffer_size(RECEIVE_ROOM)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &SEND_ROOM).is_err() {
        socket.set_send_buffer_size(SEND_ROOM)?;
    }
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

/// A `recvmmsg` on a socket of its own that nobody sends to.
fn receive_nothing(bind: SocketAddr) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    let (mut one, mut two) = ([0; 1], [0; 1]);
    let buffers = [&mut one[..], &mut two[..]].into_iter();
    ReceiveBatch::new(2).receive(socket.as_fd(), buffers, &mut [Arrival::NONE; 2])
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hostnet::kernel::{Kernel, LinkSettings};
    use hostnet::netns::NetNs;

    use super::*;
    use crate::io::memory::{MemoryWire, WireFaults};
    use crate::probe::Feature;

    fn receive_all(port: &mut impl UdpPort, wanted: usize) -> Vec<(Arrival, Vec<u8>)> {
        let mut buffers = ReceiveBuffers::new(8);
        let mut seen = Vec::new();
        let mut datagrams = 0;
        let end = Instant::now() + Duration::from_secs(10);
        while datagrams < wanted && Instant::now() < end {
            match port.receive(&mut buffers) {
                Ok(filled) => {
                    for slot in 0..filled {
                        let (arrival, bytes) = buffers.filled_mut(slot).unwrap();
                        datagrams += bytes.len().div_ceil(arrival.stride.max(1)).max(1);
                        seen.push((arrival, bytes.to_vec()));
                    }
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(datagrams, wanted);
        seen
    }

    fn datagrams(seen: &[(Arrival, Vec<u8>)]) -> Vec<&[u8]> {
        seen.iter().flat_map(|(arrival, bytes)| bytes.chunks(arrival.stride.max(1))).collect()
    }

    /// A train of as many datagrams as the kernel sends at once arrives in one buffer, which need not have been thought
    /// of as 64 datagrams long.
    fn the_longest_train_arrives_whole(
        sender: &mut impl UdpPort,
        receiver: &mut impl UdpPort,
        to: SocketAddr,
        segments: usize,
    ) {
        let train: Vec<u8> = (0..segments * 500).map(|at| (at % 241) as u8).collect();
        let message = Outgoing { to, tos: 0, lane: 0, bytes: &train, stride: 500 };
        assert_eq!(sender.send(std::iter::once(message)).unwrap(), 1);
        let seen = receive_all(receiver, segments);
        assert_eq!(seen.len(), 1, "one buffer");
        assert_eq!(seen[0].0.stride, 500);
        assert!(seen[0].1 == train);
    }

    /// The same promises for the kernel's sockets and for the wire in memory.
    fn trains_arrive_whole(
        sender: &mut impl UdpPort,
        receiver: &mut impl UdpPort,
        from: SocketAddr,
        to: SocketAddr,
    ) {
        let train: Vec<u8> = (0..3500u32).map(|at| (at % 251) as u8).collect();
        let messages = [
            Outgoing { to, tos: 2, lane: 0, bytes: &train, stride: 1000 },
            Outgoing { to, tos: 0, lane: 0, bytes: b"single", stride: 6 },
        ];
        assert_eq!(sender.send(messages.into_iter()).unwrap(), 2);
        let seen = receive_all(receiver, 5);
        let expected: Vec<&[u8]> = train.chunks(1000).chain([&b"single"[..]]).collect();
        assert_eq!(datagrams(&seen), expected);
        assert!(seen.iter().all(|(arrival, _)| arrival.from == from && !arrival.truncated));
        assert_eq!(seen[0].0.tos, 2, "the TOS of the message arrives");
        assert_eq!(seen.last().unwrap().0.tos, 0, "a message without TOS has the default");
    }

    #[test]
    fn trains_arrive_whole_in_memory() {
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let wire = MemoryWire::new(WireFaults::NONE);
        trains_arrive_whole(&mut wire.port(a), &mut wire.port(b), a, b);
        the_longest_train_arrives_whole(&mut wire.port(a), &mut wire.port(b), b, 128);
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn trains_arrive_whole_between_kernel_sockets() {
        let ns = match NetNs::new() {
            Ok(ns) => ns,
            Err(error) => return eprintln!("SKIPPED: no network namespace: {error}"),
        };
        ns.run("sockets", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
                Kernel::connect().await.unwrap().set_link("lo", &up).await.unwrap();
            });
            for local in ["127.0.0.1:0", "[::1]:0"] {
                for off in
                    [Features::NONE, Features::NONE.with(Feature::Mmsg), Features::NONE.with(Feature::UdpGro)]
                {
                    let (mut sender, found) =
                        KernelUdp::open_one(local.parse().unwrap(), off, false).unwrap();
                    let (mut receiver, _) = KernelUdp::open_one(local.parse().unwrap(), off, false).unwrap();
                    assert!([64, 128].contains(&found.max_segments), "asked over loopback");
                    assert!(found.findings[0].why.ends_with("datagrams a send"), "{:?}", found.findings);
                    let (from, to) = (sender.local().unwrap(), receiver.local().unwrap());
                    if off.contains(Feature::Mmsg) {
                        let message = Outgoing { to, tos: 0, lane: 0, bytes: b"", stride: 0 };
                        assert_eq!(sender.send([message; 3].into_iter()).unwrap(), 1, "one message a call");
                        receive_all(&mut receiver, 1);
                        continue;
                    }
                    trains_arrive_whole(&mut sender, &mut receiver, from, to);
                    if off == Features::NONE {
                        the_longest_train_arrives_whole(&mut sender, &mut receiver, to, found.max_segments);
                    }
                    assert_eq!(receiver.overflow(), 0);
                }
            }
        })
        .unwrap();
    }

    #[test]
    fn an_error_comes_with_the_call_that_starts_with_it() {
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let wire = MemoryWire::new(WireFaults::NONE);
        let (mut sender, receiver) = (wire.port(a), wire.port(b));
        sender.refuse_at(1, libc::EPERM);
        let message = |bytes| Outgoing { to: b, tos: 0, lane: 0, bytes, stride: 1 };
        let all = [message(b"a"), message(b"b"), message(b"c")];
        assert_eq!(sender.send(all.into_iter()).unwrap(), 1);
        assert_eq!(sender.send(all[1..].iter().copied()).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(sender.send(all[1..].iter().copied()).unwrap(), 2);
        let seen: Vec<_> = std::iter::from_fn(|| receiver.take()).map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(seen, b"abc");
    }
}
