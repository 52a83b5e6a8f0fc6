//! Every packet is passed on or counted here, under exactly one reason.
//!
//! The unit is the packet as the wire sees it: a superpacket of 45 segments counts 45. For each
//! direction, once a batch is done, `packets = passed + Σ drops` holds exactly.

use core::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was not passed on. Closed: each has a name that metrics, logs and `-o json` share.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in the order of the counters.
            pub const ALL: [Self; { [$($name),+].len() }] = [$(Self::$variant),+];

            /// The name under which it is counted, as in `unknown_peer`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence on what happened.
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// A datagram or packet that ends inside a header.
    TooShort = "too_short",
    /// A version nibble other than 4 or 6, or one that contradicts the EtherType.
    BadVersion = "bad_version",
    /// A length field that contradicts another one or the datagram.
    BadLength = "bad_length",
    /// An IPv4 source-route option.
    BadOption = "bad_option",
    /// An IPv6 type 0 routing header, more than eight extension headers, or a chain that leaves the packet.
    BadExtensionHeader = "bad_ext_header",
    /// An inner IPv4 header whose checksum is wrong.
    BadChecksum = "bad_checksum",
    /// A VXLAN network identifier that is not ours.
    BadVni = "bad_vni",
    /// VXLAN flags other than I, or reserved bits that are set.
    BadVxlanFlags = "bad_vxlan_flags",
    /// An inner frame for another MAC address.
    BadMac = "bad_mac",
    /// An inner frame that is neither IPv4 nor IPv6.
    BadEthertype = "bad_ethertype",
    /// An inner frame that carries our own MAC address as its source.
    Reflected = "reflected",
    /// A datagram from an address that no lease names.
    UnknownPeer = "unknown_peer",
    /// An inner source inside the cluster that does not belong to the peer it came from.
    BadInnerSource = "bad_inner_src",
    /// A packet from the wire whose inner source is in our own subnet.
    OwnSource = "own_src",
    /// An inner source that no packet may have: unspecified, loopback, link-local, multicast.
    Martian = "martian",
    /// An inner source outside the cluster networks, refused in strict mode.
    ForeignSource = "foreign_src",
    /// A packet from the wire whose inner destination is not in our subnet.
    NotForUs = "not_for_us",
    /// A TTL or hop limit that is used up.
    TtlExceeded = "ttl_exceeded",
    /// The underlay marked congestion on a packet whose transport cannot hear it (RFC 6040).
    Congested = "ecn_congested",
    /// A datagram longer than the overlay's MTU allows.
    Oversize = "oversize",
    /// A virtio-net header that contradicts its packet.
    BadVnetHeader = "bad_vnet_hdr",
    /// A destination in no lease.
    NoRoute = "no_route",
    /// A packet from the device for our own subnet: the pod or bridge it was for is not there.
    OwnDestination = "own_dst",
    /// A multicast, broadcast or link-local destination.
    NotUnicast = "not_unicast",
    /// A packet from the device whose source belongs to another node, or to nobody in strict mode.
    BadSource = "bad_src",
    /// A packet over the overlay MTU that must not be fragmented.
    TooBig = "too_big",
    /// A superpacket with so many segments that no sender of good will made it.
    TooManySegments = "too_many_segments",
    /// The socket's queue stayed full.
    SendQueueFull = "send_queue_full",
    /// The kernel refused to send: no route to the peer, a firewall rule, or a path too narrow for the packet.
    SendRefused = "send_refused",
    /// The kernel refused a packet written to the device.
    TunWriteFailed = "tun_write_failed",
    /// More datagrams in one receive than the batch holds.
    BatchFull = "batch_full",
    /// The worker failed while it held the packet.
    WorkerFailed = "worker_failed",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sums of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Packets taken in.
    pub packets: u64,
    /// Their inner bytes; for datagrams that were not understood, all bytes.
    pub bytes: u64,
    /// Packets passed on: delivered to the device (rx) or accepted by the socket (tx).
    pub passed: u64,
    /// Their inner bytes.
    pub passed_bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Direction {
    fn default() -> Self {
        Self { packets: 0, bytes: 0, passed: 0, passed_bytes: 0, drops: [0; DropReason::ALL.len()] }
    }
}

