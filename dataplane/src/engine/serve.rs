//! The thread of a worker over kernel devices: turns while there is work, sleep until there is.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token, Waker};

use super::shared::Shared;
use super::spin::Patience;
use super::worker::{Turn, Worker};
use crate::io::{TunQueue, UdpPort};

const TUN: Token = Token(0);
const UDP: Token = Token(1);
const WAKE: Token = Token(2);

/// A poll over the descriptors of one worker, and what wakes it from outside.
pub(super) struct Readiness {
    poll: Poll,
    waker: Arc<Waker>,
}

impl Readiness {
    /// Watches both descriptors for something to read. The descriptors must outlive it.
    pub(super) fn new(tun: RawFd, udp: RawFd) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&tun), TUN, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&udp), UDP, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok(Self { poll, waker })
    }

    /// Asks again and again, and lets others run in between, until something may be read (true) or patience ends.
    fn spin(
        &mut self,
        events: &mut mio::Events,
        patience: &mut Patience,
        start: &Instant,
        idle: Duration,
    ) -> bool {
        let mut before = idle;
        loop {
            if self.poll.poll(events, Some(Duration::ZERO)).is_err() || !events.is_empty() {
                return !events.is_empty();
            }
            thread::yield_now();
            let now = start.elapsed();
            if !patience.lasts(idle, before, now) {
                return false;
            }
            before = now;
        }
    }

    /// Ends a sleep.
    pub(super) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }
}

/// Takes turns until told to stop (true) or until the device or the socket is gone (false).
pub(super) fn serve<T: TunQueue, U: UdpPort>(
    worker: &mut Worker<T, U>,
    readiness: &mut Readiness,
    shared: &Shared,
    mut patience: Patience,
) -> bool {
    let start = Instant::now();
    let mut events = mio::Events::with_capacity(8);
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
        let caught =
            patience.is_worth_it(idle, packets) && readiness.spin(&mut events, &mut patience, &start, idle);
        // An interrupted or failed wait finds out by reading.
        let waited = if caught { Ok(()) } else { readiness.poll.poll(&mut events, None) };
        patience.learn(start.elapsed().saturating_sub(idle));
        let ready = worker.ready_mut();
        ready.tun |= waited.is_err();
        ready.udp |= waited.is_err();
        for event in &events {
            ready.tun |= event.token() == TUN;
            ready.udp |= event.token() == UDP;
        }
    }
    true
}
