//! Promises of the forwarder: what passes, and under which one reason everything else is counted.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::batch::TxLimits;
use crate::checksum::Adder;
use crate::merge::MergeConfig;
use crate::testing::{
    Builder, Transport, cluster, endpoint, forwarder, gather, kernel_accepts, kernel_cuts, mac, tun_read,
    vxlan,
};
use crate::wire::Family::{V4, V6};
use crate::wire::edit::{fill_ipv4_checksum, put16};

/// Node 1 sends, node 2 receives; both as the engine's worker drives them.
struct Node {
    forwarder: Forwarder,
    table: PeerTable,
    batch: TxBatch,
    replies: ReplyQueue,
    merger: Merger,
    counters: Counters,
    now_ns: u64,
}

impl Node {
    fn new(n: u8, encap: Encap, check: SourceCheck) -> Self {
        Self::with(n, encap, check, MergeConfig::ALL)
    }

    fn with(n: u8, encap: Encap, check: SourceCheck, merge: MergeConfig) -> Self {
        let limits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
        Self {
            forwarder: forwarder(encap, check),
            table: cluster(n),
            batch: TxBatch::new(limits, 8),
            replies: ReplyQueue::default(),
            merger: Merger::new(merge),
            counters: Counters::default(),
            now_ns: 5_000_000_000,
        }
    }

    fn read(&mut self, mut read: Vec<u8>) -> Verdict {
        self.forwarder.outbound(
            &self.table,
            self.now_ns,
            &mut read,
            &mut self.batch,
            &mut self.replies,
            &mut self.counters,
        )
    }

    /// The datagrams of the batch as separate buffers, counted as sent.
    fn datagrams(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for message in self.batch.messages() {
            let bytes = self.batch.bytes_of(message);
            all.extend(message.train.segments().map(|segment| bytes[segment].to_vec()));
            self.counters.tx.pass(message.count() as u64, message.inner_bytes);
        }
        self.batch.clear();
        assert!(self.counters.tx.is_balanced(), "{:?}", self.counters.tx);
        all
    }

    /// Takes datagrams from node `from`; gives back what the device is written.
    fn receive(&mut self, from: SocketAddr, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.receive_marked(from, datagrams, 0)
    }

    fn receive_marked(&mut self, from: SocketAddr, datagrams: &[Vec<u8>], tos: u8) -> Vec<Vec<u8>> {
        let mut buffers = datagrams.to_vec();
        for (slot, buffer) in buffers.iter_mut().enumerate() {
            let meta = Received { from, stride: buffer.len(), tos, truncated: false };
            self.forwarder.inbound(
                &self.table,
                self.now_ns,
                slot as u16,
                buffer,
                &meta,
                &mut self.merger,
                &mut self.batch,
                &mut self.counters,
            );
        }
        let writes: Vec<_> =
            self.merger.writes().map(|write| gather(&write, &self.merger, &buffers)).collect();
        for write in self.merger.writes() {
            self.counters.rx.pass(write.packets(), write.bytes());
        }
        self.merger.clear();
        assert!(self.counters.rx.is_balanced(), "{:?}", self.counters.rx);
        for write in &writes {
            assert_eq!(kernel_accepts(write), Ok(()));
        }
        writes
    }
}

fn encaps() -> [Encap; 2] {
    [Encap::Raw, vxlan()]
}

/// A packet from node 1's pod in the given format, as node 1 would send it.
fn datagram(encap: Encap, packet: &[u8]) -> Vec<u8> {
    let family = if packet[0] >> 4 == 6 { V6 } else { V4 };
    let mut datagram = encap.header(mac(1), mac(2), family).as_slice().to_vec();
    datagram.extend(packet);
    datagram
}

fn udp(family: Family) -> Builder {
    Builder::new(family, Transport::Udp).payload(b"hello")
}

#[test]
fn what_one_node_sends_the_other_delivers() {
    for encap in encaps() {
        for family in [V4, V6] {
            for transport in [Transport::Udp, Transport::tcp(1), Transport::Echo, Transport::Other(99)] {
                let builder = Builder::new(family, transport).payload(&[7; 1000]);
                let (mut a, mut b) =
                    (Node::new(1, encap, SourceCheck::Strict), Node::new(2, encap, SourceCheck::Strict));
                assert_eq!(a.read(builder.read()), Verdict::Queued(1));
                let writes = b.receive(endpoint(1), &a.datagrams());
                let hops = if encap.is_hop() { 2 } else { 0 };
                assert_eq!(kernel_cuts(&writes[0]), [builder.ttl(64 - hops).packet()]);
            }
        }
    }
}

