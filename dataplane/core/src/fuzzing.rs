//! Bodies of the fuzz targets: one plain function each, called by the fuzzer, by the replay of the committed
//! corpus on stable, and by property tests. They panic where a promise is broken.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use alloc::vec;
use alloc::vec::Vec;

use crate::batch::{TxBatch, TxLimits};
use crate::checksum::Adder;
use crate::counters::Counters;
use crate::encap::Encap;
use crate::forward::{Received, SourceCheck};
use crate::icmp::{self, Complaint, ReplyQueue};
use crate::merge::{MAX_PIECES, MergeConfig, Merger};
use crate::peers::PeerTable;
use crate::testing::{
    Builder, Transport, cluster, endpoint, forwarder, gather, kernel_accepts, kernel_cuts, normal, resolve,
    vxlan,
};
use crate::wire::edit::{ipv4_header_is_valid, l4_is_unfinished, l4_is_valid};
use crate::wire::vnet::{VNET_HDR_LEN, VnetHdr};
use crate::wire::{Family, Ip, Length, TCP, UDP};

fn encap(choice: u8) -> Encap {
    if choice & 1 == 0 { vxlan() } else { Encap::Raw }
}

fn source_check(choice: u8) -> SourceCheck {
    if choice & 2 == 0 { SourceCheck::Strict } else { SourceCheck::Loose }
}

fn merge_config(choice: u8) -> MergeConfig {
    match choice & 0x0c {
        0 => MergeConfig::ALL,
        4 => MergeConfig { udp: false, ..MergeConfig::ALL },
        8 => MergeConfig { tcp: false, ..MergeConfig::ALL },
        _ => MergeConfig::NONE,
    }
}

/// The parts that a receive needs, made once: building them costs more than the body.
#[derive(Debug)]
pub struct Receiver {
    table: PeerTable,
    merger: Merger,
    batch: TxBatch,
    buffers: Vec<Vec<u8>>,
}

impl Default for Receiver {
    fn default() -> Self {
        let limits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
        Self {
            table: cluster(2),
            merger: Merger::new(MergeConfig::ALL),
            batch: TxBatch::new(limits, 1),
            buffers: Vec::new(),
        }
    }
}

impl Receiver {
    /// Datagrams to verdicts. The first bytes choose configuration, sender, TOS and stride; the rest is one or more
    /// receive buffers, each after its length.
    ///
    /// Promises: no panic; every datagram is delivered or counted once; every write stays inside its buffers,
    /// is one the kernel takes, carries a valid inner header for us, and was sent by a peer; checksums that are left
    /// to the device come out right.
    pub fn receive(&mut self, data: &[u8]) {
        let Some(([choice, sender, tos, stride_low, stride_high], mut rest)) = data.split_first_chunk::<5>()
        else {
            return;
        };
        let mut forwarder = forwarder(encap(*choice), source_check(*choice));
        self.merger.clear();
        self.merger.set_config(merge_config(*choice));
        self.batch.clear();
        self.buffers.clear();
        let mut counters = Counters::default();
        while let Some(([low, high], tail)) = rest.split_first_chunk::<2>() {
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
            let (datagram, tail) = tail.split_at(len);
            rest = tail;
            if !self.merger.has_room() || !self.batch.has_room() || self.buffers.len() == 64 {
                break;
            }
            let mut buffer = datagram.to_vec();
            let stride = match usize::from(u16::from_le_bytes([*stride_low, *stride_high])) {
                0 if choice & 0x10 == 0 => buffer.len(),
                stride => stride,
            };
            let meta =
                Received { from: endpoint(sender % 4), stride, tos: *tos, truncated: choice & 0x20 != 0 };
            let slot = self.buffers.len() as u16;
            forwarder.inbound(
                &self.table,
                u64::from(*tos) << 20,
                slot,
                &mut buffer,
                &meta,
                &mut self.merger,
                &mut self.batch,
                &mut counters,
            );
            self.buffers.push(buffer);
        }
        for write in self.merger.writes() {
            counters.rx.pass(write.packets(), write.bytes());
            assert!(write.pieces().count() < MAX_PIECES);
            for (_, piece) in write.singles() {
                assert_eq!(resolve(piece, &self.merger, &self.buffers).len(), piece.len);
            }
            let bytes = gather(&write, &self.merger, &self.buffers);
            assert_eq!(kernel_accepts(&bytes), Ok(()));
            let ip = Ip::parse(&bytes[VNET_HDR_LEN..], Length::Claimed).unwrap();
            assert_eq!(ip.len, bytes.len() - VNET_HDR_LEN);
            assert!(ip.family() == Family::V6 || ipv4_header_is_valid(&bytes[VNET_HDR_LEN..], ip.l3_len));
            assert_eq!(self.table.owner(ip.destination), crate::Owner::Own);
            assert!(self.table.knows(endpoint(sender % 4).ip()) && ip.ttl > 0);
            // A checksum that the device owes must come out right: no other layer would notice.
            if VnetHdr::take(&mut bytes.clone()).is_some_and(|(vnet, _)| vnet.needs_checksum) {
                for packet in kernel_cuts(&bytes) {
                    assert!(l4_is_valid(
                        &packet,
                        &Ip::parse(&packet, Length::Claimed).unwrap(),
                        Adder::SCALAR
                    ));
                }
            }
        }
        assert!(counters.rx.is_balanced());
        let queued: usize = self.batch.messages().iter().map(|message| message.count()).sum();
        assert_eq!(queued as u64, counters.tx.packets);
    }
}

