//! Promises of a worker over a network in memory that loses, doubles, reorders and refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use dataplane::core::checksum::Adder;
use dataplane::core::testing::{Builder, Transport, endpoint, tun_read};
use dataplane::core::wire::{Ip, Length};
use dataplane::core::{DropReason, Family, PeerTable, VnetHdr};
use dataplane::engine::Turn;
use dataplane::io::Ready;
use dataplane::io::memory::{MemoryWire, WireFaults};
use dataplane::{Demotion, EngineEvent, Feature, Features, Offload};
use proptest::prelude::*;

mod node;
mod refusals;

use node::{Node, number_of, read_of};

const REFUSALS: [i32; 9] = [
    libc::EMSGSIZE,
    libc::EINVAL,
    libc::EIO,
    libc::EAGAIN,
    libc::ENOBUFS,
    libc::EPERM,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EINTR,
];

/// Refusals of a train that say nothing about its datagrams.
const ABOUT_TRAINS: [i32; 3] = [libc::EMSGSIZE, libc::EINVAL, libc::EIO];

/// The virtio `gso_type` of every kind of superpacket: TCP over IPv4 and IPv6, UDP.
const SUPERPACKETS: [u8; 3] = [1, 4, 5];

/// Trains and single packets, alternating: packets 0..36, of which node 2 owns all.
fn mixed_reads() -> Vec<Vec<u8>> {
    vec![
        read_of(0, 10, 500, 0, 2),
        read_of(10, 1, 100, 0, 2),
        read_of(11, 5, 700, 300, 2),
        read_of(16, 1, 1400, 0, 2),
        read_of(17, 1, 4, 0, 2),
        read_of(18, 18, 50, 20, 2),
    ]
}

/// How often each number is there.
fn tally(numbers: impl IntoIterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut tally = BTreeMap::new();
    for number in numbers {
        *tally.entry(number).or_default() += 1;
    }
    tally
}

/// What arrived at a port nobody serves: the numbers, in order.
fn arrived(port: &dataplane::io::memory::MemoryUdp) -> Vec<u32> {
    std::iter::from_fn(|| port.take()).map(|(_, packet)| number_of(&packet)).collect()
}

#[test]
fn a_refusal_at_any_position_costs_at_most_the_datagram_it_is_about() {
    for features in [Features::ALL, Features::ALL.without(Feature::UdpGso), Features::NONE] {
        for errno in REFUSALS {
            let mut position = 0;
            loop {
                let wire = MemoryWire::new(WireFaults::NONE);
                let sink = wire.port(endpoint(2));
                let mut node = Node::new(1, &wire, features);
                node.udp.refuse_at(position, errno);
                mixed_reads().into_iter().for_each(|read| node.tun.push(read));
                assert_eq!(node.run(), Turn::Idle);
                let counters = node.counters();
                let seen = arrived(&sink);
                assert!(seen.is_sorted_by(|a, b| a < b), "in order and once: {seen:?}");
                assert_eq!(counters.tx.packets, 36);
                assert_eq!(counters.tx.passed, seen.len() as u64);
                let dropped = counters.tx.dropped_in_all();
                match errno {
                    libc::EAGAIN | libc::ENOBUFS | libc::EINTR => assert_eq!(dropped, 0, "waited for"),
                    _ if ABOUT_TRAINS.contains(&errno) => assert!(dropped <= 1, "{dropped}"),
                    _ => assert!(dropped <= 18, "no more than the train: {dropped}"),
                }
                assert_eq!(dropped, counters.tx.dropped(DropReason::SendRefused));
                if position >= node.udp.offered() {
                    break;
                }
                position += 1;
            }
            assert!(position > 3, "the scenario has several messages");
        }
    }
}