/// Oracle 1: a superpacket comes out of the far device as one superpacket with the same bytes.
#[test]
fn a_superpacket_arrives_whole() {
    for encap in encaps() {
        for family in [V4, V6] {
            for transport in [Transport::Udp, Transport::tcp(u32::MAX - 700)] {
                let payload: Vec<u8> = (0..40_000u32).map(|i| (i / 7) as u8).collect();
                let builder = Builder::new(family, transport).payload(&payload);
                let (vnet, superpacket) = builder.superpacket(1000);
                let (mut a, mut b) =
                    (Node::new(1, encap, SourceCheck::Loose), Node::new(2, encap, SourceCheck::Loose));
                assert_eq!(a.read(tun_read(vnet, &superpacket)), Verdict::Queued(40));
                let writes = b.receive(endpoint(1), &a.datagrams());
                assert_eq!(writes.len(), 1, "{encap:?} {family:?} {transport:?}");
                let hops = if encap.is_hop() { 2 } else { 0 };
                let (vnet, superpacket) = builder.ttl(64 - hops).superpacket(1000);
                assert_eq!(writes[0], tun_read(vnet, &superpacket));
            }
        }
    }
}

/// Every bad datagram, 100 times: counted 100 times under its one reason, delivered never.
#[test]
fn every_bad_datagram_has_its_reason() {
    use DropReason as R;
    let edit = |packet: Vec<u8>, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = packet;
        edit(&mut packet);
        packet
    };
    let v4 = |change: &dyn Fn(&mut Vec<u8>)| {
        edit(udp(V4).packet(), &|packet| {
            change(packet);
            fill_ipv4_checksum(packet, 20);
        })
    };
    let v6 = |change: &dyn Fn(&mut Vec<u8>)| edit(udp(V6).packet(), change);
    let mut inner: Vec<(&str, Vec<u8>, R)> = vec![
        ("empty", vec![], R::TooShort),
        ("seven bytes", udp(V4).packet()[..7].to_vec(), R::TooShort),
        ("nineteen bytes", udp(V4).packet()[..19].to_vec(), R::TooShort),
        ("IPv6 cut at 39", udp(V6).packet()[..39].to_vec(), R::TooShort),
        ("IHL 4", v4(&|p| p[0] = 0x44), R::BadLength),
        ("IHL beyond", v4(&|p| p[0] = 0x4f), R::BadLength),
        ("total length below header", v4(&|p| put16(p, 2, 19)), R::BadLength),
        ("total length beyond", v4(&|p| put16(p, 2, 1400)), R::BadLength),
        ("IPv6 length beyond", v6(&|p| put16(p, 4, 1400)), R::BadLength),
        ("header checksum", edit(udp(V4).packet(), &|p| p[10] ^= 1), R::BadChecksum),
        ("routing type 0", v6(&|p| rh0(p)), R::BadExtensionHeader),
        ("extension past the end", v6(&|p| (p[6], p[41]) = (60, 200)), R::BadExtensionHeader),
        (
            "jumbogram",
            v6(&|p| {
                p[6] = 0;
                put16(p, 4, 0);
            }),
            R::BadExtensionHeader,
        ),
        ("another node's source", udp(V4).from("10.244.3.9").packet(), R::BadInnerSource),
        ("nobody's source in the cluster", udp(V4).from("10.244.77.9").packet(), R::BadInnerSource),
        ("our own source", udp(V4).from("10.244.2.9").packet(), R::OwnSource),
        ("our own source in IPv6", udp(V6).from("fd00:0:0:2::9").packet(), R::OwnSource),
        ("loopback source", udp(V4).from("127.0.0.1").packet(), R::Martian),
        ("zero source", udp(V4).from("0.0.0.0").packet(), R::Martian),
        ("link-local source", udp(V4).from("169.254.1.1").packet(), R::Martian),
        ("multicast source", udp(V4).from("224.0.0.5").packet(), R::Martian),
        ("IPv6 link-local source", udp(V6).from("fe80::1").packet(), R::Martian),
        ("IPv6 loopback source", udp(V6).from("::1").packet(), R::Martian),
        ("foreign source", udp(V4).from("8.8.8.8").packet(), R::ForeignSource),
        ("not for us", udp(V4).to("10.244.3.1").packet(), R::NotForUs),
        ("outside", udp(V4).to("8.8.8.8").packet(), R::NotForUs),
        ("TTL 0", udp(V4).ttl(0).packet(), R::TtlExceeded),
        ("hop limit 0", udp(V6).ttl(0).packet(), R::TtlExceeded),
        ("over the MTU", udp(V4).payload(&[0; 1500]).packet(), R::Oversize),
        ("over the MTU, IPv6", udp(V6).payload(&[0; 1500]).packet(), R::Oversize),
    ];
    for nibble in [0x0, 0x5, 0x7, 0xf] {
        inner.push(("version nibble", edit(udp(V4).packet(), &|p| p[0] = nibble << 4 | 5), R::BadVersion));
    }
    for kind in [131, 137] {
        let packet = edit(udp(V4).ip_options(8).packet(), &|p| {
            p[20..23].copy_from_slice(&[kind, 7, 4]);
            fill_ipv4_checksum(p, 28);
        });
        inner.push(("source route", packet, R::BadOption));
    }
    let mut nine = [60, 0, 0, 0, 0, 0, 0, 0].repeat(9);
    nine[64] = 17;
    inner.push((
        "nine extension headers",
        edit(udp(V6).packet(), &|p| {
            p[6] = 60;
            p.splice(40..40, nine.iter().copied());
            let len = p.len() - 40;
            put16(p, 4, len as u16);
        }),
        R::BadExtensionHeader,
    ));

    let mut cases: Vec<(&str, Encap, Vec<u8>, R)> = Vec::new();
    for (what, packet, reason) in inner {
        let family =
            if reason == R::BadVersion || packet.is_empty() || packet[0] >> 4 == 4 { V4 } else { V6 };
        let mut framed = vxlan().header(mac(1), mac(2), family).as_slice().to_vec();
        framed.extend(&packet);
        cases.push((what, vxlan(), framed, reason));
        cases.push((what, Encap::Raw, packet, reason));
    }
    cases.push(("TTL 1 over a hop", Encap::Raw, udp(V4).ttl(1).packet(), R::TtlExceeded));
    let frame = |change: &dyn Fn(&mut Vec<u8>)| edit(datagram(vxlan(), &udp(V4).packet()), change);
    let vxlan_cases = vec![
        ("header cut", frame(&|d| d.truncate(7)), R::TooShort),
        ("Ethernet cut", frame(&|d| d.truncate(21)), R::TooShort),
        ("VNI 2", frame(&|d| d[6] = 2), R::BadVni),
        ("I flag clear", frame(&|d| d[0] = 0), R::BadVxlanFlags),
        ("GBP flag", frame(&|d| d[0] = 0x88), R::BadVxlanFlags),
        ("GPE flag", frame(&|d| d[0] = 0x0c), R::BadVxlanFlags),
        ("reserved bits", frame(&|d| d[3] = 1), R::BadVxlanFlags),
        ("last reserved byte", frame(&|d| d[7] = 1), R::BadVxlanFlags),
        ("foreign MAC", frame(&|d| d[13] = 9), R::BadMac),
        ("broadcast MAC", frame(&|d| d[8..14].fill(0xff)), R::BadMac),
        ("reflected", frame(&|d| d[19] = 2), R::Reflected),
        ("ARP", frame(&|d| put16(d, 20, 0x0806)), R::BadEthertype),
        ("802.1Q", frame(&|d| put16(d, 20, 0x8100)), R::BadEthertype),
        ("IPv4 as IPv6", frame(&|d| put16(d, 20, 0x86dd)), R::BadVersion),
    ];
    cases.extend(vxlan_cases.into_iter().map(|(what, datagram, reason)| (what, vxlan(), datagram, reason)));

    for (what, encap, datagram, reason) in cases {
        let mut node = Node::new(2, encap, SourceCheck::Strict);
        for _ in 0..100 {
            let writes = node.receive(endpoint(1), std::slice::from_ref(&datagram));
            assert!(writes.is_empty(), "{what} over {encap:?} was delivered");
        }
        let drops: Vec<_> = node.counters.rx.drops().collect();
        assert_eq!(drops, [(reason, 100)], "{what} over {encap:?}");
    }
}

