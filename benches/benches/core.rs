//! The packet core without a kernel: checksum, parse, split, merge, look-up, and a whole forward over memory.
//!
//! `cargo bench -p benches --bench core`; throughput is in inner bytes or packets.
#![allow(missing_docs, reason = "criterion_group makes public items")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane_core::checksum::{Sum, plain};
use dataplane_core::split::Segmenter;
use dataplane_core::testing::{Builder, Transport, cluster, endpoint, forwarder, tun_read, vxlan};
use dataplane_core::wire::Ip;
use dataplane_core::wire::Length;
use dataplane_core::{
    Counters, Encap, Family, Local, MacAddr, MergeConfig, Merger, Peer, PeerTable, Received, ReplyQueue,
    SourceCheck, TxBatch, TxLimits,
};

const LIMITS: TxLimits = TxLimits { max_segments: 64, max_bytes: TxLimits::MAX_BYTES_V4 };
/// TCP payload of a full packet at an overlay MTU of 1450 with timestamps.
const MSS: usize = 1398;

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [40, 1400, 65_536] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::new("fast", len), &data, |b, data| {
            b.iter(|| Sum::ZERO.bytes(black_box(data)).checksum());
        });
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
        let (vnet, packet) =
            Builder::new(Family::V4, transport).payload(&vec![1; 44 * MSS]).superpacket(MSS as u16);
        let mut out = vec![0; 2048];
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(format!("{name} of 44 segments"), |b| {
            b.iter(|| {
                let ip = Ip::parse(&packet, Length::Buffer).expect("a packet");
                let cut = Segmenter::new(&packet, &ip, &vnet).expect("a superpacket");
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
        let packets: Vec<Vec<u8>> = (0..64)
            .map(|i| {
                let mut builder =
                    Builder::new(Family::V4, Transport::tcp(i / flows * MSS as u32)).payload(&[1; MSS]);
                builder.ports.0 = (i % flows) as u16;
                builder.packet()
            })
            .collect();
        let parsed: Vec<Ip> =
            packets.iter().map(|p| Ip::parse(p, Length::Claimed).expect("a packet")).collect();
        let mut merger = Merger::new(MergeConfig::ALL);
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

fn table(leases: u32) -> PeerTable {
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

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    for leases in [16, 256, 5_000, 100_000] {
        let table = table(leases);
        let mut i = 1u32;
        group.bench_function(format!("{leases} leases"), |b| {
            b.iter(|| {
                i = i.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let address = Ipv4Addr::from(0x0a00_0000 + ((1 + i % leases) << 8) + 7);
                table.owner(black_box(IpAddr::V4(address)))
            });
        });
    }
    group.finish();
}

/// A superpacket through both ends: TUN read, split, encapsulate; receive, strip, check, merge.
fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("forward");
    for (name, encap) in [("raw", Encap::Raw), ("vxlan", vxlan())] {
        let (vnet, packet) =
            Builder::new(Family::V4, Transport::tcp(1)).payload(&vec![1; 44 * MSS]).superpacket(MSS as u16);
        let read = tun_read(vnet, &packet);
        let (near, far) = (cluster(1), cluster(2));
        let (mut sender, mut receiver) =
            (forwarder(encap, SourceCheck::Loose), forwarder(encap, SourceCheck::Loose));
        let (mut batch, mut back) = (TxBatch::new(LIMITS, 4), TxBatch::new(LIMITS, 1));
        let mut merger = Merger::new(MergeConfig::ALL);
        let mut replies = ReplyQueue::default();
        let mut counters = Counters::default();
        let mut scratch = read.clone();
        let mut buffer = vec![0; 65_536];
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                scratch.copy_from_slice(&read);
                sender.outbound(&near, 1, &mut scratch, &mut batch, &mut replies, &mut counters);
                for message in batch.messages() {
                    let bytes = batch.bytes_of(message);
                    let buffer = &mut buffer[..bytes.len()];
                    buffer.copy_from_slice(bytes);
                    let meta = Received {
                        from: endpoint(1),
                        stride: message.train.stride,
                        tos: 0,
                        truncated: false,
                    };
                    receiver.inbound(&far, 1, 0, buffer, &meta, &mut merger, &mut back, &mut counters);
                }
                black_box(merger.writes().map(|write| write.head().len()).sum::<usize>());
                merger.clear();
                batch.clear();
            });
        });
    }
    group.finish();
}

criterion_group!(core, checksum, parse, split, merge, lookup, forward);
criterion_main!(core);
