//! Promises of the engine over real TUN devices and sockets, in private network namespaces.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use dataplane::core::{Counters, Family};
use dataplane::{Feature, Features};

mod pair;

use pair::{Node, Shape, pair, possible};

const PATIENCE: Duration = Duration::from_secs(20);

/// Echoes datagrams of every size from 1 byte over the MTU to the largest, through both engines and back.
fn udp_echo(nodes: &[Node; 2], family: Family, sizes: &[usize]) {
    let (near, far) = (nodes[0].address(family), nodes[1].address(family));
    let server = nodes[1].ns.run("bind", || UdpSocket::bind((far, 7)).unwrap()).unwrap();
    let client = nodes[0].ns.run("bind", || UdpSocket::bind((near, 0)).unwrap()).unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = vec![0; 65_536];
    for &size in sizes {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        client.send_to(&sent, (far, 7)).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), near);
        server.send_to(&buffer[..len], from).unwrap();
        let (len, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], sent, "{size} bytes");
    }
}

/// Moves `len` bytes over one TCP connection and compares them.
fn tcp_transfer(nodes: &[Node; 2], family: Family, len: usize) {
    let far = SocketAddr::from((nodes[1].address(family), 5201));
    let listener = nodes[1].ns.run("listen", || TcpListener::bind(far).unwrap()).unwrap();
    let mut client =
        nodes[0].ns.run("connect", || TcpStream::connect_timeout(&far, PATIENCE).unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..len).map(|at| (at ^ (at >> 9)) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert!(received == sent, "the bytes that were sent arrive");
    });
}

/// Stops both and checks that every packet has a fate. Returns their counters.
fn stop(nodes: [Node; 2]) -> [Counters; 2] {
    nodes.map(|node| {
        let events: Vec<_> = node.engine.events().try_iter().collect();
        assert_eq!(events, [], "nothing was demoted");
        let counters = node.engine.stop().unwrap();
        assert!(counters.rx.is_balanced(), "{counters:?}");
        assert!(counters.tx.is_balanced(), "{counters:?}");
        counters
    })
}

const SIZES: &[usize] =
    &[1, 2, 100, 1000, 1371, 1400, 1422, 1423, 1444, 1445, 1473, 3000, 9000, 30_000, 65_000];

fn everything_flows(shape: &Shape) {
    if !possible() {
        return;
    }
    let nodes = pair(shape);
    for family in [Family::V4, Family::V6] {
        udp_echo(&nodes, family, SIZES);
        tcp_transfer(&nodes, family, 4 << 20);
    }
    let [near, far] = stop(nodes);
    assert!(near.tx.passed >= 2 * (4 << 20) / 1500, "{near:?}");
    assert!(far.rx.passed >= 2 * (4 << 20) / 1500, "{far:?}");
}

#[test]
fn datagrams_and_streams_flow_in_flannels_raw_format() {
    everything_flows(&Shape::raw());
}

#[test]
fn datagrams_and_streams_flow_in_vxlan() {
    everything_flows(&Shape::vxlan());
}

#[test]
fn datagrams_and_streams_flow_over_ipv6() {
    everything_flows(&Shape { underlay: Family::V6, ..Shape::vxlan() });
    everything_flows(&Shape { underlay: Family::V6, ..Shape::raw() });
}

#[test]
fn datagrams_and_streams_flow_with_any_feature_off() {
    for feature in Feature::ALL {
        everything_flows(&Shape { off: Features::NONE.with(feature), ..Shape::vxlan() });
    }
}

#[test]
fn datagrams_and_streams_flow_with_every_feature_off() {
    everything_flows(&Shape { off: Features::ALL, ..Shape::raw() });
}

#[test]
fn superpackets_cross_whole() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    let start = Instant::now();
    tcp_transfer(&nodes, Family::V4, 256 << 20);
    let seconds = start.elapsed().as_secs_f64();
    let [near, _] = stop(nodes);
    let rate = near.tx.passed_bytes as f64 * 8.0 / seconds / 1e9;
    writeln!(std::io::stderr(), "{rate:.2} Gb/s").unwrap();
}