impl Direction {
    /// Counts packets taken in.
    pub fn take(&mut self, packets: u64, bytes: usize) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
    }

    /// Counts packets passed on.
    pub fn pass(&mut self, packets: u64, bytes: usize) {
        self.passed = self.passed.wrapping_add(packets);
        self.passed_bytes = self.passed_bytes.wrapping_add(bytes as u64);
    }

    /// Counts packets dropped.
    pub fn drop(&mut self, reason: DropReason, packets: u64) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.wrapping_add(packets);
        }
    }

    /// Packets dropped under `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// The reasons with a count above zero.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason))).filter(|(_, count)| *count > 0)
    }

    /// Packets dropped in all.
    #[must_use]
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Whether every packet taken in was passed on or dropped: true between batches.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.packets == self.passed + self.dropped_in_all()
    }
}

/// Sums of one worker, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the wire to the device.
    pub rx: Direction,
    /// From the device to the wire, our own ICMP replies to peers included.
    pub tx: Direction,
    /// ICMP replies made (to the device or to a peer).
    pub icmp_replies: u64,
    /// ICMP replies held back by the rate limit.
    pub icmp_limited: u64,
    /// Packets whose source is outside the cluster networks, passed in loose mode.
    pub foreign_sources: u64,
    /// Inner checksums that a kernel peer left unfinished and that were finished here.
    pub unfinished_checksums: u64,
    /// Messages that the socket dropped before they were read (`SO_RXQ_OVFL`, `SO_MEMINFO`), for want of room or because
    /// they were garbage during a flood; not part of `rx.packets`. The kernel counts what it would have handed over in one
    /// piece, so datagrams that came joined count once.
    pub socket_overflows: u64,
    /// Packets that the device's ring dropped before they were read (`tx_dropped`); not part of `tx.packets`. A
    /// superpacket counts once. The kernel counts for the device, so this is 0 in the counters of a single worker.
    pub ring_overflows: u64,
}

/// How many numbers [`Counters`] is.
pub const WORDS: usize = 2 * (4 + DropReason::ALL.len()) + 6;

impl Counters {
    /// All numbers in a fixed order, for publication word by word.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let direction = |d: &Direction| [d.packets, d.bytes, d.passed, d.passed_bytes];
        direction(&self.rx)
            .into_iter()
            .chain(self.rx.drops.iter().copied())
            .chain(direction(&self.tx))
            .chain(self.tx.drops.iter().copied())
            .chain([
                self.icmp_replies,
                self.icmp_limited,
                self.foreign_sources,
                self.unfinished_checksums,
                self.socket_overflows,
                self.ring_overflows,
            ])
    }

    /// Combines two readings number by number.
    #[must_use]
    fn zip(&self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = self.words().zip(other.words()).map(|(a, b)| f(a, b));
        Self::from_words(|| words.next().unwrap_or(0))
    }

    /// Reads [`WORDS`] numbers in the order of [`Counters::words`].
    pub fn from_words(mut next: impl FnMut() -> u64) -> Self {
        let mut direction = || {
            let mut d = Direction {
                packets: next(),
                bytes: next(),
                passed: next(),
                passed_bytes: next(),
                ..Direction::default()
            };
            d.drops.iter_mut().for_each(|count| *count = next());
            d
        };
        let (rx, tx) = (direction(), direction());
        Self {
            rx,
            tx,
            icmp_replies: next(),
            icmp_limited: next(),
            foreign_sources: next(),
            unfinished_checksums: next(),
            socket_overflows: next(),
            ring_overflows: next(),
        }
    }

    /// What happened since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::wrapping_sub)
    }

    /// The sum of two workers.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_words_round_trip() {
        let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        let mut next = 0;
        let counters = Counters::from_words(|| {
            next += 1;
            next
        });
        assert_eq!(next as usize, WORDS);
        assert!(counters.words().eq(1..=WORDS as u64));
        assert_eq!(counters.since(&Counters::default()), counters);
        assert_eq!(counters.plus(&counters).since(&counters), counters);
    }

    #[test]
    fn a_reason_describes_itself_in_one_sentence() {
        for reason in DropReason::ALL {
            assert!(reason.describe().ends_with('.'), "{reason}: {}", reason.describe());
        }
    }
}
