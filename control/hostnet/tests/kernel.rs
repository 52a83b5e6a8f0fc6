//! Promises about the kernel's network state, each kept in a private namespace that dies with its thread.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what went wrong by failing, and why it was skipped aloud"
)]
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use hostnet::Errno;
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::netns::NetNs;
use hostnet::state::{FdbEntry, Neighbour, Route, RouteProtocol, RouteScope};
use hostnet::sysctl;
use ipnet::IpNet;

#[test]
fn a_new_namespace_holds_a_loopback_and_nothing_else() {
    in_private_namespace(async |_ns, kernel| {
        let links = kernel.links().await.unwrap();
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo"]);
        assert!(links[0].loopback && !links[0].up);
        assert_eq!(kernel.addresses().await.unwrap(), []);
        assert_eq!(kernel.routes().await.unwrap(), []);
        assert_eq!(kernel.link("nothing").await.unwrap(), None);
    });
}

#[test]
fn a_thread_in_a_namespace_has_its_name_and_its_children_are_there_too() {
    let Some(ns) = private_namespace() else { return };
    let file_of = |path: &str| std::fs::read_link(path).unwrap();
    let outside = file_of("/proc/thread-self/ns/net");
    let (name, inside, child) = ns
        .run("pod-a", || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            let inside = file_of("/proc/thread-self/ns/net");
            let child = Command::new("readlink").arg("/proc/self/ns/net").output().unwrap().stdout;
            (name, inside, String::from_utf8(child).unwrap())
        })
        .unwrap();
    assert_eq!(name, "pod-a\n");
    assert_ne!(inside, outside);
    assert_eq!(child.trim_end(), inside.to_str().unwrap());
    let spawned = ns.spawn("pod-b", move || file_of("/proc/thread-self/ns/net")).unwrap();
    assert_eq!(spawned.join().unwrap(), inside);
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), outside);
}

#[test]
fn a_panic_inside_a_namespace_reaches_the_caller() {
    let Some(ns) = private_namespace() else { return };
    let caught = std::panic::catch_unwind(|| ns.run("panics", || panic!("expected by the test")));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"expected by the test"));
}

#[test]
fn a_veth_pair_joins_two_namespaces_even_under_one_name() {
    in_private_namespace(async |_ns, kernel| {
        let far = NetNs::new().unwrap();
        kernel.add_veth("eth0", "eth0", &far).await.unwrap();
        up(&kernel, "eth0").await;
        let there = in_namespace(&far, async |kernel| {
            up(&kernel, "eth0").await;
            kernel.link("eth0").await.unwrap().unwrap()
        });
        let here = kernel.link("eth0").await.unwrap().unwrap();
        assert_eq!(here.kind.as_deref(), Some("veth"));
        assert_ne!(here.mac, there.mac);
        assert!(here.up && here.carrier && there.carrier);

        let taken = kernel.add_veth("eth0", "other", &far).await.unwrap_err();
        assert_eq!(taken.errno, Errno::EEXIST);
        assert!(taken.to_string().starts_with("add veth eth0 with peer other: EEXIST"), "{taken}");

        kernel.delete_link("eth0").await.unwrap();
        assert!(kernel.link("eth0").await.unwrap().is_none());
        assert_eq!(kernel.delete_link("eth0").await.unwrap_err().errno, Errno::ENODEV);
    });
}

#[test]
fn link_settings_are_all_applied() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        let far = NetNs::new().unwrap();
        kernel.add_veth("port", "eth0", &far).await.unwrap();
        let settings = LinkSettings {
            up: Some(true),
            mtu: Some(1400),
            mac: Some([2, 0, 0, 0, 0, 7]),
            master: Some("br0".to_owned()),
            tx_queue_len: Some(77),
            addr_gen_none: true,
        };
        kernel.set_link("port", &settings).await.unwrap();
        let port = kernel.link("port").await.unwrap().unwrap();
        assert_eq!((port.mtu, port.mac, port.tx_queue_len), (1400, settings.mac, 77));
        assert_eq!(port.master, Some(kernel.link("br0").await.unwrap().unwrap().index));
        assert!(port.up);
        up(&kernel, "br0").await;
        let made_by_the_kernel = kernel.addresses().await.unwrap();
        assert!(!made_by_the_kernel.iter().any(|address| address.device == "port"), "{made_by_the_kernel:?}");

        let nomaster = LinkSettings { master: Some(String::new()), ..LinkSettings::default() };
        kernel.set_link("port", &nomaster).await.unwrap();
        assert_eq!(kernel.link("port").await.unwrap().unwrap().master, None);
    });
}

