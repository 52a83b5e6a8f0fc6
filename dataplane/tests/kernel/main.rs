//! Promises of the engine over real TUN devices and sockets, in private network namespaces.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use dataplane::core::{Counters, DropReason, Family};
use dataplane::{Engine, EngineEvent, EngineHandle, Feature, Features, OpenError};
use hostnet::kernel::LinkSettings;
use hostnet::netns::NetNs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

mod order;
mod pair;
mod workers;

use pair::{Node, Shape, config, netlink, pair, possible};

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
        let lost = |_| {
            let counters: Vec<_> =
                nodes.iter().filter_map(|node| node.engine.as_ref()).map(EngineHandle::counters).collect();
            panic!("{size} bytes of {family:?} are lost: {counters:#?}");
        };
        let (len, from) = server.recv_from(&mut buffer).unwrap_or_else(lost);
        assert_eq!(from.ip(), near);
        server.send_to(&buffer[..len], from).unwrap();
        let (len, _) = client.recv_from(&mut buffer).unwrap_or_else(lost);
        assert_eq!(buffer[..len], sent, "{size} bytes");
    }
}

/// Sends datagrams as one UDP superpacket, as QUIC senders do, both ways: they arrive one by one.
fn udp_superpacket(nodes: &[Node; 2], family: Family, len: u32, size: u16) {
    let open = |node: &Node, port: u16| {
        let address = (node.address(family), port);
        node.ns.run("bind", || UdpSocket::bind(address).unwrap()).unwrap()
    };
    let sockets = [open(&nodes[0], 443), open(&nodes[1], 443)];
    let sent: Vec<u8> = (0..len).map(|at| (at % 253) as u8).collect();
    for (from, to, node) in [(0, 1, &nodes[1]), (1, 0, &nodes[0])] {
        setsockopt(&sockets[from], sockopt::UdpGsoSegment, &size.into()).unwrap();
        sockets[to].set_read_timeout(Some(PATIENCE)).unwrap();
        sockets[from].send_to(&sent, (node.address(family), 443)).unwrap();
        let mut buffer = vec![0; 65_536];
        for datagram in sent.chunks(size.into()) {
            let len = sockets[to].recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], datagram);
        }
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

/// Stops the engines and checks that every packet has a fate. Returns their counters.
fn stop(nodes: [Node; 2]) -> Vec<Counters> {
    let engines = nodes.into_iter().filter_map(|node| node.engine);
    let stopped = engines.map(|engine| {
        let events: Vec<_> = engine.events().try_iter().collect();
        assert_eq!(events, [], "nothing was demoted");
        let counters = engine.stop().unwrap();
        assert!(counters.rx.is_balanced(), "{counters:?}");
        assert!(counters.tx.is_balanced(), "{counters:?}");
        counters
    });
    stopped.collect()
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
        udp_superpacket(&nodes, family, 40_100, 1200);
        // A message of 128 datagrams crosses the veth whole.
        if nodes
            .iter()
            .flat_map(|node| &node.engine)
            .any(|engine| engine.capabilities().max_segments() == 128)
        {
            udp_superpacket(&nodes, family, 128 * 400, 400);
        }
        tcp_transfer(&nodes, family, 4 << 20);
    }
    let counters = stop(nodes);
    assert!(counters[0].tx.passed >= 2 * (4 << 20) / 1500, "{counters:?}");
    for counters in counters {
        // Nothing but the few packets that an IPv6 stack says of its own accord.
        let few = counters.tx.dropped(DropReason::NotUnicast);
        assert_eq!(counters.tx.dropped_in_all(), few, "{counters:?}");
        assert_eq!(counters.rx.dropped_in_all(), 0, "{counters:?}");
    }
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
fn a_kernel_vxlan_node_cannot_tell_the_engine_from_flannel() {
    // Zero checksums over IPv6 are refused by both, as RFC 8200 wants it.
    for (underlay, checksum) in [(Family::V4, true), (Family::V4, false), (Family::V6, true)] {
        for off in [Features::NONE, Features::NONE.with(Feature::TunVnetHdr), Features::ALL] {
            everything_flows(&Shape { underlay, off, kernel: Some(checksum), ..Shape::vxlan() });
        }
    }
}

#[test]
fn a_path_that_shrinks_costs_speed_and_nothing_else() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    for node in &nodes {
        netlink(&node.ns, |kernel| async move {
            let narrow = LinkSettings { mtu: Some(1400), ..LinkSettings::default() };
            kernel.set_link("eth0", &narrow).await.unwrap();
        });
    }
    tcp_transfer(&nodes, Family::V4, 4 << 20);
    udp_echo(&nodes, Family::V4, SIZES);
    // Only trains that fill the MTU are too long now, and each side says so once a peer.
    for node in &nodes {
        for event in node.engine.as_ref().unwrap().events().try_iter() {
            assert!(matches!(event, EngineEvent::TrainsRefused { errno: libc::EMSGSIZE, .. }), "{event:?}");
        }
    }
    let counters = stop(nodes);
    assert_eq!(counters[0].tx.dropped_in_all(), 0, "{counters:?}");
}

