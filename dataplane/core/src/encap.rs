//! The two formats on the wire: flannel's `udp` (nothing but the IP packet) and VXLAN (RFC 7348).

use core::fmt;

use crate::counters::DropReason;
use crate::wire::edit::{put, put16};
use crate::wire::{Family, MacAddr, get16};

/// Bytes of a VXLAN header (8) and an inner Ethernet header (14).
pub const VXLAN_LEN: usize = 22;

/// A VXLAN network identifier: 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// `None` if it does not fit 24 bits.
    #[must_use]
    pub const fn new(vni: u32) -> Option<Self> {
        if vni < 1 << 24 { Some(Self(vni)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an inner packet is carried in a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encap {
    /// flannel's `udp` backend: the payload is the bare IP packet, one a datagram.
    Raw,
    /// VXLAN as a kernel device without GBP or GPE sends it.
    Vxlan {
        /// The network identifier.
        vni: Vni,
    },
}

impl Encap {
    /// Bytes before the inner IP packet.
    #[must_use]
    pub const fn headroom(&self) -> usize {
        match self {
            Self::Raw => 0,
            Self::Vxlan { .. } => VXLAN_LEN,
        }
    }

    /// Whether this format counts as a router hop. flannel's `udp` decrements the inner TTL at both ends;
    /// a VXLAN is a link and never touches it.
    #[must_use]
    pub const fn is_hop(&self) -> bool {
        matches!(self, Self::Raw)
    }

    /// Whether a packet with this TTL or hop limit ends here: no packet travels with 0, and a hop takes one away.
    #[must_use]
    pub const fn uses_up(&self, ttl: u8) -> bool {
        ttl == 0 || (self.is_hop() && ttl == 1)
    }

    /// The header that goes before every packet of one superpacket.
    #[must_use]
    pub fn header(&self, from: MacAddr, to: MacAddr, inner: Family) -> Header {
        let mut bytes = [0; VXLAN_LEN];
        if let Self::Vxlan { vni } = self {
            let [_, high, mid, low] = vni.get().to_be_bytes();
            put(&mut bytes, 0, &[0x08, 0, 0, 0, high, mid, low, 0]);
            put(&mut bytes, 8, &to.0);
            put(&mut bytes, 14, &from.0);
            put16(&mut bytes, 20, inner.ethertype());
        }
        Header { bytes, len: self.headroom() }
    }

    /// Strips the encapsulation, as strict as the kernel: flags and reserved bits exact, VNI equal, the
    /// frame addressed to our MAC and not sent by it, an EtherType that is IP.
    ///
    /// # Errors
    /// The reason to count the datagram under.
    pub fn strip(&self, datagram: &[u8], own: MacAddr) -> Result<Option<Family>, DropReason> {
        let Self::Vxlan { vni } = self else { return Ok(None) };
        let Some(header) = datagram.first_chunk::<8>() else { return Err(DropReason::TooShort) };
        let [flags, r0, r1, r2, high, mid, low, r3] = *header;
        if [flags, r0, r1, r2, r3] != [0x08, 0, 0, 0, 0] {
            return Err(DropReason::BadVxlanFlags);
        }
        if u32::from_be_bytes([0, high, mid, low]) != vni.get() {
            return Err(DropReason::BadVni);
        }
        let Some(frame) = datagram.get(8..).and_then(<[u8]>::first_chunk::<14>) else {
            return Err(DropReason::TooShort);
        };
        if frame.first_chunk::<6>() != Some(&own.0) {
            return Err(DropReason::BadMac);
        }
        if frame.get(6..12) == Some(own.0.as_slice()) {
            return Err(DropReason::Reflected);
        }
        match get16(frame, 12) {
            Some(0x0800) => Ok(Some(Family::V4)),
            Some(0x86dd) => Ok(Some(Family::V6)),
            _ => Err(DropReason::BadEthertype),
        }
    }
}

/// The bytes that [`Encap`] puts before a packet.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; VXLAN_LEN],
    len: usize,
}

impl Header {
    /// The bytes: none for raw, 22 for VXLAN.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
