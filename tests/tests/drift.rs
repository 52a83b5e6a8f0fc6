//! What is ours on a host comes back, what is nobody's goes, what is somebody else's stays: changes by hand, nodes that left,
//! leftovers of flannel, and packets that must not leave.

use std::fs;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use dataplane_core::IpNet;
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::netns::NetNs;
use hostnet::state::{FdbEntry, Neighbour, Route, RouteKind, RouteProtocol};
use hostnet::sysctl;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, Plan, Scene, Underlay};
use nix::sys::signal::{Signal, kill};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::Daemon;
use promises::host::{self, ENGINE, KERNEL, end, kind, needs_kernel_vxlan, until};
use promises::lease_dir::{GHOST, publish, write_config};
use promises::rules::sh;

use promises::{harness, netlink};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-drift",
        lab::cases![
            whatever_is_changed_by_hand_comes_back,
            an_engines_device_that_is_renamed_is_made_again,
            host_gw_routes_come_back_and_a_peer_off_the_link_costs_nobody_else,
            a_node_that_left_while_the_daemon_was_down_leaves_nothing,
            what_flannel_left_goes_and_what_others_made_stays,
            packets_for_nobody_never_leave_by_the_default_route,
            packets_for_absent_pods_of_this_node_are_dropped_where_that_is_wanted,
        ],
    )
}

