//! Promises about making the kernel's state what it should be.
use hostnet::Errno;
use hostnet::change::Change;
use hostnet::kernel::{Kernel, Vxlan};
use hostnet::reconcile::converge;
use hostnet::state::{
    Address, FdbEntry, HostState, LinkState, Neighbour, Route, RouteProtocol, RouteScope, Scope,
};

use super::{in_private_namespace, ip, made_vxlan, net, up};

/// A node's two VXLAN devices with so many peers each, as flannel would set them.
fn with_peers(peers: u8) -> HostState {
    let mut state = HostState::default();
    for (device, base, underlay) in
        [("flannel.1", "10.5.", "192.0.2."), ("flannel-v6.1", "fd00:5:", "2001:db8::")]
    {
        let six = device.contains("v6");
        let subnet = |n: u8| ip(&if six { format!("{base}{n}::") } else { format!("{base}{n}.0") });
        let host = if six { 128 } else { 32 };
        state.links.insert(LinkState::up(device, 1400));
        let own = ipnet::IpNet::new(subnet(1), host).unwrap();
        state.addresses.insert(Address { device: device.to_owned(), net: own });
        for n in 2..2 + peers {
            let device = device.to_owned();
            let mac = [0x0a, 0, 0, 0, 0, n];
            let dest = ipnet::IpNet::new(subnet(n), if six { 64 } else { 24 }).unwrap();
            state.fdb.insert(FdbEntry { device: device.clone(), mac, dst: ip(&format!("{underlay}{n}")) });
            state.neighbours.insert(Neighbour { device: device.clone(), ip: subnet(n), mac });
            state.routes.insert(Route { via: Some(subnet(n)), onlink: true, ..Route::new(dest, device) });
        }
    }
    state
}

fn scope() -> Scope {
    let networks = ["10.5.0.0/16", "fd00:5::/32"].map(net);
    let mut scope = Scope::device("flannel.1", networks);
    scope.devices.insert("flannel-v6.1".to_owned());
    scope
}

/// What is there, without what these states do not say about devices.
async fn found(kernel: &Kernel, scope: &Scope) -> HostState {
    let mut state = kernel.read(scope).await.unwrap();
    state.links = state.links.into_iter().map(|link| LinkState { mac: None, alias: None, ..link }).collect();
    state
}

/// False, aloud, where the kernel has no VXLAN.
async fn made_devices(kernel: &Kernel) -> bool {
    for (name, local) in [("flannel.1", "192.0.2.1"), ("flannel-v6.1", "2001:db8::1")] {
        let vxlan =
            Vxlan { local: Some(ip(local)), mac: Some([0x0a, 0, 0, 0, 0, 1]), ..Vxlan::new(name, 1, 8472) };
        if !made_vxlan(kernel, &vxlan).await {
            return false;
        }
    }
    true
}

#[test]
fn a_node_is_set_up_from_nothing_and_then_left_alone() {
    in_private_namespace(async |_ns, kernel| {
        if !made_devices(&kernel).await {
            return;
        }
        let want = with_peers(5);
        let outcome = converge(&kernel, &scope(), &want).await;
        assert!(outcome.is_settled(), "{outcome}");
        assert_eq!(found(&kernel, &scope()).await, want);
        let again = converge(&kernel, &scope(), &want).await;
        assert_eq!(again.applied, [], "nothing to do the second time");
    });
}

#[test]
fn what_somebody_deletes_or_changes_is_put_back() {
    in_private_namespace(async |_ns, kernel| {
        if !made_devices(&kernel).await {
            return;
        }
        let want = with_peers(3);
        converge(&kernel, &scope(), &want).await;
        kernel.delete_route(want.routes.first().unwrap()).await.unwrap();
        kernel.delete_neighbour(want.neighbours.first().unwrap()).await.unwrap();
        let stray = FdbEntry { dst: ip("192.0.2.99"), ..want.fdb.last().unwrap().clone() };
        kernel.replace_fdb(&stray).await.unwrap();
        for device in ["flannel.1", "flannel-v6.1"] {
            kernel
                .apply(&Change::SetLink(LinkState { up: false, ..LinkState::up(device, 1300) }))
                .await
                .unwrap();
        }
        let outcome = converge(&kernel, &scope(), &want).await;
        assert!(outcome.is_settled(), "{outcome}");
        assert_eq!(found(&kernel, &scope()).await, want);
    });
}

#[test]
fn peers_that_leave_are_taken_out_and_a_device_that_was_made_anew_is_filled() {
    in_private_namespace(async |_ns, kernel| {
        if !made_devices(&kernel).await {
            return;
        }
        converge(&kernel, &scope(), &with_peers(9)).await;
        let fewer = with_peers(2);
        assert!(converge(&kernel, &scope(), &fewer).await.is_settled());
        assert_eq!(found(&kernel, &scope()).await, fewer);

        kernel.delete_link("flannel.1").await.unwrap();
        let outcome = converge(&kernel, &scope(), &fewer).await;
        assert!(outcome.failed.iter().all(|(_change, error)| error.errno == Errno::ENODEV));
        assert_eq!(outcome.failed.len(), 2 + 3 * 2, "link, address and two peers of the device that is gone");

        let vxlan = Vxlan { local: Some(ip("192.0.2.1")), ..Vxlan::new("flannel.1", 1, 8472) };
        kernel.add_vxlan(&vxlan).await.unwrap();
        assert!(converge(&kernel, &scope(), &fewer).await.is_settled());
        assert_eq!(found(&kernel, &scope()).await, fewer);
    });
}

