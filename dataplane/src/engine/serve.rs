//! The thread of a worker over kernel devices: turns while there is work, sleep until there is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::shared::Shared;
use super::spin::Patience;
use super::worker::{Ready, Turn, Worker};
use crate::io::{TunQueue, UdpPort};

/// Ends the sleep of a worker from outside.
#[derive(Clone)]
pub(super) struct Waker(Arc<EventFd>);

impl Waker {
    /// Wakes the worker, or keeps it from its next sleep.
    pub(super) fn wake(&self) {
        // A counter that is full wakes as well.
        self.0.write(1).ok();
    }
}

/// What one worker sleeps on: the descriptors that it reads, and what wakes it from outside.
///
/// It is poll(2) and not epoll (mio): a descriptor in an epoll set has a sleeper at all times, and the kernel asks that
/// sleeper's opinion for every segment that a socket has finished sending (`sock_wfree`) and for every datagram that it
/// receives, which was 3 % of the machine in bulk TCP. A worker under load sleeps some hundred times a second, so
/// setting up a poll of three costs nothing.
pub(super) struct Readiness {
    tun: Option<OwnedFd>,
    udp: Option<OwnedFd>,
    waker: Waker,
}

impl Readiness {
    /// Watches what `side` reads of the two descriptors.
    pub(super) fn new(side: Ready, tun: BorrowedFd<'_>, udp: BorrowedFd<'_>) -> io::Result<Self> {
        let own = |wanted: bool, fd: BorrowedFd<'_>| wanted.then(|| fd.try_clone_to_owned()).transpose();
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { tun: own(side.tun, tun)?, udp: own(side.udp, udp)?, waker: Waker(Arc::new(waker)) })
    }

    /// Waits until something may be read; at once if `block` is false. Says what.
    fn wait(&self, block: bool) -> Result<Ready, Errno> {
        let waker = self.waker.0.as_fd();
        // The waker in the place of a descriptor that is not watched keeps the set an array.
        let [tun, udp] = [&self.tun, &self.udp].map(|fd| fd.as_ref().map_or(waker, AsFd::as_fd));
        let mut set = [tun, udp, waker].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut set, if block { PollTimeout::NONE } else { PollTimeout::ZERO })?;
        let [tun, udp, woken] = set.map(|entry| entry.any().unwrap_or(true));
        // A spinning worker leaves it: its sleep then ends at once. Nothing is lost if it is woken again at this moment,
        // for a turn follows.
        if woken && block {
            self.waker.0.read().ok();
        }
        Ok(Ready { tun: tun && self.tun.is_some(), udp: udp && self.udp.is_some() })
    }

    /// Asks again and again, and lets others run in between, until something may be read or patience ends.
    fn spin(&self, patience: &mut Patience, start: &Instant, idle: Duration) -> Option<Ready> {
        let mut before = idle;
        loop {
            match self.wait(false) {
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
    }

    /// Ends a sleep.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

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
            readiness.spin(&mut patience, &start, idle)
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
