//! Bulk TCP: one or many streams, for a time or for a number of bytes; counted, and checked if asked, at the receiver.

mod ends;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::Path;
use super::cpu::{CpuUse, Meter};
use super::end::EndOnDrop;
use ends::{Counter, Received, Sent};

/// A receiver that gets nothing for this long, or a sender that can send nothing, gives up: the path is broken.
const STALL: Duration = Duration::from_secs(15);
/// How long a connection may take to be made: a lost SYN costs 1, 2, then 4 seconds.
const CONNECT: Duration = Duration::from_secs(10);

/// How much to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// As much as goes in this time, after the warm-up.
    For(Duration),
    /// Exactly so many bytes, shared out over the streams.
    Bytes(u64),
}

/// What a transfer looks like. [`Transfer::timed`] and [`Transfer::bytes`] give one plain stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// Connections that send at once.
    pub streams: usize,
    /// When it ends.
    pub amount: Amount,
    /// Not counted at the start of a timed transfer: slow start, first cache misses.
    pub warm_up: Duration,
    /// Bytes of one write(2). Small ones come with `TCP_NODELAY`, so each becomes a packet.
    pub write: usize,
    /// Bits a second of all streams together; as fast as it goes if `None`.
    pub rate: Option<f64>,
    /// Sends content that the receiver knows and compares, and takes SHA-256 of both ends. Costs CPU time.
    pub check: bool,
    /// Processes whose CPU time is reported beside this one's.
    pub watch: Vec<u32>,
}

impl Transfer {
    /// One stream for a time, with a warm-up of a fifth of it.
    pub fn timed(duration: Duration) -> Self {
        Self { amount: Amount::For(duration), warm_up: duration / 5, ..Self::bytes(0) }
    }

    /// One stream of so many bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self {
            streams: 1,
            amount: Amount::Bytes(bytes),
            warm_up: Duration::ZERO,
            write: 128 * 1024,
            rate: None,
            check: false,
            watch: Vec::new(),
        }
    }

    /// The same with so many streams.
    #[must_use]
    pub fn streams(self, streams: usize) -> Self {
        Self { streams, ..self }
    }

    /// The same with content checked and hashed.
    #[must_use]
    pub fn checked(self) -> Self {
        Self { check: true, ..self }
    }

    /// Below this a write is meant to be seen on the wire by itself.
    fn small_writes(&self) -> bool {
        self.write < 1400
    }
}

/// What arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpReport {
    /// Seconds that the figures cover.
    pub seconds: f64,
    /// Payload bytes that the receiver read in that time.
    pub bytes: u64,
    /// Payload gigabits a second (10^9 bits) at the receiver.
    pub gigabits_per_second: f64,
    /// Bytes of each stream.
    pub per_stream: Vec<u64>,
    /// Jain's index over the streams: 1 when all got the same, 1/n when one got all.
    pub fairness: f64,
    /// What became of the content, where it was checked.
    pub integrity: Option<Integrity>,
    /// CPU time spent meanwhile.
    pub cpu: CpuUse,
    /// Busy CPU seconds of the machine for each gigabit received.
    pub cpu_seconds_per_gigabit: f64,
}

/// The two ends' views of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Integrity {
    /// SHA-256 of what each stream's sender wrote, in hex.
    pub sent: Vec<String>,
    /// SHA-256 of what each stream's receiver read, in hex.
    pub received: Vec<String>,
    /// Position of the first byte of each stream that differed from the known content.
    pub first_difference: Vec<Option<u64>>,
}

impl Integrity {
    /// Every stream arrived whole and unchanged.
    pub fn intact(&self) -> bool {
        self.sent == self.received && self.first_difference.iter().all(Option::is_none)
    }
}

/// Runs a transfer over the path and reports what arrived.
///
/// # Errors
///
/// When a connection cannot be made, breaks, or stands still for 15 s: with what was being done and with whom.
pub fn transfer(path: Path<'_>, plan: &Transfer) -> anyhow::Result<TcpReport> {
    if plan.streams == 0 || plan.write == 0 {
        bail!("a TCP transfer needs at least one stream and one byte a write");
    }
    let (senders, receivers) = connect(path, plan)?;
    let counters: Vec<Counter> = (0..plan.streams).map(|_| Counter::default()).collect();
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        // However this scope is left, the senders end: a scope waits for its threads.
        let stop_senders = EndOnDrop(&stop);
        let whole = Meter::start(&plan.watch)?;
        let mut receiving = Vec::new();
        let mut sending = Vec::new();
        for (index, ((sender, receiver), counter)) in
            senders.into_iter().zip(receivers).zip(&counters).enumerate()
        {
            let name = |end| thread::Builder::new().name(format!("tcp-{end}-{index}"));
            let job = ends::Job::of(plan, index);
            receiving.push(name("recv").spawn_scoped(scope, move || ends::receive(receiver, job, counter))?);
            let stop = &stop;
            sending.push(name("send").spawn_scoped(scope, move || ends::send(sender, job, stop))?);
        }

        let window = match plan.amount {
            Amount::For(duration) => {
                thread::sleep(plan.warm_up);
                Some(Window::measure(duration, &counters, &plan.watch))
            }
            Amount::Bytes(_) => None,
        };
        if window.is_some() {
            drop(stop_senders);
        }
        let sent = join_all(sending).context("TCP sender")?;
        let received = join_all(receiving).context("TCP receiver")?;
        let window = match window {
            Some(window) => window?,
            None => Window::whole(&received, whole.stop()?),
        };
        Ok(report(plan, window, &sent, &received))
    })
}

