//! The store goes away, comes back, forgets; the daemon dies: pods' packets go on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use lab::traffic::tcp;
use lab::{Cluster, Plan, Scene, Underlay};
use nix::sys::signal::{Signal, kill};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{Daemon, PATIENCE};
use promises::host::until;
use promises::{harness, netlink, pinger, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-outage",
        lab::cases![
            a_store_that_goes_away_costs_no_packet,
            a_store_that_is_emptied_costs_no_packet,
            a_node_that_starts_without_its_store_forwards_and_says_that_it_is_stale,
            without_store_and_cache_a_node_waits_and_says_for_what,
            a_cache_that_is_not_ours_is_passed_over,
            another_network_in_the_store_is_taken_up_after_a_stale_start,
            a_configuration_that_is_refused_ends_the_start_whatever_the_last_run_was,
            most_nodes_vanishing_at_once_are_kept_for_a_while,
            a_hangup_looks_again_at_once,
            twenty_crashes_under_a_transfer_reset_no_connection,
            the_kernels_vxlan_outlives_the_store_and_the_daemon,
        ],
    )
}

fn v4_plan(nodes: usize) -> Plan {
    Plan { underlay: Underlay::V4, ..Plan::nodes(nodes) }
}

/// What a node's kernel routes into the overlay, as text.
fn overlay_routes(namespace: &NetNs) -> anyhow::Result<Vec<String>> {
    netlink::inside(namespace, async |kernel: Kernel| {
        let routes = kernel.routes().await?;
        Ok(routes.iter().filter(|route| route.device == "flannel.1").map(ToString::to_string).collect())
    })
}

fn lease_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Leases by file name, without their ends.
fn leases(dir: &Path) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    let read = |path: PathBuf| {
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        value.as_object_mut().context("a lease is an object")?.remove("Expiry");
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        Ok((name, value))
    };
    lease_files(dir)?.into_iter().map(read).collect()
}

/// Publishes a node that is not there.
fn publish(dir: &Path, third: u8) -> anyhow::Result<()> {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{third}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{third:02x}"}}}}"#
    );
    let aside = dir.join("aside");
    fs::write(&aside, value)?;
    Ok(fs::rename(aside, dir.join("store/subnets").join(format!("10.5.{third}.0-24")))?)
}

fn a_store_that_goes_away_costs_no_packet(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let before = leases(scene.dir())?;
    let (store, away) = (scene.dir().join("store"), scene.dir().join("away"));
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    let node = ours.cluster.nodes()[0].namespace();
    pinger::without_a_loss(path, || {
        fs::rename(&store, &away)?;
        for daemon in &ours.daemons {
            daemon.wait_for_line("keeping the leases that are known")?;
        }
        // Meanwhile the host is looked after as ever.
        let mtu = |mtu| LinkSettings { mtu: Some(mtu), ..LinkSettings::default() };
        netlink::inside(node, async |kernel: Kernel| Ok(kernel.set_link("flannel.1", &mtu(1440)).await?))?;
        until("the device has its MTU again", || {
            netlink::inside(node, async |kernel: Kernel| {
                Ok(kernel.link("flannel.1").await?.is_some_and(|link| link.mtu == 1450))
            })
        })?;
        fs::rename(&away, &store)?;
        for daemon in &ours.daemons {
            daemon.wait_for_line("can be read again")?;
        }
        Ok(())
    })?;
    ensure!(leases(scene.dir())? == before, "{:?}", leases(scene.dir())?);
    ours.stop().map(drop)
}

/// As after a wrong `rm`: every node publishes itself again, and until then nobody forgets anybody.
fn a_store_that_is_emptied_costs_no_packet(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&v4_plan(3), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let before = leases(scene.dir())?;
    let path = reach::path(ours.pod(0)?, ours.pod(2)?, Family::V4)?;
    pinger::without_a_loss(path, || {
        let (subnets, aside) = (scene.dir().join("store/subnets"), scene.dir().join("aside"));
        fs::rename(&subnets, &aside)?;
        fs::create_dir(&subnets)?;
        until("every lease is there again", || Ok(leases(scene.dir())? == before))?;
        ours.all_reach_each_other()
    })?;
    ours.stop().map(drop)
}

