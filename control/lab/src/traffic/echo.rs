//! There and back: round-trip times of small datagrams, and content of every size that must return unchanged.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::end::EndOnDrop;
use super::pattern::Pattern;
use super::{Path, percentile};

/// How long one answer may take before it counts as lost.
const ANSWER: Duration = Duration::from_secs(1);
/// How often a size is tried again before it counts as not getting through.
const TRIES: u32 = 3;
/// A series ends after so many lost sizes: the path is broken, and each costs seconds.
const MOST_LOST: usize = 10;
/// How often the echoing side looks whether it should end.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Round-trip times of a series, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RttReport {
    /// Datagrams that came back.
    pub count: usize,
    /// Datagrams without an answer within a second; each stands in the figures below as that second.
    pub lost: usize,
    /// The shortest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// Ninety-nine of a hundred are not longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Which sizes came back, of a series of sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SizesReport {
    /// Sizes that came back with equal content.
    pub returned: usize,
    /// Sizes that did not come back in any try.
    pub lost: Vec<usize>,
    /// Sizes that came back with another length or content.
    pub damaged: Vec<usize>,
    /// Datagrams that had to be sent again.
    pub retried: u32,
}

impl SizesReport {
    /// Every size came back unchanged.
    pub fn all_returned(&self) -> bool {
        self.returned > 0 && self.lost.is_empty() && self.damaged.is_empty()
    }
}

/// Sends `count` datagrams of `payload` bytes one after the other, each when the one before has come back, with `pause`
/// between them so that every wake-up is from idle.
///
/// # Errors
///
/// When sockets cannot be made, or no datagram at all came back.
pub fn udp_round_trips(
    path: Path<'_>,
    payload: usize,
    count: usize,
    pause: Duration,
) -> anyhow::Result<RttReport> {
    round_trips(path, payload, pause, |sent, _| sent < count)
}

/// The same for so long.
///
/// # Errors
///
/// As [`udp_round_trips`].
pub fn udp_round_trips_for(
    path: Path<'_>,
    payload: usize,
    duration: Duration,
    pause: Duration,
) -> anyhow::Result<RttReport> {
    round_trips(path, payload, pause, |_, started| started.elapsed() < duration)
}

fn round_trips(
    path: Path<'_>,
    payload: usize,
    pause: Duration,
    goes_on: impl Fn(usize, Instant) -> bool,
) -> anyhow::Result<RttReport> {
    let payload = payload.max(8);
    with_udp_echo(path, |socket| {
        // The first datagram of a path waits for neighbours to be found; it is not measured.
        for _ in 0..TRIES {
            if exchange(socket, b"wake up!", &mut [0; 9], |got| got == b"wake up!")?.is_some() {
                break;
            }
        }
        let mut samples = Vec::new();
        let (mut sent, mut lost) = (0_usize, 0);
        let mut answer = vec![0; payload + 1];
        let mut question = vec![0; payload];
        let started = Instant::now();
        while goes_on(sent, started) {
            question[..8].copy_from_slice(&(sent as u64).to_be_bytes());
            let asked = Instant::now();
            if exchange(socket, &question, &mut answer, |got| got == question)?.is_none() {
                lost += 1;
            }
            samples.push(asked.elapsed().as_secs_f64() * 1e6);
            sent += 1;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        if lost == sent {
            bail!("none of {sent} datagrams to {} came back", path.address);
        }
        samples.sort_by(f64::total_cmp);
        Ok(RttReport {
            count: sent - lost,
            lost,
            min: percentile(&samples, 0.0),
            p50: percentile(&samples, 50.0),
            p99: percentile(&samples, 99.0),
            max: percentile(&samples, 100.0),
        })
    })
}

/// Sends one datagram of every size and compares what comes back. Sizes above the MTU travel as fragments. Ends early when
/// ten sizes were lost.
///
/// # Errors
///
/// When sockets cannot be made, or a size is larger than a datagram can be.
pub fn udp_sizes(
    path: Path<'_>,
    sizes: impl IntoIterator<Item = usize> + Send,
) -> anyhow::Result<SizesReport> {
    with_udp_echo(path, |socket| {
        let mut report = SizesReport::default();
        let mut answer = vec![0; 65_536];
        for size in sizes {
            let mut question = vec![0; size];
            Pattern::new(size as u64).fill(&mut question);
            let mut outcome = None;
            for attempt in 0..TRIES {
                report.retried += u32::from(attempt > 0);
                // Each size is asked for once, so the length tells a late answer; the content is compared below.
                outcome = exchange(socket, &question, &mut answer, |got| got.len() == size)?;
                if outcome.is_some() {
                    break;
                }
            }
            match outcome {
                Some(length) if answer.get(..length) == Some(&question[..]) => report.returned += 1,
                Some(_) => report.damaged.push(size),
                None => report.lost.push(size),
            }
            if report.lost.len() >= MOST_LOST {
                break;
            }
        }
        Ok(report)
    })
}

/// Writes blocks of every size to one TCP connection and compares what comes back. `TCP_NODELAY` is on.
///
/// # Errors
///
/// When the connection cannot be made or breaks.
pub fn tcp_sizes(path: Path<'_>, sizes: impl IntoIterator<Item = usize>) -> anyhow::Result<SizesReport> {
    let listener =
        path.to.run("tcp-echo", || TcpListener::bind(path.any_port()))?.context("bind the TCP echo")?;
    let at = listener.local_addr()?;
    let mut stream = path
        .from
        .run("tcp-echo", || TcpStream::connect_timeout(&at, ANSWER * 10))?
        .with_context(|| format!("connect to {at} by TCP"))?;
    let (mirror, _) = listener.accept().with_context(|| format!("accept on {at}"))?;
    for end in [&stream, &mirror] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(ANSWER * 15))?;
        end.set_write_timeout(Some(ANSWER * 15))?;
    }
    thread::scope(|scope| {
        let echo = thread::Builder::new().name("tcp-echo".to_owned());
        echo.spawn_scoped(scope, || reflect(mirror))?;
        let mut report = SizesReport::default();
        for size in sizes {
            let mut question = vec![0; size];
            let mut answer = vec![0; size];
            Pattern::new(size as u64).fill(&mut question);
            stream.write_all(&question).with_context(|| format!("write a block of {size} bytes"))?;
            stream.read_exact(&mut answer).with_context(|| format!("read a block of {size} bytes back"))?;
            if answer == question { report.returned += 1 } else { report.damaged.push(size) }
        }
        // The mirror's read ends with this, and its thread with it.
        drop(stream);
        Ok(report)
    })
}