#[test]
fn trains_that_the_kernel_refuses_lose_nothing() {
    for errno in ABOUT_TRAINS {
        let wire = MemoryWire::new(WireFaults::NONE);
        let sink = wire.port(endpoint(2));
        let mut node = Node::new(1, &wire, Features::ALL);
        node.udp.refuse_trains(Some(errno));
        mixed_reads().into_iter().for_each(|read| node.tun.push(read));
        node.run();
        assert_eq!(arrived(&sink), Vec::from_iter(0..36));
        assert_eq!(node.said(), [EngineEvent::TrainsRefused { to: endpoint(2), errno }]);
        let before = node.udp.offered();
        node.tun.push(read_of(100, 10, 1400, 0, 2));
        node.run();
        assert_eq!(arrived(&sink), Vec::from_iter(100..110));
        assert_eq!(node.udp.offered() - before, 10, "no train is tried again");
        assert_eq!(node.said(), []);
        node.counters();
    }
}

#[test]
fn a_peer_that_nothing_reaches_does_not_cost_the_others_their_trains() {
    let wire = MemoryWire::new(WireFaults { max_datagram: 10, ..WireFaults::NONE });
    let mut node = Node::new(1, &wire, Features::ALL);
    node.udp.refuse_trains(Some(libc::EINVAL));
    node.tun.push(read_of(0, 10, 500, 0, 2));
    node.run();
    let counters = node.counters();
    assert_eq!(counters.tx.dropped(DropReason::SendRefused), 10);
    assert_eq!(node.said(), []);
    assert!(node.worker.offload().has(Feature::UdpGso));
}

#[test]
fn a_socket_that_stays_full_loses_the_batch_and_counts_it() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL);
    (0..100).for_each(|position| node.udp.refuse_at(position, libc::EAGAIN));
    mixed_reads().into_iter().for_each(|read| node.tun.push(read));
    node.run();
    assert_eq!(node.counters().tx.dropped(DropReason::SendQueueFull), 36);
    assert_eq!(arrived(&sink), []);
}

#[test]
fn without_features_each_datagram_is_a_message_of_its_own() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::NONE);
    mixed_reads().into_iter().for_each(|read| node.tun.push(read));
    node.run();
    assert_eq!(node.udp.offered(), 36);
    assert_eq!(arrived(&sink), Vec::from_iter(0..36));
}

/// A TCP superpacket that a kernel peer left whole has no single packets to fall back on: it is cut here, for a device
/// that takes it whole would pass it on over every MTU.
#[test]
fn a_superpacket_left_whole_is_cut_when_the_device_refuses_it() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, Features::ALL));
    far.tun.refuse_superpackets(&SUPERPACKETS, libc::EINVAL);
    let payload: Vec<u8> = (0..20_000u32).map(|at| (at / 3) as u8).collect();
    let mut whole = Builder::new(Family::V4, Transport::tcp(9)).payload(&payload);
    whole.dont_fragment = false;
    for round in 1..=5 {
        near.tun.push(tun_read(VnetHdr::PLAIN, &whole.unfinished()));
        near.run();
        far.run();
        let mut carried = Vec::new();
        while let Some(write) = far.tun.take() {
            let packet = &write[10..];
            let ip = Ip::parse(packet, Length::Claimed).unwrap();
            assert!(packet.len() <= 1450, "{} bytes in one packet", packet.len());
            assert!(dataplane::core::wire::edit::l4_is_valid(packet, &ip, Adder::SCALAR));
            carried.extend_from_slice(&packet[ip.l3_len + 32..]);
        }
        assert!(carried == payload, "round {round}");
        assert_eq!(far.counters().rx.passed, round);
    }
    let demotion = Demotion { feature: Feature::TunTso, errno: libc::EINVAL };
    assert_eq!(far.said(), [EngineEvent::Demoted(demotion)]);
}

