//! Superpacket to segments: what a network card does for TSO and USO, with the constant parts done once.
//!
//! The rules are those of the kernel's `tcp_gso_segment` and `__udp_gso_segment`: the IPv4 id and the TCP
//! sequence number advance, FIN and PSH stay on the last segment, CWR on the first, lengths and checksums
//! are each segment's own.

use crate::checksum::{Adder, Sum};
use crate::wire::edit::{IPV4_CHECKSUM, l4_checksum_offset, pseudo_header, put, put16, put32};
use crate::wire::vnet::{Gso, VnetHdr};
use crate::wire::{Family, Fragment, Ip, TCP, UDP, UDP_HEADER_LEN, get16, get32, tcp_header_len};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Offset of the flags byte within the TCP header.
const TCP_FLAGS: usize = 13;

/// A superpacket that has been checked and can be cut.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    packet: &'a [u8],
    family: Family,
    protocol: u8,
    l3_len: usize,
    /// IP and transport header.
    headers: usize,
    gso_size: usize,
    id: u16,
    sequence: u32,
    flags: u8,
    /// IPv4 header with length, id and checksum left out.
    l3_base: Sum,
    /// Pseudo-header without length, transport header without sequence number, flags, length and checksum.
    l4_base: Sum,
    adder: Adder,
}

impl<'a> Segmenter<'a> {
    /// Checks a superpacket whose IP header has been parsed with [`crate::wire::Length::Buffer`] against what the
    /// virtio-net header says of it; `None` if they contradict each other.
    #[must_use]
    pub fn new(packet: &'a [u8], ip: &Ip, vnet: &VnetHdr) -> Option<Self> {
        let protocol = match vnet.gso {
            Gso::Tcp(family) if family == ip.family() => TCP,
            Gso::Udp => UDP,
            Gso::Tcp(_) | Gso::None => return None,
        };
        let fits = vnet.needs_checksum
            && ip.protocol == protocol
            && ip.fragment == Fragment::Whole
            && usize::from(vnet.csum_start) == ip.l3_len
            && vnet.gso_size > 0;
        // Extension headers do not occur before a transport that the kernel offloads.
        if !fits || (ip.family() == Family::V6 && ip.has_options) {
            return None;
        }
        Self::cut(packet, ip, usize::from(vnet.gso_size))
    }

    /// The same without a virtio-net header: `packet` is TCP or UDP, whole and without IPv6 extension headers.
    #[must_use]
    pub fn cut(packet: &'a [u8], ip: &Ip, gso_size: usize) -> Option<Self> {
        let packet = packet.get(..ip.len)?;
        let l4_len = match ip.protocol {
            TCP => tcp_header_len(packet, ip.l3_len)?,
            UDP => UDP_HEADER_LEN,
            _ => return None,
        };
        let headers = ip.l3_len + l4_len;
        if gso_size == 0 || packet.len() <= headers {
            return None;
        }
        let (l3_base, id) = match ip.family() {
            Family::V4 => {
                let header = packet.get(..ip.l3_len)?;
                let id = get16(packet, 4)?;
                let variable = Sum::ZERO.word(get16(packet, 2)?).word(id).word(get16(packet, IPV4_CHECKSUM)?);
                (without(Sum::ZERO.bytes(header), variable), id)
            }
            Family::V6 => (Sum::ZERO, 0),
        };
        let header = packet.get(ip.l3_len..headers)?;
        let checksum = get16(header, l4_checksum_offset(ip.protocol)?)?;
        let (sequence, flags, variable) = match ip.protocol {
            TCP => {
                let sequence = get32(header, 4)?;
                let flags = header.get(TCP_FLAGS).copied()?;
                (sequence, flags, Sum::ZERO.long(sequence).word(u16::from(flags)))
            }
            _ => (0, 0, Sum::ZERO.word(get16(header, 4)?)),
        };
        let l4_base = pseudo_header(&ip.source, &ip.destination, ip.protocol, 0)
            .plus(without(Sum::ZERO.bytes(header), variable.word(checksum)));
        Some(Self {
            packet,
            family: ip.family(),
            protocol: ip.protocol,
            l3_len: ip.l3_len,
            headers,
            gso_size,
            id,
            sequence,
            flags,
            l3_base,
            l4_base,
            adder: Adder::SCALAR,
        })
    }