#[test]
fn a_bulk_transfer_arrives_as_it_was_sent() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    tcp_transfer(&nodes, Family::V4, 100 << 20);
    stop(nodes);
}

#[test]
fn pings_are_answered() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::raw());
    let far = nodes[1].address(Family::V4);
    let answer = nodes[0]
        .ns
        .run("ping", || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // Echo request, code 0, checksum, identifier 0x1234, sequence 1.
            let request = [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
            socket.send_to(&request, &SocketAddr::from((far, 0)).into()).unwrap();
            let mut buffer = [0; 1500];
            let len = (&socket).read(&mut buffer).unwrap();
            buffer[20..len].to_vec()
        })
        .unwrap();
    assert_eq!(answer, [0, 0, 0xed, 0xca, 0x12, 0x34, 0, 1]);
    let counters = stop(nodes);
    assert!(counters.iter().all(|counters| counters.tx.passed > 0 && counters.rx.passed > 0));
}

#[test]
fn a_failed_worker_goes_on() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    udp_echo(&nodes, Family::V4, &[100]);
    nodes[0].engine().fail_once();
    let near = (nodes[0].address(Family::V4), 9);
    let socket = nodes[0].ns.run("bind", || UdpSocket::bind(near).unwrap()).unwrap();
    socket.send_to(b"lost", (nodes[1].address(Family::V4), 9)).unwrap();
    let said = nodes[0].engine().events().recv_timeout(PATIENCE).unwrap();
    assert!(matches!(said, EngineEvent::WorkerPanicked { lost: 1, .. }), "{said}");
    udp_echo(&nodes, Family::V4, &[100]);
    let counters = stop(nodes);
    assert_eq!(counters[0].tx.dropped(DropReason::WorkerFailed), 1);
}

#[test]
fn a_device_removed_by_someone_else_ends_the_engine_aloud() {
    if !possible() {
        return;
    }
    let [near, _far] = pair(&Shape::vxlan());
    netlink(&near.ns, |kernel| async move { kernel.delete_link("flannel.1").await.unwrap() });
    let said = near.engine().events().recv_timeout(PATIENCE).unwrap();
    assert!(matches!(said, EngineEvent::DeviceGone { .. }), "{said}");
    let error = near.engine.unwrap().stop().unwrap_err();
    assert!(error.to_string().contains("flannel.1"), "{error}");
}

#[test]
fn the_device_goes_with_the_engine() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    let exists = |ns: &NetNs| ns.run("look", || nix::net::if_::if_nametoindex("flannel.1").is_ok()).unwrap();
    for node in nodes {
        assert!(exists(&node.ns));
        drop(node.engine);
        assert!(!exists(&node.ns));
    }
}

#[test]
fn an_engine_that_cannot_open_says_why_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let nodes = pair(&Shape::vxlan());
    let ns = &nodes[0].ns;
    let bound = SocketAddr::from((pair::underlay(1, Family::V4), 8472));
    let open = |device: &str, bind: &str| {
        let config = config(device, &Shape::vxlan(), bind.parse().unwrap());
        let error = ns.run("open", || Engine::open(&config).err().unwrap()).unwrap();
        let left = ns.run("look", || nix::net::if_::if_nametoindex("other0").is_ok()).unwrap();
        assert!(!left, "no device is left behind");
        error
    };
    let error = open("flannel.1", "192.0.2.1:9999");
    assert!(matches!(&error, OpenError::DeviceNameTaken { device } if device == "flannel.1"), "{error}");
    let error = open("other0", "192.0.2.1:8472");
    assert!(matches!(error, OpenError::PortTaken { addr } if addr == bound), "{error}");
    let error = open("other0", "192.0.2.77:8472");
    assert!(matches!(error, OpenError::AddressNotAvailable { .. }), "{error}");
    let error = ns
        .run("no-tun", || {
            // A mount namespace of this thread's own, in which /dev/net is empty.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
            mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
            Engine::open(&config("other0", &Shape::vxlan(), "192.0.2.1:9999".parse().unwrap())).err().unwrap()
        })
        .unwrap();
    assert!(matches!(error, OpenError::NoTunDevice { .. }), "{error}");
    stop(nodes);
}

#[test]
fn every_probe_answers_and_a_forced_one_says_so() {
    if !possible() {
        return;
    }
    let ns = NetNs::new().unwrap();
    let mut config = config("probe0", &Shape::raw(), "0.0.0.0:0".parse().unwrap());
    config.off = "udp-gro,tun-vnet-hdr".parse().unwrap();
    let engine = ns.run("open", || Engine::open(&config)).unwrap().unwrap();
    let text = engine.capabilities().to_string();
    assert!(text.contains("udp-gro: off (forced by --engine-off)"), "{text}");
    assert!(text.contains("tun-vnet-hdr: off (forced by --engine-off)"), "{text}");
    assert!(text.contains("tun-tso: off (needs tun-vnet-hdr)"), "{text}");
    // Loopback is down in a new namespace, so the probe over it cannot ask.
    assert!(text.contains("udp-gso: on (64 datagrams a send; not asked"), "{text}");
    assert_ne!(engine.local().port(), 0);
}
