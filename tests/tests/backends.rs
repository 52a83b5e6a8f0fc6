//! Backends: kernel VXLAN, host-gw, alloc and the engine carry the same pods, take each other's place, clean up after each
//! other, and come back from whatever is changed by hand.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dataplane_core::{Family, IpNet};
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::netns::NetNs;
use hostnet::state::{FdbEntry, Neighbour, Route, RouteKind, RouteProtocol};
use hostnet::sysctl;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, Node, Plan, Scene, Underlay};
use nix::sys::signal::{Signal, kill};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{self, Daemon, PATIENCE, pod_network};
use promises::{harness, netlink, reach};

/// The kernel or nobody.
const KERNEL: &[&str] = &["--engine=never"];
/// The engine, which the tests' daemons have by default.
const ENGINE: &[&str] = &[];

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-backend",
        lab::cases![
            kernel_vxlan_carries_pods_and_goes_on_without_the_daemon,
            host_gw_carries_pods_without_a_tunnel,
            alloc_writes_the_file_and_nothing_more,
            kernel_nodes_and_engine_nodes_carry_each_others_pods,
            a_node_goes_from_engine_to_kernel_and_back_and_peers_notice_nothing,
            whatever_is_changed_by_hand_comes_back,
            host_gw_routes_come_back_and_a_peer_off_the_link_costs_nobody_else,
            a_node_that_left_while_the_daemon_was_down_leaves_nothing,
            a_change_of_backend_leaves_nothing_of_the_other,
            what_flannel_left_goes_and_what_others_made_stays,
            packets_for_nobody_never_leave_by_the_default_route,
            packets_for_absent_pods_of_this_node_are_dropped_where_that_is_wanted,
            direct_routing_uses_the_link_and_answers_either_way,
            explain_prints_the_decision_and_changes_nothing,
        ],
    )
}

/// Skips aloud where the kernel has no VXLAN.
fn needs_kernel_vxlan() -> anyhow::Result<()> {
    match netlink::inside(&NetNs::new()?, async |kernel: Kernel| Ok(kernel.probe_vxlan().await))? {
        Ok(()) => Ok(()),
        Err(error) => Err(lab::skip(format!("the kernel makes no VXLAN device: {error}"))),
    }
}

/// Looks again and again until it is so.
fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn write_config(dir: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir.join("store"))?;
    Ok(fs::write(dir.join("store/config"), text)?)
}

/// Ends a daemon that may have no engine, and so no books to close.
fn end(mut daemon: Daemon) -> anyhow::Result<()> {
    let status = daemon.process().terminate(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}:\n{}", daemon.log());
    Ok(())
}

/// The value of the lease of the node with this address.
fn lease(dir: &Path, owner: &str) -> anyhow::Result<(String, serde_json::Value)> {
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(entry.path())?)?;
        if value["PublicIP"] == owner {
            if let Some(members) = value.as_object_mut() {
                members.remove("Expiry");
            }
            return Ok((name, value));
        }
    }
    anyhow::bail!("{owner} has no lease")
}

/// Puts a lease into the store as another node would.
fn publish(dir: &Path, key: &str, value: &str) -> anyhow::Result<()> {
    let subnets = dir.join("store/subnets");
    fs::create_dir_all(&subnets)?;
    let aside = dir.join("aside");
    fs::write(&aside, value)?;
    Ok(fs::rename(aside, subnets.join(key))?)
}

/// Everything that this project may change on a host, as text.
fn host(namespace: &NetNs) -> anyhow::Result<Vec<String>> {
    netlink::inside(namespace, async |kernel: Kernel| {
        let mut all = Vec::new();
        let links = kernel.links().await?;
        for link in &links {
            all.push(format!(
                "link {} {:?} mtu {} up {} mac {:?}",
                link.name, link.kind, link.mtu, link.up, link.mac
            ));
        }
        for address in kernel.addresses().await? {
            if !address.net.addr().to_string().starts_with("fe80") {
                all.push(format!("address {} {}", address.device, address.net));
            }
        }
        for route in kernel.all_routes().await? {
            if !route.dest.to_string().starts_with("fe80") {
                all.push(format!("route {route}"));
            }
        }
        for link in links.iter().filter(|link| link.vxlan.is_some()) {
            all.extend(kernel.neighbours(&link.name).await?.iter().map(|entry| format!("neigh {entry}")));
            all.extend(kernel.fdb(&link.name).await?.iter().map(|entry| format!("fdb {entry}")));
        }
        all.sort();
        Ok(all)
    })
}