    /// The same, with payloads summed by `adder`.
    #[must_use]
    pub fn summed_by(self, adder: Adder) -> Self {
        Self { adder, ..self }
    }

    /// How many segments.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.packet.len() - self.headers).div_ceil(self.gso_size)
    }

    /// Bytes of the first segment, which no other one exceeds.
    #[must_use]
    pub fn first_len(&self) -> usize {
        self.len_of(0)
    }

    /// Bytes of segment `i`, headers included.
    #[must_use]
    pub fn len_of(&self, i: usize) -> usize {
        self.headers + self.payload(i).len()
    }

    fn payload(&self, i: usize) -> &'a [u8] {
        let start = self.headers + i * self.gso_size;
        let end = (start + self.gso_size).min(self.packet.len());
        self.packet.get(start..end).unwrap_or_default()
    }

    /// Writes segment `i` to the start of `out`, which has room for [`Segmenter::len_of`] bytes.
    #[inline]
    pub fn write(&self, i: usize, out: &mut [u8]) {
        let payload = self.payload(i);
        let end = self.headers + i * self.gso_size + payload.len();
        let len = self.headers + payload.len();
        put(out, 0, self.packet.get(..self.headers).unwrap_or_default());
        put(out, self.headers, payload);
        match self.family {
            Family::V4 => {
                let id = self.id.wrapping_add(i as u16);
                put16(out, 2, len as u16);
                put16(out, 4, id);
                put16(out, IPV4_CHECKSUM, self.l3_base.word(len as u16).word(id).checksum());
            }
            Family::V6 => put16(out, 4, (len - self.l3_len) as u16),
        }
        let l4_len = len - self.l3_len;
        let sum = self.l4_base.long(l4_len as u32).plus(self.adder.sum(payload));
        match self.protocol {
            TCP => {
                let sequence = self.sequence.wrapping_add((i * self.gso_size) as u32);
                let keep =
                    if end == self.packet.len() { !0 } else { !(FIN | PSH) } & if i == 0 { !0 } else { !CWR };
                let flags = self.flags & keep;
                put32(out, self.l3_len + 4, sequence);
                if let Some(byte) = out.get_mut(self.l3_len + TCP_FLAGS) {
                    *byte = flags;
                }
                let checksum = sum.long(sequence).word(u16::from(flags)).checksum();
                put16(out, self.l3_len + 16, checksum);
            }
            _ => {
                put16(out, self.l3_len + 4, l4_len as u16);
                put16(out, self.l3_len + 6, sum.word(l4_len as u16).udp_checksum());
            }
        }
    }
}

