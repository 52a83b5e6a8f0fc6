//! A train: equal segments, and a last one that may be shorter.
//!
//! A TSO read from a TUN, a UDP GSO send and a UDP GRO receive all have this shape, so one type
//! walks all three.

use core::ops::Range;

/// `len` bytes cut every `stride` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// Bytes in all.
    pub len: usize,
    /// Bytes of each segment but the last. Zero is read as "one segment" (a kernel may report it for an
    /// empty datagram).
    pub stride: usize,
}

impl Train {
    /// One segment of `len` bytes.
    #[must_use]
    pub const fn single(len: usize) -> Self {
        Self { len, stride: len }
    }

    /// How many segments: one at least, for an empty datagram is a datagram.
    #[must_use]
    pub const fn count(&self) -> usize {
        if self.len == 0 || self.stride == 0 { 1 } else { self.len.div_ceil(self.stride) }
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { len, stride } = *self;
        let stride = if stride == 0 { len } else { stride };
        (0..self.count()).map(move |i| i * stride..((i + 1) * stride).min(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn segments_cover_everything_once(len in 0usize..70_000, stride in 0usize..70_000) {
            let train = Train { len, stride };
            let mut next = 0;
            let mut count = 0;
            for segment in train.segments() {
                prop_assert_eq!(segment.start, next);
                prop_assert!(segment.end <= len);
                prop_assert!(!segment.is_empty() || len == 0);
                next = segment.end;
                count += 1;
            }
            prop_assert_eq!(next, len);
            prop_assert_eq!(count, train.count());
        }
    }
}