#[test]
fn a_write_that_the_device_refuses_is_counted_and_nothing_else_is_lost() {
    for position in 0..6 {
        let wire = MemoryWire::new(WireFaults::NONE);
        let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, Features::ALL));
        far.tun.refuse_at(position, libc::EIO);
        mixed_reads().into_iter().for_each(|read| near.tun.push(read));
        near.run();
        far.run();
        let counters = far.counters();
        let seen = far.delivered();
        assert_eq!(counters.rx.packets, 36);
        assert_eq!(counters.rx.passed, seen.len() as u64);
        assert_eq!(counters.rx.dropped(DropReason::TunWriteFailed), 36 - seen.len() as u64);
        assert!(seen.is_sorted_by(|a, b| a < b));
    }
}

#[test]
fn a_worker_that_fails_counts_what_it_held_and_goes_on() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL);
    node.tun.push(read_of(0, 10, 500, 0, 2));
    node.run();
    node.shared.fail_once();
    node.tun.push(read_of(10, 7, 500, 0, 2));
    node.tun.push(read_of(20, 3, 500, 0, 2));
    assert_eq!(node.run(), Turn::Idle);
    let seen = arrived(&sink);
    assert_eq!(seen, Vec::from_iter((0..10).chain(20..23)));
    assert_eq!(node.counters().tx.dropped(DropReason::WorkerFailed), 7);
    let said = node.said();
    assert!(matches!(said[..], [EngineEvent::WorkerPanicked { lost: 7, .. }]), "{said:?}");
}

#[test]
fn a_device_that_is_gone_ends_the_worker_aloud() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let mut node = Node::new(1, &wire, Features::ALL);
    node.tun.vanish();
    assert_eq!(node.run(), Turn::Ended);
    assert_eq!(node.said(), [EngineEvent::DeviceGone { errno: libc::EBADFD }]);
}

#[test]
fn a_socket_that_fails_for_ever_ends_the_worker_aloud_and_one_that_recovers_does_not() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let mut node = Node::new(1, &wire, Features::ALL);
    for _ in 0..10 {
        node.udp.refuse_receives(20, libc::ECONNREFUSED);
        assert_eq!(node.run(), Turn::Idle, "nothing waits, but it says so");
    }
    assert_eq!(node.said(), []);
    node.udp.refuse_receives(usize::MAX, libc::EBADF);
    assert_eq!(node.run(), Turn::Ended);
    assert_eq!(node.said(), [EngineEvent::SocketFailed { errno: libc::EBADF }]);
}

/// The kernel answers so for one packet that fits no virtio header, and has thrown it away.
#[test]
fn a_packet_that_cannot_be_read_is_counted_and_the_next_one_is_read() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL);
    (0..3).for_each(|number| node.tun.push(read_of(number, 1, 500, 0, 2)));
    node.tun.refuse_read(libc::EINVAL);
    assert_eq!(node.run(), Turn::Idle);
    assert_eq!(arrived(&sink), [1, 2]);
    assert_eq!(node.counters().tx.dropped(DropReason::BadVnetHeader), 1);
    assert_eq!(node.said(), []);
}

/// Readiness is told to a worker that sleeps. One that a flood keeps awake has to look at the other side by itself.
#[test]
fn a_flood_on_one_side_does_not_shut_out_the_other() {
    for flooded_tun in [false, true] {
        let wire = MemoryWire::new(WireFaults { coalesce: false, ..WireFaults::NONE });
        let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, Features::ALL));
        far.run();
        far.worker.set_ready(Ready { tun: flooded_tun, udp: !flooded_tun });
        for turn in 0..20 {
            for _ in 0..100 {
                let flood = if flooded_tun { &far.tun } else { &near.tun };
                flood.push(read_of(0, 1, 100, 0, 2));
            }
            near.run();
            if turn == 1 {
                let waits = if flooded_tun { &near.tun } else { &far.tun };
                waits.push(read_of(1, 1, 100, 0, 2));
                near.run();
            }
            assert_eq!(far.worker.turn(1), Turn::Busy);
        }
        let counters = far.counters();
        let other = if flooded_tun { counters.rx } else { counters.tx };
        assert_eq!(other.packets, 1, "flooded TUN: {flooded_tun}");
    }
}