/// Turns a UDP packet's first eight payload bytes into a type 0 routing header.
fn rh0(packet: &mut Vec<u8>) {
    packet[6] = 43;
    packet.splice(40..40, [17, 0, 0, 0, 0, 0, 0, 0]);
    let len = packet.len() - 40;
    put16(packet, 4, len as u16);
}

#[test]
fn a_stranger_is_counted_and_never_parsed() {
    for encap in encaps() {
        let mut node = Node::new(2, encap, SourceCheck::Loose);
        for datagram in [datagram(encap, &udp(V4).packet()), vec![0xff; 300], vec![]] {
            for _ in 0..100 {
                assert!(node.receive(endpoint(9), std::slice::from_ref(&datagram)).is_empty());
            }
        }
        assert_eq!(node.counters.rx.drops().collect::<Vec<_>>(), [(DropReason::UnknownPeer, 300)]);
    }
}

#[test]
fn a_foreign_source_passes_in_loose_mode_and_is_counted() {
    for encap in encaps() {
        let mut node = Node::new(2, encap, SourceCheck::Loose);
        let foreign = datagram(encap, &udp(V4).from("203.0.113.7").packet());
        let writes = node.receive(endpoint(1), &vec![foreign; 5]);
        assert_eq!(writes.iter().map(|write| kernel_cuts(write).len()).sum::<usize>(), 5);
        assert_eq!((node.counters.rx.passed, node.counters.foreign_sources), (5, 5));
    }
}

