//! Packets, tables and tunnel ends that the benchmarks of the core share.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use dataplane::Features;
use dataplane_core::checksum::Adder;
use dataplane_core::testing::{Builder, Transport, cluster, endpoint, tun_read};
use dataplane_core::{
    Counters, Encap, Family, Forwarder, ForwarderConfig, Local, MacAddr, MergeConfig, Merger, OverlayMtu,
    Peer, PeerTable, Received, ReplyQueue, SourceCheck, TxBatch, TxLimits, VnetHdr,
};

/// What sockets take since Linux 4.18.
pub const LIMITS: TxLimits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
/// TCP payload of a full packet at an overlay MTU of 1450 with timestamps.
pub const MSS: usize = 1398;

/// The way of summing that a worker would use on this CPU.
#[must_use]
pub fn adder() -> Adder {
    dataplane::adder(Features::NONE).0
}

/// A superpacket of 44 segments and its virtio-net header.
#[must_use]
pub fn superpacket(transport: Transport) -> (VnetHdr, Vec<u8>) {
    Builder::new(Family::V4, transport).payload(&vec![1; 44 * MSS]).superpacket(MSS as u16)
}

/// 64 full TCP packets of `flows` flows in turn.
#[must_use]
pub fn segments(flows: u32) -> Vec<Vec<u8>> {
    let segment = |i: u32| {
        let mut builder = Builder::new(Family::V4, Transport::tcp(i / flows * MSS as u32)).payload(&[1; MSS]);
        builder.ports.0 = (i % flows) as u16;
        builder.packet()
    };
    (0..64).map(segment).collect()
}

/// A table of `leases` peers with a /24 each.
///
/// # Panics
/// Never: the subnets are distinct and lie in the network.
#[must_use]
pub fn table(leases: u32) -> PeerTable {
    let peers: Vec<Peer> = (1..=leases)
        .map(|i| {
            let subnet = Ipv4Addr::from(0x0a00_0000 + (i << 8));
            Peer {
                endpoint: SocketAddr::new(IpAddr::from(Ipv4Addr::from(0xc612_0000 + i)), 8472),
                mac: MacAddr::default(),
                subnets: vec![format!("{subnet}/24").parse().expect("a subnet")],
            }
        })
        .collect();
    // The smallest network that holds them.
    let network = if leases < 65_536 { "10.0.0.0/8" } else { "10.0.0.0/7" };
    let local = Local { networks: vec![network.parse().expect("a network")], ..Local::default() };
    PeerTable::build(local, &peers).expect("distinct subnets")
}

/// Pseudo-random addresses, each in the subnet of one of `leases` peers of [`table`].
pub fn addresses(leases: u32) -> impl Iterator<Item = IpAddr> {
    let mut i = 1u32;
    std::iter::repeat_with(move || {
        i = i.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + ((1 + i % leases) << 8) + 7))
    })
}

/// Both ends of a tunnel, with a copy for the wire between them.
pub struct Tunnel {
    tables: [PeerTable; 2],
    ends: [Forwarder; 2],
    batch: TxBatch,
    back: TxBatch,
    merger: Merger,
    replies: ReplyQueue,
    counters: Counters,
    read: Vec<u8>,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
}

impl Tunnel {
    /// A tunnel that carries `packet` again and again.
    ///
    /// # Panics
    /// Never: 1450 is an MTU.
    #[must_use]
    pub fn new(encap: Encap, vnet: VnetHdr, packet: &[u8]) -> Self {
        let end = || {
            Forwarder::new(ForwarderConfig {
                encap,
                mtu: OverlayMtu::new(1450).expect("a usual MTU"),
                source_check: SourceCheck::Loose,
                adder: adder(),
            })
        };
        let read = tun_read(vnet, packet);
        Self {
            tables: [cluster(1), cluster(2)],
            ends: [end(), end()],
            batch: TxBatch::new(LIMITS, 4),
            back: TxBatch::new(LIMITS, 1),
            merger: Merger::new(MergeConfig::ALL).with_adder(adder()),
            replies: ReplyQueue::default(),
            counters: Counters::default(),
            scratch: read.clone(),
            read,
            buffer: vec![0; 65_536],
        }
    }

    /// TUN read, split, encapsulate; copy; receive, strip, check, merge. Returns how many packets were to be written.
    pub fn carry(&mut self) -> u64 {
        let [near, far] = &self.tables;
        let [sender, receiver] = &mut self.ends;
        copy(&self.read, &mut self.scratch);
        let (batch, merger, counters) = (&mut self.batch, &mut self.merger, &mut self.counters);
        sender.outbound(near, 1, &mut self.scratch, batch, &mut self.replies, counters);
        for message in batch.messages() {
            let bytes = batch.bytes_of(message);
            let buffer = &mut self.buffer[..bytes.len()];
            copy(bytes, buffer);
            let stride = message.train.stride;
            let meta = Received { from: endpoint(1), stride, tos: 0, truncated: false };
            receiver.inbound(far, 1, 0, buffer, &meta, merger, &mut self.back, counters);
        }
        let packets = merger.writes().map(|write| write.packets()).sum();
        merger.clear();
        batch.clear();
        packets
    }
}

/// In pieces, because callgrind counts the `rep movsb` of a long copy as one instruction a byte.
fn copy(from: &[u8], to: &mut [u8]) {
    for (to, from) in to.chunks_mut(1024).zip(from.chunks(1024)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use dataplane_core::testing::vxlan;

    use super::*;

    #[test]
    fn what_is_measured_arrives() {
        let (vnet, packet) = superpacket(Transport::tcp(1));
        for encap in [Encap::Raw, vxlan()] {
            let mut tunnel = Tunnel::new(encap, vnet, &packet);
            assert_eq!((tunnel.carry(), tunnel.carry()), (44, 44));
        }
    }
}
