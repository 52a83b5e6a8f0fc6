//! The ICMP replies a tunnel owes: unreachable, packet too big, time exceeded. Rate limited, and never about
//! what must not be answered (RFC 1122 3.2.2, RFC 1812 4.3.2.7, RFC 4443 2.4).

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::checksum::Sum;
use crate::wire::edit::{fill_ipv4_checksum, pseudo_header, put, put16, put32};
use crate::wire::vnet::VNET_HDR_LEN;
use crate::wire::{Family, Fragment, ICMP, ICMPV6, Ip};

/// Longest ICMPv4 error, IP header included (RFC 1812 4.3.2.3).
const MAX_V4: usize = 576;
/// Longest ICMPv6 error, IP header included: the minimum MTU (RFC 4443 2.4 c).
const MAX_V6: usize = 1280;
/// Longest reply of either family, IP header included.
pub const MAX_REPLY: usize = if MAX_V4 > MAX_V6 { MAX_V4 } else { MAX_V6 };
/// TTL of our replies, as hosts send.
const TTL: u8 = 64;

/// What to tell the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// No lease covers the destination.
    Unreachable,
    /// The packet is over the overlay MTU and must not be fragmented.
    TooBig {
        /// The overlay MTU, in bytes.
        mtu: u16,
    },
    /// TTL or hop limit used up in transit.
    TimeExceeded,
}

impl Complaint {
    /// Type, code, and the second word of the message.
    const fn message(self, family: Family) -> (u8, u8, u32) {
        match (self, family) {
            // Network unreachable, as flannel's proxy says it.
            (Self::Unreachable, Family::V4) => (3, 0, 0),
            (Self::Unreachable, Family::V6) => (1, 0, 0),
            (Self::TooBig { mtu }, Family::V4) => (3, 4, mtu as u32),
            (Self::TooBig { mtu }, Family::V6) => (2, 0, mtu as u32),
            (Self::TimeExceeded, Family::V4) => (11, 0, 0),
            (Self::TimeExceeded, Family::V6) => (3, 0, 0),
        }
    }
}

/// Whether `packet` may be answered at all: not an ICMP error, not a later fragment, from one sender to one receiver.
#[must_use]
pub fn may_answer(packet: &[u8], ip: &Ip) -> bool {
    let unicast = |address: &IpAddr| !address.is_multicast() && !address.is_unspecified();
    let is_error = match ip.protocol {
        // Of ICMPv4, queries are few; whatever else there is counts as an error.
        ICMP => !matches!(packet.get(ip.l3_len), Some(0 | 8 | 13 | 14 | 15 | 16 | 17 | 18)),
        // ICMPv6 errors have the high bit clear.
        ICMPV6 => packet.get(ip.l3_len).is_none_or(|kind| kind & 0x80 == 0),
        _ => false,
    };
    let broadcast = matches!(ip.source, IpAddr::V4(v4) if v4.is_broadcast());
    !is_error
        && ip.fragment != Fragment::Later
        && !broadcast
        && !ip.source.is_loopback()
        && unicast(&ip.source)
        && unicast(&ip.destination)
}

