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
        v4: Some(End { local: "192.0.2.1".parse().unwrap(), public: "192.0.2.1".parse().unwrap() }),
        v6: Some(End { local: "2001:db8::1".parse().unwrap(), public: "2001:db8::1".parse().unwrap() }),
    }
}

fn backend(kind: &str) -> Backend {
    let config = NetworkConfig::parse(NETWORK.replace("TYPE", kind).as_bytes()).unwrap();
    Backend::new(&config, &underlay(), |family| mac(if family == Family::V4 { 1 } else { 101 })).unwrap()
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
    let routes = host.routes.iter().map(|route| format!("route {route}"));
    assert!(host.neighbours.is_empty() && host.fdb.is_empty(), "a TUN device has neither");
    links.chain(addresses).chain(routes).collect()
}

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
            "link flannel-v6.1 mtu 1430 up",
            "link flannel.1 mtu 1450 up",
            "addr fd00:5:0:1::/128 dev flannel-v6.1",
            "addr 10.5.1.0/32 dev flannel.1",
            "route 10.5.2.0/24 dev flannel.1 scope 253",
            "route 10.5.3.0/24 dev flannel.1 scope 253",
            "route fd00:5:0:2::/64 dev flannel-v6.1",
        ]
    );
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
    assert_eq!(backend.mtu().unwrap().get(), 1430, "what fits through both");
}

#[test]
fn udp_has_one_route_for_the_whole_network() {
    let backend = backend("udp");
    let plan = plan(&backend, BackendData::Udp, vec![lease("10.5.2.0-24", 2, BackendData::Udp)]);
    assert_eq!(
        text(&plan),
        [
            "link flannel-v6.0 mtu 1452 up",
            "link flannel0 mtu 1472 up",
            "addr fd00:5:0:1::/128 dev flannel-v6.0",
            "addr 10.5.1.0/32 dev flannel0",
            "route 10.5.0.0/16 dev flannel0",
            "route fd00:5::/48 dev flannel-v6.0",
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
    assert_eq!(backend("udp").attrs().backend, BackendData::Udp);
}

#[test]
fn leases_that_would_do_harm_are_refused_with_the_reason() {
    let good = lease("10.5.9.0-24", 9, vxlan(9));
    let hostile = [
        (lease("10.5.2.0-24", 2, BackendData::Udp), "that node runs backend \"\""),
        (lease("10.6.2.0-24", 2, vxlan(2)), "outside the network 10.5.0.0/16"),
        (lease("0.0.0.0-0", 2, vxlan(2)), "outside the network"),
        (lease("10.5.0.0-16", 2, vxlan(2)), "overlaps our own subnet 10.5.1.0/24"),
        (lease("10.5.1.128-25", 2, vxlan(2)), "overlaps our own subnet"),
        (lease("10.5.2.0-24", 1, vxlan(2)), "is this node's own"),
        (lease("10.5.2.0-24", 2, BackendData::Vxlan { v4: None, v6: None }), "names no VtepMAC for IPv4"),
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
    let backend = Backend::new(&config, &underlay(), |_| mac(1)).unwrap();
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
    let error = Backend::new(&config, &small, |_| mac(1)).unwrap_err().to_string();
    assert_eq!(error, "MTU 600 of the underlay leaves too little for the overlay: udp needs at least 604");
    let six = NetworkConfig::parse(
        br#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#,
    )
    .unwrap();
    let small = Underlay { mtu: LinkMtu(1349), ..underlay() };
    assert!(Backend::new(&six, &small, |_| mac(1)).is_err());
    let enough = Underlay { mtu: LinkMtu(1350), ..underlay() };
    assert_eq!(Backend::new(&six, &enough, |_| mac(1)).unwrap().mtu().unwrap().get(), 1280);
}

proptest! {
    /// Whatever the leases say, the plan stays inside its scope and the engine takes its table.
    #[test]
    fn any_leases_give_a_plan_that_stands(
        leases in proptest::collection::vec((crate::lease::tests::any_subnet(), any::<u32>(), any::<u128>(), any::<bool>()), 0..20),
        near in proptest::collection::vec((any::<u8>(), 16u8..31, any::<u8>()), 0..20),
        kind in prop_oneof![Just("udp"), Just("vxlan")],
    ) {
        let data = || if kind == "udp" { BackendData::Udp } else { vxlan(1) };
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
        let backend = backend(kind);
        let plan = plan(&backend, data(), others);
        let scope = Plan::scope(&backend);
        for peers in &plan.peers {
            prop_assert!(peers.table().is_ok(), "{:?}", peers.table().err());
        }
        prop_assert!(plan.host.routes.iter().all(|route| scope.covers_route(route)));
        prop_assert!(plan.host.addresses.iter().all(|address| scope.covers_address(address)));
    }
}