#[test]
fn a_turn_gives_the_other_side_its_turn_after_some_bytes() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let mut node = Node::new(1, &wire, Features::ALL);
    (0..64).for_each(|_| node.tun.push(read_of(0, 40, 1400, 0, 2)));
    assert_eq!(node.worker.turn(1), Turn::Busy);
    assert!(node.tun.waiting() >= 56, "{} superpackets are left", node.tun.waiting());
    node.run();
    assert_eq!(node.counters().tx.passed, 64 * 40);
}

#[test]
fn a_published_table_counts_from_the_next_turn() {
    let wire = MemoryWire::new(WireFaults::NONE);
    let sink = wire.port(endpoint(2));
    let mut node = Node::new(1, &wire, Features::ALL);
    node.tun.push(read_of(0, 1, 500, 0, 2));
    node.run();
    node.shared.publish(PeerTable::empty(dataplane::core::testing::cluster(1).local().clone()));
    node.tun.push(read_of(1, 1, 500, 0, 2));
    node.run();
    assert_eq!(node.counters().tx.dropped(DropReason::NoRoute), 1);
    node.shared.publish(dataplane::core::testing::cluster(1));
    node.tun.push(read_of(2, 1, 500, 0, 2));
    node.run();
    assert_eq!(arrived(&sink), [0, 2]);
}

#[derive(Clone, Debug)]
struct Read {
    count: u32,
    len: usize,
    less: usize,
    to: u8,
}

fn reads() -> impl Strategy<Value = Vec<Read>> {
    let read = (1u32..40, 4usize..1400, 0usize..1400, 2u8..=4).prop_map(|(count, len, less, to)| Read {
        count: if count > 20 { 1 } else { count },
        len,
        less,
        to,
    });
    proptest::collection::vec(read, 1..80)
}

fn features() -> impl Strategy<Value = Features> {
    proptest::bits::u8::masked(0b11_1111).prop_map(|bits| {
        Feature::ALL.into_iter().filter(|feature| bits & (1 << *feature as u8) != 0).collect()
    })
}