/// Copies everything back to where it came from. Ends with the connection, whose other end reports any error.
fn reflect(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(size) = stream.read(&mut buffer) {
        if size == 0 || stream.write_all(&buffer[..size]).is_err() {
            return;
        }
    }
}

/// Sends one question and waits for its answer, which `is_answer` tells from late answers to earlier questions.
/// The answer's length, or `None` after a second without one.
fn exchange(
    socket: &UdpSocket,
    question: &[u8],
    answer: &mut [u8],
    is_answer: impl Fn(&[u8]) -> bool,
) -> anyhow::Result<Option<usize>> {
    let deadline = Instant::now() + ANSWER;
    socket.send(question).with_context(|| format!("send a datagram of {} bytes", question.len()))?;
    while Instant::now() < deadline {
        match socket.recv(answer) {
            Ok(length) if answer.get(..length).is_some_and(&is_answer) => return Ok(Some(length)),
            Ok(_) => {}
            // The read timeout, or an ICMP error of an earlier question: the deadline decides.
            Err(error) if is_passing(error.kind()) => {}
            Err(error) => return Err(error).context("receive a datagram"),
        }
    }
    Ok(None)
}

fn is_passing(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused)
}

/// Runs `ask` with a socket whose peer, at the far end of the path, sends everything back.
fn with_udp_echo<T>(path: Path<'_>, ask: impl FnOnce(&UdpSocket) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mirror =
        path.to.run("udp-echo", || UdpSocket::bind(path.any_port()))?.context("bind the UDP echo")?;
    mirror.set_read_timeout(Some(LOOK_UP))?;
    let at: SocketAddr = mirror.local_addr()?;
    let open = || UdpSocket::bind(path.any_source()).and_then(|socket| socket.connect(at).map(|()| socket));
    let socket = path.from.run("udp-ask", open)?.with_context(|| format!("connect to {at} by UDP"))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = EndOnDrop(&done);
        let echo = thread::Builder::new().name("udp-echo".to_owned());
        echo.spawn_scoped(scope, || {
            let mut buffer = vec![0; 65_536];
            while !done.load(Ordering::Acquire) {
                if let Ok((length, from)) = mirror.recv_from(&mut buffer) {
                    // What cannot be sent back is lost, and the asking side sees that.
                    let _sent = mirror.send_to(&buffer[..length], from);
                }
            }
        })?;
        ask(&socket)
    })
}