fn whatever_is_changed_by_hand_comes_back(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let ours = Ours::start_with(&Plan::nodes(2), scene.dir(), &net_conf("vxlan", Inner::Dual), KERNEL)?;
    ours.all_reach_each_other()?;
    let node = ours.cluster.nodes()[0].namespace();
    let good = host::state(node)?;
    let accept_ra = "net/ipv6/conf/flannel.1/accept_ra";
    let ra = || node.run("sysctl", || sysctl::read(accept_ra))?.map_err(anyhow::Error::from);
    let on = |device: &str| device.starts_with("flannel");
    type Harm<'a> = Box<dyn Fn() -> anyhow::Result<()> + 'a>;
    let harms: Vec<(&str, Harm<'_>)> = vec![
        (
            "the routes are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for route in kernel
                        .routes()
                        .await?
                        .iter()
                        .filter(|route| on(&route.device) && route.protocol == RouteProtocol::FLANNEL_RS)
                    {
                        kernel.delete_route(route).await?;
                    }
                    Ok(())
                })
            }),
        ),
        (
            "the unreachable routes are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for route in
                        kernel.all_routes().await?.iter().filter(|route| route.kind == RouteKind::Unreachable)
                    {
                        kernel.delete_route(route).await?;
                    }
                    Ok(())
                })
            }),
        ),
        (
            "a route leads elsewhere",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    let ours = kernel
                        .routes()
                        .await?
                        .into_iter()
                        .find(|route| on(&route.device) && route.via.is_some());
                    let dest = ours.context("a route")?.dest;
                    let via = if dest.addr().is_ipv4() { "192.0.2.77" } else { "2001:db8::77" };
                    Ok(kernel
                        .replace_route(&Route { via: Some(via.parse()?), ..Route::new(dest, "eth0") })
                        .await?)
                })
            }),
        ),
        (
            "the neighbours are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for device in ["flannel.1", "flannel-v6.1"] {
                        for entry in kernel.neighbours(device).await? {
                            kernel.delete_neighbour(&entry).await?;
                        }
                    }
                    Ok(())
                })
            }),
        ),
        (
            "a neighbour has another MAC",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    let entry = kernel.neighbours("flannel.1").await?.pop().context("a neighbour")?;
                    Ok(kernel.replace_neighbour(&Neighbour { mac: [2, 9, 9, 9, 9, 9], ..entry }).await?)
                })
            }),
        ),
        (
            "the forwarding entries are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for device in ["flannel.1", "flannel-v6.1"] {
                        for entry in kernel.fdb(device).await? {
                            kernel.delete_fdb(&entry).await?;
                        }
                    }
                    Ok(())
                })
            }),
        ),
        (
            "a forwarding entry leads elsewhere",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    let entry = kernel.fdb("flannel.1").await?.pop().context("an entry")?;
                    Ok(kernel
                        .replace_fdb(&FdbEntry { dst: Ipv4Addr::new(192, 0, 2, 99).into(), ..entry })
                        .await?)
                })
            }),
        ),
        (
            "the addresses are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for address in kernel.addresses().await?.iter().filter(|address| on(&address.device)) {
                        if !address.net.addr().to_string().starts_with("fe80") {
                            kernel.delete_address(&address.device, address.net).await?;
                        }
                    }
                    Ok(())
                })
            }),
        ),
        (
            "the devices are set down",
            Box::new(|| set_both(node, &LinkSettings { up: Some(false), ..LinkSettings::default() })),
        ),
        (
            "their MTU is changed",
            Box::new(|| set_both(node, &LinkSettings { mtu: Some(1300), ..LinkSettings::default() })),
        ),
        (
            "their MAC is changed",
            Box::new(|| {
                set_both(node, &LinkSettings { mac: Some([2, 1, 1, 1, 1, 1]), ..LinkSettings::default() })
            }),
        ),
        (
            "the devices are deleted",
            Box::new(|| {
                netlink::inside(node, async |kernel: Kernel| {
                    for device in ["flannel.1", "flannel-v6.1"] {
                        kernel.delete_link(device).await?;
                    }
                    Ok(())
                })
            }),
        ),
        (
            "a device is deleted and made again otherwise",
            Box::new(|| {
                // Stopped, or it would be faster than this.
                kill(ours.daemons[0].pid(), Signal::SIGSTOP)?;
                let changed = netlink::inside(node, async |kernel: Kernel| {
                    kernel.delete_link("flannel.1").await?;
                    Ok(kernel.add_vxlan(&Vxlan::new("flannel.1", 1, 4789)).await?)
                });
                kill(ours.daemons[0].pid(), Signal::SIGCONT)?;
                changed
            }),
        ),
        (
            "router advertisements are let in",
            Box::new(|| Ok(node.run("sysctl", || sysctl::set(accept_ra, "1"))??)),
        ),
        (
            "IPv6 is switched off on a device",
            Box::new(|| {
                Ok(node.run("sysctl", || sysctl::set("net/ipv6/conf/flannel-v6.1/disable_ipv6", "1"))??)
            }),
        ),
        ("a device is renamed", Box::new(|| rename(&ours.daemons[0], node, "flannel.1"))),
        (
            "a device is made a port of a bridge",
            Box::new(|| {
                sh(node, "ip link add br9 type bridge; ip link set flannel.1 master br9")?;
                until("it is alone again", || Ok(sh(node, "ip -o link show master br9")?.is_empty()))?;
                sh(node, "ip link del br9").map(drop)
            }),
        ),
        (
            "somebody adds a forwarding entry",
            Box::new(|| sh(node, "bridge fdb add 02:00:00:00:77:00 dev flannel.1 dst 192.0.2.66").map(drop)),
        ),
        (
            "subnet.env is overwritten",
            Box::new(|| {
                let file = ours.daemons[0].subnet_file();
                let text = fs::read_to_string(file)?;
                fs::write(file, "FLANNEL_NETW")?;
                until("subnet.env is right again", || Ok(fs::read_to_string(file)? == text))
            }),
        ),
    ];
    for (name, harm) in harms {
        harm().with_context(|| name.to_owned())?;
        until(name, || Ok(host::state(node)? == good && ra()? == "0")).with_context(|| {
            format!("{name}:\n{:#?}\n{good:#?}\n{}", host::state(node), ours.daemons[0].log())
        })?;
        ours.all_reach_each_other().with_context(|| name.to_owned())?;
    }
    ours.daemons.into_iter().try_for_each(end)
}

/// Gives a device another name. The daemon is stopped meanwhile, or it would be faster than this.
fn rename(daemon: &Daemon, node: &NetNs, device: &str) -> anyhow::Result<()> {
    kill(daemon.pid(), Signal::SIGSTOP)?;
    let line = format!("ip link set {device} down; ip link set {device} name foo; ip link set foo up");
    let renamed = sh(node, &line);
    kill(daemon.pid(), Signal::SIGCONT)?;
    renamed.map(drop)
}

