//! Packet builders for tests, benches and fuzz seeds. They allocate and panic as they please.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::checksum::{Adder, Sum};
use crate::encap::{Encap, Vni};
use crate::forward::{Forwarder, ForwarderConfig, SourceCheck};
use crate::merge::{Merger, Piece, SCRATCH_SLOT, TunWrite};
use crate::mtu::OverlayMtu;
use crate::peers::{Local, Peer, PeerTable};
use crate::split::Segmenter;
use crate::wire::edit::{complete_checksum, fill_ipv4_checksum, l4_checksum_offset, pseudo_header, put16};
use crate::wire::vnet::{Gso, VNET_HDR_LEN, VnetHdr};
use crate::wire::{Family, ICMP, ICMPV6, Ip, Length, MacAddr, TCP, UDP};

/// What follows the IP header.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// A TCP header with `options` bytes of timestamp-like options.
    Tcp {
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Flags byte.
        flags: u8,
        /// Bytes of options, a multiple of four.
        options: usize,
    },
    /// A UDP header.
    Udp,
    /// An ICMP or ICMPv6 echo request.
    Echo,
    /// Any other protocol number and no header.
    Other(u8),
}

impl Transport {
    /// A TCP segment with the ACK flag and 12 bytes of options, as bulk transfers carry.
    #[must_use]
    pub const fn tcp(sequence: u32) -> Self {
        Self::Tcp { sequence, ack: 1, flags: 0x10, options: 12 }
    }
}

/// Builds one inner packet, right in every checksum.
#[derive(Clone, Debug)]
pub struct Builder {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 DF.
    pub dont_fragment: bool,
    family: Family,
    transport: Transport,
    id: u16,
    ip_options: usize,
    payload: Vec<u8>,
}

