//! A worker over a TUN queue and a wire in memory, and packets that carry a number.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use dataplane::core::testing::{Builder, Transport, cluster, endpoint, tun_read};
use dataplane::core::wire::{Ip, Length};
use dataplane::core::{Counters, Encap, Family, ForwarderConfig, OverlayMtu, SourceCheck};
use dataplane::engine::{Shared, Turn, Worker, WorkerConfig};
use dataplane::io::Ready;
use dataplane::io::VNET_HEADER_LEN;
use dataplane::io::memory::{MemoryTun, MemoryUdp, MemoryWire};
use dataplane::{EngineEvent, Events, Features, Offload};

/// Bytes of an IPv4 and a UDP header.
pub(crate) const HEADERS: usize = 28;

/// Node `n` of the test cluster.
pub(crate) struct Node {
    pub(crate) worker: Worker<MemoryTun, MemoryUdp>,
    pub(crate) tun: MemoryTun,
    pub(crate) udp: MemoryUdp,
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: Receiver<EngineEvent>,
    pub(crate) now_ns: u64,
}

impl Node {
    pub(crate) fn new(n: u8, wire: &MemoryWire, features: Features) -> Self {
        Self::with(n, wire, Offload::with(features, 64), Encap::Raw)
    }

    pub(crate) fn with(n: u8, wire: &MemoryWire, offload: Offload, encap: Encap) -> Self {
        Self::build(n, wire, offload, encap, 1)
    }

    pub(crate) fn with_lanes(n: u8, wire: &MemoryWire, offload: Offload, lanes: u8) -> Self {
        Self::build(n, wire, offload, Encap::Raw, lanes)
    }

    fn build(n: u8, wire: &MemoryWire, offload: Offload, encap: Encap, lanes: u8) -> Self {
        let (tun, udp) = (MemoryTun::new(), wire.port(endpoint(n)));
        let unused = Features::ALL.iter().filter(|feature| !offload.has(*feature)).collect();
        let config = WorkerConfig {
            forwarder: ForwarderConfig {
                encap,
                mtu: OverlayMtu::new(1450).unwrap(),
                source_check: SourceCheck::Strict,
                // Without `simd` the scalar way.
                adder: dataplane::adder(unused).0,
            },
            underlay: Family::V4,
            offload,
            lanes,
            side: Ready::BOTH,
        };
        let shared = Shared::new(cluster(n));
        let (said, events) = Events::channel();
        let worker = Worker::new(tun.clone(), udp.clone(), config, shared.clone(), said);
        Self { worker, tun, udp, shared, events, now_ns: 0 }
    }

    /// Takes turns until there is nothing left to do.
    pub(crate) fn run(&mut self) -> Turn {
        self.worker.set_ready(Ready::BOTH);
        for _ in 0..100_000 {
            self.now_ns += 1000;
            match self.worker.turn(self.now_ns) {
                Turn::Busy => {}
                turn => return turn,
            }
        }
        panic!("the worker never comes to rest");
    }

    /// The counters, which balance after every turn.
    pub(crate) fn counters(&self) -> Counters {
        let counters = self.shared.counters();
        assert!(counters.rx.is_balanced(), "{counters:?}");
        assert!(counters.tx.is_balanced(), "{counters:?}");
        counters
    }

    /// The numbers of all packets written to the TUN, in order.
    pub(crate) fn delivered(&self) -> Vec<u32> {
        std::iter::from_fn(|| self.tun.take()).flat_map(|write| numbers_of_write(&write)).collect()
    }

    pub(crate) fn said(&self) -> Vec<EngineEvent> {
        self.events.try_iter().collect()
    }
}

/// UDP payload of `len` bytes, at least four, that begins with `number`.
fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![number as u8; len.max(4)];
    payload[..4].copy_from_slice(&number.to_be_bytes());
    payload
}

/// A TUN read on node 1 of packets numbered from `first`: a superpacket if there is more than one, of `len` bytes each
/// but the last, which is shorter by `less`. Node `to` owns the destination.
pub(crate) fn read_of(first: u32, count: u32, len: usize, less: usize, to: u8) -> Vec<u8> {
    let len = len.max(4);
    let mut payload = Vec::new();
    for at in 0..count {
        let len = if at + 1 == count { len.saturating_sub(less) } else { len };
        payload.extend(numbered(first + at, len));
    }
    let builder = Builder::new(Family::V4, Transport::Udp)
        .to(&format!("10.244.{to}.2"))
        .id(first as u16)
        .payload(&payload);
    if count == 1 {
        return builder.read();
    }
    let (vnet, packet) = builder.superpacket(len as u16);
    tun_read(vnet, &packet)
}

/// The number in a bare packet, as the raw format carries it.
pub(crate) fn number_of(packet: &[u8]) -> u32 {
    let ip = Ip::parse(packet, Length::Claimed).unwrap();
    assert_eq!(ip.len, packet.len());
    u32::from_be_bytes(packet[HEADERS..HEADERS + 4].try_into().unwrap())
}

/// The numbers in a write to the TUN, cut as the kernel would cut it.
pub(crate) fn numbers_of_write(write: &Bytes) -> Vec<u32> {
    let gso_size = usize::from(u16::from_le_bytes([write[4], write[5]]));
    let packet = &write[VNET_HEADER_LEN..];
    if write[1] == 0 {
        return vec![number_of(packet)];
    }
    packet[HEADERS..]
        .chunks(gso_size)
        .map(|payload| u32::from_be_bytes(payload[..4].try_into().unwrap()))
        .collect()
}
