//! No flow is ever out of order, however many workers and source ports it could take.
//!
//! The kernel picks the TUN queue of a packet by a hash of its flow, until a packet of the other direction is written:
//! then it follows that one's queue (`tun_flow_update`, Linux 6.18). So a flow may change its worker once, when it is
//! answered for the first time, and packets sent before and after may then overtake each other. For TCP that is the
//! handshake. The datagrams of the test therefore are numbered after a first exchange.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dataplane::core::{DropReason, Family};
use dataplane::{Duplex, SourcePorts, Tuning};
use hostnet::netns::NetNs;
use socket2::SockRef;

use super::pair::{Node, Shape, pair, possible};
use super::{PATIENCE, stop};

/// More flows than workers and source ports.
const FLOWS: usize = 64;
/// Bytes of one stream.
const STREAM: usize = 1 << 20;
/// Numbered datagrams of one flow in one direction.
const DATAGRAMS: u32 = 500;
/// All is sent long before the first silence of this length.
const QUIET: Duration = Duration::from_millis(500);

/// What TCP knows of disorder in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disorder {
    /// Times that a sender found that its segments had overtaken each other: a gap was filled that it had not filled by a
    /// retransmission.
    overtaken: u64,
    /// Segments that a receiver had to keep because one before them was missing: overtaken ones, and lost ones.
    kept: u64,
    /// Segments sent again.
    sent_again: u64,
}

impl Disorder {
    fn of(ns: &NetNs) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let text = ns.run("netstat", || read("netstat") + &read("snmp")).unwrap();
        let sum = |wanted: &[&str]| {
            let lines: Vec<&str> = text.lines().collect();
            let pairs = lines.chunks_exact(2).flat_map(|pair| pair[0].split(' ').zip(pair[1].split(' ')));
            pairs
                .filter(|(name, _)| wanted.contains(name))
                .map(|(_, value)| value.parse::<u64>().unwrap())
                .sum()
        };
        Self {
            overtaken: sum(&["TCPSACKReorder", "TCPRenoReorder"]),
            kept: sum(&["TCPOFOQueue"]),
            sent_again: sum(&["RetransSegs"]),
        }
    }
}

/// Many TCP connections at once in each direction, each with so little in flight that nothing overflows: none sees a gap.
fn streams_keep_their_order(nodes: &[Node; 2]) {
    // The namespaces are new: what is counted at the end is of these streams.
    let sent: Vec<u8> = (0..STREAM).map(|at| (at ^ (at >> 11)) as u8).collect();
    thread::scope(|scope| {
        for (from, to) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            let far = SocketAddr::from((to.address(Family::V4), 7001));
            let listener = to.ns.run("listen", || TcpListener::bind(far).unwrap()).unwrap();
            for _ in 0..FLOWS {
                let mut client = from.ns.run("connect", || TcpStream::connect(far).unwrap()).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                let sent = &sent;
                scope.spawn(move || {
                    SockRef::from(&client).set_send_buffer_size(16 << 10).unwrap();
                    client.set_write_timeout(Some(PATIENCE)).unwrap();
                    client.write_all(sent).unwrap();
                    client.shutdown(std::net::Shutdown::Write).unwrap();
                });
                scope.spawn(move || {
                    server.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut received = Vec::new();
                    server.read_to_end(&mut received).unwrap();
                    assert!(received == *sent, "the bytes that were sent arrive");
                });
            }
        }
    });
    // A machine short of CPU may lose a segment in a queue of the kernel's; what follows it is then kept, and no fault of
    // the engine's. Without a loss nothing may be kept at all.
    let found = [&nodes[0], &nodes[1]].map(|node| Disorder::of(&node.ns));
    for (here, there) in [(found[0], found[1]), (found[1], found[0])] {
        assert!(here.overtaken == 0 && (there.kept == 0 || here.sent_again > 0), "{found:?}");
    }
}

