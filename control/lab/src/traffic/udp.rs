//! UDP in one direction: datagrams of one size, as fast as they go or at a rate, in one or many flows.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt};
use serde::Serialize;

use super::Path;
use super::cpu::{CpuUse, Meter};
use super::end::EndOnDrop;

/// Datagrams of one sendmmsg(2) or recvmmsg(2).
pub(super) const BATCH: usize = 32;
/// Receive buffer asked for; without the right to force it the kernel caps it at `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Silence after the senders' end that means the path has drained.
pub(super) const DRAINED: Duration = Duration::from_millis(200);

/// What a flood looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Flood {
    /// Flows that send in turn, each from a port of its own.
    pub flows: usize,
    /// Payload bytes of a datagram.
    pub payload: usize,
    /// How long to send.
    pub duration: Duration,
    /// Datagrams a second of all flows together; as fast as it goes if `None`.
    pub rate: Option<f64>,
    /// Hand the kernel so many datagrams as one buffer (`UDP_SEGMENT`, Linux 4.18), as QUIC senders do. At most 64.
    pub segments: Option<u16>,
    /// Processes whose CPU time is reported beside this one's.
    pub watch: Vec<u32>,
}

impl Flood {
    /// One flow at full speed.
    pub fn new(payload: usize, duration: Duration) -> Self {
        Self { flows: 1, payload, duration, rate: None, segments: None, watch: Vec::new() }
    }
}

/// What was sent and what arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UdpReport {
    /// Seconds from the first send to the last.
    pub seconds: f64,
    /// Datagrams that the kernel took from the senders.
    pub sent: u64,
    /// Datagrams that the receiver read.
    pub received: u64,
    /// Datagrams of another size than was sent, among the received: 0 unless something is broken.
    pub wrong_size: u64,
    /// Thousand datagrams a second at the receiver.
    pub kilopackets_per_second: f64,
    /// Payload gigabits a second (10^9 bits) at the receiver.
    pub gigabits_per_second: f64,
    /// Share of the sent datagrams that did not arrive, 0 to 1.
    pub loss: f64,
    /// CPU time spent meanwhile.
    pub cpu: CpuUse,
}