/// One TUN read, virtio-net header first, behind a byte of choice: every datagram that comes of it is a right packet no
/// longer than the MTU unless it may be fragmented, and every packet is queued or counted once.
pub fn vnet_split(data: &[u8]) {
    let Some((choice, read)) = data.split_first() else { return };
    let mut read = read.to_vec();
    let limits =
        TxLimits { max_segments: if choice & 4 == 0 { 64 } else { 1 }, max_bytes: TxLimits::MAX_BYTES_V4 };
    let encap = encap(*choice);
    let (mut batch, mut replies, mut counters) =
        (TxBatch::new(limits, 1), ReplyQueue::default(), Counters::default());
    let superpacket = VnetHdr::take(&mut read).is_some_and(|(vnet, _)| vnet.needs_checksum);
    forwarder(encap, source_check(*choice)).outbound(
        &cluster(1),
        1,
        &mut read,
        &mut batch,
        &mut replies,
        &mut counters,
    );
    for message in batch.messages() {
        assert!(message.count() <= limits.max_segments);
        let bytes = batch.bytes_of(message);
        for segment in message.train.segments() {
            let packet = &bytes[segment][encap.headroom()..];
            let ip = Ip::parse(packet, Length::Claimed).unwrap();
            assert_eq!(ip.len, packet.len());
            assert!(ip.len <= 1450 || !ip.dont_fragment);
            if superpacket && message.count() > 1 && matches!(ip.protocol, TCP | UDP) {
                assert!(l4_is_valid(packet, &ip, Adder::SCALAR));
            }
        }
        counters.tx.pass(message.count() as u64, message.inner_bytes);
    }
    assert!(counters.tx.is_balanced());
    for reply in replies.iter() {
        assert!(Ip::parse(&reply[VNET_HDR_LEN..], Length::Claimed).is_ok());
    }
}

/// N packets described by four bytes each: merged, cut again, equal, in order within each flow.
pub fn merge(data: &[u8]) {
    let (descriptions, _) = data.as_chunks::<4>();
    let mut sequence = [u32::MAX - 2000; 8];
    let packets: Vec<Vec<u8>> = descriptions
        .iter()
        .take(200)
        .enumerate()
        .map(|(i, [kind, len, odd, flags])| {
            let family = if kind & 1 == 0 { Family::V4 } else { Family::V6 };
            let flow = usize::from(kind >> 1 & 3);
            let payload = vec![*odd; usize::from(*len) * 5];
            let transport = if kind & 8 == 0 {
                let jump = u32::from(odd & 0xf0 == 0xf0);
                let at = sequence[flow].wrapping_add(jump);
                sequence[flow] = at.wrapping_add(payload.len() as u32);
                let flags = if flags & 0xf0 == 0 { 0x10 | (flags & 8) } else { *flags };
                Transport::Tcp { sequence: at, ack: 1, flags, options: usize::from(odd & 3) * 4 }
            } else {
                Transport::Udp
            };
            let mut builder = Builder::new(family, transport).id(i as u16).payload(&payload);
            builder.ports.0 = flow as u16;
            builder.dont_fragment = odd & 4 == 0;
            builder.ttl = 64 - (odd >> 3 & 1);
            let mut packet = builder.packet();
            if odd & 0x70 == 0x70 {
                let last = packet.len() - 1;
                packet[last] ^= 0x55;
            }
            packet
        })
        .collect();
    let mut merger = Merger::new(MergeConfig::ALL);
    for (slot, packet) in packets.iter().enumerate() {
        let ip = Ip::parse(packet, Length::Claimed).unwrap();
        if l4_is_unfinished(packet, &ip) {
            return;
        }
        assert!(merger.push(packet, &ip, slot as u16, 0, false));
    }
    let key = |packet: &Vec<u8>| {
        let ip = Ip::parse(packet, Length::Claimed).unwrap();
        let ports = packet[ip.l3_len..ip.l3_len + 4].to_vec();
        (ip.family(), ip.protocol, ports)
    };
    // A stable sort by flow keeps the order within each.
    let mut expected: Vec<_> = packets.iter().map(|packet| normal(packet)).collect();
    expected.sort_by_key(key);
    let mut cut: Vec<_> = Vec::new();
    for write in merger.writes() {
        let bytes = gather(&write, &merger, &packets);
        assert_eq!(kernel_accepts(&bytes), Ok(()));
        cut.extend(kernel_cuts(&bytes).iter().map(|packet| normal(packet)));
    }
    cut.sort_by_key(key);
    assert!(cut == expected);
}

