//! Oracles 7 to 11: nothing invented, nothing lost, nothing merged that cutting would not give back.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::{Builder, Transport, gather, kernel_accepts, kernel_cuts, normal};

/// Merges packets that arrive one a buffer; gives back the writes.
fn merged(packets: &[Vec<u8>], config: MergeConfig) -> Vec<Vec<u8>> {
    let mut merger = Merger::new(config);
    for (slot, packet) in packets.iter().enumerate() {
        let ip = Ip::parse(packet, Length::Claimed).unwrap();
        let unfinished = crate::wire::edit::l4_is_unfinished(packet, &ip);
        assert!(merger.push(packet, &ip, slot as u16, 0, unfinished));
    }
    let packets_counted: u64 = merger.writes().map(|write| write.packets()).sum();
    assert_eq!(packets_counted, packets.len() as u64);
    merger.writes().map(|write| gather(&write, &merger, packets)).collect()
}

fn tcp(sequence: u32, payload: &[u8]) -> Builder {
    Builder::new(Family::V4, Transport::tcp(sequence)).payload(payload)
}

fn is_merged(packets: &[Vec<u8>]) -> bool {
    merged(packets, MergeConfig::ALL).len() == 1
}

/// By flow, in order: what a receiver of that flow sees.
fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> BTreeMap<(Vec<u8>, u8), Vec<Vec<u8>>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        let ip = Ip::parse(&packet, Length::Claimed).unwrap();
        let mut key = std::format!("{}{}", ip.source, ip.destination).into_bytes();
        if matches!(ip.protocol, TCP | UDP) && ip.fragment != Fragment::Later {
            key.extend(&packet[ip.l3_len..ip.l3_len + 4]);
        }
        flows.entry((key, ip.protocol)).or_default().push(normal(&packet));
    }
    flows
}

#[derive(Clone, Debug)]
struct Sent {
    v6: bool,
    kind: u8,
    flow: u16,
    len: usize,
    oddity: u8,
    unfinished: bool,
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        any::<bool>(),
        0u8..4,
        0u16..3,
        prop_oneof![Just(1000usize), Just(1000), Just(1000), 1usize..1400],
        0u8..24,
        any::<bool>(),
    )
        .prop_map(|(v6, kind, flow, len, oddity, unfinished)| Sent {
            v6,
            kind,
            flow,
            len,
            oddity,
            unfinished,
        })
}

/// Packets of a few flows, mostly in line, each with at most one oddity.
fn packets(sent: &[Sent]) -> Vec<Vec<u8>> {
    let mut sequences = BTreeMap::new();
    let mut ids = BTreeMap::new();
    sent.iter()
        .enumerate()
        .map(|(i, s)| {
            let family = if s.v6 { Family::V6 } else { Family::V4 };
            let sequence = sequences.entry((s.v6, s.flow)).or_insert(u32::MAX - 3000);
            let id = ids.entry((s.v6, s.flow, s.kind)).or_insert(65_530u16);
            *id = id.wrapping_add(1 + u16::from(s.oddity == 1));
            if s.oddity == 2 {
                *sequence = sequence.wrapping_add(1);
            }
            let payload = vec![i as u8; if s.oddity == 3 { 0 } else { s.len }];
            let flags = match s.oddity {
                4 => 0x18,
                5 => 0x11,
                6 => 0x50,
                7 => 0x90,
                8 => 0x30,
                _ => 0x10,
            };
            let transport = match s.kind {
                0 | 1 => {
                    Transport::Tcp { sequence: *sequence, ack: u32::from(s.oddity == 9), flags, options: 12 }
                }
                2 => Transport::Udp,
                _ => Transport::Echo,
            };
            let mut builder = Builder::new(family, transport).id(*id).payload(&payload);
            builder.ports.0 = 1000 + s.flow;
            builder.tos = if s.oddity == 10 { 0x2e } else { 0 };
            builder.ttl = if s.oddity == 11 { 9 } else { 64 };
            builder.dont_fragment = s.oddity % 2 == 0;
            if s.oddity == 12 {
                builder = builder.ip_options(8);
            }
            if s.kind < 2 {
                *sequence = sequence.wrapping_add(payload.len() as u32);
            }
            let mut packet = if s.unfinished && s.kind < 3 { builder.unfinished() } else { builder.packet() };
            let len = packet.len();
            match s.oddity {
                // Damage: a payload byte, a header byte under the transport checksum.
                13 => packet[len - 1] ^= 0x10,
                14 if s.kind < 2 && !s.unfinished => packet[len - s.len - 5] ^= 1,
                15 if s.kind == 2 => put16(&mut packet, len - payload.len() - 2, 0),
                _ => {}
            }
            packet
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Oracle 7: cutting every write again yields the inputs, in order within each flow.
    #[test]
    fn cutting_gives_back_what_came(sent in proptest::collection::vec(sent(), 1..80)) {
        let packets = packets(&sent);
        for config in [MergeConfig::ALL, MergeConfig { udp: false, ..MergeConfig::ALL }] {
            let writes = merged(&packets, config);
            for write in &writes {
                prop_assert_eq!(kernel_accepts(write), Ok(()));
            }
            let finished = packets.iter().map(|packet| {
                let mut packet = packet.clone();
                let ip = Ip::parse(&packet, Length::Claimed).unwrap();
                if crate::wire::edit::l4_is_unfinished(&packet, &ip) {
                    let offset = l4_checksum_offset(ip.protocol).unwrap();
                    crate::wire::edit::complete_checksum(&mut packet, ip.l3_len, offset, Adder::SCALAR);
                }
                packet
            });
            let delivered = writes.iter().flat_map(|write| kernel_cuts(write));
            prop_assert_eq!(by_flow(delivered), by_flow(finished));
        }
    }

    /// Replayed singles are the packets themselves, whatever was merged.
    #[test]
    fn singles_are_the_packets_untouched(sent in proptest::collection::vec(sent(), 1..60)) {
        let packets = packets(&sent);
        let mut merger = Merger::new(MergeConfig::ALL);
        for (slot, packet) in packets.iter().enumerate() {
            let ip = Ip::parse(packet, Length::Claimed).unwrap();
            merger.push(packet, &ip, slot as u16, 0, false);
        }
        let mut slots: Vec<u16> = Vec::new();
        for write in merger.writes() {
            for (vnet, piece) in write.singles() {
                prop_assert_eq!(vnet, [0; VNET_HDR_LEN]);
                prop_assert_eq!((piece.start, piece.len), (0, packets[usize::from(piece.slot)].len()));
                slots.push(piece.slot);
            }
        }
        slots.sort_unstable();
        prop_assert!(slots.into_iter().eq(0..packets.len() as u16));
    }
}

#[test]
fn a_bulk_transfer_becomes_one_write() {
    let all: Vec<_> = (0..45).map(|i| tcp(i * 1398, &[i as u8; 1398]).id(i as u16).packet()).collect();
    let writes = merged(&all, MergeConfig::ALL);
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].len(), VNET_HDR_LEN + 20 + 32 + 45 * 1398);
}