fn a_node_that_starts_without_its_store_forwards_and_says_that_it_is_stale(
    scene: &Scene,
) -> anyhow::Result<()> {
    let mut ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let before = leases(scene.dir())?;
    let (store, away) = (scene.dir().join("store"), scene.dir().join("away"));
    let cache = scene.dir().join("node-a/leases.json");
    let peer = ours.envs[1].subnets[0].to_string().replace('/', "-");
    until("the cache knows the peer", || {
        Ok(fs::read_to_string(&cache).is_ok_and(|text| text.contains(&peer)))
    })?;
    ours.daemons.remove(0).stop()?;
    fs::rename(&store, &away)?;

    let again = Daemon::spawn(&ours.cluster.nodes()[0], scene.dir(), &[])?;
    ensure!(again.ready()? == ours.envs[0], "another subnet");
    let said = again.wait_for_line("which may be stale")?;
    ensure!(said.contains("no network configuration") && said.contains("\"leases\":1"), "{said}");
    ours.daemons.insert(0, again);
    ours.all_reach_each_other()?;
    ensure!(!store.exists(), "it made a store of its own");

    let device = |node: &NetNs| {
        netlink::inside(node, async |kernel: Kernel| {
            Ok(kernel.link("flannel.1").await?.map(|link| link.index))
        })
    };
    let index = device(ours.cluster.nodes()[0].namespace())?;
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    pinger::without_a_loss(path, || {
        fs::rename(&away, &store)?;
        ours.daemons[0].wait_for_line("the store is back")?;
        ours.daemons[0].wait_for_line("the leases are the store's again").map(drop)
    })?;
    ensure!(leases(scene.dir())? == before, "{:?}", leases(scene.dir())?);
    ensure!(device(ours.cluster.nodes()[0].namespace())? == index, "the device was made again");
    ours.stop().map(drop)
}