#[test]
fn a_bridge_port_forwards_without_delay() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        up(&kernel, "br0").await;
        let far = NetNs::new().unwrap();
        kernel.add_veth("port", "eth0", &far).await.unwrap();
        in_namespace(&far, async |kernel| up(&kernel, "eth0").await);
        let join = LinkSettings { up: Some(true), master: Some("br0".to_owned()), ..LinkSettings::default() };
        kernel.set_link("port", &join).await.unwrap();
        let bridge = kernel.link("br0").await.unwrap().unwrap();
        assert!(bridge.carrier, "a port in a listening state gives its bridge no carrier");
    });
}

#[test]
fn an_ipv6_address_can_be_bound_at_once() {
    in_private_namespace(async |_ns, kernel| {
        let far = NetNs::new().unwrap();
        kernel.add_veth("eth0", "eth0", &far).await.unwrap();
        in_namespace(&far, async |kernel| up(&kernel, "eth0").await);
        up(&kernel, "eth0").await;
        for net in ["fd00::1/64", "10.0.0.1/24"].map(net) {
            kernel.add_address("eth0", net).await.unwrap();
            kernel.add_address("eth0", net).await.unwrap();
            std::net::UdpSocket::bind((net.addr(), 0)).unwrap();
        }
        let all = kernel.addresses().await.unwrap();
        let found = all.iter().find(|address| address.net == net("fd00::1/64")).unwrap();
        assert!(found.permanent && !found.tentative && !found.deprecated);
        kernel.delete_address("eth0", net("fd00::1/64")).await.unwrap();
        let gone = kernel.delete_address("eth0", net("fd00::1/64")).await.unwrap_err();
        assert_eq!(gone.errno, Errno::EADDRNOTAVAIL);
    });
}

#[test]
fn a_route_reads_back_as_it_was_written() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        up(&kernel, "br0").await;
        for address in ["10.0.0.1/24", "fd00::1/64"] {
            kernel.add_address("br0", net(address)).await.unwrap();
        }
        let v4 = Route {
            via: Some(ip("10.1.2.0")),
            onlink: true,
            source: Some(ip("10.0.0.1")),
            ..Route::new(net("10.1.2.0/24"), "br0")
        };
        let v6 = Route {
            via: Some(ip("fd00:1::")),
            onlink: true,
            metric: 5,
            protocol: RouteProtocol::STATIC,
            ..Route::new(net("fd00:1::/64"), "br0")
        };
        let plain6 = Route::new(net("fd00:2::/64"), "br0");
        let direct = Route { scope: RouteScope::LINK, metric: 9, ..Route::new(net("10.9.0.0/16"), "br0") };
        let default = Route { via: Some(ip("10.0.0.254")), ..Route::new(net("0.0.0.0/0"), "br0") };
        let by_v6 = Route { via: Some(ip("fd00::7")), ..Route::new(net("10.8.0.0/16"), "br0") };
        for route in [&v4, &v6, &plain6, &direct, &default, &by_v6] {
            kernel.replace_route(route).await.unwrap();
            kernel.replace_route(route).await.unwrap();
            let routes = kernel.routes().await.unwrap();
            assert_eq!(routes.iter().filter(|found| *found == route).count(), 1, "{route} in {routes:#?}");
        }

        let moved = Route { via: Some(ip("10.1.2.1")), ..v4.clone() };
        kernel.replace_route(&moved).await.unwrap();
        let routes = kernel.routes().await.unwrap();
        assert!(routes.contains(&moved) && !routes.contains(&v4));

        for route in [&moved, &v6, &plain6, &direct, &default, &by_v6] {
            kernel.delete_route(route).await.unwrap();
            assert!(!kernel.routes().await.unwrap().contains(route));
            assert_eq!(kernel.delete_route(route).await.unwrap_err().errno, Errno::ESRCH);
        }
    });
}

#[test]
fn deleting_a_route_leaves_the_same_destination_at_another_metric() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        up(&kernel, "br0").await;
        for dest in ["10.1.0.0/16", "fd00:1::/64"].map(net) {
            let first = Route { metric: 10, ..Route::new(dest, "br0") };
            let default = Route::new(dest, "br0");
            kernel.replace_route(&first).await.unwrap();
            kernel.replace_route(&default).await.unwrap();
            kernel.delete_route(&default).await.unwrap();
            let routes = kernel.routes().await.unwrap();
            assert!(routes.contains(&first) && !routes.contains(&default), "{routes:?}");
        }
    });
}

