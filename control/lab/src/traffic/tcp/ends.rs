//! The two ends of one TCP stream.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::{Amount, Transfer};
use crate::traffic::pattern::Pattern;

/// Bytes read so far by one receiver, for others to look at.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One stream's part of the plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    seed: u64,
    /// Bytes to send; `None`: until told to stop.
    bytes: Option<u64>,
    write: usize,
    /// Bits a second.
    rate: Option<f64>,
    check: bool,
}

impl Job {
    pub(super) fn of(plan: &Transfer, index: usize) -> Self {
        let streams = plan.streams as u64;
        let bytes = match plan.amount {
            Amount::For(_) => None,
            // The first streams carry the remainder.
            Amount::Bytes(all) => Some(all / streams + u64::from((index as u64) < all % streams)),
        };
        let rate = plan.rate.map(|all| all / plan.streams as f64);
        Self { seed: index as u64, bytes, write: plan.write, rate, check: plan.check }
    }
}

pub(super) struct Sent {
    pub(super) sha256: String,
}

pub(super) struct Received {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) first_difference: Option<u64>,
    pub(super) started: Instant,
    pub(super) last: Instant,
}

/// Writes until the job is done or `stop` is set, then closes its direction, so that the receiver sees the end.
pub(super) fn send(mut stream: TcpStream, job: Job, stop: &AtomicBool) -> anyhow::Result<Sent> {
    let mut pattern = Pattern::new(job.seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; job.write];
    pattern.fill(&mut buffer);
    let mut fresh = true;
    let mut sent = 0_u64;
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let left = job.bytes.map_or(u64::MAX, |all| all - sent);
        if left == 0 {
            break;
        }
        let size = usize::try_from(left).map_or(job.write, |left| left.min(job.write));
        if job.check {
            if !fresh {
                pattern.fill(&mut buffer);
            }
            fresh = false;
            hash.update(&buffer[..size]);
        }
        stream.write_all(&buffer[..size]).with_context(|| format!("write after {sent} bytes"))?;
        sent += size as u64;
        if let Some(rate) = job.rate {
            let due = started + Duration::from_secs_f64(sent as f64 * 8.0 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    stream.shutdown(Shutdown::Write).context("close the sending direction")?;
    Ok(Sent { sha256: hex(hash) })
}

/// Reads to the end of the stream.
pub(super) fn receive(mut stream: TcpStream, job: Job, counter: &Counter) -> anyhow::Result<Received> {
    let mut pattern = Pattern::new(job.seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut expected = vec![0; if job.check { buffer.len() } else { 0 }];
    let now = Instant::now();
    let mut received =
        Received { bytes: 0, sha256: String::new(), first_difference: None, started: now, last: now };
    loop {
        let size = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("read after {} bytes", received.bytes)),
        };
        received.last = Instant::now();
        if job.check {
            hash.update(&buffer[..size]);
            pattern.fill(&mut expected[..size]);
            let differs = buffer[..size].iter().zip(&expected).position(|(got, want)| got != want);
            received.first_difference =
                received.first_difference.or_else(|| differs.map(|offset| received.bytes + offset as u64));
        }
        received.bytes += size as u64;
        counter.0.store(received.bytes, Ordering::Relaxed);
    }
    received.sha256 = hex(hash);
    Ok(received)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