/// The kind of a node's device, if it is there.
fn kind(node: &Node, device: &str) -> anyhow::Result<Option<String>> {
    netlink::inside(node.namespace(), async |kernel: Kernel| {
        Ok(kernel.link(device).await?.and_then(|link| link.kind))
    })
}

fn kernel_vxlan_carries_pods_and_goes_on_without_the_daemon(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    for (name, inner, mtu) in
        [("four", Inner::V4, 1450), ("six", Inner::V6, 1430), ("dual", Inner::Dual, 1430)]
    {
        let case = || {
            let dir = scene.dir().join(name);
            let conf = net_conf("vxlan", inner);
            let ours = Ours::start_with(&Plan::nodes(3), &dir, &conf, KERNEL)?;
            ours.all_reach_each_other()?;
            ensure!(ours.envs[0].mtu == mtu, "MTU {}", ours.envs[0].mtu);
            for family in inner.families() {
                let device = if *family == Family::V4 { "flannel.1" } else { "flannel-v6.1" };
                ensure!(kind(&ours.cluster.nodes()[0], device)?.as_deref() == Some("vxlan"), "{device}");
                let path = reach::path(ours.pod(0)?, ours.pod(1)?, *family)?;
                reach::every_udp_size(path, (1..=1650).step_by(97))?;
                reach::transfer(path, 20_000_000)?;
            }
            let Ours { daemons, cluster, .. } = ours;
            daemons.into_iter().try_for_each(end)?;
            let matrix = cluster.matrix(Duration::from_secs(2))?;
            ensure!(
                matrix.iter().all(|cell| cell.answer.microseconds().is_some()),
                "pods lost each other with the daemons: {matrix:?}"
            );
            Ok(())
        };
        case().with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn host_gw_carries_pods_without_a_tunnel(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&Plan::nodes(3), scene.dir(), &net_conf("host-gw", Inner::Dual))?;
    ours.all_reach_each_other()?;
    ensure!(ours.envs[0].mtu == 1500, "MTU {}", ours.envs[0].mtu);
    ensure!(lease(scene.dir(), "192.0.2.1")?.1["BackendType"] == "host-gw");
    for device in ["flannel.1", "flannel0", "flannel-v6.1"] {
        ensure!(kind(&ours.cluster.nodes()[0], device)?.is_none(), "{device} is there");
    }
    for family in [Family::V4, Family::V6] {
        let path = reach::path(ours.pod(0)?, ours.pod(1)?, family)?;
        ensure!(reach::whole_ping(path, 1500)?.microseconds().is_some(), "a full packet");
        reach::transfer(path, 20_000_000)?;
    }
    ours.daemons.into_iter().try_for_each(end)
}

fn alloc_writes_the_file_and_nothing_more(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("alloc", Inner::Dual))?;
    let before = host(node.namespace())?;
    let daemon = Daemon::spawn(node, scene.dir(), ENGINE)?;
    let env = daemon.ready()?;
    ensure!(env.mtu == 1500 && env.subnets.len() == 2, "{env:?}");
    ensure!(host(node.namespace())? == before, "{:?}", host(node.namespace())?);
    ensure!(lease(scene.dir(), "192.0.2.1")?.1.get("BackendType").is_none());
    end(daemon)
}