#[test]
fn bytes_behind_the_packet_are_cut_off() {
    let mut long = datagram(vxlan(), &udp(V4).packet());
    long.extend([0xee; 30]);
    let writes = Node::new(2, vxlan(), SourceCheck::Strict).receive(endpoint(1), &[long]);
    assert_eq!(kernel_cuts(&writes[0]), [udp(V4).packet()]);
}

#[test]
fn fragments_and_harmless_options_pass_untouched_and_unmerged() {
    let fragment = |offset: u16| {
        let mut packet = Builder::new(V4, Transport::Other(17)).payload(&[3; 64]).packet();
        put16(&mut packet, 6, offset);
        fill_ipv4_checksum(&mut packet, 20);
        packet
    };
    let junk = {
        let mut packet = udp(V4).ip_options(40).packet();
        packet[20..60].iter_mut().zip(0u8..).for_each(|(byte, i)| *byte = 200 ^ i);
        fill_ipv4_checksum(&mut packet, 60);
        packet
    };
    let packets = [fragment(0x2000), fragment(0x2008), fragment(0x2009), fragment(0x0010), junk];
    {
        let encap = vxlan();
        let datagrams: Vec<_> = packets.iter().map(|packet| datagram(encap, packet)).collect();
        let writes = Node::new(2, encap, SourceCheck::Strict).receive(endpoint(1), &datagrams);
        let delivered: Vec<_> = writes.iter().flat_map(|write| kernel_cuts(write)).collect();
        assert_eq!(delivered, packets);
    }
}

