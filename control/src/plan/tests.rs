//! The plan, backend by backend.

use super::*;
use crate::lease::{BackendData, Key, LeaseAttrs, LeaseUpdate, VxlanData};
use crate::network::NetworkConfig;
use crate::underlay::{End, Underlay};
use dataplane_core::LinkMtu;
use proptest::prelude::*;

const NETWORK: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "TYPE"}}"#;

fn underlay() -> Underlay {
    Underlay {
        device: "eth0".to_owned(),
        index: 2,
        mtu: LinkMtu(1500),
        on_link: vec!["192.0.2.0/28".parse().unwrap(), "2001:db8::/124".parse().unwrap()],
        v4: Some(End { local: "192.0.2.1".parse().unwrap(), public: "192.0.2.1".parse().unwrap() }),
        v6: Some(End { local: "2001:db8::1".parse().unwrap(), public: "2001:db8::1".parse().unwrap() }),
    }
}

fn backend(kind: &str) -> Backend {
    let method = match kind {
        "udp" => Method::EngineUdp,
        "vxlan" => Method::EngineVxlan,
        "host-gw" => Method::HostGw,
        "alloc" => Method::Alloc,
        other => panic!("{other}"),
    };
    carried(&NETWORK.replace("TYPE", kind), method)
}

/// `vxlan` in the kernel.
fn kernel() -> Backend {
    carried(&NETWORK.replace("TYPE", "vxlan"), Method::KernelVxlan)
}