fn without_store_and_cache_a_node_waits_and_says_for_what(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let daemon = Daemon::spawn(&cluster.nodes()[0], scene.dir(), &[])?;
    let said = daemon.wait_for_line("trying again each second")?;
    ensure!(said.contains("no network configuration: looked for"), "{said}");
    fs::create_dir(scene.dir().join("store"))?;
    fs::write(scene.dir().join("store/config"), net_conf("vxlan", Inner::V4))?;
    daemon.ready()?;
    let count = daemon.log().lines().filter(|line| line.contains("trying again each second")).count();
    ensure!(count == 1, "said {count} times");
    daemon.stop()?;
    // One that waits ends on a signal, as one that works does.
    fs::rename(scene.dir().join("store"), scene.dir().join("away"))?;
    let mut waiting = Daemon::spawn(&cluster.nodes()[0], scene.dir(), &["--lease-cache=off"])?;
    waiting.wait_for_line("trying again each second")?;
    let status = waiting.process().terminate(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn a_cache_that_is_not_ours_is_passed_over(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    fs::create_dir(scene.dir().join("store"))?;
    fs::write(scene.dir().join("store/config"), net_conf("vxlan", Inner::V4))?;
    let node = &cluster.nodes()[0];
    let cache = scene.dir().join("node-a/leases.json");
    let first = Daemon::spawn(node, scene.dir(), &[])?;
    first.ready()?;
    until("the cache", || Ok(cache.exists()))?;
    first.stop()?;
    let good = fs::read_to_string(&cache)?;
    let (store, away) = (scene.dir().join("store"), scene.dir().join("away"));
    for (name, text, said) in [
        ("torn", good[..good.len() / 2].to_owned(), "is not what this program writes"),
        (
            "another node's",
            good.replace("192.0.2.1\"", "192.0.2.9\""),
            "of the node 192.0.2.9, and this one is 192.0.2.1",
        ),
        (
            "another store's",
            good.replace("/store\"", "/elsewhere\""),
            "/elsewhere, and this node's leases are in",
        ),
        ("nonsense", "\u{0}\u{ff}".repeat(1000), "is not what this program writes"),
        ("deep", "[".repeat(1_000_000), "is not what this program writes"),
    ] {
        let check = || {
            fs::rename(&store, &away)?;
            fs::write(&cache, &text)?;
            let daemon = Daemon::spawn(node, scene.dir(), &[])?;
            daemon.wait_for_line(said)?;
            daemon.wait_for_line("trying again each second")?;
            fs::rename(&away, &store)?;
            daemon.ready()?;
            ensure!(!daemon.log().contains("may be stale"), "{}", daemon.log());
            daemon.stop()
        };
        check().with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn another_network_in_the_store_is_taken_up_after_a_stale_start(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let (store, away) = (scene.dir().join("store"), scene.dir().join("away"));
    fs::create_dir(&store)?;
    fs::write(store.join("config"), net_conf("vxlan", Inner::V4))?;
    let node = &cluster.nodes()[0];
    let first = Daemon::spawn(node, scene.dir(), &[])?;
    let env = first.ready()?;
    until("the cache", || Ok(scene.dir().join("node-a/leases.json").exists()))?;
    first.stop()?;
    fs::rename(&store, &away)?;
    let again = Daemon::spawn(node, scene.dir(), &[])?;
    ensure!(again.ready()? == env);
    fs::write(away.join("config"), net_conf("udp", Inner::V4))?;
    fs::rename(&away, &store)?;
    again.wait_for_line("another network configuration")?;
    until("the other backend's device", || {
        netlink::inside(node.namespace(), async |kernel: Kernel| {
            Ok(kernel.link("flannel0").await?.is_some_and(|link| link.up)
                && kernel.link("flannel.1").await?.is_none())
        })
    })?;
    until("the other MTU", || Ok(fs::read_to_string(again.subnet_file())?.contains("MTU=1472")))?;
    again.stop().map(drop)
}

/// What the operator wrote is not overruled by the last run.
fn a_configuration_that_is_refused_ends_the_start_whatever_the_last_run_was(
    scene: &Scene,
) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    fs::create_dir(scene.dir().join("store"))?;
    let config = scene.dir().join("store/config");
    fs::write(&config, net_conf("vxlan", Inner::V4))?;
    let node = &cluster.nodes()[0];
    let first = Daemon::spawn(node, scene.dir(), &[])?;
    first.ready()?;
    until("the cache", || Ok(scene.dir().join("node-a/leases.json").exists()))?;
    first.stop()?;
    for (text, said) in [
        (net_conf("wireguard", Inner::V4), "comes with a later version"),
        (net_conf("vxlam", Inner::V4), "vxlam"),
        ("{".to_owned(), "config:1"),
    ] {
        fs::write(&config, &text)?;
        let log = Daemon::spawn(node, scene.dir(), &[])?.ends_with_an_error()?;
        ensure!(log.contains(said) && !log.contains("is ready"), "{text}: {log}");
    }
    Ok(())
}

fn most_nodes_vanishing_at_once_are_kept_for_a_while(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    fs::create_dir_all(scene.dir().join("store/subnets"))?;
    fs::write(scene.dir().join("store/config"), net_conf("vxlan", Inner::V4))?;
    for third in 101..109 {
        publish(scene.dir(), third)?;
    }
    let node = &cluster.nodes()[0];
    let daemon = Daemon::spawn(node, scene.dir(), &["--hold-back=8"])?;
    daemon.ready()?;
    let all = overlay_routes(node.namespace())?;
    ensure!(all.len() >= 8, "{all:?}");
    let vanish = |range: std::ops::Range<u8>| {
        // At once for whoever looks at the directory.
        let (subnets, aside) = (scene.dir().join("store/subnets"), scene.dir().join("subnets"));
        fs::rename(&subnets, &aside)?;
        for third in range {
            fs::remove_file(aside.join(format!("10.5.{third}.0-24")))?;
        }
        fs::rename(&aside, &subnets)
    };
    vanish(101..106)?;
    let said = daemon.wait_for_line("most nodes vanished")?;
    ensure!(
        said.contains("\"missing\":5") && said.contains("\"known\":8") && said.contains("--hold-back"),
        "{said}"
    );
    ensure!(overlay_routes(node.namespace())? == all, "kept");
    for third in 101..106 {
        publish(scene.dir(), third)?;
    }
    daemon.wait_for_line("nodes that had vanished are back")?;
    ensure!(overlay_routes(node.namespace())? == all, "nothing was lost");
    vanish(101..109)?;
    daemon.wait_for_line("letting them go")?;
    until("no route is left", || Ok(overlay_routes(node.namespace())?.len() + 8 == all.len()))?;
    daemon.stop().map(drop)
}

fn a_hangup_looks_again_at_once(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    pinger::without_a_loss(path, || {
        for daemon in &ours.daemons {
            kill(daemon.pid(), Signal::SIGHUP)?;
            daemon.wait_for_line("SIGHUP: looking at the store and the host again")?;
        }
        ours.all_reach_each_other()
    })?;
    ours.stop().map(drop)
}

/// As for want of memory, at any time, and a supervisor that starts it again at once.
fn twenty_crashes_under_a_transfer_reset_no_connection(scene: &Scene) -> anyhow::Result<()> {
    let mut ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let published = leases(scene.dir())?;
    let node_a = &ours.cluster.nodes()[0];
    let routes = overlay_routes(node_a.namespace())?;
    let mut daemon = ours.daemons.remove(0);
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    let plan = tcp::Transfer { rate: Some(6e7), ..tcp::Transfer::bytes(150_000_000).checked() };
    let mut random = fastrand::Rng::with_seed(7);
    let (report, daemon) = thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp::transfer(path, &plan));
        for round in 0..20 {
            // Somewhere between its first packet and its quiet life.
            thread::sleep(Duration::from_millis(random.u64(0..150)));
            daemon.kill()?;
            daemon = Daemon::spawn(node_a, scene.dir(), &[])?;
            ensure!(daemon.ready()? == ours.envs[0], "round {round}: another subnet");
            ensure!(leases(scene.dir())? == published, "round {round}: {:?}", leases(scene.dir())?);
            ensure!(overlay_routes(node_a.namespace())? == routes, "round {round}: other routes");
        }
        ensure!(!transfer.is_finished(), "the transfer was over too soon");
        let report = transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))??;
        anyhow::Ok((report, daemon))
    })?;
    ensure!(report.integrity.is_some_and(|integrity| integrity.intact()), "the content differs");
    ours.daemons.push(daemon);
    ours.stop().map(drop)
}

