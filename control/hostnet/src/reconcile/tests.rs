//! Promises about converging, on a host in memory.
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::fake::FakeHost;
use crate::state::{Address, FdbEntry, LinkState, Neighbour, Route, RouteKind, RouteProtocol, RouteScope};

const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

const SETTING: &str = "net/ipv6/conf/flannel.1/accept_ra";

fn scope() -> Scope {
    Scope {
        devices: DEVICES.map(str::to_owned).into(),
        sysctls: [SETTING.to_owned()].into(),
        ..Scope::default()
    }
}

/// Waits for a future that never has to wait: everything in it happens in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn neighbour(n: u8) -> Neighbour {
    Neighbour {
        device: "flannel.1".to_owned(),
        ip: Ipv4Addr::new(10, 5, n, 0).into(),
        mac: [2, 0, 0, 0, 0, n],
    }
}

fn three_neighbours() -> HostState {
    HostState { neighbours: (1..=3).map(neighbour).collect(), ..HostState::default() }
}

#[test]
fn a_host_as_it_should_be_is_not_touched() {
    let host = FakeHost::in_state(&three_neighbours());
    assert_eq!(now(converge(&host, &scope(), &three_neighbours())), Outcome::default());
    assert_eq!(host.changes(), []);
}

#[test]
fn a_step_makes_the_difference_and_looks_at_nothing() {
    let host = FakeHost::in_state(&three_neighbours());
    let mut fewer = three_neighbours();
    fewer.neighbours.remove(&neighbour(2));
    // The first call would be a look at the host.
    host.fail_call(2, Errno::EIO);
    let outcome = now(step(&host, &three_neighbours(), &fewer));
    assert_eq!(outcome.applied, [Change::DeleteNeighbour(neighbour(2))]);
    assert!(outcome.is_settled());
    assert_eq!(host.state(), fewer);
}

#[test]
fn a_setting_that_the_host_does_not_have_is_no_difference() {
    let host = FakeHost::in_state(&three_neighbours());
    let mut want = three_neighbours();
    want.sysctls.insert(SETTING.to_owned(), "0".to_owned());
    assert_eq!(now(converge(&host, &scope(), &want)), Outcome::default());
}

#[test]
fn one_refusal_delays_nobody_and_is_tried_again_later() {
    let host = FakeHost::with_devices(DEVICES);
    // The second change: the read is the first call.
    host.fail_call(3, Errno::ENOBUFS);
    let outcome = now(converge(&host, &scope(), &three_neighbours()));
    assert_eq!(outcome.applied, [1, 3].map(|n| Change::ReplaceNeighbour(neighbour(n))));
    let refused = Change::ReplaceNeighbour(neighbour(2));
    let error = HostError::new(refused.to_string(), Errno::ENOBUFS);
    assert_eq!(outcome.failed, [(refused.clone(), error)]);
    assert!(!outcome.is_settled());
    assert!(
        outcome.to_string().starts_with("2 changes made, 1 refused: replace neighbour 10.5.2.0"),
        "{outcome}"
    );

    let outcome = now(converge(&host, &scope(), &three_neighbours()));
    assert_eq!((outcome.applied.as_slice(), outcome.is_settled()), (&[refused][..], true));
}

#[test]
fn a_host_that_cannot_be_read_is_not_changed() {
    let host = FakeHost::with_devices(DEVICES);
    host.fail_call(1, Errno::EINTR);
    let outcome = now(converge(&host, &scope(), &three_neighbours()));
    assert_eq!(outcome.unread.map(|error| error.errno), Some(Errno::EINTR));
    assert_eq!(host.changes(), []);
}

#[test]
fn a_missing_device_fails_by_name_and_the_rest_is_done() {
    let host = FakeHost::with_devices(["flannel.1"]);
    let mut want = three_neighbours();
    let absent = Neighbour { device: "flannel-v6.1".to_owned(), ip: Ipv6Addr::LOCALHOST.into(), mac: [2; 6] };
    want.neighbours.insert(absent.clone());
    let outcome = now(converge(&host, &scope(), &want));
    assert_eq!(outcome.failed.len(), 1);
    assert_eq!(outcome.failed[0].1.errno, Errno::ENODEV);
    assert_eq!(outcome.applied.len(), 3);
    host.add_device("flannel-v6.1");
    assert_eq!(now(converge(&host, &scope(), &want)).applied, [Change::ReplaceNeighbour(absent)]);
    host.remove_device("flannel.1");
    host.add_device("flannel.1");
    assert_eq!(
        now(converge(&host, &scope(), &want)).applied.len(),
        3,
        "a device that came back empty is filled"
    );
}