/// `sum` less the words that `part` sums up: adding the complement subtracts.
fn without(sum: Sum, part: Sum) -> Sum {
    sum.word(!part.folded())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::plain;
    use crate::testing::{Builder, Transport};
    use crate::wire::Length;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn segments(superpacket: &[u8], vnet: &VnetHdr) -> Vec<Vec<u8>> {
        let ip = Ip::parse(superpacket, Length::Buffer).unwrap();
        let cut = Segmenter::new(superpacket, &ip, vnet).unwrap();
        (0..cut.count())
            .map(|i| {
                let mut out = vec![0xaa; cut.len_of(i)];
                cut.write(i, &mut out);
                out
            })
            .collect()
    }

    /// The transport checksum, word by word, by the book.
    fn l4_adds_up(packet: &[u8]) -> bool {
        let ip = Ip::parse(packet, Length::Claimed).unwrap();
        let l4 = &packet[ip.l3_len..ip.len];
        let mut pseudo = Vec::new();
        match (ip.source, ip.destination) {
            (core::net::IpAddr::V4(s), core::net::IpAddr::V4(d)) => {
                pseudo.extend(s.octets());
                pseudo.extend(d.octets());
            }
            (core::net::IpAddr::V6(s), core::net::IpAddr::V6(d)) => {
                pseudo.extend(s.octets());
                pseudo.extend(d.octets());
            }
            _ => panic!("mixed families"),
        }
        pseudo.extend((l4.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, ip.protocol]);
        pseudo.extend(l4);
        plain(&pseudo) == 0xffff
    }

    proptest! {
        /// Oracle 2: an independent parser reads every segment, its checksums add up, and together they
        /// carry the payload.
        #[test]
        fn every_segment_is_a_right_packet(
            v6 in any::<bool>(),
            tcp in any::<bool>(),
            ip_options in 0usize..=10,
            tcp_options in 0usize..=10,
            payload in proptest::collection::vec(any::<u8>(), 1..20_000),
            gso_size in 1u16..9000,
            flags in any::<u8>(),
            sequence in any::<u32>(),
            id in any::<u16>(),
        ) {
            prop_assume!(payload.len() / usize::from(gso_size) < 3000);
            let family = if v6 { Family::V6 } else { Family::V4 };
            let transport = if tcp { Transport::Tcp { sequence, ack: 9, flags, options: tcp_options * 4 } } else { Transport::Udp };
            let builder = Builder::new(family, transport).id(id).ip_options(ip_options * 4).payload(&payload);
            let (vnet, superpacket) = builder.superpacket(gso_size);
            let mut carried: Vec<u8> = Vec::new();
            let all = segments(&superpacket, &vnet);
            let last = all.len() - 1;
            for (i, segment) in all.iter().enumerate() {
                let sliced = SlicedPacket::from_ip(segment).unwrap();
                let Some(net) = sliced.net else { panic!("no network layer") };
                if let NetSlice::Ipv4(v4) = &net {
                    prop_assert_eq!(usize::from(v4.header().total_len()), segment.len());
                    prop_assert_eq!(v4.header().identification(), id.wrapping_add(i as u16));
                    prop_assert_eq!(v4.header().header_checksum(), v4.header().to_header().calc_header_checksum());
                }
                prop_assert!(l4_adds_up(segment));
                match sliced.transport.unwrap() {
                    TransportSlice::Tcp(t) => {
                        prop_assert_eq!(t.sequence_number(), sequence.wrapping_add(carried.len() as u32));
                        prop_assert_eq!(t.psh(), flags & PSH != 0 && i == last);
                        prop_assert_eq!(t.fin(), flags & FIN != 0 && i == last);
                        prop_assert_eq!(t.cwr(), flags & CWR != 0 && i == 0);
                        prop_assert_eq!(t.ack(), flags & 0x10 != 0);
                        carried.extend(t.payload());
                    }
                    TransportSlice::Udp(u) => carried.extend(u.payload()),
                    other => panic!("{other:?}"),
                }
            }
            prop_assert_eq!(carried, payload);
        }
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let (vnet, packet) =
            Builder::new(Family::V4, Transport::tcp(1)).payload(&[7; 3000]).superpacket(1000);
        let ip = Ip::parse(&packet, Length::Buffer).unwrap();
        let refused = |vnet: VnetHdr| Segmenter::new(&packet, &ip, &vnet).is_none();
        assert!(!refused(vnet));
        assert!(refused(VnetHdr { gso_size: 0, ..vnet }));
        assert!(refused(VnetHdr { gso: Gso::Tcp(Family::V6), ..vnet }));
        assert!(refused(VnetHdr { gso: Gso::Udp, ..vnet }));
        assert!(refused(VnetHdr { gso: Gso::None, ..vnet }));
        assert!(refused(VnetHdr { csum_start: 21, ..vnet }));
        assert!(refused(VnetHdr { needs_checksum: false, ..vnet }));
    }
}