/// Builds the reply to `packet` into `out`; `None` if addresses do not fit together or `out` is too small.
#[must_use]
pub fn build(packet: &[u8], ip: &Ip, complaint: Complaint, from: IpAddr, out: &mut [u8]) -> Option<usize> {
    let family = Family::of(&from);
    if family != ip.family() {
        return None;
    }
    let l3 = family.header_len();
    let max = match family {
        Family::V4 => MAX_V4,
        Family::V6 => MAX_V6,
    };
    let quoted = packet.get(..ip.len.min(max - l3 - 8)).unwrap_or_default();
    let len = l3 + 8 + quoted.len();
    let reply = out.get_mut(..len)?;
    reply.fill(0);
    let (kind, code, word) = complaint.message(family);
    put(reply, l3, &[kind, code]);
    put32(reply, l3 + 4, word);
    put(reply, l3 + 8, quoted);
    let icmp = Sum::ZERO.bytes(reply.get(l3..)?);
    match (from, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            put(reply, 0, &[0x45, 0]);
            put16(reply, 2, len as u16);
            put(reply, 8, &[TTL, ICMP]);
            put(reply, 12, &from.octets());
            put(reply, 16, &to.octets());
            fill_ipv4_checksum(reply, l3);
            put16(reply, l3 + 2, icmp.checksum());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            put(reply, 0, &[0x60]);
            put16(reply, 4, (len - l3) as u16);
            put(reply, 6, &[ICMPV6, TTL]);
            put(reply, 8, &from.octets());
            put(reply, 24, &to.octets());
            let pseudo = pseudo_header(&from.into(), &to.into(), ICMPV6, len - l3);
            put16(reply, l3 + 2, icmp.plus(pseudo).checksum());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    Some(len)
}

/// Replies a second to one destination.
const PER_SECOND: u32 = 10;
const SECOND_NS: u64 = 1_000_000_000;

/// Counts replies by destination in a table of fixed size: two destinations that share a place share its budget.
#[derive(Debug)]
pub struct Limiter {
    places: [(u64, u32); 64],
}

impl Default for Limiter {
    fn default() -> Self {
        Self { places: [(0, 0); 64] }
    }
}

impl Limiter {
    /// Whether a reply to `to` may go out at `now_ns` (any clock that does not run backwards).
    pub fn allows(&mut self, to: &IpAddr, now_ns: u64) -> bool {
        let key = match to {
            IpAddr::V4(v4) => u64::from(u32::from(*v4)),
            IpAddr::V6(v6) => (u128::from(*v6) >> 64) as u64 ^ u128::from(*v6) as u64,
        };
        let place = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize;
        let Some((since, used)) = self.places.get_mut(place) else { return false };
        if now_ns.saturating_sub(*since) >= SECOND_NS || *used == 0 {
            (*since, *used) = (now_ns, 0);
        }
        *used += 1;
        *used <= PER_SECOND
    }
}

/// Replies waiting to be written to the device, each with its virtio-net header in front.
#[derive(Debug)]
pub struct ReplyQueue {
    bytes: Vec<u8>,
    lens: Vec<usize>,
}

const REPLY_ROOM: usize = VNET_HDR_LEN + MAX_REPLY;
const REPLIES: usize = 32;

impl Default for ReplyQueue {
    fn default() -> Self {
        Self { bytes: vec![0; REPLIES * REPLY_ROOM], lens: Vec::with_capacity(REPLIES) }
    }
}

impl ReplyQueue {
    /// Builds a reply into the queue; false if there is no room or the packet may not be answered so.
    pub fn push(&mut self, packet: &[u8], ip: &Ip, complaint: Complaint, from: IpAddr) -> bool {
        if self.lens.len() == self.lens.capacity() {
            return false;
        }
        let at = self.lens.len() * REPLY_ROOM;
        let Some((head, room)) =
            self.bytes.get_mut(at..at + REPLY_ROOM).and_then(<[u8]>::split_first_chunk_mut::<VNET_HDR_LEN>)
        else {
            return false;
        };
        head.fill(0);
        let Some(len) = build(packet, ip, complaint, from, room) else { return false };
        self.lens.push(VNET_HDR_LEN + len);
        true
    }

    /// The replies, virtio-net header included.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(REPLY_ROOM).zip(&self.lens).filter_map(|(room, len)| room.get(..*len))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.lens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Builder, Transport};
    use crate::wire::Length;
    use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4, icmpv6};
    use std::vec::Vec;

    fn reply(packet: &[u8], complaint: Complaint, from: &str) -> Vec<u8> {
        let ip = Ip::parse(packet, Length::Claimed).unwrap();
        let mut out = vec![0xaa; 1500];
        let len = build(packet, &ip, complaint, from.parse().unwrap(), &mut out).unwrap();
        out.truncate(len);
        out
    }

    #[test]
    fn an_independent_parser_reads_the_reply_and_its_checksums() {
        let packet = Builder::new(Family::V4, Transport::Udp).payload(&[1; 1000]).packet();
        let reply = reply(&packet, Complaint::TooBig { mtu: 1450 }, "10.244.1.0");
        assert_eq!(reply.len(), 576);
        let sliced = SlicedPacket::from_ip(&reply).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1450
            })
        );
        assert!(Sum::ZERO.bytes(icmp.slice()).is_valid());
        assert_eq!(icmp.payload(), &packet[..548]);
    }

    #[test]
    fn version_six_has_its_own_types_and_a_pseudo_header() {
        let packet = Builder::new(Family::V6, Transport::tcp(1)).payload(&[1; 5000]).packet();
        let reply = reply(&packet, Complaint::TimeExceeded, "fd00:0:0:1::");
        assert_eq!(reply.len(), 1280);
        let sliced = SlicedPacket::from_ip(&reply).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded));
        let ip = Ip::parse(&reply, Length::Claimed).unwrap();
        let l4 = &reply[ip.l3_len..];
        assert!(pseudo_header(&ip.source, &ip.destination, ICMPV6, l4.len()).bytes(l4).is_valid());
    }

    #[test]
    fn errors_are_never_answered_and_echoes_are() {
        for family in [Family::V4, Family::V6] {
            let echo = Builder::new(family, Transport::Echo).packet();
            let ip = Ip::parse(&echo, Length::Claimed).unwrap();
            assert!(may_answer(&echo, &ip));
            let from = if family == Family::V4 { "10.244.1.0" } else { "fd00:0:0:1::" };
            let error = reply(&echo, Complaint::Unreachable, from);
            let ip = Ip::parse(&error, Length::Claimed).unwrap();
            assert!(!may_answer(&error, &ip));
        }
    }

    #[test]
    fn ten_a_second_to_one_destination() {
        let mut limiter = Limiter::default();
        let to = "10.244.1.2".parse().unwrap();
        let allowed = (0..1000).filter(|i| limiter.allows(&to, SECOND_NS + i * 1000)).count();
        assert_eq!(allowed, 10);
        assert!(limiter.allows(&to, 3 * SECOND_NS));
    }
}
