//! Content that a receiver can check without having been told it: a pseudo-random stream known by its seed.

/// An endless byte stream; the same seed gives the same bytes. Xorshift64*, eight bytes a step.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    state: u64,
    left: [u8; 8],
    used: usize,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift cannot leave; the multiplication spreads small seeds over all bits.
        let state = (seed.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { state, left: [0; 8], used: 8 }
    }

    /// Writes the next `out.len()` bytes of the stream.
    pub(super) fn fill(&mut self, out: &mut [u8]) {
        let carried = out.len().min(8 - self.used);
        let (head, rest) = out.split_at_mut(carried);
        head.copy_from_slice(&self.left[self.used..self.used + carried]);
        self.used += carried;
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.step());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.left = self.step();
            self.used = tail.len();
            tail.copy_from_slice(&self.left[..tail.len()]);
        }
    }

    fn step(&mut self) -> [u8; 8] {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn stream_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        Pattern::new(3).fill(&mut whole);
        let mut cut = vec![0; 1000];
        let mut pattern = Pattern::new(3);
        let mut rest = cut.as_mut_slice();
        for size in [1, 7, 8, 9, 0, 3, 200, 772] {
            let (head, tail) = rest.split_at_mut(size);
            pattern.fill(head);
            rest = tail;
        }
        assert!(rest.is_empty());
        assert_eq!(whole, cut);
    }

    #[test]
    fn seeds_differ() {
        let (mut one, mut two) = ([0; 64], [0; 64]);
        Pattern::new(0).fill(&mut one);
        Pattern::new(1).fill(&mut two);
        assert_ne!(one, two);
    }
}