fn an_engines_device_that_is_renamed_is_made_again(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&Plan::nodes(2), scene.dir(), &net_conf("udp", Inner::V4))?;
    ours.all_reach_each_other()?;
    let node = ours.cluster.nodes()[0].namespace();
    let good = host::state(node)?;
    rename(&ours.daemons[0], node, "flannel0")?;
    until("the device and its routes come back", || Ok(host::state(node)? == good))?;
    ensure!(sh(node, "ip -o link")?.matches("foo").count() == 0, "the renamed device is left");
    ours.all_reach_each_other()?;
    ours.daemons.into_iter().try_for_each(end)
}

fn set_both(node: &NetNs, settings: &LinkSettings) -> anyhow::Result<()> {
    netlink::inside(node, async |kernel: Kernel| {
        for device in ["flannel.1", "flannel-v6.1"] {
            kernel.set_link(device, settings).await?;
        }
        Ok(())
    })
}

fn host_gw_routes_come_back_and_a_peer_off_the_link_costs_nobody_else(scene: &Scene) -> anyhow::Result<()> {
    publish(
        scene.dir(),
        "10.5.200.0-24",
        r#"{"PublicIP":"198.51.100.7","PublicIPv6":null,"BackendType":"host-gw"}"#,
    )?;
    let ours = Ours::start(&Plan::nodes(2), scene.dir(), &net_conf("host-gw", Inner::Dual))?;
    ours.all_reach_each_other()?;
    ours.daemons[0].wait_for_line("198.51.100.7 is not on the link of eth0")?;
    let node = ours.cluster.nodes()[0].namespace();
    let good = host::state(node)?;
    netlink::inside(node, async |kernel: Kernel| {
        for route in kernel.all_routes().await? {
            if route.protocol == RouteProtocol::FLANNEL_RS {
                kernel.delete_route(&route).await?;
            }
        }
        Ok(())
    })?;
    until("the routes come back", || Ok(host::state(node)? == good))?;
    ours.all_reach_each_other()?;
    ours.daemons.into_iter().try_for_each(end)
}

fn a_node_that_left_while_the_daemon_was_down_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let node = &cluster.nodes()[0];
    write_config(dir, &net_conf("vxlan", Inner::V4))?;
    publish(dir, "10.5.200.0-24", GHOST)?;
    let daemon = Daemon::spawn(node, dir, KERNEL)?;
    daemon.ready()?;
    let of_ghost = || {
        let there = host::state(node.namespace())?;
        let hits =
            there.iter().filter(|line| line.contains("10.5.200.0") || line.contains("02:00:00:00:00:09"));
        anyhow::Ok(hits.count())
    };
    ensure!(of_ghost()? == 3, "a route, a neighbour, an entry: {:?}", host::state(node.namespace())?);
    let index = |kernel: Kernel| async move {
        Ok(kernel.link("flannel.1").await?.map(|link| (link.index, link.mac)))
    };
    let before = netlink::inside(node.namespace(), index)?;
    daemon.kill()?;
    ensure!(of_ghost()? == 3, "a daemon that dies takes nothing along");
    fs::remove_file(dir.join("store/subnets/10.5.200.0-24"))?;
    let daemon = Daemon::spawn(node, dir, KERNEL)?;
    daemon.ready()?;
    ensure!(of_ghost()? == 0, "{:?}", host::state(node.namespace())?);
    ensure!(netlink::inside(node.namespace(), index)? == before, "the device was made again");
    end(daemon)
}