#[test]
fn datagrams_of_one_flow_become_one_write_up_to_64() {
    let all: Vec<_> =
        (0..100).map(|i| Builder::new(Family::V6, Transport::Udp).payload(&[i; 64]).packet()).collect();
    let writes = merged(&all, MergeConfig::ALL);
    assert_eq!(writes.iter().map(|write| kernel_cuts(write).len()).collect::<Vec<_>>(), [64, 36]);
}

/// Oracle 8: one field changed in the second of two packets that would merge, and they do not.
#[test]
fn one_odd_field_keeps_packets_apart() {
    let first = tcp(0, &[1; 100]).packet();
    let second = || tcp(100, &[2; 100]).id(2);
    assert!(is_merged(&[first.clone(), second().packet()]));
    let edited = |edit: &dyn Fn(&mut Builder)| {
        let mut builder = second();
        edit(&mut builder);
        builder.packet()
    };
    let odd: Vec<(&str, Vec<u8>)> = vec![
        ("tos", edited(&|b| b.tos = 4)),
        ("ttl", edited(&|b| b.ttl = 63)),
        ("df", edited(&|b| b.dont_fragment = false)),
        ("source port", edited(&|b| b.ports.0 += 1)),
        ("destination port", edited(&|b| b.ports.1 += 1)),
        ("source", edited(&|b| b.source = "10.244.1.3".parse().unwrap())),
        ("destination", edited(&|b| b.destination = "10.244.2.3".parse().unwrap())),
        ("sequence gap", tcp(101, &[2; 100]).packet()),
        ("sequence overlap", tcp(99, &[2; 100]).packet()),
        ("longer", tcp(100, &[2; 101]).packet()),
        ("empty", tcp(100, &[]).packet()),
        ("ip options", second().ip_options(4).packet()),
    ];
    for (what, packet) in odd {
        assert!(!is_merged(&[first.clone(), packet]), "{what}");
    }
    for flags in [0x00, 0x11, 0x12, 0x14, 0x30, 0x50, 0x90] {
        let transport = Transport::Tcp { sequence: 100, ack: 1, flags, options: 12 };
        let packet = Builder::new(Family::V4, transport).payload(&[2; 100]).packet();
        assert!(!is_merged(&[first.clone(), packet]), "flags {flags:#x}");
    }
    for (what, ack, options) in [("ack", 2, 12), ("options length", 1, 16)] {
        let transport = Transport::Tcp { sequence: 100, ack, flags: 0x10, options };
        let packet = Builder::new(Family::V4, transport).payload(&[2; 100]).packet();
        assert!(!is_merged(&[first.clone(), packet]), "{what}");
    }
    // Any single bit flip breaks a checksum, so it must not merge either.
    let good = second().packet();
    for at in 0..good.len() {
        // Bytes 4, 5: the id, free under DF, and 10, 11 its checksum, which the forwarder verifies before.
        if (4..6).contains(&at) || (10..12).contains(&at) {
            continue;
        }
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        let Ok(ip) = Ip::parse(&bad, Length::Claimed) else { continue };
        let mut merger = Merger::new(MergeConfig::ALL);
        let first_ip = Ip::parse(&first, Length::Claimed).unwrap();
        merger.push(&first, &first_ip, 0, 0, false);
        merger.push(&bad, &ip, 1, 0, false);
        assert_eq!(merger.writes().count(), 2, "byte {at}");
    }
}

