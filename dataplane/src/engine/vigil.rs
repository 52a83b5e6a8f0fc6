//! When a worker lets its socket refuse garbage: while so much comes that receiving it would starve the peers.
//!
//! Below that, every bad datagram is received and counted under its own reason. Above, the kernel counts what its filter
//! refuses together with what found no room.

/// How long garbage is counted before it is judged, in nanoseconds.
const WINDOW: u64 = 100_000_000;
/// More garbage in a window than this is a flood: 100 000 a second take a tenth of a CPU or more.
const MANY: u64 = 10_000;
/// How long the socket refuses before the worker looks again whether it still comes. A look costs [`MANY`] datagrams.
const RAISED: u64 = 1_000_000_000;
/// A flood is said once, and again after so long without one.
const FORGET: u64 = 60_000_000_000;

/// What to do about the socket's filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Attach it; `first` if nothing was said of this flood yet.
    Raise {
        /// The flood is news.
        first: bool,
    },
    /// Take it away.
    Lower,
    /// Leave it as it is.
    Stay,
}

/// What a worker knows about the garbage that it gets. All times are nanoseconds on the worker's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vigil {
    /// When the window began, and the garbage counted until then.
    window: (u64, u64),
    raised_until: Option<u64>,
    said: Option<u64>,
    /// The socket takes no filter.
    given_up: bool,
}

impl Vigil {
    /// Judges at `now`, when `garbage` datagrams have been refused since the start.
    pub(super) fn look(&mut self, now: u64, garbage: u64) -> Order {
        if let Some(until) = self.raised_until {
            if now < until {
                return Order::Stay;
            }
            self.raised_until = None;
            self.window = (now, garbage);
            return Order::Lower;
        }
        let (begin, before) = self.window;
        if garbage.wrapping_sub(before) >= MANY && !self.given_up {
            self.raised_until = Some(now.saturating_add(RAISED));
            let first = self.said.is_none_or(|said| now.saturating_sub(said) > FORGET);
            self.said = Some(now);
            return Order::Raise { first };
        }
        if now.saturating_sub(begin) >= WINDOW {
            self.window = (now, garbage);
        }
        Order::Stay
    }

    /// The socket refuses garbage by itself.
    pub(super) fn is_raised(&self) -> bool {
        self.raised_until.is_some()
    }

    /// The socket takes no filter: never ask again.
    pub(super) fn give_up(&mut self) {
        self.raised_until = None;
        self.given_up = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_raises_the_filter_for_a_second_and_is_said_once() {
        let mut vigil = Vigil::default();
        assert_eq!(vigil.look(0, 0), Order::Stay);
        assert_eq!(vigil.look(50_000_000, MANY - 1), Order::Stay);
        assert_eq!(vigil.look(60_000_000, MANY), Order::Raise { first: true });
        assert!(vigil.is_raised());
        assert_eq!(vigil.look(60_000_000 + RAISED - 1, MANY), Order::Stay);
        assert_eq!(vigil.look(60_000_000 + RAISED, MANY), Order::Lower);
        assert!(!vigil.is_raised());
        let again = 70_000_000 + RAISED;
        assert_eq!(vigil.look(again, 2 * MANY), Order::Raise { first: false }, "the same flood");
        assert_eq!(vigil.look(again + RAISED, 2 * MANY), Order::Lower);
        let much_later = again + FORGET + 2 * RAISED;
        assert_eq!(vigil.look(much_later, 2 * MANY), Order::Stay);
        assert_eq!(vigil.look(much_later + 1, 3 * MANY), Order::Raise { first: true }, "another one");
    }

    #[test]
    fn a_trickle_of_garbage_is_received_and_counted() {
        let mut vigil = Vigil::default();
        for at in 0..1000 {
            assert_eq!(vigil.look(at * WINDOW, at * (MANY - 1)), Order::Stay);
        }
    }

    #[test]
    fn a_socket_that_takes_no_filter_is_not_asked_again() {
        let mut vigil = Vigil::default();
        assert_eq!(vigil.look(1, MANY), Order::Raise { first: true });
        vigil.give_up();
        assert!(!vigil.is_raised());
        assert_eq!(vigil.look(2, 5 * MANY), Order::Stay);
    }
}
