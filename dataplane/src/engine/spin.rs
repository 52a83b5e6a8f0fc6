//! When a worker that has nothing to do asks again for a moment, where a sleep would cost more than it saves.
//!
//! A sleep and a wake-up cost about 10 us each in a virtual machine, which is most of a round trip. A worker therefore
//! spins if the last wait was so short that spinning would have caught its end, if what it then did was little, and if no
//! other thread wanted the CPU meanwhile. An idle worker does not spin, for its last wait was long; one under load does
//! not, for the programs at both ends need the CPU more.

use std::time::Duration;

/// The default: twice the cost of a sleep and a wake-up, at most what is wasted when nothing comes.
const USUAL: Duration = Duration::from_micros(50);
/// Another thread that keeps the CPU so long has work of its own, and a spinning worker is in its way.
const CROWDED: Duration = Duration::from_micros(50);
/// How long a worker does not spin after that.
const REST: Duration = Duration::from_millis(10);
/// More packets than these between two waits are a transfer, not a conversation.
const FEW_PACKETS: u64 = 8;

/// How long a worker may spin before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spin {
    /// 50 us where the process may use more CPUs than it has workers, else not at all.
    #[default]
    Auto,
    /// Never.
    Off,
    /// So long.
    UpTo(Duration),
}

impl Spin {
    /// The bound for one of `workers` workers where the process may use `cpus` CPUs; zero for none.
    pub(super) fn bound(self, cpus: usize, workers: usize) -> Duration {
        match self {
            Self::Auto if cpus > workers => USUAL,
            Self::Auto | Self::Off => Duration::ZERO,
            Self::UpTo(bound) => bound,
        }
    }
}

/// What a worker has learnt about its waits. All times count from the start of the worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    bound: Duration,
    hopeful: bool,
    rests_until: Duration,
}

impl Patience {
    /// Spins up to `bound`; never if it is zero.
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, hopeful: false, rests_until: Duration::ZERO }
    }

    /// Whether to spin, for a worker that is idle since `now` and has moved `packets` since its last wait.
    pub(super) fn is_worth_it(&self, now: Duration, packets: u64) -> bool {
        self.hopeful && packets <= FEW_PACKETS && now >= self.rests_until
    }

    /// Whether to go on at `now`, for a worker that is idle since `idle` and let others run since `before`.
    pub(super) fn lasts(&mut self, idle: Duration, before: Duration, now: Duration) -> bool {
        if now.saturating_sub(before) > CROWDED {
            self.rests_until = now + REST;
            return false;
        }
        now.saturating_sub(idle) < self.bound
    }

    /// Something may be read after `waited`, spinning and sleep together.
    pub(super) fn learn(&mut self, waited: Duration) {
        self.hopeful = waited < self.bound;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn an_idle_worker_sleeps_and_a_busy_one_spins() {
        let mut patience = Patience::new(50 * US);
        assert!(!patience.is_worth_it(Duration::ZERO, 2), "nothing is known yet");
        patience.learn(20 * US);
        assert!(patience.is_worth_it(100 * US, 2));
        assert!(!patience.is_worth_it(100 * US, 44), "a transfer goes on");
        assert!(patience.lasts(100 * US, 100 * US, 101 * US));
        assert!(patience.lasts(100 * US, 148 * US, 149 * US));
        assert!(!patience.lasts(100 * US, 149 * US, 150 * US), "bounded");
        patience.learn(1000 * US);
        assert!(!patience.is_worth_it(1100 * US, 2), "the last wait was longer than any spin");
        patience.learn(60 * US);
        assert!(!patience.is_worth_it(1200 * US, 2), "spinning would have missed it");
    }

    #[test]
    fn a_worker_gives_way_to_threads_with_work_of_their_own() {
        let mut patience = Patience::new(1000 * US);
        patience.learn(20 * US);
        assert!(!patience.lasts(100 * US, 110 * US, 400 * US), "the CPU was away for 290 us");
        patience.learn(20 * US);
        assert!(!patience.is_worth_it(500 * US, 2));
        assert!(patience.is_worth_it(400 * US + REST, 2));
    }

    #[test]
    fn spinning_is_off_unless_a_cpu_is_to_spare() {
        assert_eq!(Spin::Auto.bound(1, 1), Duration::ZERO);
        assert_eq!(Spin::Auto.bound(2, 1), USUAL);
        assert_eq!(Spin::Auto.bound(4, 4), Duration::ZERO);
        assert_eq!(Spin::Off.bound(64, 1), Duration::ZERO);
        let mut never = Patience::new(Spin::Off.bound(64, 1));
        never.learn(Duration::ZERO);
        assert!(!never.is_worth_it(Duration::ZERO, 2));
    }
}