fn kernel_nodes_and_engine_nodes_carry_each_others_pods(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    write_config(dir, &net_conf("vxlan", Inner::Dual))?;
    let mut cluster = Cluster::build(&Plan::nodes(3))?;
    let carriers = [KERNEL, ENGINE, KERNEL];
    let daemons = cluster
        .nodes()
        .iter()
        .zip(carriers)
        .map(|(node, flags)| Daemon::spawn(node, dir, flags))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let envs = daemons.iter().map(Daemon::ready).collect::<anyhow::Result<Vec<_>>>()?;
    for (node, env) in cluster.nodes_mut().iter_mut().zip(&envs) {
        node.add_pod(&pod_network(env))?;
    }
    let ours = Ours { daemons, envs, cluster };
    ours.all_reach_each_other()?;
    ensure!(kind(&ours.cluster.nodes()[0], "flannel.1")?.as_deref() == Some("vxlan"));
    ensure!(kind(&ours.cluster.nodes()[1], "flannel.1")?.as_deref() == Some("tun"));
    for family in [Family::V4, Family::V6] {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            let path = reach::path(ours.pod(from)?, ours.pod(to)?, family)?;
            reach::every_udp_size(path, (1..=1650).step_by(97))?;
            reach::transfer(path, 20_000_000)?;
        }
    }
    // What they publish says nothing of who carries.
    let kinds: Vec<_> = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        .iter()
        .map(|owner| Ok(lease(dir, owner)?.1["BackendType"].clone()))
        .collect::<anyhow::Result<_>>()?;
    ensure!(kinds.iter().all(|kind| kind == "vxlan"), "{kinds:?}");
    ours.daemons.into_iter().try_for_each(end)
}

/// Pings until it is told to stop; answers how many came back, and how many did not.
fn keep_pinging(from: &NetNs, to: IpAddr, stop: &AtomicBool) -> anyhow::Result<(u32, u32)> {
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let ping = Ping { timeout: Duration::from_millis(200), ..Ping::new(to) };
        match ping.send_from(from)? {
            Answer::Echo { .. } => answered += 1,
            _ => lost += 1,
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok((answered, lost))
}

/// Node b changes its carrier under traffic; node a, in the kernel, is the peer that is to notice nothing.
fn a_node_goes_from_engine_to_kernel_and_back_and_peers_notice_nothing(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let plan = Plan::nodes(2);
    let mut ours = Ours::start_with(&plan, dir, &net_conf("vxlan", Inner::Dual), KERNEL)?;
    ours.all_reach_each_other()?;
    let mut daemon = ours.daemons.pop().context("node b's")?;
    let peer = ours.cluster.nodes()[0].namespace().clone();
    let published = lease(dir, "192.0.2.2")?;
    let seen = host(&peer)?;
    let said = ours.daemons[0].log();
    let target = ours.pod(1)?.v4().context("an address")?;
    let stop = AtomicBool::new(false);
    let (answered, lost) = thread::scope(|scope| {
        let pings = scope.spawn(|| keep_pinging(ours.pod(0)?.namespace(), target, &stop));
        let change = || {
            for (flags, kind_then) in [(ENGINE, "tun"), (KERNEL, "vxlan"), (ENGINE, "tun"), (KERNEL, "vxlan")]
            {
                let node = &ours.cluster.nodes()[1];
                end(daemon)?;
                daemon = Daemon::spawn(node, dir, flags)?;
                let env = daemon.ready()?;
                ensure!(env == ours.envs[1], "another subnet or MTU: {env:?}");
                for device in ["flannel.1", "flannel-v6.1"] {
                    let is = kind(node, device)?;
                    ensure!(is.as_deref() == Some(kind_then), "{device} is {is:?}: {}", daemon.log());
                }
                ensure!(lease(dir, "192.0.2.2")? == published, "another lease");
                for family in [Family::V4, Family::V6] {
                    let back = reach::path(ours.pod(1)?, ours.pod(0)?, family)?;
                    reach::ping(back)?;
                    reach::transfer(back, 2_000_000)?;
                }
                ensure!(host(&peer)? == seen, "the peer changed:\n{:#?}\n{seen:#?}", host(&peer)?);
            }
            Ok(daemon)
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        let pings = pings.join().map_err(|_| anyhow::anyhow!("the pings panicked"))??;
        end(changed?)?;
        anyhow::Ok(pings)
    })?;
    ensure!(answered > lost, "{answered} pings were answered and {lost} were not");
    let new = ours.daemons[0].log().replacen(&said, "", 1);
    ensure!(!new.contains("a node changed") && !new.contains("a node left"), "the peer was told: {new}");
    ours.daemons.into_iter().try_for_each(end)
}

fn whatever_is_changed_by_hand_comes_back(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let ours = Ours::start_with(&Plan::nodes(2), scene.dir(), &net_conf("vxlan", Inner::Dual), KERNEL)?;
    ours.all_reach_each_other()?;
    let node = ours.cluster.nodes()[0].namespace();
    let good = host(node)?;
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
    ];
    for (name, harm) in harms {
        harm().with_context(|| name.to_owned())?;
        until(name, || Ok(host(node)? == good && ra()? == "0"))
            .with_context(|| format!("{name}:\n{:#?}\n{good:#?}\n{}", host(node), ours.daemons[0].log()))?;
        ours.all_reach_each_other().with_context(|| name.to_owned())?;
    }
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
    let good = host(node)?;
    netlink::inside(node, async |kernel: Kernel| {
        for route in kernel.all_routes().await? {
            if route.protocol == RouteProtocol::FLANNEL_RS {
                kernel.delete_route(&route).await?;
            }
        }
        Ok(())
    })?;
    until("the routes come back", || Ok(host(node)? == good))?;
    ours.all_reach_each_other()?;
    ours.daemons.into_iter().try_for_each(end)
}

const GHOST: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;

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
        let host = host(node.namespace())?;
        let hits =
            host.iter().filter(|line| line.contains("10.5.200.0") || line.contains("02:00:00:00:00:09"));
        anyhow::Ok(hits.count())
    };
    ensure!(of_ghost()? == 3, "a route, a neighbour, an entry: {:?}", host(node.namespace())?);
    let index = |kernel: Kernel| async move {
        Ok(kernel.link("flannel.1").await?.map(|link| (link.index, link.mac)))
    };
    let before = netlink::inside(node.namespace(), index)?;
    daemon.kill()?;
    ensure!(of_ghost()? == 3, "a daemon that dies takes nothing along");
    fs::remove_file(dir.join("store/subnets/10.5.200.0-24"))?;
    let daemon = Daemon::spawn(node, dir, KERNEL)?;
    daemon.ready()?;
    ensure!(of_ghost()? == 0, "{:?}", host(node.namespace())?);
    ensure!(netlink::inside(node.namespace(), index)? == before, "the device was made again");
    end(daemon)
}