/// The kernel carries the packets: a daemon that dies while its store is away, and starts again, costs none.
fn the_kernels_vxlan_outlives_the_store_and_the_daemon(scene: &Scene) -> anyhow::Result<()> {
    let flags = ["--engine=never"];
    let plan = v4_plan(2);
    let mut ours =
        Ours::start_with(&plan, scene.dir(), &net_conf("vxlan", Inner::V4), &flags).map_err(|error| {
            match format!("{error:#}").contains("EOPNOTSUPP") {
                true => lab::skip("the kernel has no VXLAN"),
                false => error,
            }
        })?;
    ours.all_reach_each_other()?;
    let node = &ours.cluster.nodes()[0];
    let device = || {
        netlink::inside(node.namespace(), async |kernel: Kernel| {
            Ok(kernel.link("flannel.1").await?.map(|link| (link.index, link.mac)))
        })
    };
    let (before, routes, published) = (device()?, overlay_routes(node.namespace())?, leases(scene.dir())?);
    let (store, away) = (scene.dir().join("store"), scene.dir().join("away"));
    let (cache, peer) = (scene.dir().join("node-a/leases.json"), ours.envs[1].subnets[0]);
    let peer = peer.to_string().replace('/', "-");
    until("the cache knows the peer", || {
        Ok(fs::read_to_string(&cache).is_ok_and(|text| text.contains(&peer)))
    })?;
    let mut daemon = ours.daemons.remove(0);
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    let daemon = pinger::without_a_loss(path, || {
        fs::rename(&store, &away)?;
        for round in 0..5 {
            daemon.kill()?;
            daemon = Daemon::spawn(node, scene.dir(), &flags)?;
            ensure!(daemon.ready()? == ours.envs[0], "round {round}: another subnet");
            daemon.wait_for_line("which may be stale")?;
            ensure!(device()? == before, "round {round}: another device");
            ensure!(overlay_routes(node.namespace())? == routes, "round {round}: other routes");
        }
        fs::rename(&away, &store)?;
        daemon.wait_for_line("the leases are the store's again")?;
        Ok(daemon)
    })?;
    ensure!(leases(scene.dir())? == published, "{:?}", leases(scene.dir())?);
    drop(daemon);
    Ok(())
}