fn carried(text: &str, method: Method) -> Backend {
    let config = NetworkConfig::parse(text.as_bytes()).unwrap();
    let mac = |family| mac(if family == Family::V4 { 1 } else { 101 });
    Backend::new(&config, method, &underlay(), mac).unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn subnet(key: &str) -> Subnet {
    key.parse::<Key>().unwrap().0
}

fn vxlan(host: u8) -> BackendData {
    let data = |last| Some(VxlanData { vni: Some(1), mac: mac(last) });
    BackendData::Vxlan { v4: data(host), v6: data(host + 100) }
}

fn lease(key: &str, host: u8, backend: BackendData) -> Lease {
    let attrs = LeaseAttrs {
        public_ip: Some([192, 0, 2, host].into()),
        public_ipv6: Some(format!("2001:db8::{host:x}").parse().unwrap()),
        backend,
    };
    Lease { subnet: subnet(key), attrs, expires: None }
}

fn own(data: BackendData) -> Lease {
    lease("10.5.1.0-24&fd00:5:0:1::-64", 1, data)
}

fn plan(backend: &Backend, data: BackendData, others: Vec<Lease>) -> Plan {
    let own = own(data);
    let mut leases = LeaseSet::new(own.subnet);
    leases.apply(LeaseUpdate::Snapshot(others));
    backend.plan(&own, &leases)
}

/// The wanted state as `ip` would print it.
fn text(plan: &Plan) -> Vec<String> {
    let host = &plan.host;
    let links = host.links.iter().map(|link| format!("link {link}"));
    let addresses = host.addresses.iter().map(|address| format!("addr {address}"));
    let neighbours = host.neighbours.iter().map(|neighbour| format!("neigh {neighbour}"));
    let fdb = host.fdb.iter().map(|entry| format!("fdb {entry}"));
    let routes = host.routes.iter().map(|route| {
        assert_eq!(route.protocol, RouteProtocol::FLANNEL_RS, "{route}");
        format!("route {}", Route { protocol: RouteProtocol::BOOT, ..route.clone() })
    });
    links.chain(addresses).chain(neighbours).chain(fdb).chain(routes).collect()
}

/// Every cluster network ends here where no node has the address.
const CLOSED: [&str; 2] =
    ["route unreachable 10.5.0.0/16 metric 4294967295", "route unreachable fd00:5::/48 metric 4294967295"];

#[test]
fn vxlan_has_one_route_a_peer_and_one_device_a_family() {
    let backend = backend("vxlan");
    let plan = plan(
        &backend,
        vxlan(1),
        vec![
            lease("10.5.2.0-24&fd00:5:0:2::-64", 2, vxlan(2)),
            lease("10.5.3.0-24", 3, vxlan(3)),
            own(vxlan(1)),
        ],
    );
    assert_eq!(
        text(&plan),
        [
            "link flannel-v6.1 mtu 1430 up alias flannel-rs",
            "link flannel.1 mtu 1450 up alias flannel-rs",
            "addr fd00:5:0:1::/128 dev flannel-v6.1",
            "addr 10.5.1.0/32 dev flannel.1",
            "route 10.5.2.0/24 dev flannel.1 scope 253",
            "route 10.5.3.0/24 dev flannel.1 scope 253",
            "route fd00:5:0:2::/64 dev flannel-v6.1",
            CLOSED[0],
            CLOSED[1],
        ]
    );
    assert!(plan.devices.is_empty(), "the engine makes its own");
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
    let [v4, v6] = plan.peers.as_slice() else { panic!("two engines") };
    assert_eq!(v4.local.mac, mac(1));
    let mut v4_peers: Vec<_> = v4.peers.iter().map(|peer| (peer.endpoint.to_string(), peer.mac)).collect();
    v4_peers.sort();
    assert_eq!(v4_peers, [("192.0.2.2:8472".to_owned(), mac(2)), ("192.0.2.3:8472".to_owned(), mac(3))]);
    assert_eq!(v6.local.mac, mac(101));
    assert_eq!(v6.peers.len(), 1);
    assert_eq!(v6.peers[0].endpoint, "[2001:db8::2]:8472".parse().unwrap());
    assert_eq!(v6.peers[0].mac, mac(102));
    assert!(v4.table().is_ok() && v6.table().is_ok());
    assert_eq!(backend.mtu(), 1430, "what fits through both");
}

#[test]
fn udp_has_one_route_for_the_whole_network() {
    let backend = backend("udp");
    let plan = plan(&backend, BackendData::Udp, vec![lease("10.5.2.0-24", 2, BackendData::Udp)]);
    assert_eq!(
        text(&plan),
        [
            "link flannel-v6.0 mtu 1452 up alias flannel-rs",
            "link flannel0 mtu 1472 up alias flannel-rs",
            "addr fd00:5:0:1::/128 dev flannel-v6.0",
            "addr 10.5.1.0/32 dev flannel0",
            "route 10.5.0.0/16 dev flannel0",
            "route fd00:5::/48 dev flannel-v6.0",
            CLOSED[0],
            CLOSED[1],
        ]
    );
    assert_eq!(plan.peers[0].peers[0].endpoint, "192.0.2.2:8285".parse().unwrap());
    assert_eq!(backend.tunnels()[0].bind, "192.0.2.1:8285".parse().unwrap());
}

#[test]
fn what_is_published_is_what_a_kernel_node_publishes() {
    let attrs = backend("vxlan").attrs();
    assert_eq!(
        crate::lease::print_value(&attrs, None),
        "{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":\"2001:db8::1\",\"BackendType\":\"vxlan\",\
         \"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:01\"},\
         \"BackendV6Data\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:65\"}}"
    );
    assert_eq!(kernel().attrs(), attrs, "whoever carries the packets");
    assert_eq!(backend("udp").attrs().backend, BackendData::Udp);
    assert_eq!(backend("alloc").attrs().backend, BackendData::Udp);
    assert_eq!(
        crate::lease::print_value(&backend("host-gw").attrs(), None),
        "{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":\"2001:db8::1\",\"BackendType\":\"host-gw\"}"
    );
}

#[test]
fn the_kernels_vxlan_has_flannels_device_and_three_objects_a_peer() {
    let backend = kernel();
    let others = vec![lease("10.5.2.0-24&fd00:5:0:2::-64", 2, vxlan(2)), lease("10.5.3.0-24", 3, vxlan(3))];
    let plan = plan(&backend, vxlan(1), others);
    assert_eq!(
        text(&plan),
        [
            "link flannel-v6.1 mtu 1430 up address 02:00:00:00:00:65 alias flannel-rs",
            "link flannel.1 mtu 1450 up address 02:00:00:00:00:01 alias flannel-rs",
            "addr fd00:5:0:1::/128 dev flannel-v6.1",
            "addr 10.5.1.0/32 dev flannel.1",
            "neigh fd00:5:0:2:: lladdr 02:00:00:00:00:66 dev flannel-v6.1",
            "neigh 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1",
            "neigh 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1",
            "fdb 02:00:00:00:00:66 dst 2001:db8::2 dev flannel-v6.1",
            "fdb 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1",
            "fdb 02:00:00:00:00:03 dst 192.0.2.3 dev flannel.1",
            "route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            "route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
            "route fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 onlink",
            CLOSED[0],
            CLOSED[1],
        ]
    );
    let off = [
        ("net/ipv6/conf/flannel-v6.1/accept_ra", "0"),
        ("net/ipv6/conf/flannel-v6.1/disable_ipv6", "0"),
        ("net/ipv6/conf/flannel.1/accept_ra", "0"),
    ];
    assert!(plan.host.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(off));
    let [v4, v6] = plan.devices.as_slice() else { panic!("a device a family") };
    let flannels = Vxlan {
        local: Some("192.0.2.1".parse().unwrap()),
        device: Some("eth0".to_owned()),
        mtu: Some(1450),
        mac: Some(mac(1).0),
        ..Vxlan::new("flannel.1", 1, 8472)
    };
    assert_eq!(*v4, flannels);
    assert!(!v4.learning && v4.udp_checksum && !v4.gbp);
    assert_eq!((v6.name.as_str(), v6.mtu, v6.port), ("flannel-v6.1", Some(1430), 8472));
    assert_eq!(plan.peers.len(), 2, "the guard knows them by the plan too");
}

#[test]
fn the_kernels_device_has_its_options_and_no_more_mtu_than_the_underlay_carries() {
    let text = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 9000, "GBP": true, "Learning": true}}"#;
    let backend = carried(text, Method::KernelVxlan);
    let device = &plan(&backend, vxlan(1), vec![]).devices[0];
    assert_eq!((device.name.as_str(), device.vni, device.port), ("flannel.7", 7, 4789));
    assert!(device.gbp && device.learning);
    assert_eq!((backend.mtu(), device.mtu), (1450, Some(1450)));
    assert_eq!(carried(text, Method::EngineVxlan).mtu(), 8950, "the engine sends fragments");
    let small = text.replace("9000", "1400");
    assert_eq!(carried(&small, Method::KernelVxlan).mtu(), 1350);
}