#[test]
fn what_the_device_hands_over_is_checked() {
    use DropReason as R;
    let (vnet, superpacket) = Builder::new(V4, Transport::tcp(1)).payload(&[7; 3000]).superpacket(1000);
    let lie = |vnet| tun_read(vnet, &superpacket);
    let cases: Vec<(&str, Vec<u8>, R, u64)> = vec![
        ("nothing", vec![], R::BadVnetHeader, 1),
        ("half a header", vec![0; 9], R::BadVnetHeader, 1),
        (
            "unknown type",
            {
                let mut read = udp(V4).read();
                read[1] = 3;
                read
            },
            R::BadVnetHeader,
            1,
        ),
        ("gso_size 0", lie(VnetHdr { gso_size: 0, ..vnet }), R::BadVnetHeader, 1),
        ("type against version", lie(VnetHdr { gso: Gso::Tcp(V6), ..vnet }), R::BadVnetHeader, 1),
        ("type against protocol", lie(VnetHdr { gso: Gso::Udp, ..vnet }), R::BadVnetHeader, 1),
        ("checksum start", lie(VnetHdr { csum_start: 60_000, ..vnet }), R::BadVnetHeader, 1),
        (
            "checksum past the end",
            tun_read(
                VnetHdr { needs_checksum: true, csum_start: 20, csum_offset: 60_000, ..VnetHdr::PLAIN },
                &udp(V4).packet(),
            ),
            R::BadVnetHeader,
            1,
        ),
        (
            "a million segments",
            tun_read(VnetHdr { gso_size: 1, ..vnet }, &superpacket),
            R::TooManySegments,
            3000,
        ),
        ("nobody's subnet", udp(V4).to("10.244.9.9").read(), R::NoRoute, 1),
        ("outside", udp(V4).to("8.8.8.8").read(), R::NoRoute, 1),
        ("our own subnet", udp(V4).to("10.244.1.77").read(), R::OwnDestination, 1),
        ("multicast", udp(V4).to("224.0.0.251").read(), R::NotUnicast, 1),
        ("router solicitation", udp(V6).from("fe80::1").to("ff02::2").read(), R::NotUnicast, 1),
        ("another node's source", udp(V4).from("10.244.3.3").read(), R::BadSource, 1),
        ("too big", udp(V4).payload(&[0; 1430]).read(), R::TooBig, 1),
        ("TTL 0", udp(V4).ttl(0).read(), R::TtlExceeded, 1),
    ];
    for (what, read, reason, packets) in cases {
        let mut node = Node::new(1, vxlan(), SourceCheck::Loose);
        for _ in 0..100 {
            assert_eq!(node.read(read.clone()), Verdict::Dropped(reason), "{what}");
        }
        assert!(node.datagrams().is_empty());
        assert_eq!(node.counters.tx.drops().collect::<Vec<_>>(), [(reason, 100 * packets)], "{what}");
    }
}

#[test]
fn the_sender_is_told_but_not_flooded() {
    let cases = [
        (udp(V4).to("10.244.9.9"), 3u8),
        (udp(V4).payload(&[0; 1430]), 3),
        (udp(V4).ttl(1), 11),
        (udp(V6).to("fd00:0:0:9::9"), 1),
        (udp(V6).payload(&[0; 1430]), 2),
        (udp(V6).ttl(1), 3),
    ];
    for (builder, kind) in cases {
        let mut node = Node::new(1, Encap::Raw, SourceCheck::Loose);
        for _ in 0..100 {
            node.read(builder.read());
        }
        let replies: Vec<_> = node.replies.iter().map(<[u8]>::to_vec).collect();
        assert_eq!(replies.len(), 10);
        assert_eq!((node.counters.icmp_replies, node.counters.icmp_limited), (10, 90));
        let ip = Ip::parse(&replies[0][10..], Length::Claimed).unwrap();
        assert_eq!(replies[0][10 + ip.l3_len], kind);
        assert_eq!(ip.destination, builder.source);
    }
}

#[test]
fn time_exceeded_travels_back_through_the_tunnel() {
    let (mut a, mut b) =
        (Node::new(1, Encap::Raw, SourceCheck::Strict), Node::new(2, Encap::Raw, SourceCheck::Strict));
    assert!(b.receive(endpoint(1), &[udp(V4).ttl(1).packet()]).is_empty());
    let back = b.datagrams();
    assert_eq!(back.len(), 1);
    let writes = a.receive(endpoint(2), &back);
    assert_eq!(writes[0][10 + 20..][..2], [11, 0]);
}