/// Numbered datagrams of many flows in both directions at once: whatever arrives of a flow is in order.
fn datagrams_keep_their_order(nodes: &[Node; 2]) {
    let open = |node: &Node, port: u16| {
        let address = SocketAddr::from((node.address(Family::V4), port));
        let socket = node.ns.run("bind", || UdpSocket::bind(address).unwrap()).unwrap();
        SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let flows: Vec<[UdpSocket; 2]> = (0..FLOWS as u16)
        .map(|flow| {
            let ends = [open(&nodes[0], 8000 + flow), open(&nodes[1], 8000 + flow)];
            ends[0].connect(ends[1].local_addr().unwrap()).unwrap();
            ends[1].connect(ends[0].local_addr().unwrap()).unwrap();
            // The first exchange: from here on the flow's worker is settled on both sides.
            for (from, to) in [(0, 1), (1, 0)] {
                ends[from].send(b"hello").unwrap();
                assert_eq!(ends[to].recv(&mut [0; 8]).unwrap(), 5);
            }
            ends
        })
        .collect();
    let arrived = AtomicUsize::new(0);
    thread::scope(|scope| {
        for side in [0, 1] {
            let flows = &flows;
            scope.spawn(move || {
                for number in 0..DATAGRAMS {
                    for ends in flows {
                        // A full queue of the device refuses some, which keeps the order of the others.
                        ends[side].send(&number.to_be_bytes()).ok();
                    }
                }
            });
            for (flow, ends) in flows.iter().enumerate() {
                let (socket, arrived) = (&ends[side], &arrived);
                scope.spawn(move || {
                    socket.set_read_timeout(Some(QUIET)).unwrap();
                    let (mut buffer, mut next) = ([0; 4], 0);
                    while let Ok(4) = socket.recv(&mut buffer) {
                        let number = u32::from_be_bytes(buffer);
                        assert!(number >= next, "flow {flow}: {number} arrives after {}", next - 1);
                        next = number + 1;
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(next > 0, "something of each flow arrives");
                });
            }
        }
    });
    let arrived = arrived.into_inner();
    assert!(arrived > FLOWS * 20, "{arrived} are too few to tell");
}

fn every_flow_keeps_its_order(workers: u8, source_ports: SourcePorts, shape: Shape) {
    let workers = NonZeroU8::new(workers);
    order_is_kept(&Shape { tuning: Tuning { workers, source_ports, ..Tuning::default() }, ..shape });
}

fn order_is_kept(shape: &Shape) {
    if !possible() {
        return;
    }
    let nodes = pair(shape);
    let workers = shape.tuning.workers.map_or(1, NonZeroU8::get);
    assert_eq!(nodes[0].engine().workers().len(), usize::from(workers));
    streams_keep_their_order(&nodes);
    datagrams_keep_their_order(&nodes);
    let counted = nodes[0].engine().workers();
    assert!(counted.iter().all(|counters| counters.tx.passed > 0), "every worker has flows: {counted:?}");
    let counters = stop(nodes);
    assert_eq!(counters[0].tx.dropped(DropReason::SendQueueFull), 0);
}

#[test]
fn two_workers_keep_the_order_of_every_flow_in_vxlan() {
    every_flow_keeps_its_order(2, SourcePorts::Auto, Shape::vxlan());
}

#[test]
fn four_workers_keep_the_order_of_every_flow_in_vxlan() {
    every_flow_keeps_its_order(4, SourcePorts::Auto, Shape::vxlan());
}

#[test]
fn four_workers_keep_the_order_of_every_flow_in_flannels_raw_format() {
    every_flow_keeps_its_order(4, SourcePorts::Spread, Shape::raw());
}

#[test]
fn two_workers_keep_the_order_of_every_flow_from_one_source_port() {
    every_flow_keeps_its_order(2, SourcePorts::Fixed, Shape::raw());
}

#[test]
fn an_engine_without_batches_keeps_the_order_of_every_flow() {
    let shape = Shape { off: dataplane::Features::ALL, ..Shape::vxlan() };
    every_flow_keeps_its_order(2, SourcePorts::Auto, shape);
}

#[test]
fn a_thread_for_each_direction_keeps_the_order_of_every_flow() {
    for workers in [1, 2] {
        let (workers, duplex) = (NonZeroU8::new(workers), Duplex::Full);
        order_is_kept(&Shape { tuning: Tuning { workers, duplex, ..Tuning::default() }, ..Shape::vxlan() });
    }
}