#[test]
fn host_gw_has_routes_by_the_peers_themselves_and_no_device() {
    let backend = backend("host-gw");
    let gateway = |key, host| lease(key, host, BackendData::host_gw());
    let far = {
        let mut far = gateway("10.5.7.0-24", 7);
        far.attrs.public_ip = Some("198.51.100.7".parse().unwrap());
        far
    };
    let others =
        vec![gateway("10.5.2.0-24&fd00:5:0:2::-64", 2), far.clone(), lease("10.5.3.0-24", 3, vxlan(3))];
    let plan = plan(&backend, BackendData::host_gw(), others);
    assert_eq!(
        text(&plan),
        [
            "route 10.5.2.0/24 via 192.0.2.2 dev eth0",
            "route fd00:5:0:2::/64 via 2001:db8::2 dev eth0",
            CLOSED[0],
            CLOSED[1],
        ]
    );
    assert_eq!(
        plan.refused[&far.subnet].to_string(),
        "its public address 198.51.100.7 is not on the link of eth0, so it cannot be a gateway: vxlan reaches it, with \
         DirectRouting for those that are"
    );
    assert_eq!(plan.refused.len(), 2, "and the node with a tunnel");
    assert!(plan.peers.is_empty() && plan.devices.is_empty());
    assert_eq!(backend.mtu(), 1500, "the underlay's own");
}

#[test]
fn host_gw_behind_a_nat_is_refused() {
    let config =
        NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#).unwrap();
    let mut nat = underlay();
    nat.v4 = Some(End { local: "192.0.2.1".parse().unwrap(), public: "203.0.113.1".parse().unwrap() });
    let error = Backend::new(&config, Method::HostGw, &nat, |_| mac(1)).unwrap_err().to_string();
    assert!(error.contains("peers would route to 203.0.113.1, and this node has 192.0.2.1"), "{error}");
}

#[test]
fn alloc_changes_nothing_on_the_host() {
    let plan = plan(&backend("alloc"), BackendData::Udp, vec![lease("10.5.2.0-24", 2, vxlan(2))]);
    assert_eq!((plan.host, plan.peers.len(), plan.refused.len()), (HostState::default(), 0, 0));
}

#[test]
fn direct_routing_leaves_the_tunnel_to_peers_that_are_not_on_the_link() {
    let direct = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    let near = lease("10.5.2.0-24", 2, vxlan(2));
    let far = lease("10.5.3.0-24", 200, vxlan(3));
    for (method, tunnelled) in [
        (Method::EngineVxlan, "route 10.5.3.0/24 dev flannel.1 scope 253"),
        (Method::KernelVxlan, "route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink"),
    ] {
        let plan = plan(&carried(direct, method), vxlan(1), vec![near.clone(), far.clone()]);
        let text = text(&plan);
        let routes: Vec<_> = text.iter().filter(|line| line.starts_with("route 10.5.")).collect();
        assert_eq!(routes, ["route 10.5.2.0/24 via 192.0.2.2 dev eth0", tunnelled]);
        assert_eq!(plan.peers[0].peers.len(), 2, "both may answer by the tunnel");
        let behind: Vec<_> = plan.host.fdb.iter().map(|entry| entry.dst.to_string()).collect();
        assert!(behind.is_empty() || behind == ["192.0.2.200"], "{behind:?}");
    }
}