/// RFC 6040, all sixteen cases of figure 4.
#[test]
fn congestion_marks_follow_rfc_6040() {
    let expected = |inner: u8, outer: u8| match (inner, outer) {
        (0, 3) => None,
        (0, _) => Some(0),
        (1, 3) | (2, 3) | (3, _) => Some(3),
        (1, _) | (2, 1) => Some(1),
        _ => Some(2),
    };
    for family in [V4, V6] {
        for inner in 0..4 {
            for outer in 0..4 {
                let mut builder = udp(family);
                builder.tos = 0xb8 | inner;
                let mut node = Node::new(2, vxlan(), SourceCheck::Strict);
                let writes = node.receive_marked(endpoint(1), &[datagram(vxlan(), &builder.packet())], outer);
                match expected(inner, outer) {
                    None => assert_eq!(node.counters.rx.dropped(DropReason::Congested), 1),
                    Some(ecn) => {
                        builder.tos = 0xb8 | ecn;
                        assert_eq!(kernel_cuts(&writes[0]), [builder.packet()], "{inner} {outer}");
                    }
                }
                let mut sender = Node::new(1, vxlan(), SourceCheck::Strict);
                builder.tos = 0xb8 | inner;
                sender.read(builder.read());
                assert_eq!(sender.batch.messages()[0].tos, inner);
            }
        }
    }
}

#[test]
fn a_kernel_peer_may_leave_checksums_and_segments_to_us() {
    for merge in [MergeConfig::ALL, MergeConfig::NONE] {
        for family in [V4, V6] {
            for transport in [Transport::Udp, Transport::tcp(7)] {
                let builder = Builder::new(family, transport);
                let small = builder.clone().payload(b"small");
                let large = builder.payload(&[9; 20_000]);
                let mut node = Node::with(2, vxlan(), SourceCheck::Strict, merge);
                let writes = node.receive(endpoint(1), &[datagram(vxlan(), &small.unfinished())]);
                assert_eq!(kernel_cuts(&writes[0]), [small.packet()]);

                let mut giant = datagram(vxlan(), &large.unfinished());
                // The socket reports the inner segment size where the inner packet is UDP.
                let stride = if matches!(transport, Transport::Udp) { 1200 } else { giant.len() };
                let meta = Received { from: endpoint(1), stride, tos: 0, truncated: false };
                node.forwarder.inbound(
                    &node.table,
                    0,
                    0,
                    &mut giant,
                    &meta,
                    &mut node.merger,
                    &mut node.batch,
                    &mut node.counters,
                );
                let buffers = [giant];
                let cut: Vec<_> = node
                    .merger
                    .writes()
                    .flat_map(|write| kernel_cuts(&gather(&write, &node.merger, &buffers)))
                    .collect();
                assert!(cut.len() > 10, "{family:?} {transport:?}");
                // Where TCP's sender would have cut is not known, so every link must take the segments.
                assert!(cut.iter().all(|packet| packet.len() <= 1280), "{family:?} {transport:?}");
                let carried: usize = cut
                    .iter()
                    .map(|packet| {
                        let ip = Ip::parse(packet, Length::Claimed).unwrap();
                        assert!(crate::wire::edit::l4_is_valid(packet, &ip, Adder::SCALAR));
                        packet.len() - ip.l3_len - if matches!(transport, Transport::Udp) { 8 } else { 32 }
                    })
                    .sum();
                assert_eq!(carried, 20_000);
                assert_eq!(node.counters.rx.packets, 2);
            }
        }
    }
}

#[test]
fn small_datagrams_in_one_superpacket_stay_apart_although_all_fit_the_mtu() {
    for merge in [MergeConfig::ALL, MergeConfig::NONE] {
        for family in [V4, V6] {
            let builder = Builder::new(family, Transport::Udp).payload(&[9; 64]);
            let mut giant = datagram(vxlan(), &builder.unfinished());
            let mut node = Node::with(2, vxlan(), SourceCheck::Strict, merge);
            let meta = Received { from: endpoint(1), stride: 1, tos: 0, truncated: false };
            let Node { forwarder, table, merger, batch, counters, .. } = &mut node;
            forwarder.inbound(table, 0, 0, &mut giant, &meta, merger, batch, counters);
            let buffers = [giant];
            let cut: Vec<_> =
                merger.writes().flat_map(|write| kernel_cuts(&gather(&write, merger, &buffers))).collect();
            assert_eq!(cut.len(), 64, "{family:?}");
            let one = Builder::new(family, Transport::Udp).payload(&[9]).packet().len();
            assert!(cut.iter().all(|packet| packet.len() == one));
        }
    }
}

