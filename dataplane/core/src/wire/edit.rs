//! Edits in place, each keeping the checksums over what it changes right.

use core::hint::black_box;
use core::net::IpAddr;

use super::{Family, Ip, TCP, UDP, get16};
use crate::checksum::{Adder, Sum, updated};

/// Offset of the checksum within the IPv4 header.
pub const IPV4_CHECKSUM: usize = 10;

/// Writes a big-endian 16-bit number; out of bounds writes nothing.
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(word) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *word = value.to_be_bytes();
    }
}

/// Writes a big-endian 32-bit number; out of bounds writes nothing.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(word) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
        *word = value.to_be_bytes();
    }
}

/// Copies `from` to `at`; out of bounds writes nothing.
pub fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + from.len()) {
        // musl's `memcpy` is `rep movs`, which took 5 % of a machine full of bulk TCP where glibc's took 1 %.
        if cfg!(target_env = "musl") { copy_by_blocks(to, from) } else { to.copy_from_slice(from) }
    }
}

/// Copies between slices of one length without `memcpy`, but for a few bytes: constant lengths become moves of wide
/// registers.
fn copy_by_blocks(to: &mut [u8], from: &[u8]) {
    // As many as the compiler still writes out.
    const BLOCK: usize = 128;
    let (Some(last_to), Some(last_from)) = (to.last_chunk_mut::<BLOCK>(), from.last_chunk::<BLOCK>()) else {
        to.copy_from_slice(from);
        return;
    };
    // The rest behind the last whole block, and some of that block.
    *last_to = *last_from;
    for (to, from) in to.as_chunks_mut::<BLOCK>().0.iter_mut().zip(from.as_chunks::<BLOCK>().0) {
        // Hidden, or the compiler takes the loop for the `memcpy` that it is.
        *to = *black_box(from);
    }
}

/// Decrements the TTL or hop limit. The caller has checked that it is not zero.
pub fn decrement_ttl(packet: &mut [u8], family: Family) {
    match family {
        Family::V4 => {
            let (Some(old), Some(checksum)) = (get16(packet, 8), get16(packet, IPV4_CHECKSUM)) else {
                return;
            };
            let new = old.wrapping_sub(0x0100);
            put16(packet, 8, new);
            put16(packet, IPV4_CHECKSUM, updated(checksum, old, new));
        }
        Family::V6 => {
            if let Some(limit) = packet.get_mut(7) {
                *limit = limit.wrapping_sub(1);
            }
        }
    }
}

/// Sets the two ECN bits (RFC 3168), leaving DSCP alone.
pub fn set_ecn(packet: &mut [u8], family: Family, ecn: u8) {
    let Some(old) = get16(packet, 0) else { return };
    match family {
        Family::V4 => {
            let new = (old & !0x0003) | u16::from(ecn & 3);
            let Some(checksum) = get16(packet, IPV4_CHECKSUM) else { return };
            put16(packet, 0, new);
            put16(packet, IPV4_CHECKSUM, updated(checksum, old, new));
        }
        // The traffic class straddles the first two bytes: ECN is bits 4 and 5 of the word.
        Family::V6 => put16(packet, 0, (old & !0x0030) | (u16::from(ecn & 3) << 4)),
    }
}

/// Whether the IPv4 header at the start of `packet` adds up.
#[must_use]
pub fn ipv4_header_is_valid(packet: &[u8], l3_len: usize) -> bool {
    packet.get(..l3_len).is_some_and(|header| Sum::ZERO.bytes(header).is_valid())
}

/// Computes the IPv4 header checksum afresh.
pub fn fill_ipv4_checksum(packet: &mut [u8], l3_len: usize) {
    put16(packet, IPV4_CHECKSUM, 0);
    if let Some(header) = packet.get(..l3_len) {
        let checksum = Sum::ZERO.bytes(header).checksum();
        put16(packet, IPV4_CHECKSUM, checksum);
    }
}

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1), `l4_len` in bytes.
#[must_use]
pub fn pseudo_header(source: &IpAddr, destination: &IpAddr, protocol: u8, l4_len: usize) -> Sum {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets())
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Sum::ZERO,
    };
    addresses.word(u16::from(protocol)).long(l4_len as u32)
}

/// Offset of the checksum within the TCP or UDP header.
#[must_use]
pub fn l4_checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

/// Finishes a checksum that an offload left open: the field holds the pseudo-header's sum, the value is
/// the complement of the sum over everything from `start`, field included. False if a bound is broken.
pub fn complete_checksum(packet: &mut [u8], start: usize, offset: usize, adder: Adder) -> bool {
    let Some(covered) = packet.get(start..) else { return false };
    if start + offset + 2 > packet.len() {
        return false;
    }
    let sum = adder.sum(covered);
    let checksum = if offset == 6 { sum.udp_checksum() } else { sum.checksum() };
    put16(packet, start + offset, checksum);
    true
}

/// Whether the transport checksum of a TCP or UDP packet adds up (a UDP checksum of zero does not).
#[must_use]
pub fn l4_is_valid(packet: &[u8], ip: &Ip, adder: Adder) -> bool {
    packet.get(ip.l3_len..ip.len).is_some_and(|l4| {
        pseudo_header(&ip.source, &ip.destination, ip.protocol, l4.len()).plus(adder.sum(l4)).is_valid()
    })
}

/// Whether the transport checksum field holds just the pseudo-header's sum.
///
/// A kernel VXLAN peer on the far side of a veth leaves inner checksums unfinished (`CHECKSUM_PARTIAL`): its
/// driver promised to fill them in and had no wire to do it for. A finished packet that shows the same value
/// by chance is equally right with its checksum computed anew.
#[must_use]
pub fn l4_is_unfinished(packet: &[u8], ip: &Ip) -> bool {
    let Some(offset) = l4_checksum_offset(ip.protocol) else { return false };
    let Some(l4_len) = ip.len.checked_sub(ip.l3_len).filter(|len| *len >= offset + 2) else { return false };
    get16(packet, ip.l3_len + offset)
        == Some(pseudo_header(&ip.source, &ip.destination, ip.protocol, l4_len).folded())
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::copy_by_blocks;

    #[test]
    fn any_length_is_copied_whole_and_nothing_beside_it() {
        let from: Vec<u8> = (0..2000u32).map(|n| (n * 7 % 251) as u8).collect();
        for len in (0..600).chain([1398, 1400, 1999]) {
            let mut to = vec![0xff; len + 2];
            copy_by_blocks(&mut to[1..=len], &from[..len]);
            assert_eq!((to[0], to[len + 1]), (0xff, 0xff), "{len}");
            assert_eq!(to[1..=len], from[..len], "{len}");
        }
    }
}
