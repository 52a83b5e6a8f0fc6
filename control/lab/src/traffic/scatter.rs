//! UDP to many addresses in turn, counted where the tunnel's own datagrams arrive.
//!
//! Nobody takes them out of the tunnel at the far end: what is measured is look-up, encapsulation and sending, with one
//! receiver for one destination and for a thousand.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hostnet::netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};

use super::cpu::Meter;
use super::end::EndOnDrop;
use super::udp::{BATCH, DRAINED, UdpReport, receive, wake_path, widen_receive_buffer};

/// Discard (RFC 863): a port, where nobody needs to listen.
const PORT: u16 = 9;

/// What is sent and where it is counted.
#[derive(Debug)]
pub struct Scatter<'a> {
    /// The namespace that sends.
    pub from: &'a NetNs,
    /// Where to, one datagram each in turn.
    pub destinations: Vec<IpAddr>,
    /// Payload bytes of a datagram.
    pub payload: usize,
    /// The namespace where the tunnel's datagrams arrive, by whatever address of it.
    pub to: &'a NetNs,
    /// The tunnel's UDP port.
    pub at: u16,
    /// Payload bytes of a tunnel's datagram that carries one of ours.
    pub on_the_wire: usize,
    /// How long to send.
    pub duration: Duration,
    /// Processes whose CPU time is reported beside this one's.
    pub watch: Vec<u32>,
}

/// Sends as fast as it goes and reports what arrived on the wire. Rates are of inner payload.
///
/// # Errors
///
/// When there is no destination, sockets cannot be made, sending fails for another reason than a full queue, or nothing
/// arrives.
pub fn scatter(plan: &Scatter<'_>) -> anyhow::Result<UdpReport> {
    let first = *plan.destinations.first().context("datagrams need a destination")?;
    ensure!(first.is_ipv4(), "{first}: destinations are IPv4 addresses");
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, plan.at));
    let receiver = plan.to.run("scatter-bind", || UdpSocket::bind(everywhere))?;
    let receiver = receiver.with_context(|| format!("bind UDP port {} beside the tunnel", plan.at))?;
    widen_receive_buffer(&receiver);
    receiver.set_read_timeout(Some(DRAINED / 4))?;
    let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let sender = plan.from.run("scatter-bind", open)?.context("bind the UDP sender")?;
    wake_path(|datagram| sender.send_to(datagram, (first, PORT)), &receiver, plan.payload)
        .with_context(|| format!("send UDP to {first}"))?;

    let (ended, received, wrong_size) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let meter = Meter::start(&plan.watch)?;
    let started = Instant::now();
    let (sent, seconds, cpu) = thread::scope(|scope| {
        let _end = EndOnDrop(&ended);
        thread::Builder::new().name("scatter-recv".to_owned()).spawn_scoped(scope, || {
            receive(&receiver, plan.on_the_wire, &received, &wrong_size, &ended);
        })?;
        let sending = thread::Builder::new().name("scatter-send".to_owned());
        let sending = sending.spawn_scoped(scope, || send(&sender, plan, started))?;
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok((sent, started.elapsed().as_secs_f64(), meter.stop()?))
    })?;
    Ok(UdpReport::new(plan.payload, seconds, (sent, received.into_inner(), wrong_size.into_inner()), cpu))
}

fn send(socket: &UdpSocket, plan: &Scatter<'_>, started: Instant) -> anyhow::Result<u64> {
    let payload = vec![0x5a; plan.payload];
    let messages = vec![[IoSlice::new(&payload)]; BATCH];
    let addresses: Vec<Option<SockaddrStorage>> =
        plan.destinations.iter().map(|&ip| Some(SockaddrStorage::from(SocketAddr::new(ip, PORT)))).collect();
    // Whole batches: each begins where the one before ended, and goes round.
    let turns: Vec<Option<SockaddrStorage>> =
        addresses.iter().cycle().take(addresses.len() * BATCH).copied().collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut sent = 0;
    for batch in turns.chunks_exact(BATCH).cycle() {
        if started.elapsed() >= plan.duration {
            break;
        }
        match sendmmsg(socket.as_raw_fd(), &mut headers, &messages, batch, [], MsgFlags::empty()) {
            Ok(taken) => sent += taken.count() as u64,
            // A full device queue is loss on the way, not an end.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("send UDP after {sent} datagrams")),
        }
    }
    Ok(sent)
}
