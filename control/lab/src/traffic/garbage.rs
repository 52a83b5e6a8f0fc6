//! Datagrams that nobody wants, as fast as they go: what a stranger can do to a node that listens on a UDP port.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hostnet::netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::end::EndOnDrop;

/// Messages of one sendmmsg(2).
const BATCH: usize = 64;

/// What is sent, and to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Garbage {
    /// The source address, which need not be the sender's own (`IP_TRANSPARENT`): a stranger's or a peer's.
    pub from: Ipv4Addr,
    /// The victim's port.
    pub to: SocketAddrV4,
    /// Datagrams, sent in turn. All of one length where `segments` is set.
    pub datagrams: Vec<Vec<u8>>,
    /// Hand the kernel so many datagrams as one buffer (`UDP_SEGMENT`, Linux 4.18): more of them for the sender's CPU
    /// time, and they reach a victim on the same machine as one buffer. At most 64.
    pub segments: Option<u16>,
    /// Datagrams a second; as fast as it goes if `None`.
    pub rate: Option<f64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GarbageReport {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Seconds from the first to the last.
    pub seconds: f64,
}

impl GarbageReport {
    /// Thousand datagrams a second.
    pub fn kilopackets_per_second(&self) -> f64 {
        self.sent as f64 / self.seconds.max(f64::MIN_POSITIVE) / 1e3
    }
}

/// Sends from a namespace, by a thread of its own, while `meanwhile` runs; that begins when the first has been sent.
///
/// # Errors
///
/// What `meanwhile` says, or that no socket can be opened.
pub fn during<T>(
    from: &NetNs,
    garbage: &Garbage,
    meanwhile: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, GarbageReport)> {
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_ip_transparent_v4(true)?;
        socket.bind(&SocketAddr::from((garbage.from, 0)).into())?;
        socket.connect(&SocketAddr::V4(garbage.to).into())?;
        io::Result::Ok(socket)
    };
    let socket = from.run("garbage-bind", open)?.with_context(|| format!("send to {}", garbage.to))?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndOnDrop(&ended);
        let thread = thread::Builder::new().name("garbage".to_owned());
        let (first, begun) = mpsc::channel();
        let sending = thread.spawn_scoped(scope, {
            let (socket, ended) = (&socket, &ended);
            move || send(socket, garbage, ended, first)
        })?;
        // A sender that ends before has an error to tell.
        begun.recv().ok();
        let done = meanwhile();
        drop(end);
        let report = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((done?, report))
    })
}

fn send(
    socket: &Socket,
    garbage: &Garbage,
    ended: &AtomicBool,
    first: mpsc::Sender<()>,
) -> anyhow::Result<GarbageReport> {
    let per_message = usize::from(garbage.segments.unwrap_or(1)).clamp(1, 64);
    if let (Some(_), Some(first)) = (garbage.segments, garbage.datagrams.first()) {
        setsockopt(socket, sockopt::UdpGsoSegment, &i32::try_from(first.len())?)
            .context("switch UDP_SEGMENT on")?;
    }
    let mut endless = garbage.datagrams.iter().cycle();
    // At a low rate a whole batch at once would be a burst.
    let batch = if garbage.rate.is_some() { 1 } else { BATCH };
    let payloads: Vec<Vec<u8>> =
        (0..batch).map(|_| endless.by_ref().take(per_message).flatten().copied().collect()).collect();
    let messages: Vec<_> = payloads.iter().map(|payload| [IoSlice::new(payload)]).collect();
    let addresses: Vec<Option<SockaddrStorage>> = vec![None; batch];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(batch, None);
    let started = Instant::now();
    let mut sent = 0;
    let mut first = Some(first);
    while !ended.load(Ordering::Acquire) {
        match sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &addresses, [], MsgFlags::empty()) {
            Ok(taken) => {
                sent += (taken.count() * per_message) as u64;
                // Nobody listens who has not waited for it.
                first.take().map(|first| first.send(()).ok());
            }
            // A full queue, or an ICMP answer to an earlier one: the stranger does not care.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(errno).with_context(|| format!("send garbage after {sent} datagrams")),
        }
        if let Some(rate) = garbage.rate {
            let due = started + Duration::from_secs_f64(sent as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(GarbageReport { sent, seconds: started.elapsed().as_secs_f64() })
}
