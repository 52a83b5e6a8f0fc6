//! Datagrams waiting for one `sendmmsg`, laid out so that equal ones to one peer leave as one UDP GSO message.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::train::Train;

/// Arena bytes that one superpacket may need: more is refused, so that a batch always has room for a whole one.
pub const MAX_BYTES_PER_READ: usize = 256 * 1024;
/// Datagrams that one superpacket may become. TCP's smallest MSS of 48 bytes gives 1 365.
pub const MAX_DATAGRAMS_PER_READ: usize = 2048;

/// What the socket takes in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxLimits {
    /// Segments of one UDP GSO message: 64, from Linux 6.9 on 128, and 1 where there is no UDP GSO.
    pub max_segments: usize,
    /// UDP payload bytes of one message: 65 507 over IPv4, a little less is used over IPv6.
    pub max_bytes: usize,
}

impl TxLimits {
    /// Largest UDP payload over IPv4: 65 535 less 20 and 8.
    pub const MAX_BYTES_V4: usize = 65_507;
    /// Largest UDP payload whose IPv6 packet, header included, still fits 65 535 as GSO wants it.
    pub const MAX_BYTES_V6: usize = 65_487;

    /// One datagram a message.
    pub const SINGLE: Self = Self { max_segments: 1, max_bytes: Self::MAX_BYTES_V4 };
}

/// One message: a train of datagrams to one peer, contiguous in the arena.
#[derive(Clone, Copy, Debug)]
pub struct TxMessage {
    /// Where to.
    pub to: SocketAddr,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// First byte in the arena.
    start: usize,
    /// The datagrams.
    pub train: Train,
    /// Inner bytes, for the counters.
    pub inner_bytes: usize,
    count: usize,
    /// A shorter datagram has ended the train.
    sealed: bool,
}

impl TxMessage {
    /// How many datagrams.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }
}

/// Messages and the arena that holds their bytes; allocated once.
#[derive(Debug)]
pub struct TxBatch {
    limits: TxLimits,
    arena: Vec<u8>,
    used: usize,
    messages: Vec<TxMessage>,
}

impl TxBatch {
    /// A batch with room for at least `reads` superpackets of ordinary shape.
    #[must_use]
    pub fn new(limits: TxLimits, reads: usize) -> Self {
        Self {
            limits,
            arena: vec![0; MAX_BYTES_PER_READ + reads * 80 * 1024],
            used: 0,
            messages: Vec::with_capacity(MAX_DATAGRAMS_PER_READ + reads * 64),
        }
    }

    /// Changes the limits, as when UDP GSO is demoted. Messages already built keep their shape.
    pub fn set_limits(&mut self, limits: TxLimits) {
        self.limits = limits;
    }

    /// Whether another superpacket of any legal shape fits; if not, send and [`TxBatch::clear`] first.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.arena.len() - self.used >= MAX_BYTES_PER_READ
            && self.messages.capacity() - self.messages.len() >= MAX_DATAGRAMS_PER_READ
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes waiting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// The messages, in order.
    #[must_use]
    pub fn messages(&self) -> &[TxMessage] {
        &self.messages
    }

    /// The payload of one message.
    #[must_use]
    pub fn bytes_of(&self, message: &TxMessage) -> &[u8] {
        self.arena.get(message.start..message.start + message.train.len).unwrap_or_default()
    }

    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.used = 0;
        self.messages.clear();
    }

    /// Room for the next datagram of `len` bytes, `inner` of them inner: appended to the last message where
    /// peer, TOS, size and limits allow, else in a message of its own. `None` if the batch is full.
    #[inline]
    pub fn push(&mut self, to: SocketAddr, tos: u8, len: usize, inner: usize) -> Option<&mut [u8]> {
        let start = self.used;
        let room = self.arena.get_mut(start..start + len)?;
        let joined = self.messages.last_mut().is_some_and(|last| {
            let fits = !last.sealed
                && last.to == to
                && last.tos == tos
                && len <= last.train.stride
                && len > 0
                && last.count < self.limits.max_segments
                && last.train.len + len <= self.limits.max_bytes;
            if fits {
                last.train.len += len;
                last.inner_bytes += inner;
                last.count += 1;
                last.sealed = len < last.train.stride;
            }
            fits
        });
        if !joined {
            // A growing Vec would allocate on the packet path: full is full.
            if self.messages.len() == self.messages.capacity() {
                return None;
            }
            self.messages.push(TxMessage {
                to,
                tos,
                start,
                train: Train::single(len),
                inner_bytes: inner,
                count: 1,
                sealed: false,
            });
        }
        self.used += len;
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Oracle 5: whatever is pushed, a model of UDP_SEGMENT cuts the same datagrams out again, in order,
        /// and every message obeys the kernel's limits.
        #[test]
        fn messages_cut_into_the_datagrams_that_were_pushed(
            pushes in proptest::collection::vec((0u16..3, 0u8..2, 1usize..1500), 1..400),
            max_segments in 1usize..=128,
        ) {
            let limits = TxLimits { max_segments, max_bytes: TxLimits::MAX_BYTES_V4 };
            let mut batch = TxBatch::new(limits, 8);
            let mut expected: Vec<(SocketAddr, u8, usize, u8)> = Vec::new();
            for (i, (peer, tos, len)) in pushes.into_iter().enumerate() {
                let to = SocketAddr::from(([192, 0, 2, peer as u8], 8472));
                let Some(room) = batch.push(to, tos, len, len) else { break };
                room.fill(i as u8);
                expected.push((to, tos, len, i as u8));
            }
            let mut sent: Vec<(SocketAddr, u8, usize, u8)> = Vec::new();
            for message in batch.messages() {
                let bytes = batch.bytes_of(message);
                prop_assert_eq!(message.count(), message.train.count());
                prop_assert!(message.count() <= max_segments);
                prop_assert!(message.count() == 1 || bytes.len() <= limits.max_bytes);
                for segment in message.train.segments() {
                    let datagram = &bytes[segment];
                    prop_assert!(datagram.iter().all(|byte| *byte == datagram[0]));
                    sent.push((message.to, message.tos, datagram.len(), datagram[0]));
                }
            }
            prop_assert_eq!(sent, expected);
        }
    }
}