/// Pushes the reads, numbered from `first`, and returns how many packets there are for nodes 2, 3 and nobody (4).
fn push(node: &Node, reads: &[Read], first: u32) -> [u64; 3] {
    let mut totals = [0; 3];
    let mut number = first;
    for read in reads {
        node.tun.push(read_of(number, read.count, read.len, read.less, read.to));
        number += read.count;
        totals[usize::from(read.to) - 2] += u64::from(read.count);
    }
    totals
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Oracle 6 for any traffic, any refusals, any partial sends: each datagram goes out once or is counted once,
    /// in order for each peer, and the worker comes to rest.
    #[test]
    fn every_datagram_is_sent_once_or_counted_once(
        reads in reads(),
        features in features(),
        refusals in proptest::collection::vec((0u64..300, 0usize..REFUSALS.len()), 0..40),
        limit in 1usize..100,
        lanes in 1u8..4,
    ) {
        let wire = MemoryWire::new(WireFaults::NONE);
        let sinks = [wire.port(endpoint(2)), wire.port(endpoint(3))];
        let mut node = Node::with_lanes(1, &wire, Offload::with(features, 64), lanes);
        node.udp.limit_calls(limit);
        for (position, errno) in refusals {
            node.udp.refuse_at(position, REFUSALS[errno]);
        }
        let [second, third, nobody] = push(&node, &reads, 0);
        prop_assert_eq!(node.run(), Turn::Idle);
        let counters = node.counters();
        prop_assert_eq!(counters.tx.packets, second + third + nobody);
        prop_assert_eq!(counters.tx.dropped(DropReason::NoRoute), nobody);
        let mut passed = 0;
        for sink in &sinks {
            let seen = arrived(sink);
            prop_assert!(lanes > 1 || seen.is_sorted_by(|a, b| a < b), "in order: {:?}", seen);
            passed += seen.len() as u64;
            prop_assert!(tally(seen).values().all(|times| *times == 1), "once");
        }
        prop_assert_eq!(counters.tx.passed, passed);
    }

    /// The same while peers lose and regain their trains and time goes by: nothing is lost that the kernel takes one by
    /// one, no flow is reordered, and what is offered in vain stays in proportion.
    #[test]
    fn refused_trains_cost_no_datagram_whatever_happens_in_between(
        rounds in proptest::collection::vec(
            (
                reads(),
                (0usize..ABOUT_TRAINS.len(), 0usize..1500),
                proptest::bits::u8::between(0, 4),
                0u64..1_000_000_000_000,
            ),
            1..5,
        ),
        limit in 1usize..100,
        lanes in 1u8..4,
    ) {
        let wire = MemoryWire::new(WireFaults::NONE);
        let sinks = [wire.port(endpoint(2)), wire.port(endpoint(3))];
        let mut node = Node::with_lanes(1, &wire, Offload::with(Features::ALL, 64), lanes);
        node.udp.limit_calls(limit);
        let mut first = 0;
        for (reads, (errno, from), which, later) in rounds {
            for (at, n) in [2, 3].into_iter().enumerate() {
                let refusal = (which & (1 << at) != 0).then_some((ABOUT_TRAINS[errno], from));
                node.udp.refuse_trains_to(endpoint(n), refusal);
            }
            node.udp.refuse_trains((which & 4 != 0).then_some(ABOUT_TRAINS[errno]));
            node.now_ns += later;
            let (offered, before) = (node.udp.offered(), node.counters().tx);
            let reads: Vec<Read> = reads.into_iter().map(|read| Read { to: read.to.min(3), ..read }).collect();
            let [second, third, _] = push(&node, &reads, first);
            prop_assert_eq!(node.run(), Turn::Idle);
            let after = node.counters().tx;
            prop_assert_eq!(after.passed - before.passed, second + third);
            for (sink, sent) in sinks.iter().zip([second, third]) {
                let seen = arrived(sink);
                prop_assert_eq!(seen.len() as u64, sent);
                // Each read is a flow of its own: its packets keep their order, and with one lane all of them do.
                prop_assert!(lanes > 1 || seen.is_sorted_by(|a, b| a < b), "in order and once: {:?}", seen);
                prop_assert!(tally(seen).values().all(|times| *times == 1));
            }
            prop_assert!(node.udp.offered() - offered <= 2 * (second + third));
            first += (second + third) as u32;
        }
    }

    /// From TUN to TUN over a bad wire: what is written is exactly what the wire carried, nothing invented.
    #[test]
    fn a_bad_wire_decides_alone_what_arrives(
        reads in reads(),
        features in features(),
        seed in any::<u64>(),
        loss in 0.0..0.5f64,
        duplicate in 0.0..0.5f64,
        reorder in 0.0..0.5f64,
        coalesce in any::<bool>(),
    ) {
        let faults = WireFaults { seed, loss, duplicate, reorder, coalesce, ..WireFaults::NONE };
        let wire = MemoryWire::new(faults);
        let (mut near, mut far) = (Node::new(1, &wire, Features::ALL), Node::new(2, &wire, features));
        let [second, third, _] = push(&near, &reads, 0);
        near.run();
        far.run();
        let stats = wire.stats();
        prop_assert_eq!(stats.sent, second + third);
        prop_assert_eq!(stats.unroutable, third);
        let counters = far.counters();
        let carried = stats.sent - stats.unroutable - stats.lost + stats.duplicated;
        prop_assert_eq!(counters.rx.packets, carried);
        prop_assert_eq!(counters.rx.passed, carried);
        let seen = tally(far.delivered());
        prop_assert_eq!(seen.values().sum::<usize>() as u64, carried);
        prop_assert!(seen.values().all(|times| *times <= 2));
    }
}