#[test]
fn a_change_may_be_made_twice() {
    in_private_namespace(async |_ns, kernel| {
        if !made_devices(&kernel).await {
            return;
        }
        let nothing = found(&kernel, &scope()).await;
        let want = with_peers(2);
        for (from, to) in [(&nothing, &want), (&want, &nothing)] {
            for change in from.changes_to(to) {
                kernel.apply(&change).await.unwrap();
                kernel.apply(&change).await.unwrap();
            }
            assert_eq!(&found(&kernel, &scope()).await, to);
        }
    });
}

#[test]
fn a_lease_that_moves_within_one_subnet_keeps_an_address() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel0").await.unwrap();
        let scope = Scope::device("flannel0", [net("10.5.0.0/16")]);
        let on = |address: &str| HostState {
            links: [LinkState::up("flannel0", 1472)].into(),
            addresses: [Address { device: "flannel0".to_owned(), net: net(address) }].into(),
            ..HostState::default()
        };
        for address in ["10.5.1.0/16", "10.5.2.0/16", "10.5.3.0/32", "10.5.3.0/16"] {
            let outcome = converge(&kernel, &scope, &on(address)).await;
            assert!(outcome.is_settled(), "{address}: {outcome}");
            assert_eq!(found(&kernel, &scope).await, on(address));
        }
    });
}

#[test]
fn what_others_put_there_stays() {
    in_private_namespace(async |_ns, kernel| {
        for device in ["flannel0", "cni0"] {
            kernel.add_bridge(device).await.unwrap();
            up(&kernel, device).await;
        }
        kernel.add_address("flannel0", net("192.168.7.1/24")).await.unwrap();
        kernel.add_address("cni0", net("10.5.1.1/24")).await.unwrap();
        // As the CNI plugin ptp makes it for a pod.
        let pod = Route { scope: RouteScope::HOST, ..Route::new(net("10.5.1.9/32"), "cni0") };
        kernel.replace_route(&pod).await.unwrap();
        let mut scope = Scope::device("flannel0", [net("10.5.0.0/16")]);
        scope.gateway_routes = true;
        let gateway = Route { via: Some(ip("192.168.7.9")), ..Route::new(net("10.5.2.0/24"), "flannel0") };
        kernel.replace_route(&gateway).await.unwrap();

        let outcome = converge(&kernel, &scope, &HostState::default()).await;
        assert_eq!(outcome.applied, [Change::DeleteRoute(gateway)]);
        let kept: Vec<_> = kernel.addresses().await.unwrap().into_iter().map(|found| found.net).collect();
        assert!(kept.contains(&net("192.168.7.1/24")) && kept.contains(&net("10.5.1.1/24")));
        assert!(kernel.routes().await.unwrap().contains(&pod));
    });
}

#[test]
fn a_device_gets_the_hardware_address_the_mark_and_the_settings_that_are_wanted() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel0").await.unwrap();
        let (accept_ra, nowhere) = ("net/ipv6/conf/flannel0/accept_ra", "net/ipv6/conf/nothing.1/accept_ra");
        let mut scope = Scope::device("flannel0", [net("10.5.0.0/16")]);
        scope.sysctls = [accept_ra, nowhere].map(str::to_owned).into();
        let link = LinkState {
            mac: Some([2, 0, 0, 0, 0, 7]),
            alias: Some("flannel-rs".to_owned()),
            ..LinkState::up("flannel0", 1400)
        };
        let sysctls = [accept_ra, nowhere].map(|name| (name.to_owned(), "0".to_owned()));
        let want = HostState { links: [link].into(), sysctls: sysctls.into(), ..HostState::default() };
        let outcome = converge(&kernel, &scope, &want).await;
        assert!(outcome.is_settled(), "{outcome:?}");
        let have = kernel.read(&scope).await.unwrap();
        assert_eq!(have.links, want.links);
        assert_eq!(have.sysctls.get(accept_ra).map(String::as_str), Some("0"));
        assert_eq!(have.sysctls.get(nowhere), None, "what is not there is no difference");
        assert_eq!(converge(&kernel, &scope, &want).await.applied, []);
    });
}

#[test]
fn thousands_of_changes_are_made_in_order_and_answered_one_by_one() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel0").await.unwrap();
        up(&kernel, "flannel0").await;
        let route = |n: u32| {
            let dest = ipnet::Ipv4Net::new((0x0a05_0000 + (n << 2)).into(), 30).unwrap();
            Route::new(dest.into(), if n == 1000 { "nothing.1" } else { "flannel0" })
        };
        let add = (0..3000).map(|n| Change::ReplaceRoute(route(n)));
        let delete = (0..3000).map(|n| Change::DeleteRoute(route(n)));
        let results = kernel.apply_all(&add.clone().chain(delete).collect::<Vec<_>>()).await;
        assert_eq!(results.len(), 6000);
        let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).collect();
        assert!(
            matches!(failed.as_slice(), [(1000, Err(error))] if error.errno == Errno::ENODEV),
            "{failed:?}"
        );
        let ours = async || {
            let routes = kernel.routes().await.unwrap();
            routes.iter().filter(|route| route.protocol == RouteProtocol::BOOT).count()
        };
        assert_eq!(ours().await, 0, "each was deleted after it was made");
        let results = kernel.apply_all(&add.collect::<Vec<_>>()).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2999);
        assert_eq!(ours().await, 2999);
    });
}