/// A peer's kernel leaves the checksum open behind extension headers too, however long they are.
#[test]
fn an_unfinished_checksum_is_finished_behind_long_extension_headers() {
    for merge in [MergeConfig::ALL, MergeConfig::NONE] {
        let lengthen = |mut packet: Vec<u8>| {
            // Destination options of 8 * (1 + 32) bytes, all padding (PadN, RFC 8200 4.2).
            let mut options = vec![packet[6], 32, 1, 255];
            options.resize(4 + 255, 0);
            options.extend([1, 3, 0, 0, 0]);
            packet[6] = 60;
            packet.splice(40..40, options);
            let len = packet.len() - 40;
            put16(&mut packet, 4, len as u16);
            packet
        };
        let mut node = Node::with(2, vxlan(), SourceCheck::Strict, merge);
        let writes = node.receive(endpoint(1), &[datagram(vxlan(), &lengthen(udp(V6).unfinished()))]);
        assert_eq!(node.counters.unfinished_checksums, 1);
        assert_eq!(kernel_cuts(&writes[0]), [lengthen(udp(V6).packet())]);
    }
}

#[test]
fn a_forged_source_is_not_answered() {
    for (forged, there) in
        [("10.244.3.3", "10.244.9.9"), ("10.244.77.1", "8.8.8.8"), ("127.0.0.1", "8.8.8.8")]
    {
        let mut node = Node::new(1, vxlan(), SourceCheck::Loose);
        let read = udp(V4).from(forged).to(there).read();
        assert_eq!(node.read(read), Verdict::Dropped(DropReason::BadSource), "{forged} to {there}");
        assert!(node.replies.is_empty(), "{forged} to {there}");
    }
    let mut node = Node::new(1, vxlan(), SourceCheck::Loose);
    node.read(udp(V4).from("203.0.113.7").to("10.244.9.9").read());
    assert_eq!(node.counters.foreign_sources, 0, "counted where it passes");
}

/// A node whose link is narrower than the sender's: its kernel would route the packet into a smaller MTU and say so.
#[test]
fn a_sender_is_told_of_a_narrower_node() {
    for encap in encaps() {
        for family in [V4, V6] {
            let (mut near, mut far) =
                (Node::new(1, encap, SourceCheck::Strict), Node::new(2, encap, SourceCheck::Strict));
            let large = datagram(encap, &udp(family).payload(&[0; 1500]).packet());
            assert!(far.receive(endpoint(1), &[large]).is_empty());
            assert_eq!(far.counters.rx.dropped(DropReason::Oversize), 1);
            let back = far.datagrams();
            assert_eq!(back.len(), 1, "{encap:?} {family:?}");
            let writes = near.receive(endpoint(2), &back);
            let packet = &writes[0][10..];
            let ip = Ip::parse(packet, Length::Claimed).unwrap();
            let message: [u8; 8] = packet[ip.l3_len..ip.l3_len + 8].try_into().unwrap();
            let (kind, code) = if family == V4 { (3, 4) } else { (2, 0) };
            assert_eq!((message[0], message[1], &message[4..]), (kind, code, &1450u32.to_be_bytes()[..]));
        }
    }
    let mut far = Node::new(2, vxlan(), SourceCheck::Strict);
    let mut fragmentable = udp(V4).payload(&[0; 1500]);
    fragmentable.dont_fragment = false;
    far.receive(endpoint(1), &[datagram(vxlan(), &fragmentable.packet())]);
    assert!(far.datagrams().is_empty(), "only what may not be fragmented is answered so");
}

#[test]
fn datagrams_over_the_mtu_do_not_slip_through_in_a_superpacket() {
    for merge in [MergeConfig::ALL, MergeConfig::NONE] {
        for (size, taken) in [(1450 - 28, true), (1450 - 27, false)] {
            let whole = Builder::new(V4, Transport::Udp).payload(&[9; 6000]);
            let mut giant = datagram(vxlan(), &whole.unfinished());
            let mut node = Node::with(2, vxlan(), SourceCheck::Strict, merge);
            let meta = Received { from: endpoint(1), stride: size, tos: 0, truncated: false };
            let Node { forwarder, table, merger, batch, counters, .. } = &mut node;
            forwarder.inbound(table, 0, 0, &mut giant, &meta, merger, batch, counters);
            assert_eq!(merger.is_empty(), !taken, "{size}");
            assert_eq!(counters.rx.dropped(DropReason::Oversize), u64::from(!taken), "{size}");
        }
    }
}
