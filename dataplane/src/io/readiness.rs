//! What a worker sleeps on: its queue, its port, and what wakes it from outside.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Which side may have something to read. Set when a wait says so, cleared by `WouldBlock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The TUN queue.
    pub tun: bool,
    /// The UDP port.
    pub udp: bool,
}

impl Ready {
    /// Both sides.
    pub const BOTH: Self = Self { tun: true, udp: true };
    /// The TUN queue alone.
    pub const TUN: Self = Self { tun: true, udp: false };
    /// The UDP port alone.
    pub const UDP: Self = Self { tun: false, udp: true };

    /// What the name of a thread of this side has before its number.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::TUN => "tx-",
            Self::UDP => "rx-",
            _ => "",
        }
    }
}

/// Ends the sleep of a worker from outside.
#[derive(Clone)]
pub(crate) struct Waker(Arc<EventFd>);

impl Waker {
    /// Wakes the worker, or keeps it from its next sleep.
    pub(crate) fn wake(&self) {
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
pub(crate) struct Readiness {
    tun: Option<OwnedFd>,
    udp: Option<OwnedFd>,
    waker: Waker,
}

impl Readiness {
    /// Watches what `side` reads of the two descriptors.
    pub(crate) fn new(side: Ready, tun: BorrowedFd<'_>, udp: BorrowedFd<'_>) -> io::Result<Self> {
        let own = |wanted: bool, fd: BorrowedFd<'_>| wanted.then(|| fd.try_clone_to_owned()).transpose();
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { tun: own(side.tun, tun)?, udp: own(side.udp, udp)?, waker: Waker(Arc::new(waker)) })
    }

    /// Waits until something may be read; at once if `block` is false. Says what.
    pub(crate) fn wait(&self, block: bool) -> io::Result<Ready> {
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

    /// Ends a sleep.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