#[test]
fn what_is_not_ours_stays() {
    let foreign = HostState {
        links: ["eth0", "flannel.1"].map(|name| LinkState::up(name, 1500)).into(),
        neighbours: BTreeSet::from([Neighbour { device: "eth0".to_owned(), ..neighbour(9) }]),
        routes: BTreeSet::from([Route::new("10.5.9.0/24".parse().unwrap(), "eth0")]),
        ..HostState::default()
    };
    let host = FakeHost::in_state(&foreign);
    assert!(now(converge(&host, &scope(), &HostState::default())).is_settled());
    assert_eq!(host.state(), foreign);
}

#[test]
fn a_fight_is_reported_and_ends() {
    let host = FakeHost::with_devices(DEVICES);
    let outside = Neighbour { device: "flannel.1".to_owned(), ..neighbour(1) };
    let narrow = Scope { devices: BTreeSet::new(), ..Scope::default() };
    let want = HostState { neighbours: BTreeSet::from([outside.clone()]), ..HostState::default() };
    let outcome = now(converge(&host, &narrow, &want));
    assert_eq!(outcome.undone, [Change::ReplaceNeighbour(outside)]);
    assert!(!outcome.is_settled());
}

prop_compose! {
    fn any_device()(n in 0..DEVICES.len()) -> String { DEVICES[n].to_owned() }
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..4, 0u8..4).prop_map(|(c, d)| Ipv4Addr::new(10, 5, c, d).into()),
        (0u16..4).prop_map(|n| Ipv6Addr::new(0xfd00, 0, 0, n, 0, 0, 0, 1).into()),
    ]
}

