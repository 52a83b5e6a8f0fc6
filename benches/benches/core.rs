//! The packet core without a kernel: checksum, parse, split, merge, look-up, and a whole forward over memory.
//!
//! `cargo bench -p benches --bench core`; throughput is in inner bytes or packets.
#![allow(missing_docs, reason = "criterion_group makes public items")]

use std::hint::black_box;

use benches::packets::{MSS, Tunnel, adder, addresses, segments, superpacket, table};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane_core::checksum::{Adder, plain};
use dataplane_core::split::Segmenter;
use dataplane_core::testing::{Builder, Transport, vxlan};
use dataplane_core::wire::Ip;
use dataplane_core::wire::Length;
use dataplane_core::{Encap, Family, MergeConfig, Merger};

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [20, 40, 64, 1398, 65_535] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        for adder in [Adder::SCALAR, adder()] {
            group.bench_with_input(BenchmarkId::new(adder.name(), len), &data, |b, data| {
                b.iter(|| adder.sum(black_box(data)).checksum());
            });
        }
        group.bench_with_input(BenchmarkId::new("plain", len), &data, |b, data| {
            b.iter(|| plain(black_box(data)));
        });
    }
    group.finish();
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for family in [Family::V4, Family::V6] {
        let packet = Builder::new(family, Transport::tcp(1)).payload(&[1; 1000]).packet();
        group.bench_function(format!("{family:?}"), |b| {
            b.iter(|| Ip::parse(black_box(&packet), Length::Claimed));
        });
    }
    group.finish();
}

fn split(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    for (name, transport) in [("tcp", Transport::tcp(1)), ("udp", Transport::Udp)] {
        let (vnet, packet) = superpacket(transport);
        let mut out = vec![0; MSS + 100];
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(format!("{name} of 44 segments"), |b| {
            b.iter(|| {
                let ip = Ip::parse(&packet, Length::Buffer).expect("a packet");
                let cut = Segmenter::new(&packet, &ip, &vnet).expect("a superpacket").summed_by(adder());
                for i in 0..cut.count() {
                    cut.write(i, black_box(&mut out));
                }
            });
        });
    }
    group.finish();
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    for flows in [1u32, 16] {
        let packets = segments(flows);
        let parsed: Vec<Ip> =
            packets.iter().map(|p| Ip::parse(p, Length::Claimed).expect("a packet")).collect();
        let mut merger = Merger::new(MergeConfig::ALL).with_adder(adder());
        group.throughput(Throughput::Bytes(packets.iter().map(|p| p.len() as u64).sum()));
        group.bench_function(format!("64 packets of {flows} flows"), |b| {
            b.iter(|| {
                for (slot, (packet, ip)) in packets.iter().zip(&parsed).enumerate() {
                    merger.push(black_box(packet), ip, slot as u16, 0, false);
                }
                black_box(merger.writes().map(|write| write.head().len()).sum::<usize>());
                merger.clear();
            });
        });
    }
    group.finish();
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    for leases in [16, 256, 5_000, 100_000] {
        let table = table(leases);
        let mut addresses = addresses(leases);
        group.bench_function(format!("{leases} leases"), |b| {
            b.iter(|| addresses.next().map(|address| black_box(table.owner(black_box(address)))));
        });
    }
    group.finish();
}

/// A superpacket through both ends: TUN read, split, encapsulate; receive, strip, check, merge.
fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    for (name, encap) in [("raw", Encap::Raw), ("vxlan", vxlan())] {
        let (vnet, packet) = superpacket(Transport::tcp(1));
        let mut tunnel = Tunnel::new(encap, vnet, &packet);
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(name, |b| b.iter(|| tunnel.carry()));
    }
    group.finish();
}

criterion_group!(core, checksum, parse, split, merge, lookup, forward);
criterion_main!(core);
