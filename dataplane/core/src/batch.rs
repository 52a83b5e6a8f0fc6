//! Datagrams waiting for one `sendmmsg`, laid out so that equal ones to one peer leave as one UDP GSO message.
//!
//! Packets of several flows and peers come in any mixture. Several messages are therefore open at once, each with
//! room behind it, and a datagram joins the one that it fits. The order within a flow is kept: a datagram never joins
//! a message before the one that holds its flow's last datagram, and messages of one lane are sent in order.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::train::Train;

/// Arena bytes that one superpacket may need: more is refused, so that a batch always has room for a whole one.
pub const MAX_BYTES_PER_READ: usize = 256 * 1024;
/// Datagrams that one superpacket may become. TCP's smallest MSS of 48 bytes gives 1 365.
pub const MAX_DATAGRAMS_PER_READ: usize = 2048;

/// Open messages that a datagram is compared with, the newest ones first. Each costs a few nanoseconds for every datagram
/// that joins none, and sending a datagram alone costs a microsecond.
const LOOK_BACK: usize = 8;
/// Datagrams that room is kept for behind an open message: with sixteen, what a message costs is shared well enough.
const KEPT: usize = 16;
/// Bytes that keeping room must leave, besides those of the largest superpacket: 64 reads of ordinary packets to as
/// many peers still make one batch.
const SPARE: usize = 96 * 1024;
/// Flows that are told apart; more share places, which costs trains and never order.
const FLOWS: usize = 256;

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
    /// Nothing more may join: a shorter datagram has ended the train, or there is no room behind it.
    sealed: bool,
    /// Which of several source ports it leaves from.
    pub lane: u8,
    /// Of its last datagram.
    flow: u32,
    /// Where its room in the arena ends.
    end: usize,
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
    /// Source ports to choose from, at least one.
    lanes: u8,
    arena: Vec<u8>,
    used: usize,
    /// Without the room that is kept behind open messages.
    filled: usize,
    messages: Vec<TxMessage>,
    /// By flow: the message that holds its last datagram, plus one.
    newest: [u16; FLOWS],
}

impl TxBatch {
    /// A batch with room for at least `reads` superpackets of ordinary shape.
    #[must_use]
    pub fn new(limits: TxLimits, reads: usize) -> Self {
        Self {
            limits,
            lanes: 1,
            arena: vec![0; MAX_BYTES_PER_READ + reads * 80 * 1024],
            used: 0,
            filled: 0,
            messages: Vec::with_capacity(MAX_DATAGRAMS_PER_READ + reads * 64),
            newest: [0; FLOWS],
        }
    }

    /// The same with several source ports: each flow keeps to one.
    #[must_use]
    pub fn with_lanes(mut self, lanes: u8) -> Self {
        self.lanes = lanes.max(1);
        self
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
        self.filled
    }

    /// Puts the messages of each source port together, so that one call sends them; their order stays.
    pub fn sort(&mut self) {
        if self.lanes > 1 {
            self.messages.sort_unstable_by_key(|message| (message.lane, message.start));
        }
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
        self.filled = 0;
        self.messages.clear();
        self.newest.fill(0);
    }

    /// Room for the next datagram of `len` bytes, `inner` of them inner: appended to an open message where peer, TOS,
    /// size and limits allow and `flow` (a hash) keeps its order, else in a message of its own. `None` if the batch is
    /// full.
    #[inline]
    pub fn push(
        &mut self,
        to: SocketAddr,
        tos: u8,
        flow: u32,
        len: usize,
        inner: usize,
    ) -> Option<&mut [u8]> {
        let lane = (flow >> 16) as u8 % self.lanes;
        let place = flow as usize % FLOWS;
        let earliest = usize::from(self.newest.get(place).copied().unwrap_or(0)).saturating_sub(1);
        let from = earliest.max(self.messages.len().saturating_sub(LOOK_BACK));
        let limits = self.limits;
        let open = self.messages.get(from..).unwrap_or_default().iter().rposition(|message| {
            // A shorter datagram ends a train, so only the flow that fills the train may end it.
            let fits = len == message.train.stride || (len < message.train.stride && flow == message.flow);
            fits && !message.sealed
                && message.to == to
                && message.tos == tos
                && message.lane == lane
                && len > 0
                && message.count < limits.max_segments
                && message.train.len + len <= limits.max_bytes
                && message.start + message.train.len + len <= message.end
        });
        let (at, start) = match open {
            Some(at) => {
                let message = self.messages.get_mut(from + at)?;
                let start = message.start + message.train.len;
                message.train.len += len;
                message.inner_bytes += inner;
                message.count += 1;
                message.sealed = len < message.train.stride;
                message.flow = flow;
                (from + at, start)
            }
            None => self.open(to, tos, flow, lane, len, inner)?,
        };
        if let Some(newest) = self.newest.get_mut(place) {
            *newest = at as u16 + 1;
        }
        self.used = self.used.max(start + len);
        self.filled += len;
        self.arena.get_mut(start..start + len)
    }

