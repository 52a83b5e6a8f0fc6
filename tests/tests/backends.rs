//! Backends: kernel VXLAN, host-gw, alloc and the engine carry the same pods, take each other's place, and clean up after
//! each other. (What comes back after a change by hand is in `drift.rs`.)

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use hostnet::netns::NetNs;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, Plan, Scene, Underlay};
use promises::cluster::{Inner, Ours, daemons, net_conf};
use promises::daemon::{self, Daemon, pod_network};
use promises::host::{self, ENGINE, KERNEL, end, kind, needs_kernel_vxlan, until};
use promises::lease_dir::{GHOST, lease, publish, write_config};
use promises::{harness, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-backend",
        lab::cases![
            kernel_vxlan_carries_pods_and_goes_on_without_the_daemon,
            host_gw_carries_pods_without_a_tunnel,
            alloc_writes_the_file_and_nothing_more,
            kernel_nodes_and_engine_nodes_carry_each_others_pods,
            a_node_goes_from_engine_to_kernel_and_back_and_peers_notice_nothing,
            a_change_of_backend_leaves_nothing_of_the_other,
            direct_routing_uses_the_link_and_answers_either_way,
            explain_prints_the_decision_and_changes_nothing,
        ],
    )
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
    let before = host::state(node.namespace())?;
    let daemon = Daemon::spawn(node, scene.dir(), ENGINE)?;
    let env = daemon.ready()?;
    ensure!(env.mtu == 1500 && env.subnets.len() == 2, "{env:?}");
    ensure!(host::state(node.namespace())? == before, "{:?}", host::state(node.namespace())?);
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

/// Pings until it is told to stop, and counts what came back.
fn keep_pinging(from: &NetNs, to: IpAddr, answered: &AtomicU32, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let ping = Ping { timeout: Duration::from_millis(200), ..Ping::new(to) };
        if let Answer::Echo { .. } = ping.send_from(from)? {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
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
    let seen = host::state(&peer)?;
    let said = ours.daemons[0].log();
    let target = ours.pod(1)?.v4().context("an address")?;
    let (answered, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let pings = scope.spawn(|| keep_pinging(ours.pod(0)?.namespace(), target, &answered, &stop));
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
                // How many are lost meanwhile is how long a daemon takes to start on this machine.
                let so_far = answered.load(Ordering::Relaxed);
                until("the peer's pings are answered again", || {
                    Ok(answered.load(Ordering::Relaxed) > so_far)
                })?;
                for family in [Family::V4, Family::V6] {
                    let back = reach::path(ours.pod(1)?, ours.pod(0)?, family)?;
                    reach::ping(back)?;
                    reach::transfer(back, 2_000_000)?;
                }
                ensure!(
                    host::state(&peer)? == seen,
                    "the peer changed:\n{:#?}\n{seen:#?}",
                    host::state(&peer)?
                );
            }
            Ok(daemon)
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        pings.join().map_err(|_| anyhow::anyhow!("the pings panicked"))??;
        end(changed?)
    })?;
    let new = ours.daemons[0].log().replacen(&said, "", 1);
    ensure!(!new.contains("a node changed") && !new.contains("a node left"), "the peer was told: {new}");
    ours.daemons.into_iter().try_for_each(end)
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
            let (daemons, envs) = daemons(cluster, dir, flags)?;
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
            let there = host::state(cluster.nodes()[0].namespace())?;
            let present: Vec<&str> = there
                .iter()
                .filter_map(|line| line.strip_prefix("link flannel").map(|_| line.split(' ').nth(1)))
                .flatten()
                .collect();
            ensure!(present == devices, "{present:?}");
            let into: Vec<_> = there
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
        let there = host::state(cluster.nodes()[index].namespace())?;
        let direct = there
            .iter()
            .filter(|line| line.starts_with("route 10.5.") && line.contains("dev eth0 proto 157"));
        ensure!(direct.count() == 2, "{there:#?}");
        ensure!(
            there.iter().any(|line| line.contains("10.5.200.0/24") && line.contains("dev flannel.1")),
            "{there:#?}"
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
        let before = (host::state(node.namespace())?, files()?);
        let output = node.namespace().run("explain", || command.output())??;
        let after = (host::state(node.namespace())?, files()?);
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
