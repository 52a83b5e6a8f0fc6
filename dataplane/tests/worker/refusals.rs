//! What a worker does when the kernel refuses to send: per destination, with another try, and an answer to the sender.

use bytes::Bytes;
use dataplane::core::testing::{Builder, Transport, endpoint, tun_read};
use dataplane::core::{DropReason, Encap, Family, Vni};
use dataplane::io::memory::{MemoryUdp, MemoryWire, WireFaults};
use dataplane::{Demotion, EngineEvent, Feature, Features, Offload};
use etherparse::{Icmpv4Type, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader};

use super::arrived;
use super::node::{HEADERS, Node, numbers_of_write, read_of};

/// After which a refused train is tried again.
const RETRY_NS: u64 = 600_000_000_000;

/// Node 1 with two peers, of which each has a sink.
fn one_of_two() -> (MemoryWire, Node, [MemoryUdp; 2]) {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sinks = [wire.port(endpoint(2)), wire.port(endpoint(3))];
    let node = Node::new(1, &wire, Features::ALL);
    (wire, node, sinks)
}

/// Sends a train of ten datagrams of 1 000 bytes to each of nodes 2 and 3. Messages that were offered.
fn a_train_to_each(node: &mut Node, sinks: &[MemoryUdp; 2], first: u32) -> u64 {
    let before = node.udp.offered();
    node.tun.push(read_of(first, 10, 1000, 0, 2));
    node.tun.push(read_of(first + 10, 10, 1000, 0, 3));
    node.run();
    assert_eq!(arrived(&sinks[0]), Vec::from_iter(first..first + 10));
    assert_eq!(arrived(&sinks[1]), Vec::from_iter(first + 10..first + 20));
    node.udp.offered() - before
}

#[test]
fn a_peer_that_takes_no_trains_costs_no_other_peer_its_own() {
    for errno in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP, libc::EMSGSIZE] {
        let (_wire, mut node, sinks) = one_of_two();
        node.udp.refuse_trains_to(endpoint(2), Some((errno, 0)));
        assert_eq!(a_train_to_each(&mut node, &sinks, 0), 12, "a train in vain, ten datagrams, a train");
        let refused = EngineEvent::TrainsRefused { to: endpoint(2), errno };
        assert_eq!(node.said(), [refused]);
        assert_eq!(a_train_to_each(&mut node, &sinks, 100), 11);
        node.now_ns += RETRY_NS;
        assert_eq!(a_train_to_each(&mut node, &sinks, 200), 12, "another try");
        assert_eq!(a_train_to_each(&mut node, &sinks, 300), 11);
        assert_eq!(node.said(), [], "said once");
        node.udp.refuse_trains_to(endpoint(2), None);
        assert_eq!(a_train_to_each(&mut node, &sinks, 400), 11, "nobody knows yet");
        node.now_ns += RETRY_NS;
        assert_eq!(a_train_to_each(&mut node, &sinks, 500), 2);
        assert_eq!(node.said(), [EngineEvent::TrainsTaken { to: endpoint(2) }]);
        assert_eq!(node.counters().tx.passed, 120);
        assert!(node.worker.offload().has(Feature::UdpGso));
    }
}

#[test]
fn a_narrow_path_keeps_the_trains_that_fit_it() {
    let (_wire, mut node, sinks) = one_of_two();
    node.udp.refuse_trains_to(endpoint(2), Some((libc::EMSGSIZE, 900)));
    a_train_to_each(&mut node, &sinks, 0);
    let before = node.udp.offered();
    node.tun.push(read_of(100, 10, 800, 0, 2));
    node.run();
    assert_eq!(node.udp.offered() - before, 1);
    assert_eq!(arrived(&sinks[0]), Vec::from_iter(100..110));
    assert_eq!(a_train_to_each(&mut node, &sinks, 200), 11, "the long ones are not tried again for that");
}

#[test]
fn a_socket_whose_trains_nobody_takes_goes_without_them_for_a_while() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sinks: Vec<MemoryUdp> = (2..=9).map(|n| wire.port(endpoint(n))).collect();
    let mut node = Node::new(1, &wire, Features::ALL);
    node.shared.publish(dataplane::core::testing::crowd(1, 9));
    node.udp.refuse_trains(Some(libc::EIO));
    let mut first = 0;
    let mut to_all = |node: &mut Node| {
        let before = node.udp.offered();
        for (n, sink) in (2..).zip(&sinks) {
            node.tun.push(read_of(first, 5, 500, 0, n));
            node.run();
            assert_eq!(arrived(sink), Vec::from_iter(first..first + 5));
            first += 5;
        }
        node.udp.offered() - before
    };
    assert_eq!(to_all(&mut node), 8 * 6);
    let demoted = EngineEvent::Demoted(Demotion { feature: Feature::UdpGso, errno: libc::EIO });
    assert_eq!(node.said().last(), Some(&demoted));
    assert!(!node.worker.offload().has(Feature::UdpGso));
    assert_eq!(to_all(&mut node), 8 * 5, "not a single train");
    node.udp.refuse_trains(None);
    node.now_ns += RETRY_NS;
    to_all(&mut node);
    assert_eq!(node.said(), [EngineEvent::Restored(Feature::UdpGso)]);
    assert_eq!(to_all(&mut node), 8);
    assert_eq!(node.counters().tx.passed, node.counters().tx.packets);
}

