//! How often to try again what somebody else has to make possible: each second at first, then less and less.

use std::time::Duration;

/// The pause for the first minute: who mends something looks whether it helped.
const FIRST: Duration = Duration::from_secs(1);
/// How many tries that is.
const EAGER: u32 = 60;
/// The longest pause: a store that comes back to a thousand nodes has a calm start, and none waits long.
const LONGEST: Duration = Duration::from_secs(30);

/// The pauses between tries. A success ends it; the next trouble has a pace of its own.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    tries: u32,
}

impl Pace {
    /// The pause before the next try. `random` draws from 0 to 1, so that nodes that lost one store together do not ask
    /// it in step.
    pub(super) fn pause(&mut self, random: impl FnOnce() -> f64) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let doublings = self.tries.saturating_sub(EAGER).min(8);
        let pause = (FIRST * (1 << doublings)).min(LONGEST);
        // From four fifths of the pause to all of it.
        pause.mul_f64(0.8 + 0.2 * random().clamp(0.0, 1.0))
    }

    /// Somebody asks for eagerness.
    pub(super) fn begin_again(&mut self) {
        self.tries = 0;
    }
}

/// Says a trouble once, however often it is met.
#[derive(Debug, Clone, Default)]
pub(super) struct Saying {
    last: Option<String>,
}

impl Saying {
    /// True the first time, and whenever it is another trouble than the last.
    pub(super) fn is_news(&mut self, trouble: &str) -> bool {
        if self.last.as_deref() == Some(trouble) {
            return false;
        }
        self.last = Some(trouble.to_owned());
        true
    }

    /// The trouble, while there is one.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// It is over. True if there was one.
    pub(super) fn is_over(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_seconds_then_at_most_two_tries_a_minute() {
        let mut pace = Pace::default();
        let first: Duration = (0..EAGER).map(|_| pace.pause(|| 1.0)).sum();
        assert_eq!(first, Duration::from_secs(60));
        let growing: Vec<_> = (0..6).map(|_| pace.pause(|| 1.0).as_secs()).collect();
        assert_eq!(growing, [2, 4, 8, 16, 30, 30]);
        for _ in 0..100_000 {
            assert_eq!(pace.pause(|| 1.0), LONGEST);
        }
        assert_eq!(pace.pause(|| 0.0), LONGEST.mul_f64(0.8));
        pace.begin_again();
        assert_eq!(pace.pause(|| 1.0), FIRST);
    }

    #[test]
    fn the_same_trouble_is_said_once() {
        let mut saying = Saying::default();
        assert!(!saying.is_over());
        assert!(saying.is_news("a") && !saying.is_news("a") && saying.is_news("b"));
        assert!(saying.is_over() && saying.is_news("b"));
    }
}