fn a_change_of_backend_leaves_nothing_of_the_other(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(2) })?;
    let conf = |backend: &str| format!(r#"{{"Network": "10.5.0.0/16", "Backend": {{{backend}}}}}"#);
    let mut first = true;
    for (backend, flags, devices, route) in [
        (r#""Type": "vxlan""#, KERNEL, &["flannel.1"][..], "dev flannel.1 proto 157 onlink"),
        (r#""Type": "host-gw""#, ENGINE, &[], "dev eth0 proto 157"),
        (r#""Type": "vxlan", "VNI": 7"#, KERNEL, &["flannel.7"], "dev flannel.7 proto 157 onlink"),
        (r#""Type": "vxlan""#, ENGINE, &["flannel.1"], "dev flannel.1 proto 157 scope 253"),
        (r#""Type": "udp""#, ENGINE, &["flannel0"], "10.5.0.0/16 dev flannel0 proto 157"),
        (r#""Type": "vxlan", "VNI": 9"#, KERNEL, &["flannel.9"], "dev flannel.9 proto 157 onlink"),
        (r#""Type": "vxlan", "VNI": 7"#, ENGINE, &["flannel.7"], "dev flannel.7 proto 157 scope 253"),
    ] {
        let case = |cluster: &mut Cluster| {
            write_config(dir, &conf(backend))?;
            let daemons = cluster
                .nodes()
                .iter()
                .map(|node| Daemon::spawn(node, dir, flags))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let envs = daemons.iter().map(Daemon::ready).collect::<anyhow::Result<Vec<_>>>()?;
            if first {
                for (node, env) in cluster.nodes_mut().iter_mut().zip(&envs) {
                    node.add_pod(&pod_network(env))?;
                }
            }
            until("pods reach each other", || {
                let matrix = cluster.matrix(Duration::from_secs(1))?;
                Ok(matrix.iter().all(|cell| cell.answer.microseconds().is_some()))
            })
            .with_context(|| daemons[0].log())?;
            let host = host(cluster.nodes()[0].namespace())?;
            let present: Vec<&str> = host
                .iter()
                .filter_map(|line| line.strip_prefix("link flannel").map(|_| line.split(' ').nth(1)))
                .flatten()
                .collect();
            ensure!(present == devices, "{present:?}");
            let into: Vec<_> = host
                .iter()
                .filter(|line| line.starts_with("route 10.5.") && line.contains("proto 157"))
                .collect();
            ensure!(into.len() == 1 && into[0].ends_with(route), "{into:?}");
            daemons.into_iter().try_for_each(end)
        };
        case(&mut cluster).with_context(|| format!("{backend} {flags:?}"))?;
        first = false;
    }
    Ok(())
}

fn what_flannel_left_goes_and_what_others_made_stays(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let node = &cluster.nodes()[0];
    write_config(dir, &net_conf("vxlan", Inner::V4))?;
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
            kernel.add_address(device, net("10.5.33.0/32")?).await?;
        }
        let mac = [2, 0, 0, 0, 0, 0x33];
        let ip = "10.5.34.0".parse()?;
        kernel.replace_neighbour(&Neighbour { device: "flannel.1".into(), ip, mac }).await?;
        let dst = "192.0.2.34".parse()?;
        kernel.replace_fdb(&FdbEntry { device: "flannel.1".into(), mac, dst }).await?;
        let tunnelled =
            Route { via: Some(ip), onlink: true, ..Route::new(net("10.5.34.0/24")?, "flannel.1") };
        kernel.replace_route(&tunnelled).await?;
        let gateway = Route { via: Some("192.0.2.35".parse()?), ..Route::new(net("10.5.35.0/24")?, "eth0") };
        kernel.replace_route(&gateway).await?;
        // Somebody else's: a device of a like name, a route that is marked, one outside the network, one of a pod.
        kernel.add_bridge("flannel.77").await?;
        kernel.set_link("flannel.77", &up).await?;
        let marked = Route {
            protocol: RouteProtocol::STATIC,
            ..Route { dest: net("10.5.36.0/24")?, ..gateway.clone() }
        };
        kernel.replace_route(&marked).await?;
        kernel.replace_route(&Route { dest: net("10.99.0.0/16")?, ..gateway }).await?;
        Ok(kernel.replace_route(&Route::new(net("10.5.37.5/32")?, "flannel.77")).await?)
    })?;
    let daemon = Daemon::spawn(node, dir, KERNEL)?;
    daemon.ready()?;
    let host = host(node.namespace())?.join("\n");
    for gone in ["10.5.33.0", "10.5.34.0", "10.5.35.0", "02:00:00:00:00:33", "flannel.42"] {
        ensure!(!host.contains(gone), "{gone} is left:\n{host}\n{}", daemon.log());
    }
    for kept in
        ["link flannel.77", "10.5.36.0/24 via 192.0.2.35", "10.99.0.0/16", "10.5.37.5/32 dev flannel.77"]
    {
        ensure!(host.contains(kept), "{kept} went:\n{host}\n{}", daemon.log());
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

fn direct_routing_uses_the_link_and_answers_either_way(scene: &Scene) -> anyhow::Result<()> {
    needs_kernel_vxlan()?;
    let dir = scene.dir();
    let conf = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    write_config(dir, conf)?;
    // A node that is not on the link.
    publish(dir, "10.5.200.0-24", &GHOST.replace("192.0.2.9", "198.51.100.9"))?;
    let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(3) })?;
    let mut daemons = BTreeMap::new();
    for (index, flags) in [(0, KERNEL), (1, ENGINE)] {
        daemons.insert(index, Daemon::spawn(&cluster.nodes()[index], dir, flags)?);
    }
    // The third has a store of its own view: it knows of no direct routing.
    let tunnelling = dir.join("tunnelling");
    fs::create_dir_all(&tunnelling)?;
    fs::write(tunnelling.join("config"), conf.replace("true", "false"))?;
    let mut command = daemon::command(cluster.nodes()[2].name(), dir)?;
    std::os::unix::fs::symlink(dir.join("store/subnets"), tunnelling.join("subnets"))?;
    command.arg(format!("--file-subnet-mgr={}", tunnelling.display())).args(KERNEL);
    let process = cluster.nodes()[2].spawn(command)?;
    daemons.insert(2, Daemon::of(process, daemon::subnet_file(cluster.nodes()[2].name(), dir)));
    for (index, node) in cluster.nodes_mut().iter_mut().enumerate() {
        let env = daemons[&index].ready()?;
        ensure!(env.mtu == 1450, "peers off the link need the room: {env:?}");
        node.add_pod(&pod_network(&env))?;
    }
    until("pods reach each other", || {
        let matrix = cluster.matrix(Duration::from_secs(1))?;
        Ok(matrix.iter().all(|cell| cell.answer.microseconds().is_some()))
    })?;
    for index in [0, 1] {
        let host = host(cluster.nodes()[index].namespace())?;
        let direct =
            host.iter().filter(|line| line.starts_with("route 10.5.") && line.contains("dev eth0 proto 157"));
        ensure!(direct.count() == 2, "{host:#?}");
        ensure!(
            host.iter().any(|line| line.contains("10.5.200.0/24") && line.contains("dev flannel.1")),
            "{host:#?}"
        );
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let pod = |index: usize| cluster.nodes()[index].pods().first().context("a pod");
        reach::transfer(reach::path(pod(from)?, pod(to)?, Family::V4)?, 10_000_000)?;
    }
    daemons.into_values().try_for_each(end)
}

fn explain_prints_the_decision_and_changes_nothing(scene: &Scene) -> anyhow::Result<()> {
    let dir = scene.dir();
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let node = &cluster.nodes()[0];
    write_config(dir, &net_conf("vxlan", Inner::V4))?;
    publish(dir, "10.5.200.0-24", GHOST)?;
    let files = || {
        let mut files = Vec::new();
        let mut left = vec![dir.to_owned()];
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(next)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    left.push(entry.path());
                }
                files.push((entry.path(), entry.metadata()?.modified()?));
            }
        }
        files.sort();
        anyhow::Ok(files)
    };
    let explain = |flags: &[&str]| {
        let daemon = daemon::command(node.name(), dir)?;
        let mut command = std::process::Command::new(daemon.get_program());
        command.arg("explain").args(daemon.get_args()).args(flags);
        command.stdout(std::process::Stdio::piped());
        let before = (host(node.namespace())?, files()?);
        let output = node.namespace().run("explain", || command.output())??;
        let after = (host(node.namespace())?, files()?);
        ensure!(after == before, "it changed something: {before:#?}\n{after:#?}");
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let text = explain(&["--engine=auto"])?;
    for part in [
        "backend vxlan",
        "interface  eth0 (192.0.2.1, mtu 1500)",
        "1. vxlan in the kernel: ",
        "lease      none yet",
    ] {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    let forced = explain(&["--engine=always"])?;
    ensure!(forced.contains("passed over, --engine=always forces the engine"), "{forced}");
    // With a lease the plan is told as well, and where the kernel carries on there is nothing left to do.
    let daemon = Daemon::spawn(node, dir, &["--engine=auto"])?;
    daemon.ready()?;
    end(daemon)?;
    let left = kind(node, "flannel.1")?;
    let done = explain(&["--engine=auto"])?;
    ensure!(done.contains("this node's already"), "{done}");
    ensure!(left.as_deref() != Some("vxlan") || done.contains("plan       nothing"), "{done}");
    let other = explain(&["--engine=always"])?;
    ensure!(other.contains("run an engine on flannel.1, vxlan port 8472"), "{other}");
    Ok(())
}
