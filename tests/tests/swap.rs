//! The way from flannel to ours and back, node by node, with real flannel: the device, its MAC, the lease and `subnet.env` stay,
//! and not one packet between pods is lost.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, Node, Plan, Scene};
use promises::cluster::{Inner, net_conf};
use promises::daemon::{Daemon, PATIENCE, pod_network};
use promises::{flannel, harness, netlink, reach};

use Kind::{Flannel, Ours};

fn main() -> ExitCode {
    harness::of_flannel("promise-swap", lab::cases![one_node_after_the_other_moves_and_moves_back])
}

/// Whose program a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flannel,
    Ours,
}

fn spawn(kind: Kind, node: &Node, dir: &Path) -> anyhow::Result<Daemon> {
    match kind {
        Flannel => flannel::spawn(node, dir),
        Ours => Daemon::spawn(node, dir, &["--engine=never"]),
    }
}

/// What a swap must leave as it is: the VXLAN device, which the kernel knows by its number, and what the node publishes.
#[derive(Debug, PartialEq, Eq)]
struct Face {
    device: (u32, Option<[u8; 6]>),
    subnet_env: String,
    leases: BTreeMap<String, serde_json::Value>,
}

fn face(node: &Node, daemon: &Daemon, dir: &Path) -> anyhow::Result<Face> {
    let device = netlink::inside(node.namespace(), async |kernel: Kernel| {
        let link = kernel.links().await?.into_iter().find(|link| link.name == "flannel.1");
        let link = link.context("flannel.1")?;
        Ok((link.index, link.mac))
    })?;
    let mut leases = BTreeMap::new();
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let mut lease: serde_json::Value = serde_json::from_slice(&fs::read(entry.path())?)?;
            lease.as_object_mut().context("an object")?.remove("Expiry");
            leases.insert(name, lease);
        }
    }
    Ok(Face { device, subnet_env: fs::read_to_string(daemon.subnet_file())?, leases })
}

/// Pings until it is told to stop; answers how many came back, and how many did not. An answer that is late on a busy
/// machine is not lost.
fn keep_pinging(from: &NetNs, to: IpAddr, stop: &AtomicBool) -> anyhow::Result<(u32, u32)> {
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let ping = Ping { timeout: Duration::from_secs(2), ..Ping::new(to) };
        match ping.send_from(from)? {
            Answer::Echo { .. } => answered += 1,
            _ => lost += 1,
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok((answered, lost))
}

fn one_node_after_the_other_moves_and_moves_back(scene: &Scene) -> anyhow::Result<()> {
    let dir = scene.dir();
    fs::create_dir_all(dir.join("store"))?;
    fs::write(dir.join("store/config"), net_conf("vxlan", Inner::V4))?;
    let mut cluster = Cluster::build(&Plan::pair())?;
    let mut daemons = Vec::new();
    for index in 0..2 {
        let daemon = spawn(Flannel, &cluster.nodes()[index], dir)?;
        let env = daemon.ready().map_err(|error| {
            match format!("{error:#}").contains("operation not supported") {
                true => lab::skip("the kernel has no VXLAN"),
                false => error,
            }
        })?;
        cluster.nodes_mut()[index].add_pod(&pod_network(&env))?;
        daemons.push(daemon);
    }
    let pods: Vec<_> = cluster.pods().collect();
    let both_ways = || {
        for (from, to) in [(0, 1), (1, 0)] {
            let path = reach::path(pods[from], pods[to], Family::V4)?;
            reach::ping(path)?;
            reach::transfer(path, 5_000_000)?;
        }
        anyhow::Ok(())
    };
    both_ways().context("flannel by itself")?;
    let target = pods[1].v4().context("an address")?;
    let stop = AtomicBool::new(false);
    let (answered, lost) = thread::scope(|scope| {
        let pings = scope.spawn(|| keep_pinging(pods[0].namespace(), target, &stop));
        let mut moves = || {
            for (index, kind) in [(1, Ours), (0, Ours), (1, Flannel), (0, Flannel), (0, Ours), (0, Flannel)] {
                let node = &cluster.nodes()[index];
                let before = face(node, &daemons[index], dir)?;
                let mut last = daemons.remove(index);
                let status = last.process().terminate(PATIENCE)?;
                ensure!(status.success(), "it ended with {status}:\n{}", last.log());
                daemons.insert(index, spawn(kind, node, dir)?);
                daemons[index].ready()?;
                let after = face(node, &daemons[index], dir)?;
                let log = || format!("node {index} to {kind:?}: {}", daemons[index].log());
                ensure!(after == before, "{}\n{before:#?}\n{after:#?}", log());
                both_ways().with_context(log)?;
            }
            Ok(())
        };
        let moved = moves();
        stop.store(true, Ordering::Relaxed);
        let pings = pings.join().map_err(|_| anyhow::anyhow!("the pings panicked"))??;
        moved.map(|()| pings)
    })?;
    ensure!(answered > 50, "only {answered} pings");
    ensure!(lost == 0, "{lost} of {} pings were lost", answered + lost);
    Ok(())
}
