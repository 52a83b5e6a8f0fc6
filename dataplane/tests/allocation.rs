//! In steady state a worker allocates nothing, whatever the packet.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use dataplane::buffers::ReceiveBuffers;
use dataplane::core::checksum::Adder;
use dataplane::core::testing::{Builder, Transport, cluster, endpoint, tun_read, vxlan};
use dataplane::core::{DropReason, Encap, Family, ForwarderConfig, OverlayMtu, SourceCheck};
use dataplane::engine::{Shared, Turn, Worker, WorkerConfig};
use dataplane::io::Ready;
use dataplane::io::{Arrival, Outgoing, TunQueue, UdpPort};
use dataplane::{Events, Features, Offload};
use nix::errno::Errno;

/// Gives the same packets again and again, and takes everything.
struct Source {
    packets: Vec<Vec<u8>>,
    next: usize,
    left: usize,
    written: usize,
}

impl TunQueue for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        self.next = (self.next + 1) % self.packets.len();
        let packet = &self.packets[self.next];
        buffer[..packet.len()].copy_from_slice(packet);
        Ok(packet.len())
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.written += parts.len();
        Ok(())
    }
}

/// Keeps what is sent while there is room, and gives what it holds again and again.
#[derive(Default)]
struct Replay {
    room: usize,
    held: Vec<(Arrival, Vec<u8>)>,
    next: usize,
    left: usize,
    /// Refuses trains as a device without checksums does, and small datagrams as a firewall rule does.
    hostile: bool,
}

impl Replay {
    fn refusal(&self, message: &Outgoing<'_>) -> Option<io::Error> {
        match (self.hostile, message.is_train(), message.bytes.len()) {
            (true, true, _) => Some(Errno::EIO.into()),
            (true, false, ..200) => Some(Errno::EPERM.into()),
            _ => None,
        }
    }
}

impl UdpPort for Replay {
    fn send<'a>(&mut self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        let mut sent = 0;
        for message in messages {
            match self.refusal(&message) {
                Some(error) if sent == 0 => return Err(error),
                Some(_) => break,
                None => sent += 1,
            }
            let Outgoing { bytes, stride, tos, .. } = message;
            if self.held.len() < self.room {
                let stride = stride.min(bytes.len());
                let arrival = Arrival { from: endpoint(2), len: bytes.len(), stride, tos, truncated: false };
                self.held.push((arrival, bytes.to_vec()));
            }
        }
        Ok(sent)
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let (slots, arrivals) = buffers.slots_mut();
        let mut filled = 0;
        for (slot, arrival) in slots.zip(arrivals) {
            self.left = match self.left.checked_sub(1) {
                Some(left) => left,
                None => break,
            };
            self.next = (self.next + 1) % self.held.len();
            let (held, bytes) = &self.held[self.next];
            slot[..held.len].copy_from_slice(bytes);
            *arrival = *held;
            filled += 1;
        }
        buffers.set_filled(filled);
        if filled == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(filled) }
    }

    fn wait_writable(&mut self, _limit: Duration) {}

    fn overflow(&self) -> u32 {
        0
    }
}

/// TUN reads of node `from` for node `to`: superpackets, single packets, and some that cannot pass.
fn packets(from: u8, to: u8) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for family in [Family::V4, Family::V6] {
        let address = |n: u8| match family {
            Family::V4 => format!("10.244.{n}.2"),
            Family::V6 => format!("fd00:0:0:{n}::2"),
        };
        let builder = |transport| Builder::new(family, transport).from(&address(from)).to(&address(to));
        let tcp = builder(Transport::tcp(1)).payload(&[7; 60_000]);
        let (vnet, packet) = tcp.superpacket(1300);
        packets.push(tun_read(vnet, &packet));
        let udp = builder(Transport::Udp).payload(&[7; 20_000]);
        let (vnet, packet) = udp.superpacket(1200);
        packets.push(tun_read(vnet, &packet));
        packets.push(builder(Transport::Udp).payload(&[7; 100]).read());
        packets.push(builder(Transport::Echo).payload(&[7; 56]).read());
        // Answered with ICMP errors: too big, time exceeded in the raw format, no such subnet.
        packets.push(builder(Transport::Udp).payload(&[7; 3000]).read());
        packets.push(builder(Transport::Udp).ttl(1).payload(&[7; 10]).read());
        packets.push(builder(Transport::Udp).to(&address(9)).payload(&[7; 10]).read());
        packets.push(vec![0xff; 40]);
    }
    packets
}

fn worker(n: u8, encap: Encap, features: Features, udp: Replay) -> (Worker<Source, Replay>, Arc<Shared>) {
    let tun = Source { packets: packets(n, 3 - n), next: 0, left: 0, written: 0 };
    let config = WorkerConfig {
        forwarder: ForwarderConfig {
            encap,
            mtu: OverlayMtu::new(1450).unwrap(),
            source_check: SourceCheck::Strict,
            adder: Adder::SCALAR,
        },
        underlay: Family::V4,
        offload: Offload::with(features, 64),
        lanes: 1,
        side: Ready::BOTH,
    };
    let shared = Shared::new(cluster(n));
    let (events, _received) = Events::channel();
    (Worker::new(tun, udp, config, shared.clone(), events), shared)
}

/// Lets the worker read 40 packets and receive 40 buffers. Minutes are enough that what was refused is tried again.
fn turn(worker: &mut Worker<Source, Replay>, minute: u64) {
    worker.tun_mut().left = 40;
    worker.udp_mut().left = if worker.udp_mut().held.is_empty() { 0 } else { 40 };
    worker.set_ready(Ready::BOTH);
    while worker.turn(minute * 60_000_000_000) == Turn::Busy {}
}

fn steady_state_allocates_nothing(encap: Encap, features: Features, hostile: bool) {
    let (mut far, _) = worker(2, encap, features, Replay { room: 200, ..Replay::default() });
    turn(&mut far, 1);
    let sent = std::mem::take(&mut far.udp_mut().held);
    assert!(sent.len() > 10);
    let (mut near, shared) = worker(1, encap, features, Replay { held: sent, hostile, ..Replay::default() });
    turn(&mut near, 1);
    let before = shared.counters();
    let allocated = allocation_counter::measure(|| (2..100).for_each(|minute| turn(&mut near, minute)));
    assert_eq!(allocated.count_total, 0, "{allocated:?}");
    let counters = shared.counters();
    let done = counters.since(&before);
    assert!(done.tx.passed > 10_000 && done.rx.passed > 1000 && done.icmp_replies > 10, "{done:?}");
    assert!(near.tun_mut().written > 1000);
    assert_eq!(done.tx.dropped(DropReason::SendRefused) > 500, hostile, "{done:?}");
    assert!(counters.rx.is_balanced() && counters.tx.is_balanced(), "{counters:?}");
}

#[test]
fn nothing_is_allocated_for_a_packet() {
    for encap in [Encap::Raw, vxlan()] {
        for hostile in [false, true] {
            steady_state_allocates_nothing(encap, Features::ALL, hostile);
            steady_state_allocates_nothing(encap, Features::NONE, hostile);
        }
    }
}