    /// Begins a message: its index, and where its first datagram goes.
    fn open(
        &mut self,
        to: SocketAddr,
        tos: u8,
        flow: u32,
        lane: u8,
        len: usize,
        inner: usize,
    ) -> Option<(usize, usize)> {
        // A growing Vec would allocate on the packet path: full is full.
        if self.messages.len() == self.messages.capacity() {
            return None;
        }
        let mut start = self.used;
        if let Some(last) = self.messages.last_mut() {
            let more = self.limits.max_segments.saturating_sub(last.count).min(KEPT);
            let whole = (last.train.len + more * last.train.stride).min(self.limits.max_bytes);
            let end = last.start + whole;
            // Room for the rest of the train is kept only where a superpacket of any shape fits behind it.
            if !last.sealed && more > 0 && self.arena.len().saturating_sub(end) >= MAX_BYTES_PER_READ + SPARE
            {
                start = start.max(end);
                last.end = end;
            } else {
                last.sealed = true;
            }
        }
        self.arena.get(start..start + len)?;
        self.messages.push(TxMessage {
            to,
            tos,
            start,
            train: Train::single(len),
            inner_bytes: inner,
            count: 1,
            sealed: false,
            lane,
            flow,
            end: self.arena.len(),
        });
        Some((self.messages.len() - 1, start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Oracle 5: whatever is pushed, a model of UDP_SEGMENT cuts the same datagrams out again, each flow in order,
        /// and every message obeys the kernel's limits.
        #[test]
        fn messages_cut_into_the_datagrams_that_were_pushed(
            pushes in proptest::collection::vec(
                (0u8..3, 0u8..2, 0u32..6, prop_oneof![Just(100usize), Just(1400), 1usize..1500]),
                1..600,
            ),
            max_segments in 1usize..=128,
            lanes in 1u8..4,
        ) {
            let limits = TxLimits { max_segments, max_bytes: TxLimits::MAX_BYTES_V4 };
            let mut batch = TxBatch::new(limits, 8).with_lanes(lanes);
            let mut expected = BTreeMap::<_, Vec<_>>::new();
            let mut bytes = 0;
            for (i, (peer, tos, flow, len)) in pushes.into_iter().enumerate() {
                let to = SocketAddr::from(([192, 0, 2, peer], 8472));
                let flow = flow * 0x0101_0101;
                let Some(room) = batch.push(to, tos, flow, len, len) else { break };
                room.fill(0);
                let stamp = [flow.to_be_bytes(), (i as u32).to_be_bytes()].concat();
                let len = stamp.len().min(len);
                room[..len].copy_from_slice(&stamp[..len]);
                expected.entry((to, flow)).or_default().push((tos, room.to_vec()));
                bytes += room.len();
            }
            prop_assert_eq!(batch.bytes(), bytes);
            batch.sort();
            let mut sent = Vec::new();
            let mut of_flow = BTreeMap::<_, Vec<_>>::new();
            let mut lane_of = BTreeMap::new();
            for message in batch.messages() {
                let bytes = batch.bytes_of(message);
                prop_assert_eq!(message.count(), message.train.count());
                prop_assert!(message.count() <= max_segments);
                prop_assert!(message.count() == 1 || bytes.len() <= limits.max_bytes);
                sent.extend(message.train.segments().map(|at| (message, bytes[at].to_vec())));
            }
            for (message, datagram) in sent {
                let Some(stamp) = datagram.first_chunk::<8>() else { continue };
                let flow = u32::from_be_bytes([stamp[0], stamp[1], stamp[2], stamp[3]]);
                prop_assert_eq!(*lane_of.entry(flow).or_insert(message.lane), message.lane);
                of_flow.entry((message.to, flow)).or_default().push((message.tos, datagram));
            }
            for datagrams in expected.values_mut() {
                datagrams.retain(|(_, datagram)| datagram.len() >= 8);
            }
            expected.retain(|_, datagrams| !datagrams.is_empty());
            prop_assert_eq!(of_flow, expected);
        }
    }

    #[test]
    fn flows_that_alternate_still_make_trains() {
        let limits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
        let mut batch = TxBatch::new(limits, 4);
        for round in 0..16u32 {
            for peer in 0..2u8 {
                let to = SocketAddr::from(([192, 0, 2, peer], 8472));
                let flow = u32::from(peer) * 2;
                assert!(batch.push(to, 0, flow, 1400, 1400).is_some());
                assert!(batch.push(to, 0, flow + 1, 60, 60).is_some());
                assert!(batch.has_room(), "round {round}");
            }
        }
        let counts: Vec<usize> = batch.messages().iter().map(TxMessage::count).collect();
        assert_eq!(counts, [16; 4]);
    }

    #[test]
    fn a_superpacket_of_any_shape_fits_while_there_is_room() {
        let limits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
        let mut batch = TxBatch::new(limits, 1);
        let mut reads = 0u32;
        while batch.has_room() {
            let to = SocketAddr::from(([192, 0, 2, reads as u8], 8472));
            let (count, len) =
                if reads.is_multiple_of(2) { (1, 1400) } else { (MAX_DATAGRAMS_PER_READ, 128) };
            for _ in 0..count {
                assert!(batch.push(to, 0, reads, len, len).is_some(), "read {reads}");
            }
            reads += 1;
        }
        assert!(reads > 1);
    }
}