/// Any packet behind a byte of choice: a reply about it is a right packet, and no reply answers an error.
pub fn icmp(data: &[u8]) {
    let Some((choice, packet)) = data.split_first() else { return };
    let Ok(ip) = Ip::parse(packet, Length::Claimed) else { return };
    let complaint = match choice % 3 {
        0 => Complaint::Unreachable,
        1 => Complaint::TooBig { mtu: 1450 },
        _ => Complaint::TimeExceeded,
    };
    let table = cluster(1);
    let from = table.local().address(ip.family()).unwrap();
    if !icmp::may_answer(packet, &ip) {
        return;
    }
    let mut out = [0xaa; 1280];
    let len = icmp::build(packet, &ip, complaint, from, &mut out).unwrap();
    let reply = Ip::parse(&out[..len], Length::Claimed).unwrap();
    assert_eq!(reply.len, len);
    assert_eq!((reply.source, reply.destination), (from, ip.source));
    assert!(!icmp::may_answer(&out[..len], &reply), "an error that would be answered");
    match reply.family() {
        Family::V4 => {
            assert!(len <= 576 && ipv4_header_is_valid(&out, reply.l3_len));
            assert!(crate::checksum::Sum::ZERO.bytes(&out[reply.l3_len..len]).is_valid());
        }
        Family::V6 => assert!(l4_is_valid(&out, &reply, Adder::SCALAR)),
    }
}

/// A seed of each shape for the corpora: (target, name, bytes).
#[must_use]
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (family, suffix) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        for (transport, name) in
            [(Transport::tcp(1), "tcp"), (Transport::Udp, "udp"), (Transport::Echo, "echo")]
        {
            let builder = Builder::new(family, transport).payload(&[7; 600]);
            let packet = builder.packet();
            let mut header =
                vxlan().header(crate::testing::mac(1), crate::testing::mac(2), family).as_slice().to_vec();
            header.extend(&packet);
            for (choice, datagram) in [(0u8, header), (1, packet.clone())] {
                let mut receive = vec![choice, 1, 0, 0, 0];
                for _ in 0..2 {
                    receive.extend((datagram.len() as u16).to_le_bytes());
                    receive.extend(&datagram);
                }
                let format = if choice == 0 { "vxlan" } else { "raw" };
                seeds.push(("receive", leak(format, name, suffix), receive));
            }
            // What a kernel peer leaves to us, which no mutation finds: the checksum would have to be guessed.
            if !matches!(transport, Transport::Echo) {
                let stride = if matches!(transport, Transport::Udp) { 1000u16 } else { 0 };
                for (len, stride, what) in [(600, 0, "open"), (5000, stride, "whole")] {
                    let mut datagram = vxlan()
                        .header(crate::testing::mac(1), crate::testing::mac(2), family)
                        .as_slice()
                        .to_vec();
                    datagram.extend(builder.clone().payload(&vec![7; len]).unfinished());
                    let mut receive = vec![0, 1, 0];
                    receive.extend(stride.to_le_bytes());
                    receive.extend((datagram.len() as u16).to_le_bytes());
                    receive.extend(&datagram);
                    seeds.push(("receive", leak(what, name, suffix), receive));
                }
            }
            let mut split = vec![0];
            if matches!(transport, Transport::Echo) {
                split.extend(builder.read());
            } else {
                let (vnet, superpacket) = builder.superpacket(100);
                split.extend(crate::testing::tun_read(vnet, &superpacket));
            }
            seeds.push(("vnet_split", leak("split", name, suffix), split));
            let mut about = vec![1];
            about.extend(&packet);
            seeds.push(("icmp", leak("about", name, suffix), about));
        }
    }
    seeds.push(("merge", "tcp_train", [0, 200, 0, 0].repeat(20)));
    seeds.push(("merge", "udp_train", [8, 100, 0, 0].repeat(20)));
    seeds.push(("merge", "mixed", [0, 200, 0, 0, 8, 100, 0, 0, 1, 200, 0, 0, 9, 3, 0x70, 0].repeat(10)));
    seeds
}

fn leak(a: &str, b: &str, c: &str) -> &'static str {
    alloc::boxed::Box::leak(alloc::format!("{a}_{b}_{c}").into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(target: &str, data: &[u8]) {
        match target {
            "receive" => Receiver::default().receive(data),
            "vnet_split" => vnet_split(data),
            "merge" => merge(data),
            "icmp" => icmp(data),
            other => panic!("no target {other}"),
        }
    }

    #[test]
    fn seeds_keep_every_promise() {
        for (target, _, bytes) in seeds() {
            run(target, &bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn damaged_seeds_keep_every_promise(
            which in any::<proptest::sample::Index>(),
            edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let seeds = seeds();
            let (target, _, mut bytes) = seeds[which.index(seeds.len())].clone();
            for (at, value) in edits {
                let at = at.index(bytes.len().min(120));
                bytes[at] = value;
            }
            run(target, &bytes);
            bytes.truncate(cut.index(bytes.len()));
            run(target, &bytes);
        }
    }
}
