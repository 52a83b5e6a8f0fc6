//! The thread of a worker over kernel devices: turns while there is work, sleep until there is.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::spin::Patience;
use super::worker::{Turn, Worker};
use crate::io::readiness::Readiness;
use crate::io::{Ready, TunQueue, UdpPort};

/// Takes turns until told to stop (true) or until the device or the socket is gone (false).
pub(super) fn serve<T: TunQueue, U: UdpPort>(
    worker: &mut Worker<T, U>,
    readiness: &Readiness,
    shared: &Shared,
    mut patience: Patience,
) -> bool {
    let start = Instant::now();
    let mut moved = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let now_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match worker.turn(now_ns) {
            Turn::Busy => continue,
            Turn::Ended => return false,
            Turn::Idle => {}
        }
        let idle = start.elapsed();
        let packets = worker.packets().wrapping_sub(moved);
        moved = worker.packets();
        let caught = if patience.is_worth_it(idle, packets) {
            spin(readiness, shared, &mut patience, &start, idle)
        } else {
            None
        };
        // An interrupted or failed wait finds out by reading.
        let ready = caught.map_or_else(|| readiness.wait(true), Ok).unwrap_or_else(|_| worker.side());
        patience.learn(start.elapsed().saturating_sub(idle));
        worker.set_ready(ready);
    }
    true
}

/// Asks again and again, and lets others run in between, until something may be read, patience ends or the worker shall.
fn spin(
    readiness: &Readiness,
    shared: &Shared,
    patience: &mut Patience,
    start: &Instant,
    idle: Duration,
) -> Option<Ready> {
    let mut before = idle;
    while !shared.stop.load(Ordering::Acquire) {
        match readiness.wait(false) {
            Ok(Ready { tun: false, udp: false }) | Err(_) => {}
            Ok(ready) => return Some(ready),
        }
        thread::yield_now();
        let now = start.elapsed();
        if !patience.lasts(idle, before, now) {
            return None;
        }
        before = now;
    }
    None
}