#[test]
fn the_kernel_keeps_one_place_a_mac_so_a_second_one_is_refused() {
    let twin = lease("10.5.3.0-24", 3, vxlan(2));
    let others = vec![lease("10.5.2.0-24", 2, vxlan(2)), twin.clone(), lease("10.5.4.0-24", 4, vxlan(1))];
    let plan = plan(&kernel(), vxlan(1), others);
    assert_eq!(plan.peers[0].peers.len(), 1);
    assert_eq!(plan.refused[&twin.subnet].to_string(), "its VtepMAC is that of the lease of 10.5.2.0/24");
    assert!(plan.refused[&subnet("10.5.4.0-24")].to_string().contains("is this node's own"));
}

#[test]
fn packets_for_pods_that_are_not_there_are_dropped_where_that_is_wanted() {
    let own = own(vxlan(1));
    let mut plan = plan(&kernel(), vxlan(1), vec![]);
    plan.drop_strays(&own);
    let text = text(&plan);
    assert!(text.contains(&"route blackhole 10.5.1.0/24 metric 4294967295".to_owned()), "{text:?}");
    assert!(text.contains(&"route blackhole fd00:5:0:1::/64 metric 4294967295".to_owned()), "{text:?}");
    assert!(plan.host.routes.iter().all(|route| Plan::scope(&kernel()).covers_route(route)));
}

#[test]
fn leases_that_would_do_harm_are_refused_with_the_reason() {
    let good = lease("10.5.9.0-24", 9, vxlan(9));
    let hostile = [
        (lease("10.5.2.0-24", 2, BackendData::Udp), "names no backend"),
        (lease("10.6.2.0-24", 2, vxlan(2)), "outside the network 10.5.0.0/16"),
        (lease("0.0.0.0-0", 2, vxlan(2)), "outside the network"),
        (lease("10.5.0.0-16", 2, vxlan(2)), "overlaps our own subnet 10.5.1.0/24"),
        (lease("10.5.1.128-25", 2, vxlan(2)), "overlaps our own subnet"),
        (lease("10.5.2.0-24", 1, vxlan(2)), "is this node's own"),
        (
            lease("10.5.2.0-24", 2, BackendData::Vxlan { v4: None, v6: None }),
            "names no usable VtepMAC for IPv4",
        ),
    ];
    for (bad, expected) in hostile {
        let plan = plan(&backend("vxlan"), vxlan(1), vec![bad.clone(), good.clone()]);
        let why = plan.refused.get(&bad.subnet).map(ToString::to_string).unwrap_or_default();
        assert!(why.contains(expected), "{}: {why}", bad.subnet);
        assert_eq!(plan.peers[0].peers.len(), 1, "the others are not lost");
        assert!(plan.peers[0].table().is_ok());
    }
    let endpoints = [
        ("10.5.7.7", "inside the overlay"),
        ("127.0.0.1", "none that a node can have"),
        ("224.0.0.1", "none that a node can have"),
        ("255.255.255.255", "none that a node can have"),
    ];
    for (endpoint, expected) in endpoints {
        let mut bad = lease("10.5.2.0-24", 2, vxlan(2));
        bad.attrs.public_ip = Some(endpoint.parse().unwrap());
        let plan = plan(&backend("vxlan"), vxlan(1), vec![bad.clone()]);
        assert!(plan.refused[&bad.subnet].to_string().contains(expected), "{endpoint}");
    }
    let twice = [lease("10.5.2.0-24", 2, vxlan(2)), lease("10.5.2.0-24&fd00:5:0:2::-64", 3, vxlan(3))];
    let plan = plan(&backend("vxlan"), vxlan(1), twice.to_vec());
    assert!(plan.refused[&twice[1].subnet].to_string().contains("overlaps the lease of 10.5.2.0/24"));
}