/// What was read in the time that counts.
struct Window {
    seconds: f64,
    per_stream: Vec<u64>,
    cpu: CpuUse,
}

impl Window {
    fn measure(duration: Duration, counters: &[Counter], watch: &[u32]) -> anyhow::Result<Self> {
        let read = || counters.iter().map(Counter::bytes).collect::<Vec<u64>>();
        let meter = Meter::start(watch)?;
        let (started, before) = (Instant::now(), read());
        thread::sleep(duration);
        let (seconds, after) = (started.elapsed().as_secs_f64(), read());
        let per_stream = after.iter().zip(before).map(|(after, before)| after - before).collect();
        Ok(Self { seconds, per_stream, cpu: meter.stop()? })
    }

    fn whole(received: &[Received], cpu: CpuUse) -> Self {
        let started = received.iter().map(|stream| stream.started).min();
        let last = received.iter().map(|stream| stream.last).max();
        let seconds = started.zip(last).map_or(0.0, |(started, last)| (last - started).as_secs_f64());
        Self { seconds, per_stream: received.iter().map(|stream| stream.bytes).collect(), cpu }
    }
}

fn report(plan: &Transfer, window: Window, sent: &[Sent], received: &[Received]) -> TcpReport {
    let bytes: u64 = window.per_stream.iter().sum();
    let gigabits = bytes as f64 * 8.0 / 1e9;
    let integrity = plan.check.then(|| Integrity {
        sent: sent.iter().map(|stream| stream.sha256.clone()).collect(),
        received: received.iter().map(|stream| stream.sha256.clone()).collect(),
        first_difference: received.iter().map(|stream| stream.first_difference).collect(),
    });
    TcpReport {
        seconds: window.seconds,
        bytes,
        gigabits_per_second: gigabits / window.seconds.max(f64::MIN_POSITIVE),
        fairness: jain(&window.per_stream),
        per_stream: window.per_stream,
        integrity,
        cpu_seconds_per_gigabit: window.cpu.machine / gigabits.max(f64::MIN_POSITIVE),
        cpu: window.cpu,
    }
}

/// Jain's fairness index: (Σx)² / (n·Σx²).
fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|&share| share as f64).sum();
    let squares: f64 = shares.iter().map(|&share| (share as f64).powi(2)).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// Opens all connections; the n-th sender is joined to the n-th receiver.
fn connect(path: Path<'_>, plan: &Transfer) -> anyhow::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let listener = path
        .to
        .run("tcp-listen", || TcpListener::bind(path.any_port()))?
        .with_context(|| format!("listen on {} for TCP", path.address))?;
    let at: SocketAddr = listener.local_addr()?;
    let mut senders = Vec::with_capacity(plan.streams);
    let mut receivers = Vec::with_capacity(plan.streams);
    for _ in 0..plan.streams {
        let sender = path
            .from
            .run("tcp-connect", || TcpStream::connect_timeout(&at, CONNECT))?
            .with_context(|| format!("connect to {at} by TCP"))?;
        sender.set_write_timeout(Some(STALL))?;
        sender.set_nodelay(plan.small_writes())?;
        let (receiver, _) = listener.accept().with_context(|| format!("accept on {at}"))?;
        receiver.set_read_timeout(Some(STALL))?;
        senders.push(sender);
        receivers.push(receiver);
    }
    Ok((senders, receivers))
}

fn join_all<T>(threads: Vec<thread::ScopedJoinHandle<'_, anyhow::Result<T>>>) -> anyhow::Result<Vec<T>> {
    let join = |thread: thread::ScopedJoinHandle<'_, _>| {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    };
    // All are joined before the first error is looked at, so that none is left running behind it.
    let ended: Vec<_> = threads.into_iter().map(join).collect();
    ended.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::jain;

    #[test]
    fn fairness_is_one_for_equal_shares_and_one_nth_for_a_single_winner() {
        assert!((jain(&[5, 5, 5, 5]) - 1.0).abs() < 1e-12);
        assert!((jain(&[8, 0, 0, 0]) - 0.25).abs() < 1e-12);
        assert!((jain(&[0, 0]) - 1.0).abs() < 1e-12);
    }
}