#[test]
fn the_kernels_choice_of_a_route_is_told() {
    in_private_namespace(async |_ns, kernel| {
        assert_eq!(kernel.route_to(ip("10.9.9.9")).await.unwrap(), None);
        kernel.add_bridge("br0").await.unwrap();
        up(&kernel, "br0").await;
        kernel.add_address("br0", net("10.0.0.1/24")).await.unwrap();
        let near = kernel.route_to(ip("10.0.0.9")).await.unwrap().unwrap();
        assert_eq!((near.device.as_str(), near.via, near.source), ("br0", None, Some(ip("10.0.0.1"))));
        kernel
            .replace_route(&Route { via: Some(ip("10.0.0.9")), ..Route::new(net("0.0.0.0/0"), "br0") })
            .await
            .unwrap();
        let far = kernel.route_to(ip("192.0.2.1")).await.unwrap().unwrap();
        assert_eq!((far.via, far.local), (Some(ip("10.0.0.9")), false));
        assert!(kernel.route_to(ip("10.0.0.1")).await.unwrap().unwrap().local);
    });
}

#[test]
fn a_vxlan_device_is_made_as_flannel_makes_it() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("under").await.unwrap();
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            kernel.add_address("under", net(address)).await.unwrap();
        }
        up(&kernel, "under").await;
        for (name, local, vni) in [("flannel.1", "192.0.2.1", 1), ("flannel-v6.1", "2001:db8::1", 1)] {
            let wanted = Vxlan {
                local: Some(ip(local)),
                device: Some("under".to_owned()),
                mtu: Some(1400),
                mac: Some([0x0a, 1, 2, 3, 4, 5]),
                ..Vxlan::new(name, vni, 8472)
            };
            if !made_vxlan(&kernel, &wanted).await {
                return;
            }
            let link = kernel.link(name).await.unwrap().unwrap();
            assert_eq!((link.mtu, link.mac, link.tx_queue_len), (1400, wanted.mac, 0));
            let info = link.vxlan.unwrap();
            assert_eq!((info.vni, info.port, info.local), (1, 8472, Some(ip(local))));
            assert_eq!(info.device, Some(kernel.link("under").await.unwrap().unwrap().index));
            assert!(!info.learning && !info.l2miss && !info.gbp && info.group.is_none());
            assert!(!info.zero_checksum6_tx && !info.zero_checksum6_rx);
            assert!(info.udp_checksum, "the kernel's default for both families");
        }
        let absent = Vxlan { device: Some("nowhere".to_owned()), ..Vxlan::new("x", 2, 8472) };
        let error = kernel.add_vxlan(&absent).await.unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV);
        assert!(error.to_string().contains("add vxlan x id 2 dstport 8472 dev nowhere: ENODEV"), "{error}");
    });
}

#[test]
fn a_vxlan_device_can_send_and_take_zero_checksums() {
    in_private_namespace(async |_ns, kernel| {
        let wanted = Vxlan {
            local: Some(ip("2001:db8::1")),
            udp_checksum: false,
            zero_checksum6_tx: true,
            zero_checksum6_rx: true,
            ..Vxlan::new("v", 7, 8472)
        };
        if !made_vxlan(&kernel, &wanted).await {
            return;
        }
        let info = kernel.link("v").await.unwrap().unwrap().vxlan.unwrap();
        assert!(!info.udp_checksum && info.zero_checksum6_tx && info.zero_checksum6_rx);
    });
}

#[test]
fn permanent_neighbours_and_forwarding_entries_read_back() {
    in_private_namespace(async |_ns, kernel| {
        let v4 =
            Vxlan { local: Some(Ipv4Addr::new(192, 0, 2, 1).into()), ..Vxlan::new("flannel.1", 1, 8472) };
        let v6 = Vxlan { local: Some(ip("2001:db8::1")), ..Vxlan::new("flannel-v6.1", 1, 8472) };
        for (vxlan, neighbour, dst) in [(v4, "10.5.34.0", "192.0.2.2"), (v6, "fd00:5:34::", "2001:db8::2")] {
            if !made_vxlan(&kernel, &vxlan).await {
                return;
            }
            let device = vxlan.name.clone();
            up(&kernel, &device).await;
            let mac = [0x0a, 0, 0, 0, 0, 2];
            let near = Neighbour { device: device.clone(), ip: ip(neighbour), mac };
            let entry = FdbEntry { device: device.clone(), mac, dst: ip(dst) };
            kernel.replace_neighbour(&Neighbour { mac: [2; 6], ..near.clone() }).await.unwrap();
            kernel.replace_neighbour(&near).await.unwrap();
            assert_eq!(kernel.neighbours(&device).await.unwrap(), std::slice::from_ref(&near));
            kernel.replace_fdb(&entry).await.unwrap();
            kernel.replace_fdb(&entry).await.unwrap();
            assert_eq!(kernel.fdb(&device).await.unwrap(), std::slice::from_ref(&entry));

            kernel.delete_fdb(&entry).await.unwrap();
            kernel.delete_neighbour(&near).await.unwrap();
            assert_eq!(kernel.neighbours(&device).await.unwrap(), []);
            assert_eq!(kernel.fdb(&device).await.unwrap(), []);
            assert_eq!(kernel.delete_fdb(&entry).await.unwrap_err().errno, Errno::ENOENT);
            assert_eq!(kernel.delete_neighbour(&near).await.unwrap_err().errno, Errno::ENOENT);
        }
    });
}