/// The ICMP message that the device was written: its type, and the packet it quotes.
fn answer(node: &Node) -> Option<(Icmpv4Type, Vec<u8>)> {
    let write = node.tun.take()?;
    let packet = &write[10..];
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("{sliced:?}") };
    Some((icmp.icmp_type(), icmp.payload().to_vec()))
}

#[test]
fn the_sender_of_what_no_route_or_rule_lets_out_hears_that_it_is_unreachable() {
    for errno in [libc::EPERM, libc::EACCES, libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ENETDOWN] {
        for encap in [Encap::Raw, Encap::Vxlan { vni: Vni::new(1).unwrap() }] {
            let wire = MemoryWire::new(WireFaults::NONE);
            let mut node = Node::with(1, &wire, Offload::with(Features::ALL, 64), encap);
            node.udp.refuse_at(0, errno);
            node.udp.refuse_at(1, errno);
            node.tun.push(read_of(7, 1, 500, 0, 2));
            node.run();
            node.tun.push(read_of(70, 10, 500, 0, 2));
            node.run();
            for number in [7, 70] {
                let (kind, quoted) = answer(&node).unwrap();
                assert_eq!(kind, Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network));
                assert_eq!(quoted[HEADERS..HEADERS + 4], u32::to_be_bytes(number));
            }
            assert!(answer(&node).is_none(), "one for a train");
            let counters = node.counters();
            assert_eq!(counters.tx.dropped(DropReason::SendRefused), 11);
            assert_eq!(counters.icmp_replies, 2);
            assert_eq!(node.said(), []);
        }
    }
}

#[test]
fn a_sender_whose_peer_is_unreachable_hears_of_it_ten_times_a_second() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL.without(Feature::UdpGso));
    (0..1000).for_each(|position| node.udp.refuse_at(position, libc::EHOSTUNREACH));
    (0..1000).for_each(|number| node.tun.push(read_of(number, 1, 500, 0, 2)));
    node.run();
    assert_eq!(std::iter::from_fn(|| answer(&node)).count(), 10);
    let counters = node.counters();
    assert_eq!((counters.icmp_replies, counters.icmp_limited), (10, 990));
    assert_eq!(counters.tx.dropped(DropReason::SendRefused), 1000);
    assert_eq!(arrived(&sink), []);
}

#[test]
fn the_sender_of_what_no_path_takes_hears_how_much_to_try() {
    let wire = MemoryWire::new(WireFaults { max_datagram: 1200, ..WireFaults::NONE });
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL);
    let mut mtu = 1450;
    let mut tries = 0;
    // As a host would that obeys: each answer is less than the packet, and it ends with one that fits.
    loop {
        let mut whole =
            Builder::new(Family::V4, Transport::Udp).to("10.244.2.2").payload(&vec![0; mtu - HEADERS]);
        whole.dont_fragment = true;
        node.tun.push(whole.read());
        node.run();
        tries += 1;
        let Some((kind, _)) = answer(&node) else { break };
        let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }) =
            kind
        else {
            panic!("{kind:?}")
        };
        assert!(usize::from(next_hop_mtu) < mtu);
        mtu = next_hop_mtu.into();
    }
    assert_eq!(sink.take().unwrap().1.len(), mtu);
    assert!(tries < 6, "{tries} tries");
    assert_eq!(node.counters().tx.dropped(DropReason::SendRefused), tries - 1);

    let mut parts = Builder::new(Family::V4, Transport::Udp).to("10.244.2.2").payload(&[0; 1400]);
    parts.dont_fragment = false;
    node.tun.push(parts.read());
    node.run();
    assert!(answer(&node).is_none(), "a packet that may be cut is not complained of");
    assert_eq!(node.counters().tx.dropped(DropReason::SendRefused), tries);
}

