//! The memory that one worker receives into: made once, never shared, never grown.

use std::ops::Range;

use crate::sys::mmsg::Arrival;

/// Bytes of one receive slot: more than any UDP payload, coalesced or not (65 535 less the headers).
pub const SLOT_LEN: usize = 65_536;

/// Bytes of a TUN read: the virtio header and the largest IP packet, and some to see that nothing was cut.
pub const TUN_READ_LEN: usize = 65_536 + 64;

/// Slots for received datagrams, and what the kernel said about each.
///
/// A slot holds one datagram, or several of one sender back to back (`UDP_GRO`).
pub struct ReceiveBuffers {
    bytes: Box<[u8]>,
    arrivals: Box<[Arrival]>,
    filled: usize,
}

impl ReceiveBuffers {
    /// `slots` slots of [`SLOT_LEN`] bytes.
    #[must_use]
    pub fn new(slots: u16) -> Self {
        Self {
            bytes: vec![0; usize::from(slots) * SLOT_LEN].into(),
            arrivals: vec![Arrival::NONE; usize::from(slots)].into(),
            filled: 0,
        }
    }

    /// How many slots hold something since the last receive.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// What the kernel said about `slot` and the bytes it holds; `None` for a slot that holds nothing.
    pub fn filled_mut(&mut self, slot: usize) -> Option<(Arrival, &mut [u8])> {
        if slot >= self.filled {
            return None;
        }
        let arrival = self.arrivals[slot];
        let start = slot * SLOT_LEN;
        Some((arrival, &mut self.bytes[start..start + arrival.len.min(SLOT_LEN)]))
    }

    /// A piece of a slot; empty when the range is not inside the slot.
    #[must_use]
    pub fn piece(&self, slot: u16, range: Range<usize>) -> &[u8] {
        let start = usize::from(slot) * SLOT_LEN;
        self.bytes.get(start..start + SLOT_LEN).and_then(|slot| slot.get(range)).unwrap_or(&[])
    }

    /// For a receiver: every slot, and where to note what arrived. Ends with [`Self::set_filled`].
    pub fn slots_mut(&mut self) -> (impl ExactSizeIterator<Item = &mut [u8]>, &mut [Arrival]) {
        self.filled = 0;
        (self.bytes.chunks_exact_mut(SLOT_LEN), &mut self.arrivals)
    }

    /// For a receiver: the first `filled` slots and arrivals hold something.
    pub fn set_filled(&mut self, filled: usize) {
        self.filled = filled.min(self.arrivals.len());
    }
}
