//! `virtio_net_hdr`: what the kernel says about a superpacket it hands over, and what we tell it.
//!
//! Ten bytes, little-endian after `TUNSETVNETLE` (virtio 1.2 section 5.1.6; Linux `include/uapi/linux/virtio_net.h`):
//! flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.

use super::Family;

/// Length of the header, in bytes.
pub const VNET_HDR_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` is owed.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`: never asked for (`TUN_F_TSO_ECN` is not set), masked off if it comes.
const GSO_ECN: u8 = 0x80;

/// What kind of superpacket follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// One ordinary packet.
    None,
    /// TCP over the given family.
    Tcp(Family),
    /// UDP datagrams of one flow (`VIRTIO_NET_HDR_GSO_UDP_L4`, Linux 6.2).
    Udp,
}

/// A parsed `virtio_net_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHdr {
    /// The transport checksum is owed.
    pub needs_checksum: bool,
    /// Kind of superpacket.
    pub gso: Gso,
    /// Bytes of headers. Written for the kernel, which sizes its linear part by it; on what the kernel hands
    /// over it cannot be trusted for forwarded packets.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksummed part starts.
    pub csum_start: u16,
    /// Where, from `csum_start`, the checksum is stored.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// The header of an ordinary finished packet.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        gso: Gso::None,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Splits a TUN read into header and packet; `None` if it is too short or its GSO type is unknown.
    #[must_use]
    pub fn take(read: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (head, packet) = read.split_first_chunk_mut::<VNET_HDR_LEN>()?;
        Some((Self::from_bytes(head)?, packet))
    }

    /// Parses the header; `None` if the GSO type is unknown.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; VNET_HDR_LEN]) -> Option<Self> {
        let [flags, kind, rest @ ..] = *bytes;
        let [h0, h1, g0, g1, s0, s1, o0, o1] = rest;
        Some(Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            gso: match kind & !GSO_ECN {
                0 => Gso::None,
                1 => Gso::Tcp(Family::V4),
                4 => Gso::Tcp(Family::V6),
                5 => Gso::Udp,
                _ => return None,
            },
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HDR_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let kind = match self.gso {
            Gso::None => 0,
            Gso::Tcp(Family::V4) => 1,
            Gso::Tcp(Family::V6) => 4,
            Gso::Udp => 5,
        };
        [u8::from(self.needs_checksum) * NEEDS_CSUM, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}
