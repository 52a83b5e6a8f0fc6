//! Where a worker posts its counters, and others read them whole.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use dataplane_core::Counters;
use dataplane_core::counters::WORDS;

/// The counters of one worker as of the end of its last batch. One writer, any number of readers.
///
/// A sequence number tells a reader whether the writer was at work meanwhile, so that a reading always balances:
/// `packets = passed + drops`.
pub(super) struct Board {
    /// Odd while the words are being written.
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Default for Board {
    fn default() -> Self {
        Self { sequence: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }
}

impl Board {
    /// Posts a reading. Only the owner may call this.
    pub(super) fn post(&self, counters: &Counters) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(counters.words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The last reading that was posted.
    pub(super) fn read(&self) -> Counters {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let mut words = self.words.iter().map(|word| word.load(Ordering::Relaxed));
            let counters = Counters::from_words(|| words.next().unwrap_or(0));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return counters;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_reading_is_never_half_old() {
        let board = Board::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut counters = Counters::default();
                for _ in 0..200_000 {
                    counters.rx.take(1, 10);
                    counters.rx.pass(1, 10);
                    counters.socket_overflows += 1;
                    board.post(&counters);
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                let seen = board.read();
                assert!(seen.rx.is_balanced());
                assert_eq!(seen.rx.packets, seen.socket_overflows);
            }
        });
        assert_eq!(board.read().rx.packets, 200_000);
    }
}
