//! Promises of an engine with several workers: nothing is lost to the split, and no flow is ever out of order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU8;
use std::thread;
use std::time::Duration;

use dataplane::core::{DropReason, Family};
use dataplane::{Engine, EngineEvent, OpenError, SourcePorts, Tuning};
use hostnet::netns::NetNs;
use socket2::SockRef;

use super::pair::{Node, Shape, config, netlink, pair, possible, underlay};
use super::{PATIENCE, everything_flows, stop};

/// More flows than workers and source ports.
const FLOWS: usize = 24;

fn with_workers(source_ports: SourcePorts, shape: Shape) -> Shape {
    Shape { tuning: Tuning { workers: NonZeroU8::new(2), source_ports, ..Tuning::default() }, ..shape }
}

/// Segments that TCP had to keep because one before them was missing, in a namespace.
fn out_of_order(ns: &NetNs) -> u64 {
    let text =
        ns.run("netstat", || std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) =
        names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPOFOQueue").unwrap();
    value.parse().unwrap()
}

/// Numbered datagrams of several flows from the first node to the second: whatever arrives of a flow is in order.
fn datagrams_keep_their_order(nodes: &[Node; 2]) {
    let far = SocketAddr::from((nodes[1].address(Family::V4), 7000));
    let server = nodes[1].ns.run("bind", || UdpSocket::bind(far).unwrap()).unwrap();
    SockRef::from(&server).set_recv_buffer_size(4 << 20).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let near = SocketAddr::from((nodes[0].address(Family::V4), 0));
    let clients: Vec<UdpSocket> =
        nodes[0].ns.run("bind", || (0..FLOWS).map(|_| UdpSocket::bind(near).unwrap()).collect()).unwrap();
    let mut next = vec![0u32; FLOWS];
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..2000u32 {
                for (flow, client) in clients.iter().enumerate() {
                    // A full queue of the device refuses some, which keeps the order of the others.
                    let text = [(flow as u32).to_be_bytes(), number.to_be_bytes()].concat();
                    client.send_to(&text, far).ok();
                }
            }
        });
        let mut buffer = [0; 64];
        // All is sent long before the first silence of this length.
        let quiet = Duration::from_millis(500);
        while let Ok(len) = server.recv(&mut buffer) {
            server.set_read_timeout(Some(quiet)).unwrap();
            let (flow, number) = buffer[..len].split_at(4);
            let flow = u32::from_be_bytes(flow.try_into().unwrap()) as usize;
            let number = u32::from_be_bytes(number.try_into().unwrap());
            assert!(number >= next[flow], "flow {flow}: {number} arrives after {}", next[flow] - 1);
            next[flow] = number + 1;
        }
    });
    assert!(next.iter().all(|next| *next > 0), "something of each flow arrives: {next:?}");
}

/// Several TCP connections at once, each with so little in flight that nothing overflows: none sees a gap.
fn streams_keep_their_order(nodes: &[Node; 2]) {
    let far = SocketAddr::from((nodes[1].address(Family::V4), 7001));
    let listener = nodes[1].ns.run("listen", || TcpListener::bind(far).unwrap()).unwrap();
    let before: Vec<u64> = nodes.iter().map(|node| out_of_order(&node.ns)).collect();
    let sent: Vec<u8> = (0..4usize << 20).map(|at| (at ^ (at >> 11)) as u8).collect();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client =
                    nodes[0].ns.run("connect", || std::net::TcpStream::connect(far).unwrap()).unwrap();
                SockRef::from(&client).set_send_buffer_size(128 << 10).unwrap();
                client.set_write_timeout(Some(PATIENCE)).unwrap();
                client.write_all(&sent).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let (mut server, _) = listener.accept().unwrap();
            let sent = &sent;
            scope.spawn(move || {
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut received = Vec::new();
                server.read_to_end(&mut received).unwrap();
                assert!(received == *sent, "the bytes that were sent arrive");
            });
        }
    });
    let after: Vec<u64> = nodes.iter().map(|node| out_of_order(&node.ns)).collect();
    assert_eq!(after, before, "segments that TCP found out of order");
}

fn every_flow_keeps_its_order(shape: &Shape) {
    if !possible() {
        return;
    }
    let nodes = pair(shape);
    assert_eq!(nodes[0].engine().workers().len(), 2);
    streams_keep_their_order(&nodes);
    datagrams_keep_their_order(&nodes);
    let workers = nodes[0].engine().workers();
    assert!(workers.iter().all(|counters| counters.tx.passed > 0), "every worker has flows: {workers:?}");
    let counters = stop(nodes);
    assert_eq!(counters[0].tx.dropped(DropReason::SendQueueFull), 0);
}

#[test]
fn two_workers_keep_the_order_of_every_flow_in_vxlan() {
    every_flow_keeps_its_order(&with_workers(SourcePorts::Auto, Shape::vxlan()));
}

#[test]
fn two_workers_keep_the_order_of_every_flow_from_one_source_port() {
    every_flow_keeps_its_order(&with_workers(SourcePorts::Fixed, Shape::raw()));
}

#[test]
fn everything_flows_through_two_workers() {
    everything_flows(&with_workers(SourcePorts::Auto, Shape::vxlan()));
    everything_flows(&with_workers(SourcePorts::Spread, Shape { underlay: Family::V6, ..Shape::raw() }));
}

#[test]
fn two_workers_and_a_kernel_vxlan_node_reach_each_other() {
    everything_flows(&with_workers(SourcePorts::Auto, Shape { kernel: Some(true), ..Shape::vxlan() }));
}

#[test]
fn workers_share_their_port_with_nobody_else() {
    if !possible() {
        return;
    }
    let shape = with_workers(SourcePorts::Auto, Shape::vxlan());
    let nodes = pair(&shape);
    let bind = SocketAddr::from((underlay(1, Family::V4), 8472));
    let error =
        nodes[0].ns.run("open", || Engine::open(&config("other0", &shape, bind)).err().unwrap()).unwrap();
    assert!(matches!(error, OpenError::PortTaken { .. }), "{error}");
    stop(nodes);
}

#[test]
fn workers_end_together() {
    if !possible() {
        return;
    }
    let [near, _far] = pair(&with_workers(SourcePorts::Auto, Shape::vxlan()));
    netlink(&near.ns, |kernel| async move { kernel.delete_link("flannel.1").await.unwrap() });
    let said = near.engine().events().recv_timeout(PATIENCE).unwrap();
    assert!(matches!(said, EngineEvent::DeviceGone { .. }), "{said}");
    assert!(near.engine.unwrap().stop().is_err());
}
