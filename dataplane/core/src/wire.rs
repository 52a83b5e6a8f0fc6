//! Checked views of the headers inside a tunnel: parse once into plain numbers, edit in place.
//!
//! Layout checks are etherparse's; here are the rules it has no opinion on (source routes, the
//! bound on IPv6 extension headers) and the edits a forwarder makes.

pub mod edit;
pub mod vnet;

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice};

/// IP protocol number of ICMP (IANA).
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// Length of a UDP header, in bytes (RFC 768).
pub const UDP_HEADER_LEN: usize = 8;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// How many IPv6 extension headers are walked before a packet is refused.
const MAX_EXTENSION_HEADERS: usize = 8;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of the fixed IP header, in bytes.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// The EtherType of packets of this family.
    #[must_use]
    pub const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is not an Ethernet address in the form `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddrError;

impl fmt::Display for MacAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected six bytes in hexadecimal, as in 12:c6:65:89:b4:e3")
    }
}

impl core::error::Error for MacAddrError {}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddrError)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddrError)?;
        }
        if parts.next().is_some() {
            return Err(MacAddrError);
        }
        Ok(Self(bytes))
    }
}

/// Why a packet cannot be read as IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Ends inside a header.
    TooShort,
    /// The version nibble is neither 4 nor 6.
    BadVersion,
    /// A length field contradicts another one or the buffer.
    BadLength,
    /// A source-route option (RFC 7126 says drop).
    BadOption,
    /// An IPv6 routing header of type 0 (RFC 5095), a chain over eight headers, or one that leaves the packet.
    BadExtensionHeader,
}

/// Where a packet stands in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: it carries the transport header.
    First,
    /// A later fragment: no transport header.
    Later,
}

/// How far the length in the IP header is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// From the wire: the header must not claim more than there is; what lies behind is cut off.
    Claimed,
    /// A superpacket read from a TUN: its length field may hold anything, the buffer's length counts.
    Buffer,
}

/// What the engine needs to know about one IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes before the transport header: the IP header with its options or extension headers.
    pub l3_len: usize,
    /// Bytes of the whole packet.
    pub len: usize,
    /// Transport protocol behind all extension headers (IANA number).
    pub protocol: u8,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// IPv4 options or IPv6 extension headers are present.
    pub has_options: bool,
    /// The packet may not be fragmented on its way: IPv4 DF, always for IPv6.
    pub dont_fragment: bool,
}

impl Ip {
    /// Reads the headers of `packet`.
    ///
    /// # Errors
    /// [`Malformed`] says which rule is broken.
    pub fn parse(packet: &[u8], length: Length) -> Result<Self, Malformed> {
        match packet.first().ok_or(Malformed::TooShort)? >> 4 {
            4 => Self::parse_v4(packet, length),
            6 => Self::parse_v6(packet, length),
            _ => Err(Malformed::BadVersion),
        }
    }

    /// The family of the packet.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(&self.source)
    }

    fn parse_v4(packet: &[u8], length: Length) -> Result<Self, Malformed> {
        if packet.len() < Family::V4.header_len() {
            return Err(Malformed::TooShort);
        }
        let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_lengths| Malformed::BadLength)?;
        let l3_len = header.slice().len();
        let len = match length {
            Length::Claimed => usize::from(header.total_len()),
            Length::Buffer => packet.len(),
        };
        if len < l3_len || len > packet.len() {
            return Err(Malformed::BadLength);
        }
        if has_source_route(header.options()) {
            return Err(Malformed::BadOption);
        }
        let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(Self {
            source: IpAddr::V4(Ipv4Addr::from(header.source())),
            destination: IpAddr::V4(Ipv4Addr::from(header.destination())),
            l3_len,
            len,
            protocol: header.protocol().0,
            tos: (header.dcp().value() << 2) | header.ecn().value(),
            ttl: header.ttl(),
            fragment,
            has_options: l3_len > Family::V4.header_len(),
            dont_fragment: header.dont_fragment(),
        })
    }

    fn parse_v6(packet: &[u8], length: Length) -> Result<Self, Malformed> {
        let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_lengths| Malformed::TooShort)?;
        let fixed = Family::V6.header_len();
        let len = match length {
            Length::Claimed => fixed + usize::from(header.payload_length()),
            Length::Buffer => packet.len(),
        };
        let whole = packet.get(..len).ok_or(Malformed::BadLength)?;
        let chain = Extensions::walk(whole, header.next_header().0)?;
        Ok(Self {
            source: IpAddr::V6(Ipv6Addr::from(header.source())),
            destination: IpAddr::V6(Ipv6Addr::from(header.destination())),
            l3_len: chain.end,
            len,
            protocol: chain.protocol,
            tos: header.traffic_class(),
            ttl: header.hop_limit(),
            fragment: chain.fragment,
            has_options: chain.end > fixed,
            dont_fragment: true,
        })
    }
}

/// Loose (131) and strict (137) source route, RFC 791. Junk behind a bad length is left to the receiver.
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return false,
            1 => options = rest,
            131 | 137 => return true,
            _ => {
                let Some(len) = rest.first().map(|len| usize::from(*len)).filter(|len| *len >= 2) else {
                    return false;
                };
                let Some(next) = options.get(len..) else { return false };
                options = next;
            }
        }
    }
    false
}

/// The end of a chain of IPv6 extension headers.
struct Extensions {
    end: usize,
    protocol: u8,
    fragment: Fragment,
}

impl Extensions {
    fn walk(packet: &[u8], first: u8) -> Result<Self, Malformed> {
        let mut at = Family::V6.header_len();
        let mut protocol = first;
        let mut fragment = Fragment::Whole;
        for _ in 0..=MAX_EXTENSION_HEADERS {
            let len = match protocol {
                // Hop-by-hop, destination options, mobility, HIP, Shim6: length in units of 8 bytes, less one.
                0 | 60 | 135 | 139 | 140 => Self::units(packet, at, 8, 1)?,
                // Routing. Type 0 is the amplifier that RFC 5095 took away.
                43 => {
                    if packet.get(at + 2) == Some(&0) {
                        return Err(Malformed::BadExtensionHeader);
                    }
                    Self::units(packet, at, 8, 1)?
                }
                // Authentication: length in units of 4 bytes, less two (RFC 4302).
                51 => Self::units(packet, at, 4, 2)?,
                44 => {
                    let word = get16(packet, at + 2).ok_or(Malformed::BadExtensionHeader)?;
                    fragment = match (word >> 3, word & 1) {
                        (0, 0) => Fragment::Whole,
                        (0, _) => Fragment::First,
                        _ => Fragment::Later,
                    };
                    8
                }
                _ => return Ok(Self { end: at, protocol, fragment }),
            };
            let next = packet.get(at).copied().ok_or(Malformed::BadExtensionHeader)?;
            if at + len > packet.len() {
                return Err(Malformed::BadExtensionHeader);
            }
            at += len;
            protocol = next;
            if fragment == Fragment::Later {
                return Ok(Self { end: at, protocol, fragment });
            }
        }
        Err(Malformed::BadExtensionHeader)
    }

    fn units(packet: &[u8], at: usize, unit: usize, less: usize) -> Result<usize, Malformed> {
        let units = packet.get(at + 1).copied().ok_or(Malformed::BadExtensionHeader)?;
        Ok((usize::from(units) + less) * unit)
    }
}

/// Length of the TCP header that starts at `at`, if it lies within `packet` (RFC 9293: 20 to 60 bytes).
#[must_use]
pub fn tcp_header_len(packet: &[u8], at: usize) -> Option<usize> {
    TcpHeaderSlice::from_slice(packet.get(at..)?).ok().map(|header| header.slice().len())
}

/// The big-endian 16-bit number at `at`.
#[must_use]
pub fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

/// The big-endian 32-bit number at `at`.
#[must_use]
pub fn get32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}