impl Builder {
    /// A packet from pod 10.244.1.2 (fd00:0:0:1::2) to pod 10.244.2.2 (fd00:0:0:2::2).
    #[must_use]
    pub fn new(family: Family, transport: Transport) -> Self {
        let (source, destination) = match family {
            Family::V4 => (Ipv4Addr::new(10, 244, 1, 2).into(), Ipv4Addr::new(10, 244, 2, 2).into()),
            Family::V6 => (
                Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2).into(),
                Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 2).into(),
            ),
        };
        Self {
            source,
            destination,
            ports: (40_000, 5201),
            tos: 0,
            ttl: 64,
            dont_fragment: true,
            family,
            transport,
            id: 1,
            ip_options: 0,
            payload: Vec::new(),
        }
    }

    /// Sets the source address.
    #[must_use]
    pub fn from(mut self, source: &str) -> Self {
        self.source = source.parse().unwrap();
        self
    }

    /// Sets the destination address.
    #[must_use]
    pub fn to(mut self, destination: &str) -> Self {
        self.destination = destination.parse().unwrap();
        self
    }

    /// Sets the IPv4 identification.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Sets TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Adds bytes of IPv4 options (NOP), a multiple of four; IPv6 has none.
    #[must_use]
    pub fn ip_options(mut self, bytes: usize) -> Self {
        self.ip_options = if self.family == Family::V4 { bytes } else { 0 };
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    fn protocol(&self) -> u8 {
        match (self.transport, self.family) {
            (Transport::Tcp { .. }, _) => TCP,
            (Transport::Udp, _) => UDP,
            (Transport::Echo, Family::V4) => ICMP,
            (Transport::Echo, Family::V6) => ICMPV6,
            (Transport::Other(protocol), _) => protocol,
        }
    }

    fn l4(&self) -> Vec<u8> {
        let mut l4 = match self.transport {
            Transport::Tcp { sequence, ack, flags, options } => {
                let mut header = vec![0; 20 + options];
                put16(&mut header, 0, self.ports.0);
                put16(&mut header, 2, self.ports.1);
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                header[8..12].copy_from_slice(&ack.to_be_bytes());
                header[12] = ((5 + options / 4) << 4) as u8;
                header[13] = flags;
                put16(&mut header, 14, 0x1000);
                header[20..].fill(1);
                header
            }
            Transport::Udp => {
                let mut header = vec![0; 8];
                put16(&mut header, 0, self.ports.0);
                put16(&mut header, 2, self.ports.1);
                put16(&mut header, 4, (8 + self.payload.len()).min(65_535) as u16);
                header
            }
            Transport::Echo => {
                let kind = if self.family == Family::V4 { 8 } else { 128 };
                vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1]
            }
            Transport::Other(_) => Vec::new(),
        };
        l4.extend(&self.payload);
        l4
    }

    fn ip_header(&self, l4_len: usize) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let l3 = 20 + self.ip_options;
                let mut header = vec![0; l3];
                header[0] = 0x40 | (l3 / 4) as u8;
                header[1] = self.tos;
                put16(&mut header, 2, (l3 + l4_len).min(65_535) as u16);
                put16(&mut header, 4, self.id);
                put16(&mut header, 6, if self.dont_fragment { 0x4000 } else { 0 });
                header[8] = self.ttl;
                header[9] = self.protocol();
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                header[20..].fill(1);
                fill_ipv4_checksum(&mut header, l3);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = vec![0; 40];
                header[0] = 0x60 | (self.tos >> 4);
                header[1] = self.tos << 4;
                put16(&mut header, 4, l4_len.min(65_535) as u16);
                header[6] = self.protocol();
                header[7] = self.ttl;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                header
            }
            _ => panic!("mixed families"),
        }
    }

    /// The packet with every checksum finished.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let mut l4 = self.l4();
        let pseudo = pseudo_header(&self.source, &self.destination, self.protocol(), l4.len());
        let offset = match self.transport {
            Transport::Echo => Some(2),
            _ => l4_checksum_offset(self.protocol()),
        };
        if let Some(offset) = offset.filter(|offset| l4.len() >= offset + 2) {
            let sum = match self.transport {
                Transport::Echo if self.family == Family::V4 => Sum::ZERO,
                _ => pseudo,
            }
            .bytes(&l4);
            let checksum = if self.protocol() == UDP { sum.udp_checksum() } else { sum.checksum() };
            put16(&mut l4, offset, checksum);
        }
        let mut packet = self.ip_header(l4.len());
        packet.extend(l4);
        packet
    }

    /// The packet as a kernel leaves it for an offload: the checksum field holds the pseudo-header's sum.
    #[must_use]
    pub fn unfinished(&self) -> Vec<u8> {
        let mut l4 = self.l4();
        let pseudo = pseudo_header(&self.source, &self.destination, self.protocol(), l4.len());
        put16(&mut l4, l4_checksum_offset(self.protocol()).unwrap(), pseudo.folded());
        let mut packet = self.ip_header(l4.len());
        packet.extend(l4);
        packet
    }

    /// A superpacket as a TUN hands it over, and its virtio-net header.
    #[must_use]
    pub fn superpacket(&self, gso_size: u16) -> (VnetHdr, Vec<u8>) {
        let packet = self.unfinished();
        let ip = Ip::parse(&packet, Length::Buffer).unwrap();
        let gso = match self.transport {
            Transport::Tcp { .. } => Gso::Tcp(self.family),
            Transport::Udp => Gso::Udp,
            other => panic!("no superpacket of {other:?}"),
        };
        let vnet = VnetHdr {
            needs_checksum: true,
            gso,
            hdr_len: (packet.len() - self.payload.len()) as u16,
            gso_size,
            csum_start: ip.l3_len as u16,
            csum_offset: l4_checksum_offset(ip.protocol).unwrap() as u16,
        };
        (vnet, packet)
    }

    /// A finished packet as a TUN read.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        tun_read(VnetHdr::PLAIN, &self.packet())
    }
}

/// A TUN read: virtio-net header and packet.
#[must_use]
pub fn tun_read(vnet: VnetHdr, packet: &[u8]) -> Vec<u8> {
    let mut read = vnet.to_bytes().to_vec();
    read.extend(packet);
    read
}

/// VXLAN with VNI 1, as flannel has it.
#[must_use]
pub fn vxlan() -> Encap {
    Encap::Vxlan { vni: Vni::new(1).unwrap() }
}

/// MAC address of node `n` of the test cluster.
#[must_use]
pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// Endpoint of node `n` of the test cluster: 192.0.2.n.
#[must_use]
pub fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 8472))
}

/// A cluster of three as node `own` sees it: node n leases 10.244.n.0/24 and fd00:0:0:n::/64.
#[must_use]
pub fn cluster(own: u8) -> PeerTable {
    crowd(own, 3)
}

/// The same with `nodes` nodes.
#[must_use]
pub fn crowd(own: u8, nodes: u8) -> PeerTable {
    let subnets = |n: u8| {
        vec![
            alloc::format!("10.244.{n}.0/24").parse().unwrap(),
            alloc::format!("fd00:0:0:{n}::/64").parse().unwrap(),
        ]
    };
    let local = Local {
        subnets: subnets(own),
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        mac: mac(own),
        addresses: vec![IpAddr::from([10, 244, own, 0]), alloc::format!("fd00:0:0:{own}::").parse().unwrap()],
    };
    let peers: Vec<Peer> = (1..=nodes)
        .filter(|n| *n != own)
        .map(|n| Peer { endpoint: endpoint(n), mac: mac(n), subnets: subnets(n) })
        .collect();
    PeerTable::build(local, &peers).unwrap()
}