#[test]
fn ten_thousand_leases_are_planned_in_one_pass() {
    let network = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#;
    let config = NetworkConfig::parse(network.as_bytes()).unwrap();
    let backend = Backend::new(&config, Method::EngineVxlan, &underlay(), |_| mac(1)).unwrap();
    let others: Vec<Lease> = (0..10_000u32)
        .map(|n| {
            let net = dataplane_core::Ipv4Net::new((0x0a01_0000 + (n << 8)).into(), 24).unwrap();
            let mut lease = Lease { subnet: Subnet::V4(net), ..lease("10.5.9.0-24", 9, vxlan(9)) };
            lease.attrs.public_ip = Some((0xc612_0000 + n).into());
            lease
        })
        .collect();
    let plan = plan(&backend, vxlan(1), others);
    // One of them has our own subnet, and that is no peer.
    assert_eq!(plan.peers[0].peers.len() + plan.refused.len(), 10_000);
    assert_eq!(plan.refused.len(), 1, "{:?}", plan.refused);
    assert!(plan.peers[0].table().is_ok());
}

#[test]
fn an_underlay_that_is_too_small_is_refused() {
    let config = NetworkConfig::parse(br#"{"Network": "10.5.0.0/16"}"#).unwrap();
    let small = Underlay { mtu: LinkMtu(600), ..underlay() };
    let error = Backend::new(&config, Method::EngineUdp, &small, |_| mac(1)).unwrap_err().to_string();
    assert_eq!(
        error,
        "an MTU of 600 (the underlay's, or the key MTU of the backend) leaves too little for the overlay: udp needs at least 604"
    );
    let six = NetworkConfig::parse(
        br#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#,
    )
    .unwrap();
    let small = Underlay { mtu: LinkMtu(1349), ..underlay() };
    assert!(Backend::new(&six, Method::KernelVxlan, &small, |_| mac(1)).is_err());
    let enough = Underlay { mtu: LinkMtu(1350), ..underlay() };
    assert_eq!(Backend::new(&six, Method::KernelVxlan, &enough, |_| mac(1)).unwrap().mtu(), 1280);
}

proptest! {
    /// Whatever the leases say, the plan stays inside its scope and the engine takes its table.
    #[test]
    fn any_leases_give_a_plan_that_stands(
        leases in proptest::collection::vec((crate::lease::tests::any_subnet(), any::<u32>(), any::<u128>(), any::<bool>()), 0..20),
        near in proptest::collection::vec((any::<u8>(), 16u8..31, any::<u8>()), 0..20),
        kind in prop_oneof![Just("udp"), Just("vxlan"), Just("kernel"), Just("host-gw")],
    ) {
        let data = || match kind {
            "udp" => BackendData::Udp,
            "host-gw" => BackendData::host_gw(),
            _ => vxlan(2),
        };
        let mut others: Vec<Lease> = leases
            .into_iter()
            .map(|(subnet, v4, v6, odd)| Lease {
                subnet,
                attrs: LeaseAttrs {
                    public_ip: Some(v4.into()),
                    public_ipv6: Some(v6.into()),
                    backend: if odd { BackendData::Other { kind: "x".into(), v4: None, v6: None } } else { data() },
                },
                expires: None,
            })
            .collect();
        others.extend(near.into_iter().map(|(third, length, host)| {
            let net = dataplane_core::Ipv4Net::new([10, 5, third, 0].into(), length).unwrap().trunc();
            Lease { subnet: Subnet::V4(net), ..lease("10.5.0.0-24", host, data()) }
        }));
        let backend = if kind == "kernel" { kernel() } else { backend(kind) };
        let plan = plan(&backend, data(), others);
        let scope = Plan::scope(&backend);
        for peers in &plan.peers {
            prop_assert!(peers.table().is_ok(), "{:?}", peers.table().err());
        }
        prop_assert!(plan.host.routes.iter().all(|route| scope.covers_route(route)));
        prop_assert!(plan.host.addresses.iter().all(|address| scope.covers_address(address)));
        prop_assert!(plan.host.fdb.iter().all(|entry| scope.covers_fdb(entry)));
        // The kernel has one place for each of these, so two of them would be a difference without end.
        let fdb: std::collections::BTreeSet<_> = plan.host.fdb.iter().map(|entry| (&entry.device, entry.mac)).collect();
        prop_assert_eq!(fdb.len(), plan.host.fdb.len());
        let routes: std::collections::BTreeSet<_> =
            plan.host.routes.iter().map(|route| (route.dest, route.metric)).collect();
        prop_assert_eq!(routes.len(), plan.host.routes.len());
    }
}