#[test]
fn a_forwarding_entry_moves_to_another_node() {
    in_private_namespace(async |_ns, kernel| {
        let vxlan = Vxlan { local: Some(ip("192.0.2.1")), ..Vxlan::new("flannel.1", 1, 8472) };
        if !made_vxlan(&kernel, &vxlan).await {
            return;
        }
        let entry = FdbEntry { device: vxlan.name.clone(), mac: [2; 6], dst: ip("192.0.2.2") };
        kernel.replace_fdb(&entry).await.unwrap();
        let moved = FdbEntry { dst: ip("192.0.2.3"), ..entry };
        kernel.replace_fdb(&moved).await.unwrap();
        assert_eq!(kernel.fdb("flannel.1").await.unwrap(), [moved]);
    });
}

#[test]
fn a_missing_device_is_named_with_what_was_attempted() {
    in_private_namespace(async |_ns, kernel| {
        let error = kernel.replace_route(&Route::new(net("10.1.2.0/24"), "flannel.1")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "replace route 10.1.2.0/24 dev flannel.1: ENODEV: No such device; \
             there is no such device (any more): see `ip link`"
        );
        let unreachable = Route { via: Some(ip("10.0.0.9")), ..Route::new(net("10.1.2.0/24"), "lo") };
        up(&kernel, "lo").await;
        let error = kernel.replace_route(&unreachable).await.unwrap_err();
        assert_eq!(error.errno, Errno::ENETUNREACH);
        assert_eq!(error.detail.as_deref(), Some("Nexthop has invalid gateway"), "the kernel's own sentence");
    });
}

#[test]
fn dumps_at_the_same_time_do_not_disturb_each_other() {
    in_private_namespace(async |_ns, kernel| {
        let clone = kernel.clone();
        let (links, routes, addresses) = tokio::join!(kernel.links(), clone.routes(), kernel.addresses());
        assert_eq!((links.unwrap().len(), routes.unwrap().len(), addresses.unwrap().len()), (1, 0, 0));
    });
}

#[test]
fn a_setting_changes_in_this_namespace_only() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel.1").await.unwrap();
        let name = "net/ipv6/conf/flannel.1/accept_ra";
        for value in ["0", "1"] {
            sysctl::set(name, value).unwrap();
            assert_eq!(sysctl::read(name).unwrap(), value);
        }
        assert_eq!(sysctl::set(name, "not a number").unwrap_err().errno, Errno::EINVAL);
        let other = NetNs::new().unwrap();
        let there = other.run("test", || sysctl::read(name)).unwrap();
        assert_eq!(there.unwrap_err().errno, Errno::ENOENT);
    });
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

async fn up(kernel: &Kernel, device: &str) {
    kernel.set_link(device, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await.unwrap();
}

/// False, aloud, where the kernel has no VXLAN.
async fn made_vxlan(kernel: &Kernel, vxlan: &Vxlan) -> bool {
    match kernel.add_vxlan(vxlan).await {
        Err(error) if error.errno == Errno::EOPNOTSUPP => {
            eprintln!("skipped: {error}");
            false
        }
        made => {
            made.unwrap();
            true
        }
    }
}

/// `None`, aloud, where this user may not make namespaces.
fn private_namespace() -> Option<NetNs> {
    match NetNs::new() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: making a network namespace: {error}");
            None
        }
        made => Some(made.unwrap()),
    }
}

fn in_private_namespace(test: impl AsyncFnOnce(&NetNs, Kernel) + Send) {
    let Some(ns) = private_namespace() else { return };
    in_namespace(&ns, async |kernel| test(&ns, kernel).await);
}

fn in_namespace<T: Send>(ns: &NetNs, f: impl AsyncFnOnce(Kernel) -> T + Send) -> T {
    ns.run("test", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { f(Kernel::connect().await.unwrap()).await })
    })
    .unwrap()
}