/// A forwarder with an overlay MTU of 1450.
#[must_use]
pub fn forwarder(encap: Encap, source_check: SourceCheck) -> Forwarder {
    Forwarder::new(ForwarderConfig {
        encap,
        mtu: OverlayMtu::new(1450).unwrap(),
        source_check,
        adder: Adder::SCALAR,
    })
}

/// The bytes of one write to the device, gathered from the receive buffers.
#[must_use]
pub fn gather(write: &TunWrite<'_>, merger: &Merger, buffers: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = write.head().to_vec();
    for piece in write.pieces() {
        bytes.extend(resolve(piece, merger, buffers));
    }
    bytes
}

/// The bytes that a piece refers to.
#[must_use]
pub fn resolve<'a>(piece: Piece, merger: &'a Merger, buffers: &'a [Vec<u8>]) -> &'a [u8] {
    let buffer =
        if piece.slot == SCRATCH_SLOT { merger.scratch() } else { &buffers[usize::from(piece.slot)] };
    &buffer[piece.start..piece.start + piece.len]
}

/// What Linux checks of a packet written to a TUN (`virtio_net_hdr_to_skb` and `tun_get_user`, 6.18): `Err` names the
/// rule that would answer `EINVAL`.
///
/// # Errors
/// The first broken rule.
pub fn kernel_accepts(bytes: &[u8]) -> Result<(), &'static str> {
    let (head, packet) = bytes.split_first_chunk::<VNET_HDR_LEN>().ok_or("shorter than a vnet header")?;
    let vnet = VnetHdr::from_bytes(head).ok_or("unknown gso type")?;
    if usize::from(vnet.hdr_len) > packet.len() {
        return Err("hdr_len beyond the packet");
    }
    let version = packet.first().map_or(0, |first| first >> 4);
    if version != 4 && version != 6 {
        return Err("version nibble");
    }
    let start = usize::from(vnet.csum_start);
    if vnet.needs_checksum && start + usize::from(vnet.csum_offset) + 2 > packet.len() {
        return Err("checksum beyond the packet");
    }
    let (protocol, field, header) = match vnet.gso {
        Gso::None => return Ok(()),
        Gso::Tcp(family) => {
            if (family == Family::V4) != (version == 4) {
                return Err("gso type against version");
            }
            (TCP, 16, 20)
        }
        Gso::Udp => (UDP, 6, 8),
    };
    if !vnet.needs_checksum || usize::from(vnet.csum_offset) != field {
        return Err("checksum field of the wrong protocol");
    }
    if vnet.gso_size == 0 {
        return Err("gso_size 0");
    }
    let ip = Ip::parse(packet, Length::Buffer).map_err(|_| "not IP")?;
    if ip.protocol != protocol || ip.l3_len != start || start + header > packet.len() {
        return Err("headers do not match the gso type");
    }
    let payload = packet.len() - usize::from(vnet.hdr_len);
    if vnet.gso == Gso::Udp && payload.div_ceil(usize::from(vnet.gso_size)) > 128 {
        return Err("more than 128 UDP segments");
    }
    Ok(())
}

/// What the kernel makes of a write: the packets that reach the pod, checksums finished.
#[must_use]
pub fn kernel_cuts(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (head, packet) = bytes.split_first_chunk::<VNET_HDR_LEN>().unwrap();
    let vnet = VnetHdr::from_bytes(head).unwrap();
    let mut packet = packet.to_vec();
    if vnet.gso == Gso::None {
        if vnet.needs_checksum {
            assert!(complete_checksum(
                &mut packet,
                vnet.csum_start.into(),
                vnet.csum_offset.into(),
                Adder::SCALAR
            ));
        }
        return vec![packet];
    }
    let ip = Ip::parse(&packet, Length::Buffer).unwrap();
    let cut = Segmenter::new(&packet, &ip, &vnet).unwrap();
    (0..cut.count())
        .map(|i| {
            let mut segment = vec![0; cut.len_of(i)];
            cut.write(i, &mut segment);
            segment
        })
        .collect()
}

/// A packet with what merging may change made equal: the IPv4 id where DF is set (RFC 6864).
#[must_use]
pub fn normal(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Ok(ip) = Ip::parse(&packet, Length::Claimed)
        && ip.family() == Family::V4
        && ip.dont_fragment
    {
        put16(&mut packet, 4, 0);
        fill_ipv4_checksum(&mut packet, ip.l3_len);
    }
    packet
}
