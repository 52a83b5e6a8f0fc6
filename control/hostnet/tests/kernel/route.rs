//! Promises about addresses and routes.
use hostnet::Errno;
use hostnet::netns::NetNs;
use hostnet::state::{Route, RouteKind, RouteProtocol, RouteScope};

use super::{in_namespace, in_private_namespace, ip, net, up};

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
fn routes_that_send_nothing_are_made_listed_and_deleted() {
    in_private_namespace(async |_ns, kernel| {
        for (kind, dest) in [
            (RouteKind::Unreachable, "10.5.0.0/16"),
            (RouteKind::Unreachable, "fd00:5::/48"),
            (RouteKind::Blackhole, "10.5.1.0/24"),
            (RouteKind::Blackhole, "fd00:5:0:1::/64"),
        ] {
            let route = Route { protocol: RouteProtocol::FLANNEL_RS, ..Route::last_resort(kind, net(dest)) };
            for _again in 0..2 {
                kernel.replace_route(&route).await.unwrap();
            }
            let listed = kernel.all_routes().await.unwrap();
            assert_eq!(listed.iter().filter(|listed| **listed == route).count(), 1, "{route}: {listed:?}");
            assert!(!kernel.routes().await.unwrap().contains(&route), "it leads nowhere");
            kernel.delete_route(&route).await.unwrap();
            assert!(!kernel.all_routes().await.unwrap().contains(&route));
        }
    });
}