fn what_flannel_left_goes_and_what_others_made_stays(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let node = &cluster.nodes()[0];
    write_config(dir, &net_conf("vxlan", Inner::V4))?;
    // Behind the first hundred subnets, of which the node draws its own.
    let net = |text: &str| text.parse::<IpNet>();
    netlink::inside(node.namespace(), async |kernel: Kernel| {
        let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
        // As flannel leaves them: its VXLAN device, with a peer that is gone; one of another VNI; a host-gw route.
        for (device, vni) in [("flannel.1", 1), ("flannel.42", 42)] {
            let vxlan = Vxlan {
                local: Some("192.0.2.1".parse()?),
                device: Some("eth0".into()),
                ..Vxlan::new(device, vni, 8472)
            };
            kernel.add_vxlan(&vxlan).await?;
            kernel.set_link(device, &up).await?;
            kernel.add_address(device, net("10.5.133.0/32")?).await?;
        }
        let mac = [2, 0, 0, 0, 0, 0x33];
        let ip = "10.5.134.0".parse()?;
        kernel.replace_neighbour(&Neighbour { device: "flannel.1".into(), ip, mac }).await?;
        let dst = "192.0.2.34".parse()?;
        kernel.replace_fdb(&FdbEntry { device: "flannel.1".into(), mac, dst }).await?;
        let tunnelled =
            Route { via: Some(ip), onlink: true, ..Route::new(net("10.5.134.0/24")?, "flannel.1") };
        kernel.replace_route(&tunnelled).await?;
        let gateway = Route { via: Some("192.0.2.35".parse()?), ..Route::new(net("10.5.135.0/24")?, "eth0") };
        kernel.replace_route(&gateway).await?;
        // Somebody else's: a device of a like name, a route that is marked, one outside the network, one of a pod.
        kernel.add_bridge("flannel.77").await?;
        kernel.set_link("flannel.77", &up).await?;
        let marked = Route {
            protocol: RouteProtocol::STATIC,
            ..Route { dest: net("10.5.136.0/24")?, ..gateway.clone() }
        };
        kernel.replace_route(&marked).await?;
        kernel.replace_route(&Route { dest: net("10.99.0.0/16")?, ..gateway }).await?;
        Ok(kernel.replace_route(&Route::new(net("10.5.137.5/32")?, "flannel.77")).await?)
    })?;
    let daemon = Daemon::spawn(node, dir, KERNEL)?;
    daemon.ready()?;
    let there = host::state(node.namespace())?.join("\n");
    for gone in ["10.5.133.0", "10.5.134.0", "10.5.135.0", "02:00:00:00:00:33", "flannel.42"] {
        ensure!(!there.contains(gone), "{gone} is left:\n{there}\n{}", daemon.log());
    }
    for kept in
        ["link flannel.77", "10.5.136.0/24 via 192.0.2.35", "10.99.0.0/16", "10.5.137.5/32 dev flannel.77"]
    {
        ensure!(there.contains(kept), "{kept} went:\n{there}\n{}", daemon.log());
    }
    ensure!(kind(node, "flannel.1")?.as_deref() == Some("vxlan"));
    end(daemon)
}

fn packets_for_nobody_never_leave_by_the_default_route(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    let pings = |expected: i32| {
        for nobody in ["10.5.250.9", "fd00:5:0:fa::9"] {
            let answer = Ping::new(nobody.parse()?).send_from(node.namespace())?;
            ensure!(
                matches!(answer, Answer::Refused { errno, .. } if errno == expected),
                "{nobody}: {answer:?}"
            );
        }
        anyhow::Ok(())
    };
    for (name, backend, flags) in
        [("engine", "vxlan", ENGINE), ("kernel", "vxlan", KERNEL), ("gateways", "host-gw", ENGINE)]
    {
        let case = || {
            if flags == KERNEL {
                needs_kernel_vxlan()?;
            }
            let dir = scene.dir().join(name);
            write_config(&dir, &net_conf(backend, Inner::Dual))?;
            let daemon = Daemon::spawn(node, &dir, flags)?;
            daemon.ready()?;
            // EHOSTUNREACH is what an unreachable route says, with the daemon and without.
            pings(113)?;
            end(daemon)?;
            pings(113)
        };
        case().with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn packets_for_absent_pods_of_this_node_are_dropped_where_that_is_wanted(
    scene: &Scene,
) -> anyhow::Result<()> {
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("host-gw", Inner::V4))?;
    let daemon = Daemon::spawn(node, scene.dir(), &["--ip-blackhole-route"])?;
    let subnet = *daemon.ready()?.subnets.first().context("a subnet")?;
    let blackhole = |kernel: Kernel| async move {
        let found = kernel.all_routes().await?.into_iter().find(|route| route.kind == RouteKind::Blackhole);
        anyhow::Ok(found.map(|route| (kernel, route)))
    };
    let dest = netlink::inside(node.namespace(), async |kernel: Kernel| {
        let (kernel, route) = blackhole(kernel).await?.context("a blackhole route")?;
        kernel.delete_route(&route).await?;
        Ok(route.dest)
    })?;
    ensure!(dest == subnet, "{dest} is not {subnet}");
    until("it comes back", || {
        netlink::inside(node.namespace(), async |kernel: Kernel| Ok(blackhole(kernel).await?.is_some()))
    })?;
    end(daemon)
}
