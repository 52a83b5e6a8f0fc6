//! Promises about the difference of two states.
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;
use crate::state::RouteProtocol;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn overlay_route(dest: &str, via: &str) -> Route {
    Route { via: Some(ip(via)), onlink: true, ..Route::new(net(dest), "flannel.1") }
}

/// All that the kernel needs to know of one VXLAN peer.
fn with_peer(mut state: HostState, octet: u8) -> HostState {
    let device = "flannel.1".to_owned();
    let mac = [0x0a, 0, 0, 0, 0, octet];
    let base = ip(&format!("10.5.{octet}.0"));
    state.neighbours.insert(Neighbour { device: device.clone(), ip: base, mac });
    state.fdb.insert(FdbEntry { device, mac, dst: ip(&format!("192.0.2.{octet}")) });
    state.routes.insert(overlay_route(&format!("10.5.{octet}.0/24"), &format!("10.5.{octet}.0")));
    state
}

fn device() -> HostState {
    let link = LinkState::up("flannel.1", 1450);
    let address = Address { device: "flannel.1".to_owned(), net: net("10.5.1.0/32") };
    HostState { links: BTreeSet::from([link]), addresses: BTreeSet::from([address]), ..HostState::default() }
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_first_peer_is_set_up_in_the_order_that_lets_no_packet_astray() {
    let down = LinkState { up: false, ..LinkState::up("flannel.1", 1500) };
    let fresh = HostState { links: BTreeSet::from([down]), ..HostState::default() };
    assert_eq!(
        lines(&fresh.changes_to(&with_peer(device(), 2))),
        [
            "set flannel.1 mtu 1450 up",
            "add address 10.5.1.0/32 dev flannel.1",
            "replace neighbour 10.5.2.0 lladdr 0a:00:00:00:00:02 dev flannel.1",
            "replace fdb 0a:00:00:00:00:02 dst 192.0.2.2 dev flannel.1",
            "replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
        ]
    );
}

#[test]
fn a_peer_that_leaves_goes_in_reverse_after_the_one_that_comes() {
    assert_eq!(
        lines(&with_peer(device(), 2).changes_to(&with_peer(device(), 3))),
        [
            "replace neighbour 10.5.3.0 lladdr 0a:00:00:00:00:03 dev flannel.1",
            "replace fdb 0a:00:00:00:00:03 dst 192.0.2.3 dev flannel.1",
            "replace route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
            "delete route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            "delete fdb 0a:00:00:00:00:02 dst 192.0.2.2 dev flannel.1",
            "delete neighbour 10.5.2.0 lladdr 0a:00:00:00:00:02 dev flannel.1",
        ]
    );
}

#[test]
fn a_peer_that_moves_is_replaced_in_place() {
    let have = with_peer(device(), 2);
    let mut want = have.clone();
    want.fdb = have.fdb.iter().map(|entry| FdbEntry { dst: ip("192.0.2.9"), ..entry.clone() }).collect();
    want.routes =
        have.routes.iter().map(|route| Route { via: Some(ip("10.5.2.9")), ..route.clone() }).collect();
    assert_eq!(
        lines(&have.changes_to(&want)),
        [
            "replace fdb 0a:00:00:00:00:02 dst 192.0.2.9 dev flannel.1",
            "replace route 10.5.2.0/24 via 10.5.2.9 dev flannel.1 onlink",
        ]
    );
}

#[test]
fn a_route_that_loses_a_flag_is_not_deleted_after_its_replacement() {
    let wanted = overlay_route("10.5.2.0/24", "10.5.2.0");
    let bare = Route { onlink: false, ..wanted.clone() };
    let twin = Route { via: Some(ip("192.0.2.1")), ..wanted.clone() };
    let have = HostState { routes: BTreeSet::from([bare, twin]), ..HostState::default() };
    let want = HostState { routes: BTreeSet::from([wanted]), ..HostState::default() };
    assert_eq!(
        lines(&have.changes_to(&want)),
        [
            "replace route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            "delete route 10.5.2.0/24 via 192.0.2.1 dev flannel.1 onlink",
        ]
    );
}

#[test]
fn two_spellings_of_one_route_are_no_difference() {
    let plain = Route::new(net("fd00:1::/64"), "flannel-v6.1");
    let spelled = Route { dest: net("fd00:1::9/64"), metric: 1024, ..plain.clone() };
    let state = |route| HostState { routes: BTreeSet::from([route]), ..HostState::default() };
    assert_eq!(state(plain.clone()).changes_to(&state(spelled.clone())), []);
    assert_eq!(state(spelled).changes_to(&state(plain.clone())), []);
    let other = Route { protocol: RouteProtocol::STATIC, ..plain.clone() };
    assert_eq!(state(plain).changes_to(&state(other)).len(), 1);
}

#[test]
fn a_second_address_of_a_subnet_survives_the_first() {
    let on = |nets: &[&str]| HostState {
        addresses: nets
            .iter()
            .map(|text| Address { device: "flannel0".to_owned(), net: net(text) })
            .collect(),
        ..HostState::default()
    };
    assert_eq!(
        lines(&on(&["10.5.1.0/16", "10.5.3.0/16"]).changes_to(&on(&["10.5.2.0/16", "10.5.3.0/16"]))),
        [
            "delete address 10.5.1.0/16 dev flannel0",
            "add address 10.5.2.0/16 dev flannel0",
            "add address 10.5.3.0/16 dev flannel0",
        ]
    );
    assert_eq!(
        lines(&on(&["10.5.1.0/32"]).changes_to(&on(&["10.5.2.0/32"]))),
        ["add address 10.5.2.0/32 dev flannel0", "delete address 10.5.1.0/32 dev flannel0"]
    );
}

#[test]
fn a_device_that_nobody_speaks_of_is_left_alone() {
    assert_eq!(device().changes_to(&HostState { links: BTreeSet::new(), ..device() }), []);
}

#[test]
fn five_thousand_peers_are_compared_in_a_moment() {
    let peers = |shift: u32| {
        let mut state = HostState::default();
        for n in 0..5000u32 {
            let base = IpAddr::V4((0x0a00_0000 + (n << 8)).into());
            let dest = IpNet::new(base, 24).unwrap();
            let via = Some(IpAddr::V4((0x0a00_0000 + (n << 8) + shift).into()));
            state.routes.insert(Route { via, ..Route::new(dest, "flannel.1") });
        }
        state
    };
    let (have, want) = (peers(0), peers(1));
    let begin = std::time::Instant::now();
    assert_eq!(have.changes_to(&want).len(), 5000);
    assert!(begin.elapsed().as_secs() < 5, "took {:?}", begin.elapsed());
}
