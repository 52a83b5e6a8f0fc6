//! The bytes of an ICMP echo, and what an ICMP message says about one that was sent.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::traffic::pattern::Pattern;

/// Bytes of the ICMP header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Every echo of the process has a number of its own, so that pings on several threads do not take each other's answers.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// An echo request that waits for its answer.
#[derive(Debug)]
pub(super) struct Echo {
    /// Identifier and sequence number as they stand in the header.
    mark: [u8; 4],
    payload: Vec<u8>,
}

/// What a message says about the echo.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Reply { unchanged: bool },
    Unreachable { code: u8 },
    TooBig { mtu: u32 },
    TimeExceeded,
}

impl Echo {
    pub(super) fn new(payload: usize) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Two processes of a lab in one namespace start their counters alike; the process id keeps them apart.
        let mark = (number ^ (std::process::id() << 16)).to_be_bytes();
        let mut bytes = vec![0; payload];
        Pattern::new(u64::from(number)).fill(&mut bytes);
        Self { mark, payload: bytes }
    }

    /// The ICMP message. Over IPv6 the kernel writes the checksum: it covers addresses that are not known here.
    pub(super) fn request(&self, to: IpAddr) -> Vec<u8> {
        let kind = if to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend_from_slice(&self.mark);
        message.extend_from_slice(&self.payload);
        if to.is_ipv4() {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// What `packet`, as a raw socket of the family reads it, says about this echo; `None` if nothing.
    pub(super) fn recognise(&self, packet: &[u8], to: IpAddr) -> Option<Incoming> {
        // A raw IPv4 socket reads the IP header too, a raw ICMPv6 socket does not.
        let message = if to.is_ipv4() { behind_header(packet)? } else { packet };
        let (&kind, &code) = (message.first()?, message.get(1)?);
        let word = u32::from_be_bytes(message.get(4..8)?.try_into().ok()?);
        let quoted = message.get(HEADER..)?;
        if matches!((to, kind), (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129)) {
            return (word.to_be_bytes() == self.mark)
                .then(|| Incoming::Reply { unchanged: quoted == self.payload.as_slice() });
        }
        if !self.is_quoted_in(quoted, to) {
            return None;
        }
        match (to, kind, code) {
            // RFC 1191: the MTU in the lower half of the second word.
            (IpAddr::V4(_), 3, 4) => Some(Incoming::TooBig { mtu: word & 0xffff }),
            (IpAddr::V4(_), 3, code) | (IpAddr::V6(_), 1, code) => Some(Incoming::Unreachable { code }),
            (IpAddr::V6(_), 2, _) => Some(Incoming::TooBig { mtu: word }),
            (IpAddr::V4(_), 11, _) | (IpAddr::V6(_), 3, _) => Some(Incoming::TimeExceeded),
            _ => None,
        }
    }

    /// Whether the packet that an ICMP error quotes is this echo's request.
    fn is_quoted_in(&self, packet: &[u8], to: IpAddr) -> bool {
        let request = match to {
            IpAddr::V4(_) => behind_header(packet),
            // No extension header: neither the kernel nor this code adds one to an unfragmented echo.
            IpAddr::V6(_) => packet.get(40..),
        };
        let kind = if to.is_ipv4() { 8 } else { 128 };
        request.is_some_and(|request| request.first() == Some(&kind) && request.get(4..8) == Some(&self.mark))
    }
}

/// The bytes behind an IPv4 header with its options.
fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(length..)
}

/// An IPv4 packet with the DF bit. The kernel fills in total length, identification, checksum and an unspecified source.
pub(super) fn behind_ipv4_header(message: &[u8], from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Vec<u8> {
    const DF: u8 = 0x40;
    const ICMP: u8 = 1;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, DF, 0, ttl, ICMP, 0, 0];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(message);
    packet
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn a_request_sums_to_zero_with_its_checksum() {
        for payload in [0, 1, 7, 1400, 65_000] {
            assert_eq!(checksum(&Echo::new(payload).request(V4)), 0);
        }
    }

    #[test]
    fn only_the_own_reply_is_taken() {
        let (echo, other) = (Echo::new(5), Echo::new(5));
        let mut reply = echo.request(V6);
        reply[0] = 129;
        assert_eq!(echo.recognise(&reply, V6), Some(Incoming::Reply { unchanged: true }));
        assert_eq!(other.recognise(&reply, V6), None);
        reply[12] ^= 1;
        assert_eq!(echo.recognise(&reply, V6), Some(Incoming::Reply { unchanged: false }));
    }

    #[test]
    fn errors_are_told_apart_by_type_and_the_quoted_request() {
        let echo = Echo::new(5);
        let quote = behind_ipv4_header(&echo.request(V4), Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 64);
        let error = |kind: u8, code: u8, word: u32| {
            let mut message = vec![kind, code, 0, 0];
            message.extend_from_slice(&word.to_be_bytes());
            message.extend_from_slice(&quote);
            behind_ipv4_header(&message, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 64)
        };
        assert_eq!(echo.recognise(&error(3, 4, 1450), V4), Some(Incoming::TooBig { mtu: 1450 }));
        assert_eq!(echo.recognise(&error(3, 1, 0), V4), Some(Incoming::Unreachable { code: 1 }));
        assert_eq!(echo.recognise(&error(11, 0, 0), V4), Some(Incoming::TimeExceeded));
        assert_eq!(Echo::new(5).recognise(&error(3, 1, 0), V4), None);
    }

    #[test]
    fn short_messages_say_nothing() {
        let echo = Echo::new(5);
        let reply = echo.request(V4);
        for length in 0..reply.len() {
            let cut = behind_ipv4_header(&reply[..length], Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 64);
            assert_eq!(echo.recognise(&cut, V4), None);
            assert_eq!(echo.recognise(&cut[..cut.len().min(length)], V4), None);
        }
    }
}
