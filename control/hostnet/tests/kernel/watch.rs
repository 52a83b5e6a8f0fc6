//! Promises about the kernel's notifications.
use std::collections::BTreeSet;

use hostnet::kernel::{Kernel, Noticed, Watch};
use hostnet::netns::NetNs;
use hostnet::state::{Neighbour, Route};

use super::{in_private_namespace, ip, net, soon, up};

/// What was noticed once `enough` is true of all of it.
async fn until(watch: &mut Watch, enough: impl Fn(&Noticed) -> bool) -> Noticed {
    let mut all = Noticed::default();
    soon(async {
        while !enough(&all) {
            let Noticed { links, gone, addresses, routes, neighbours, lost } = watch.next().await.unwrap();
            all.links.extend(links);
            all.gone.extend(gone);
            all.addresses.extend(addresses);
            all.routes.extend(routes);
            all.neighbours.extend(neighbours);
            all.lost |= lost;
        }
    })
    .await;
    all
}

async fn watch(devices: &[&str]) -> Watch {
    Watch::open(devices.iter().map(|name| (*name).to_owned())).await.unwrap()
}

async fn fill(kernel: &Kernel, device: &str) {
    kernel.add_bridge(device).await.unwrap();
    up(kernel, device).await;
    kernel.add_address(device, net("10.5.1.0/32")).await.unwrap();
    kernel.replace_route(&Route::new(net("10.5.2.0/24"), device)).await.unwrap();
    let neighbour = Neighbour { device: device.to_owned(), ip: ip("10.5.2.0"), mac: [2; 6] };
    kernel.replace_neighbour(&neighbour).await.unwrap();
}

#[test]
fn every_kind_of_change_to_our_device_is_noticed_and_no_other_device_is() {
    in_private_namespace(async |_ns, kernel| {
        let mut watch = watch(&["flannel.1"]).await;
        fill(&kernel, "cni0").await;
        fill(&kernel, "flannel.1").await;
        let noticed = until(&mut watch, |all| !all.neighbours.is_empty()).await;
        let ours = BTreeSet::from(["flannel.1".to_owned()]);
        assert_eq!(
            noticed,
            Noticed {
                links: ours.clone(),
                gone: BTreeSet::new(),
                addresses: ours.clone(),
                routes: ours.clone(),
                neighbours: ours,
                lost: false,
            }
        );
    });
}

#[test]
fn a_route_that_somebody_deletes_is_noticed() {
    in_private_namespace(async |_ns, kernel| {
        fill(&kernel, "flannel.1").await;
        let mut watch = watch(&["flannel.1"]).await;
        kernel.delete_route(&Route::new(net("10.5.2.0/24"), "flannel.1")).await.unwrap();
        let noticed = until(&mut watch, |all| !all.routes.is_empty()).await;
        assert_eq!(noticed, Noticed { routes: noticed.routes.clone(), ..Noticed::default() });
    });
}

#[test]
fn a_device_that_goes_and_comes_back_is_noticed_by_name() {
    in_private_namespace(async |_ns, kernel| {
        fill(&kernel, "flannel.1").await;
        let mut watch = watch(&["flannel.1"]).await;
        kernel.delete_link("flannel.1").await.unwrap();
        until(&mut watch, |all| all.gone.contains("flannel.1")).await;
        kernel.add_bridge("flannel.1").await.unwrap();
        until(&mut watch, |all| all.links.contains("flannel.1")).await;
    });
}

#[test]
fn a_carrier_that_is_lost_is_noticed() {
    in_private_namespace(async |_ns, kernel| {
        let far = NetNs::new().unwrap();
        kernel.add_veth("eth0", "eth0", &far).await.unwrap();
        super::in_namespace(&far, async |kernel| up(&kernel, "eth0").await);
        up(&kernel, "eth0").await;
        let mut watch = watch(&["eth0"]).await;
        super::in_namespace(&far, async |kernel| {
            let down = hostnet::kernel::LinkSettings { up: Some(false), ..Default::default() };
            kernel.set_link("eth0", &down).await.unwrap();
        });
        soon(async {
            while kernel.link("eth0").await.unwrap().unwrap().carrier {
                assert!(watch.next().await.unwrap().links.contains("eth0"));
            }
        })
        .await;
    });
}

#[test]
fn a_thousand_changes_that_nobody_asked_about_are_few_notices() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel.1").await.unwrap();
        let mut watch = watch(&["flannel.1"]).await;
        up(&kernel, "flannel.1").await;
        for n in 0..1000u32 {
            let dest = ipnet::Ipv4Net::new((0x0a00_0000 + (n << 8)).into(), 24).unwrap();
            kernel.replace_route(&Route::new(dest.into(), "flannel.1")).await.unwrap();
        }
        kernel.delete_link("flannel.1").await.unwrap();
        let mut notices = 0;
        soon(async {
            while !watch.next().await.unwrap().gone.contains("flannel.1") {
                notices += 1;
            }
        })
        .await;
        assert!(notices < 100, "{notices} notices");
    });
}