/// Floods the path and reports what arrived.
///
/// # Errors
///
/// When sockets cannot be made, sending fails for another reason than a full queue, or no datagram at all gets through
/// within a few seconds before the flood begins.
pub fn flood(path: Path<'_>, plan: &Flood) -> anyhow::Result<UdpReport> {
    let segments = usize::from(plan.segments.unwrap_or(1));
    if plan.flows == 0
        || segments == 0
        || segments > 64
        || plan.payload == 0
        || plan.payload * segments > 65_507
    {
        bail!(
            "a UDP flood needs at least one flow, payloads of at least 1 byte, 1 to 64 segments and at most 65507 bytes in \
             all (asked: {} flows, {} bytes, {segments} segments)",
            plan.flows,
            plan.payload
        );
    }
    let receiver =
        path.to.run("udp-bind", || UdpSocket::bind(path.any_port()))?.context("bind the UDP receiver")?;
    widen_receive_buffer(&receiver);
    receiver.set_read_timeout(Some(DRAINED / 4))?;
    let at = receiver.local_addr()?;
    let senders = (0..plan.flows)
        .map(|_| {
            let open =
                || UdpSocket::bind(path.any_source()).and_then(|socket| socket.connect(at).map(|()| socket));
            let socket =
                path.from.run("udp-bind", open)?.with_context(|| format!("connect to {at} by UDP"))?;
            if plan.segments.is_some() {
                let size = i32::try_from(plan.payload).context("payload")?;
                setsockopt(&socket, sockopt::UdpGsoSegment, &size).context("switch UDP_SEGMENT on")?;
            }
            Ok(socket)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;

    if let Some(first) = senders.first() {
        wake_path(|datagram| first.send(datagram), &receiver, plan.payload)
            .with_context(|| format!("send UDP to {at}"))?;
    }
    let sending_ended = AtomicBool::new(false);
    let received = AtomicU64::new(0);
    let wrong_size = AtomicU64::new(0);
    let meter = Meter::start(&plan.watch)?;
    let started = Instant::now();
    let (sent, seconds, cpu) = thread::scope(|scope| {
        let _end = EndOnDrop(&sending_ended);
        thread::Builder::new().name("udp-recv".to_owned()).spawn_scoped(scope, || {
            receive(&receiver, plan.payload, &received, &wrong_size, &sending_ended)
        })?;
        let thread = thread::Builder::new().name("udp-send".to_owned());
        let sending = thread.spawn_scoped(scope, || send(&senders, plan, started))?;
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok((sent, started.elapsed().as_secs_f64(), meter.stop()?))
    })?;

    let counts = (sent, received.into_inner(), wrong_size.into_inner());
    Ok(UdpReport::new(plan.payload, seconds, counts, cpu))
}

impl UdpReport {
    /// `counts` are datagrams sent, received, and received with a wrong size.
    pub(super) fn new(payload: usize, seconds: f64, counts: (u64, u64, u64), cpu: CpuUse) -> Self {
        let (sent, received, wrong_size) = counts;
        let per_second = received as f64 / seconds;
        Self {
            seconds,
            sent,
            received,
            wrong_size,
            kilopackets_per_second: per_second / 1e3,
            gigabits_per_second: per_second * payload as f64 * 8.0 / 1e9,
            loss: if sent == 0 { 0.0 } else { 1.0 - received as f64 / sent as f64 },
            cpu,
        }
    }
}

/// Gets one datagram through before the flood: neighbours on the way are asked for by packets that a flood would push out
/// of the queues, and then nothing passes for a second.
pub(super) fn wake_path(
    send: impl Fn(&[u8]) -> io::Result<usize>,
    receiver: &UdpSocket,
    payload: usize,
) -> anyhow::Result<()> {
    let datagram = vec![0; payload];
    let mut buffer = vec![0; 2 * payload + 1];
    for _ in 0..100 {
        // An error here is an ICMP message about an earlier try; the last word is whether something arrives.
        send(&datagram).ok();
        if receiver.recv(&mut buffer).is_ok() {
            // More tries than one may be on the way.
            while receiver.recv(&mut buffer).is_ok() {}
            return Ok(());
        }
    }
    bail!("no datagram of {payload} bytes arrived in 5 seconds: the path is closed or loses them all")
}

/// Asks for a large buffer; a flood that overruns a small one would measure the buffer.
pub(super) fn widen_receive_buffer(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        // Refused in a user namespace. The kernel then grants what its limit allows, without an error.
        let _granted = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

/// Sends until the time is over, a batch on each socket in turn. Answers how many datagrams the kernel took.
///
/// One thread serves all flows: sixteen that never sleep would leave a machine of few CPUs no time to receive.
fn send(sockets: &[UdpSocket], plan: &Flood, started: Instant) -> anyhow::Result<u64> {
    let per_message = usize::from(plan.segments.unwrap_or(1));
    let payload = vec![0x5a; plan.payload * per_message];
    // Many flows at once come in shorter bursts each.
    let longest = BATCH / sockets.len().clamp(1, 4);
    // At a low rate a whole batch at once would be a burst, so no batch is longer than 2 ms of traffic.
    let batch =
        plan.rate.map_or(longest, |rate| ((rate * 0.002 / per_message as f64) as usize).clamp(1, longest));
    let messages = vec![[IoSlice::new(&payload)]; batch];
    let addresses: Vec<Option<SockaddrStorage>> = vec![None; batch];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(batch, None);
    let mut sent = 0_u64;
    for socket in sockets.iter().cycle() {
        if started.elapsed() >= plan.duration {
            break;
        }
        match sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &addresses, [], MsgFlags::empty()) {
            Ok(taken) => sent += (taken.count() * per_message) as u64,
            // A full device queue, or an ICMP error of an earlier datagram: both are loss on the way, not an end.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(errno).with_context(|| format!("send UDP after {sent} datagrams")),
        }
        if let Some(rate) = plan.rate {
            let due = started + Duration::from_secs_f64(sent as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(sent)
}

/// Counts until the senders have ended and nothing has come for a while.
pub(super) fn receive(
    socket: &UdpSocket,
    payload: usize,
    received: &AtomicU64,
    wrong_size: &AtomicU64,
    ended: &AtomicBool,
) {
    // One byte more than expected, so that a longer datagram is told from a right one.
    let mut buffers = vec![vec![0_u8; payload + 1]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut last = Instant::now();
    loop {
        let mut slots: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slots.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => {
                let (mut right, mut wrong) = (0, 0);
                for message in messages {
                    if message.bytes == payload { right += 1 } else { wrong += 1 }
                }
                received.fetch_add(right + wrong, Ordering::Relaxed);
                wrong_size.fetch_add(wrong, Ordering::Relaxed);
                last = Instant::now();
            }
            // EAGAIN is the read timeout; an ICMP error or a signal says nothing about the end either.
            Err(_) if ended.load(Ordering::Acquire) && last.elapsed() >= DRAINED => return,
            Err(_) => {}
        }
    }
}