#[test]
fn an_answer_of_ours_that_cannot_be_sent_is_not_answered() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, Features::ALL));
    let dying = Builder::new(Family::V4, Transport::Udp).to("10.244.2.2").ttl(2).payload(&[7; 100]);
    near.tun.push(dying.read());
    near.run();
    far.udp.refuse_at(0, libc::EPERM);
    far.run();
    let counters = far.counters();
    assert_eq!(counters.rx.dropped(DropReason::TtlExceeded), 1);
    assert_eq!(counters.tx.dropped(DropReason::SendRefused), 1);
    assert_eq!(counters.icmp_replies, 1, "the one that was lost");
    assert!(far.tun.take().is_none());
}

/// Payload bytes of the TCP superpackets below, and of each of their segments.
const STREAM: (usize, u16) = (14_500, 1390);

/// How many of the TUN writes carry TCP, and their payloads put together.
fn stream_written(writes: &[Bytes]) -> (usize, Vec<u8>) {
    let tcp: Vec<_> = writes.iter().filter(|write| write[10 + 9] == 6).collect();
    let carried = tcp.iter().flat_map(|write| write[10 + 20 + 32..].to_vec()).collect();
    (tcp.len(), carried)
}

/// Kernels 6.1.x and 6.6.44 refuse good superpackets of one transport.
#[test]
fn a_device_that_refuses_superpackets_of_one_transport_gets_single_packets_of_that() {
    let cases = [
        (&[1, 4][..], Some(Feature::TunTso), Features::ALL.without(Feature::TunTso)),
        (&[5], Some(Feature::TunUso), Features::ALL.without(Feature::TunUso)),
        (&[], None, Features::ALL),
    ];
    for (gso_types, lost, left) in cases {
        let wire = MemoryWire::new(WireFaults::NONE);
        let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, Features::ALL));
        far.tun.refuse_superpackets(gso_types, libc::EINVAL);
        for round in 0..5u32 {
            let stream: Vec<u8> = (0..STREAM.0 as u32).map(|at| (at * 7 + round) as u8).collect();
            let sequence = round * STREAM.0 as u32;
            let (vnet, superpacket) = Builder::new(Family::V4, Transport::tcp(sequence))
                .to("10.244.2.2")
                .payload(&stream)
                .superpacket(STREAM.1);
            near.tun.push(tun_read(vnet, &superpacket));
            near.tun.push(read_of(round * 10, 10, 500, 0, 2));
            near.run();
            far.run();
            let writes: Vec<Bytes> = std::iter::from_fn(|| far.tun.take()).collect();
            let (count, carried) = stream_written(&writes);
            assert!(carried == stream, "round {round}: every byte, in order");
            assert_eq!(count, if lost == Some(Feature::TunTso) { 11 } else { 1 });
            let datagrams: Vec<u32> =
                writes.iter().filter(|write| write[10 + 9] == 17).flat_map(numbers_of_write).collect();
            assert_eq!(datagrams, Vec::from_iter(round * 10..(round + 1) * 10));
            assert_eq!(writes.len() - count, if lost == Some(Feature::TunUso) { 10 } else { 1 });
            let demoted = lost.map(|feature| EngineEvent::Demoted(Demotion { feature, errno: libc::EINVAL }));
            let expected = demoted.filter(|_| round == 2);
            assert_eq!(far.said(), Vec::from_iter(expected), "three refusals in a row, said once");
        }
        assert_eq!(far.counters().rx.passed, 5 * 21);
        assert_eq!(far.worker.offload().features(), left);
    }
}

#[test]
fn a_kernel_that_takes_64_datagrams_a_send_is_given_no_more() {
    let wire = MemoryWire::new(WireFaults { max_segments: 64, ..WireFaults::NONE });
    let sink = wire.port(endpoint(2));
    for (most, offered) in [(64, 2), (128, 1 + 128)] {
        let mut node = Node::with(1, &wire, Offload::with(Features::ALL, most), Encap::Raw);
        node.tun.push(read_of(0, 128, 400, 0, 2));
        node.run();
        assert_eq!(arrived(&sink), Vec::from_iter(0..128), "and a wrong belief loses nothing");
        assert_eq!(node.udp.offered(), offered);
    }
}

/// A GSO message crosses a veth whole: 128 datagrams in one receive.
#[test]
fn a_receive_of_128_datagrams_is_delivered_whole() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let mut near = Node::with(1, &wire, Offload::with(Features::ALL, 128), Encap::Raw);
    for (first, features, writes) in [(0, Features::ALL, 2), (200, Features::NONE, 128)] {
        let mut far = Node::new(2, &wire, features);
        near.tun.push(read_of(first, 128, 400, 0, 2));
        let before = near.udp.offered();
        near.run();
        assert_eq!(near.udp.offered() - before, 1);
        far.run();
        assert_eq!(far.tun.written(), writes, "the device takes 64 datagrams at once");
        assert_eq!(far.delivered(), Vec::from_iter(first..first + 128));
    }
}