/// Oracle 9: a damaged packet goes through untouched and does not poison its flow.
#[test]
fn a_bad_first_packet_goes_alone() {
    let mut bad = tcp(0, &[1; 100]).packet();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    let rest: Vec<_> = (1..4).map(|i| tcp(i * 100, &[i as u8; 100]).packet()).collect();
    let all: Vec<_> = core::iter::once(bad.clone()).chain(rest).collect();
    let writes = merged(&all, MergeConfig::ALL);
    assert_eq!(writes.len(), 2);
    assert_eq!(&writes[0][VNET_HDR_LEN..], bad);
}

#[test]
fn without_df_the_id_must_count_up() {
    let packet = |sequence, id| {
        let mut builder = tcp(sequence, &[1; 100]).id(id);
        builder.dont_fragment = false;
        builder.packet()
    };
    assert!(is_merged(&[packet(0, 65_535), packet(100, 0)]));
    assert!(!is_merged(&[packet(0, 5), packet(100, 5)]));
    assert!(!is_merged(&[packet(0, 5), packet(100, 7)]));
}

#[test]
fn a_push_ends_the_aggregate_and_is_kept() {
    let push = Transport::Tcp { sequence: 100, ack: 1, flags: 0x18, options: 12 };
    let all = [
        tcp(0, &[1; 100]).packet(),
        Builder::new(Family::V4, push).payload(&[2; 100]).packet(),
        tcp(200, &[3; 100]).packet(),
    ];
    let writes = merged(&all, MergeConfig::ALL);
    assert_eq!(writes.len(), 2);
    let cut = kernel_cuts(&writes[0]);
    assert_eq!((cut[0][20 + 13], cut[1][20 + 13]), (0x10, 0x18));
}

#[test]
fn a_superpacket_that_a_kernel_left_whole_is_cut_where_the_device_cannot() {
    for udp in [false, true] {
        let transport = if udp { Transport::Udp } else { Transport::tcp(7) };
        let whole = Builder::new(Family::V4, transport).payload(&[5; 5000]).unfinished();
        let ip = Ip::parse(&whole, Length::Claimed).unwrap();
        let buffers = [whole];
        let expected = kernel_cuts(&{
            let mut merger = Merger::new(MergeConfig::ALL);
            assert!(merger.push_giant(&buffers[0], &ip, 0, 0, 1000));
            let write = merger.writes().next().unwrap();
            assert_eq!(write.packets(), 1);
            let bytes = gather(&write, &merger, &buffers);
            assert_eq!(kernel_accepts(&bytes), Ok(()));
            bytes
        });
        let mut merger = Merger::new(MergeConfig::NONE);
        assert!(merger.push_giant(&buffers[0], &ip, 0, 0, 1000));
        let cut: Vec<_> =
            merger.writes().map(|write| gather(&write, &merger, &buffers)[VNET_HDR_LEN..].to_vec()).collect();
        assert_eq!(cut.len(), 5);
        assert_eq!(cut, expected);
        assert_eq!(merger.writes().map(|write| write.packets()).sum::<u64>(), 1);
    }
}

/// An IPv6 datagram that was fragmented between two that were not: there is no id that would give the gap away.
#[test]
fn a_fragment_is_not_overtaken_by_its_flow() {
    let whole = |byte| Builder::new(Family::V6, Transport::Udp).payload(&[byte; 100]).packet();
    let mut fragment = whole(2);
    let next = fragment[6];
    fragment[6] = 44;
    fragment.splice(40..40, [next, 0, 0, 1, 0, 0, 0, 7]);
    let len = fragment.len() - 40;
    put16(&mut fragment, 4, len as u16);
    let packets = [whole(1), fragment.clone(), whole(3)];
    let delivered: Vec<_> =
        merged(&packets, MergeConfig::ALL).iter().flat_map(|write| kernel_cuts(write)).collect();
    assert_eq!(delivered, packets);
}

/// A sender's kernel may take 128 datagrams in one superpacket where ours takes 64.
#[test]
fn a_superpacket_of_more_datagrams_than_the_device_takes_is_cut() {
    for (count, writes) in [(64, 1), (65, 65), (128, 128)] {
        let whole = Builder::new(Family::V6, Transport::Udp).payload(&vec![5; count * 100]).unfinished();
        let ip = Ip::parse(&whole, Length::Claimed).unwrap();
        let mut merger = Merger::new(MergeConfig::ALL);
        assert!(merger.push_giant(&whole, &ip, 0, 0, 100));
        let buffers = [whole];
        let written: Vec<_> = merger.writes().map(|write| gather(&write, &merger, &buffers)).collect();
        assert_eq!(written.len(), writes);
        assert_eq!(written.iter().map(|write| kernel_cuts(write).len()).sum::<usize>(), count);
    }
}