fn any_net() -> impl Strategy<Value = IpNet> {
    (any_ip(), 0usize..3).prop_map(|(ip, n)| {
        let lengths = if ip.is_ipv4() { [16, 24, 32] } else { [48, 64, 128] };
        IpNet::new(ip, lengths[n]).unwrap()
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    let unicast = (
        any_net(),
        any_device(),
        prop::option::of(any_ip()),
        any::<bool>(),
        0u32..2,
        prop::option::of(any_ip()),
    )
        .prop_map(|(dest, device, via, onlink, metric, source)| {
            Route { via, onlink, metric, source, ..Route::new(dest, device) }.normalized()
        });
    let refusing = (any_net(), 0u32..2, any::<bool>()).prop_map(|(dest, metric, quiet)| {
        let kind = if quiet { RouteKind::Blackhole } else { RouteKind::Unreachable };
        Route { metric, protocol: RouteProtocol::FLANNEL_RS, ..Route::last_resort(kind, dest) }.normalized()
    });
    prop_oneof![4 => unicast, 1 => refusing]
}

fn any_state() -> impl Strategy<Value = HostState> {
    let mac = || (0u8..4).prop_map(|n| [2, 0, 0, 0, 0, n]);
    let address = (any_device(), any_net()).prop_map(|(device, net)| Address { device, net });
    let neighbour =
        (any_device(), any_ip(), mac()).prop_map(|(device, ip, mac)| Neighbour { device, ip, mac });
    let entry = (any_device(), mac(), any_ip()).prop_map(|(device, mac, dst)| FdbEntry { device, mac, dst });
    let links = prop::collection::vec((1400u32..1402, any::<bool>()), DEVICES.len());
    let set = 0..8usize;
    (
        links,
        prop::collection::btree_set(address, set.clone()),
        prop::collection::btree_set(any_route(), set.clone()),
        prop::collection::btree_set(neighbour, set.clone()),
        prop::collection::btree_set(entry, set),
        any::<bool>(),
    )
        .prop_map(|(links, addresses, routes, neighbours, fdb, setting)| HostState {
            links: DEVICES
                .iter()
                .zip(links)
                .map(|(name, (mtu, up))| LinkState { up, ..LinkState::up(*name, mtu) })
                .collect(),
            addresses,
            routes,
            neighbours,
            fdb,
            sysctls: [(SETTING.to_owned(), u8::from(setting).to_string())].into(),
        })
}

/// A state that a kernel can be in: one MAC for each neighbour, one destination for each MAC. Routes of one destination
/// and metric may be several, if gateway or device differ.
fn possible(mut state: HostState) -> HostState {
    let mut seen = BTreeSet::new();
    state.routes.retain(|route| seen.insert((route.dest, route.metric, route.via, route.device.clone())));
    let mut seen = BTreeSet::new();
    state.neighbours.retain(|entry| seen.insert((entry.device.clone(), entry.ip)));
    let mut seen = BTreeSet::new();
    state.fdb.retain(|entry| entry.mac[5] != 0 && seen.insert((entry.device.clone(), entry.mac)));
    state
}

/// A state that can be wanted: one route for each destination and metric, from addresses that are there.
fn wanted(state: HostState) -> HostState {
    let mut state = possible(state);
    let local: BTreeSet<IpAddr> = state.addresses.iter().map(|address| address.net.addr()).collect();
    state.routes.retain(|route| route.source.is_none_or(|source| local.contains(&source)));
    let mut seen = BTreeSet::new();
    state.routes.retain(|route| seen.insert((route.dest, route.metric)));
    state
}

/// In any spelling.
fn written_route() -> impl Strategy<Value = Route> {
    let kind = prop_oneof![Just(RouteKind::Unicast), Just(RouteKind::Unreachable)];
    let metric = prop_oneof![Just(0), Just(1), Just(1024)];
    let scope = prop_oneof![Just(RouteScope::GLOBAL), Just(RouteScope::LINK)];
    let device = prop_oneof![any_device().boxed(), Just(String::new()).boxed()];
    (kind, any_net(), prop::option::of(any_ip()), device, any::<bool>(), metric, scope).prop_map(
        |(kind, dest, via, device, onlink, metric, scope)| Route {
            kind,
            dest,
            via,
            onlink,
            metric,
            scope,
            ..Route::new(dest, device)
        },
    )
}

proptest! {
    #[test]
    fn a_route_is_in_its_one_spelling_where_that_changes_nothing(route in written_route()) {
        prop_assert_eq!(route.is_normalized(), route == route.clone().normalized());
        prop_assert!(route.normalized().is_normalized());
    }

    #[test]
    fn any_state_becomes_any_wanted_state(have in any_state().prop_map(possible), want in any_state().prop_map(wanted)) {
        let host = FakeHost::in_state(&have);
        let outcome = now(converge(&host, &scope(), &want));
        prop_assert!(outcome.is_settled(), "{:?}", outcome);
        prop_assert_eq!(&host.state(), &want);
        prop_assert_eq!(now(converge(&host, &scope(), &want)), Outcome::default());
    }

    #[test]
    fn a_refused_change_leaves_only_itself_undone(
        have in any_state().prop_map(possible),
        want in any_state().prop_map(wanted),
        call in 2usize..12,
    ) {
        let host = FakeHost::in_state(&have);
        host.fail_call(call, Errno::ENOBUFS);
        let first = now(converge(&host, &scope(), &want));
        prop_assert!(first.failed.len() <= 1);
        // If the first had less than that to do, the refusal meets a later one: each makes a call at least.
        for _ in 0..call {
            now(converge(&host, &scope(), &want));
        }
        let last = now(converge(&host, &scope(), &want));
        prop_assert!(last.is_settled(), "{:?}", last);
        prop_assert_eq!(&host.state(), &want);
    }

    #[test]
    fn deletions_come_last_and_routes_lean_on_what_is_there(have in any_state().prop_map(possible), want in any_state().prop_map(wanted)) {
        let rank = |change: &Change| match change {
            Change::SetSysctl { .. } | Change::SetLink(_) => 0,
            Change::AddAddress(_) => 1,
            Change::ReplaceNeighbour(_) => 2,
            Change::ReplaceFdb(_) => 3,
            Change::ReplaceRoute(_) => 4,
            Change::DeleteRoute(_) => 5,
            Change::DeleteFdb(_) => 6,
            Change::DeleteNeighbour(_) => 7,
            Change::DeleteAddress(_) => 8,
        };
        let mut changes = have.changes_to(&want);
        // A route that is there is set again only behind the deletion of one that the kernel cannot tell from it.
        changes.retain(|change| !matches!(change, Change::ReplaceRoute(route) if have.routes.contains(route)));
        // An address of a subnet that is wanted may have to go first: its deletion would take the wanted one along.
        let ranks = changes.iter().map(rank).filter(|rank| *rank != 8);
        prop_assert!(ranks.is_sorted(), "{:?}", changes);
        let neighbour_wanted = |address: &Address| want.addresses.iter().any(|other| other.net.trunc() == address.net.trunc());
        let alone = changes.iter().filter(|change| !matches!(change, Change::DeleteAddress(gone) if neighbour_wanted(gone)));
        prop_assert!(alone.map(rank).is_sorted(), "{:?}", changes);
    }
}
