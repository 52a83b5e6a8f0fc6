//! `flanneld` as a user runs it: real processes on nodes of a lab, what they publish, mend and refuse.

use std::fs;

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane_core::IpNet;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::state::RouteProtocol;
use hostnet::subnet_env::SubnetEnv;
use lab::cluster::process::Process;
use lab::scene::Scene;
use lab::traffic::ping::Ping;
use lab::{Cluster, Plan, Underlay};
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    lab::harness(
        "flanneld-tests",
        lab::cases![
            nodes_reach_each_other_by_either_backend_and_family,
            the_file_is_written_when_the_routes_are_there,
            nothing_is_ready_before_the_file_is_written,
            what_somebody_deletes_comes_back,
            a_killed_node_comes_back_with_its_subnet_and_mac,
            a_forgotten_lease_is_found_again_by_the_files,
            a_node_that_leaves_takes_its_route_along,
            a_spoiled_lease_costs_nobody_a_route,
            a_lost_lease_ends_the_daemon_and_stays_lost,
            a_hostile_lease_makes_no_loop,
            starts_that_cannot_work_say_what_to_do,
            a_stopped_daemon_leaves_no_device,
            the_daemon_ends_with_its_parent,
        ],
    )
}

const READY: &str = "flannel is ready";
const PATIENCE: Duration = Duration::from_secs(20);

const VXLAN: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// Nodes, one lease directory, and one directory a node for its own files.
struct Stage<'a> {
    scene: &'a Scene,
    cluster: Cluster,
}

impl<'a> Stage<'a> {
    fn set(scene: &'a Scene, nodes: usize, config: &str) -> anyhow::Result<Self> {
        Self::on(scene, &Plan::nodes(nodes), config)
    }

    fn on(scene: &'a Scene, plan: &Plan, config: &str) -> anyhow::Result<Self> {
        let stage = Self { scene, cluster: Cluster::build(plan)? };
        fs::create_dir(stage.leases())?;
        fs::write(stage.leases().join("config"), config)?;
        Ok(stage)
    }

    fn leases(&self) -> PathBuf {
        self.scene.dir().join("leases")
    }

    fn namespace(&self, node: usize) -> &NetNs {
        self.cluster.nodes()[node].namespace()
    }

    fn subnet_file(&self, node: usize) -> PathBuf {
        self.scene.dir().join(format!("node-{node}")).join("subnet.env")
    }

    fn command(&self, node: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.arg("-file-subnet-mgr").arg(self.leases()).arg("-subnet-file").arg(self.subnet_file(node));
        command.arg("--engine=always");
        command
    }

    /// A daemon that is ready.
    fn start(&self, node: usize) -> anyhow::Result<Process> {
        let process = self.cluster.nodes()[node].spawn(self.command(node))?;
        process.wait_for_line(READY, PATIENCE)?;
        Ok(process)
    }

    /// The error of a daemon that cannot start; its status is 1.
    fn refusal(&self, node: usize, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(node);
        command.args(words);
        let mut process = self.cluster.nodes()[node].spawn(command)?;
        let status = process.wait(PATIENCE)?;
        let last = process.lines().pop().unwrap_or_default();
        ensure!(status.code() == Some(1), "ended with {status}: {last}");
        ensure!(last.contains("ERROR"), "the last line is no error: {last}");
        Ok(last)
    }

    fn env(&self, node: usize) -> anyhow::Result<SubnetEnv> {
        Ok(SubnetEnv::read(&self.subnet_file(node))?)
    }

    /// The lease file of a node.
    fn lease_file(&self, node: usize) -> anyhow::Result<PathBuf> {
        let address = self.cluster.nodes()[node].addresses().next().context("a node has an address")?;
        let own = format!("\"{address}\"");
        for entry in fs::read_dir(self.leases().join("subnets"))? {
            let path = entry?.path();
            if fs::read_to_string(&path)?.contains(&own) {
                return Ok(path);
            }
        }
        bail!("node {node} has no lease")
    }

    /// What `work` makes of the kernel's state in a node's namespace.
    fn kernel<T: Send>(
        &self,
        node: usize,
        work: impl AsyncFnOnce(Kernel) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.namespace(node).run("test-netlink", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(Kernel::connect().await?).await })
        })?
    }

    /// The node's routes by a device, as text, without those that the kernel makes by itself.
    fn routes(&self, node: usize, device: &str) -> anyhow::Result<Vec<String>> {
        self.kernel(node, async |kernel: Kernel| {
            let routes = kernel.routes().await?;
            let ours = routes
                .iter()
                .filter(|route| route.device == device && route.protocol != RouteProtocol::KERNEL);
            Ok(ours.map(ToString::to_string).collect())
        })
    }

    /// Every node's base address answers every other node, in every family.
    fn all_reach_all(&self) -> anyhow::Result<()> {
        for to in 0..self.cluster.nodes().len() {
            for subnet in self.env(to)?.subnets {
                for from in (0..self.cluster.nodes().len()).filter(|from| *from != to) {
                    reaches(self.namespace(from), subnet.network())
                        .with_context(|| format!("from node {from} to node {to}"))?;
                }
            }
        }
        Ok(())
    }
}

fn reaches(from: &NetNs, to: IpAddr) -> anyhow::Result<()> {
    // A node that has yet to learn of the other answers at once that there is nobody, so tries are not a time.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = Ping::new(to).send_from(from)?;
        if answer.microseconds().is_some() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{to} does not answer: {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Looks until it is so; the deadline is an error that says what was waited for.
fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn nodes_reach_each_other_by_either_backend_and_family(scene: &Scene) -> anyhow::Result<()> {
    const V6: &str = r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48""#;
    for (name, underlay, network, mtus) in [
        ("4", Underlay::V4, r#""Network": "10.5.0.0/16""#.to_owned(), [1450, 1472]),
        ("6", Underlay::V6, format!(r#""EnableIPv4": false, {V6}"#), [1430, 1452]),
        ("dual", Underlay::Dual, format!(r#""Network": "10.5.0.0/16", {V6}"#), [1430, 1452]),
    ] {
        for (kind, mtu) in ["vxlan", "udp"].into_iter().zip(mtus) {
            let config = format!(r#"{{{network}, "Backend": {{"Type": "{kind}"}}}}"#);
            let plan = Plan { underlay, ..Plan::nodes(3) };
            let stage = Stage::on(scene, &plan, &config)?;
            let flags = if name == "dual" { vec![] } else { vec!["-iface=eth0"] };
            let processes = (0..3)
                .map(|node| {
                    let mut command = stage.command(node);
                    command.args(&flags);
                    stage.cluster.nodes()[node].spawn(command)
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            for process in &processes {
                process.wait_for_line(READY, PATIENCE)?;
            }
            stage.all_reach_all().with_context(|| format!("{kind}, {name}"))?;
            for node in 0..3 {
                ensure!(stage.env(node)?.mtu == mtu, "{kind} {name}: MTU {}", stage.env(node)?.mtu);
            }
            drop(processes);
            fs::remove_dir_all(stage.leases())?;
            for node in 0..3 {
                fs::remove_dir_all(scene.dir().join(format!("node-{node}")))?;
            }
        }
    }
    Ok(())
}

fn the_file_is_written_when_the_routes_are_there(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let _first = stage.start(0)?;
    let peer = stage.env(0)?.subnets[0];
    let second = stage.cluster.nodes()[1].spawn(stage.command(1))?;
    until("subnet.env", || Ok(stage.subnet_file(1).exists()))?;
    let routes = stage.routes(1, "flannel.1")?;
    ensure!(routes == [format!("{peer} dev flannel.1 proto 157 scope 253")], "{routes:?}");
    drop(second);
    Ok(())
}

fn nothing_is_ready_before_the_file_is_written(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 1, VXLAN)?;
    // A directory stands where the file belongs.
    fs::create_dir_all(stage.subnet_file(0))?;
    let process = stage.cluster.nodes()[0].spawn(stage.command(0))?;
    process.wait_for_line("pods get no network until this works", PATIENCE)?;
    ensure!(!process.lines().iter().any(|line| line.contains(READY)), "{:?}", process.lines());
    fs::remove_dir(stage.subnet_file(0))?;
    process.wait_for_line(READY, PATIENCE)?;
    stage.env(0)?;
    Ok(())
}

fn what_somebody_deletes_comes_back(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let (_first, _second) = (stage.start(0)?, stage.start(1)?);
    stage.all_reach_all()?;
    let base = IpNet::from(stage.env(0)?.subnets[0].network());
    let expected = stage.routes(0, "flannel.1")?;
    let back = |what: &str| {
        until(what, || Ok(stage.routes(0, "flannel.1")? == expected))
            .with_context(|| format!("{:?}", stage.routes(0, "flannel.1")))?;
        stage.all_reach_all().with_context(|| what.to_owned())
    };
    stage.kernel(0, async |kernel: Kernel| {
        let routes = kernel.routes().await?;
        let ours = routes.iter().find(|route| route.device == "flannel.1").context("a route")?;
        Ok(kernel.delete_route(ours).await?)
    })?;
    back("the route")?;
    stage.kernel(0, async |kernel: Kernel| Ok(kernel.delete_address("flannel.1", base).await?))?;
    until("the address", || {
        stage.kernel(0, async |kernel: Kernel| {
            Ok(kernel.addresses().await?.iter().any(|address| address.net == base))
        })
    })?;
    back("the routes of the address")?;
    stage.kernel(0, async |kernel: Kernel| {
        let down = LinkSettings { up: Some(false), mtu: Some(1000), ..LinkSettings::default() };
        Ok(kernel.set_link("flannel.1", &down).await?)
    })?;
    until("the device is up again with its MTU", || {
        stage.kernel(0, async |kernel: Kernel| {
            Ok(kernel.link("flannel.1").await?.is_some_and(|link| link.up && link.mtu == 1450))
        })
    })?;
    back("the routes of the device")?;
    let index = |kernel: Kernel| async move {
        kernel.link("flannel.1").await.map(|link| link.map(|link| link.index))
    };
    let before = stage.kernel(0, async |kernel: Kernel| Ok(index(kernel).await?))?;
    stage.kernel(0, async |kernel: Kernel| Ok(kernel.delete_link("flannel.1").await?))?;
    until("another device", || {
        let after = stage.kernel(0, async |kernel: Kernel| Ok(index(kernel).await?))?;
        Ok(after.is_some() && after != before)
    })?;
    back("the routes of the new device")?;
    fs::remove_file(stage.subnet_file(0))?;
    until("subnet.env", || Ok(stage.subnet_file(0).exists()))?;
    let own = stage.lease_file(0)?;
    fs::remove_file(&own)?;
    until("the lease", || Ok(own.exists()))
}

fn a_killed_node_comes_back_with_its_subnet_and_mac(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let mut first = stage.start(0)?;
    let _second = stage.start(1)?;
    let (env, lease) = (stage.env(0)?, attributes(&stage.lease_file(0)?)?);
    for _ in 0..3 {
        first.kill()?;
        first = stage.start(0)?;
        ensure!(stage.env(0)? == env, "{} after {env}", stage.env(0)?);
        ensure!(attributes(&stage.lease_file(0)?)? == lease);
        stage.all_reach_all()?;
    }
    Ok(())
}

/// A lease without its end.
fn attributes(file: &std::path::Path) -> anyhow::Result<serde_json::Value> {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
    value.as_object_mut().context("a lease is an object")?.remove("Expiry");
    Ok(value)
}

fn a_forgotten_lease_is_found_again_by_the_files(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 1, VXLAN)?;
    let mut first = stage.start(0)?;
    let (env, file) = (stage.env(0)?, stage.lease_file(0)?);
    let lease = attributes(&file)?;
    first.kill()?;
    fs::remove_file(&file)?;
    let _again = stage.start(0)?;
    ensure!(stage.env(0)? == env, "subnet.env remembers the subnet");
    ensure!(attributes(&file)? == lease, "the file beside it remembers the MAC");
    Ok(())
}

fn a_node_that_leaves_takes_its_route_along(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let (_first, mut second) = (stage.start(0)?, stage.start(1)?);
    stage.all_reach_all()?;
    second.kill()?;
    ensure!(
        stage.routes(0, "flannel.1")?.len() == 1,
        "a node that is only down keeps its lease and its route"
    );
    fs::remove_file(stage.lease_file(1)?)?;
    until("the route goes", || Ok(stage.routes(0, "flannel.1")?.is_empty()))
}

fn a_spoiled_lease_costs_nobody_a_route(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let (first, mut second) = (stage.start(0)?, stage.start(1)?);
    let file = stage.lease_file(1)?;
    second.kill()?;
    let whole = fs::read(&file)?;
    let aside = scene.dir().join("aside");
    fs::write(&aside, &whole[..20])?;
    fs::rename(&aside, &file)?;
    first.wait_for_line("not a lease, passed over", PATIENCE)?;
    ensure!(stage.routes(0, "flannel.1")?.len() == 1, "what was known stays");
    fs::write(&aside, &whole)?;
    fs::rename(&aside, &file)?;
    let _again = stage.start(1)?;
    stage.all_reach_all()
}

fn a_lost_lease_ends_the_daemon_and_stays_lost(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 1, VXLAN)?;
    let mut process = stage.start(0)?;
    let file = stage.lease_file(0)?;
    let theirs = fs::read_to_string(&file)?.replace("192.0.2.1", "192.0.2.77");
    let aside = scene.dir().join("aside");
    fs::write(&aside, &theirs)?;
    fs::rename(&aside, &file)?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.code() == Some(1), "ended with {status}");
    let last = process.lines().pop().unwrap_or_default();
    ensure!(last.contains("is lost: node 192.0.2.77 holds"), "{last}");
    ensure!(fs::read_to_string(&file)? == theirs, "their lease is as it was");
    let _again = stage.start(0)?;
    ensure!(stage.lease_file(0)? != file, "another subnet");
    Ok(())
}

fn a_hostile_lease_makes_no_loop(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let subnets = stage.leases().join("subnets");
    fs::create_dir(&subnets)?;
    let hostile = |key: &str, ip: &str| {
        let data = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}"#;
        fs::write(subnets.join(key), format!(r#"{{"PublicIP":"{ip}",{data}}}"#))
    };
    hostile("10.5.99.0-24", "10.5.98.1")?;
    hostile("10.9.0.0-24", "192.0.2.66")?;
    hostile("0.0.0.0-0", "192.0.2.67")?;
    hostile("10.5.100.0-24", "127.0.0.1")?;
    let first = stage.start(0)?;
    let _second = stage.start(1)?;
    stage.all_reach_all()?;
    let routes = stage.routes(0, "flannel.1")?;
    ensure!(routes.len() == 1, "only the good one: {routes:?}");
    for (subnet, why) in [
        ("10.5.99.0/24", "is inside the overlay, which cannot carry itself"),
        ("10.9.0.0/24", "it is outside the network 10.5.0.0/16"),
        ("0.0.0.0/0", "it is outside the network 10.5.0.0/16"),
        ("10.5.100.0/24", "is none that a node can have"),
    ] {
        let said = first.lines().iter().filter(|line| line.contains(subnet) && line.contains(why)).count();
        ensure!(said == 1, "{subnet} was said {said} times: {:?}", first.lines());
    }
    Ok(())
}

fn starts_that_cannot_work_say_what_to_do(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let expect = |error: String, parts: &[&str]| {
        let missing = parts.iter().find(|part| !error.contains(**part));
        missing.map_or(Ok(()), |part| Err(anyhow::anyhow!("no {part:?} in: {error}")))
    };
    expect(
        stage.refusal(0, &["-iface=eth9"])?,
        &["--iface eth9: there is no such interface", "eth0 (192.0.2.1"],
    )?;
    expect(
        stage.refusal(0, &["-public-ip=198.51.100.7"])?,
        &["no interface has this address", "give --iface as well"],
    )?;

    let taken = stage.namespace(0).run("taken", || UdpSocket::bind("192.0.2.1:8472"))??;
    expect(stage.refusal(0, &[])?, &["UDP 192.0.2.1:8472 is taken", "ss -ulnp"])?;
    drop(taken);

    stage.kernel(0, async |kernel: Kernel| Ok(kernel.add_bridge("flannel.1").await?))?;
    expect(
        stage.refusal(0, &[])?,
        &["a device named flannel.1 already, of kind bridge", "ip link delete flannel.1"],
    )?;
    stage.kernel(0, async |kernel: Kernel| Ok(kernel.delete_link("flannel.1").await?))?;
    let empty = fs::read_dir(stage.leases().join("subnets"))?.next().is_none();
    ensure!(empty, "who cannot start publishes nothing");
    ensure!(!stage.subnet_file(0).exists());

    let _running = stage.start(0)?;
    expect(
        stage.refusal(0, &[])?,
        &["another flanneld has", "process ", "subnet.env", "Stop that one first"],
    )?;
    let other = format!("-subnet-file={}", stage.subnet_file(0).with_file_name("other.env").display());
    expect(
        stage.refusal(0, &[&other])?,
        &["another flanneld carries packets on flannel.1", "Stop that process"],
    )?;

    let config = stage.leases().join("config");
    fs::write(&config, r#"{"Network": "10.5.0.0/30"}"#)?;
    expect(stage.refusal(1, &[])?, &["config:1:13: Network \"10.5.0.0/30\": the network is too small"])?;
    fs::write(&config, VXLAN.replace("vxlan", "wireguard"))?;
    expect(stage.refusal(1, &[])?, &["backend type \"wireguard\" comes with a later version of flannel-rs"])
}

fn a_stopped_daemon_leaves_no_device(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 2, VXLAN)?;
    let (mut first, mut second) = (stage.start(0)?, stage.start(1)?);
    stage.all_reach_all()?;
    for (node, process, signal) in [(0, &mut first, Signal::SIGTERM), (1, &mut second, Signal::SIGINT)] {
        process.signal(signal)?;
        let status = process.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{signal} ended it with {status}");
        let last = process.lines().pop().unwrap_or_default();
        ensure!(last.contains("stopped: rx ") && last.contains("; tx "), "the final counters: {last}");
        let left = stage.kernel(node, async |kernel: Kernel| Ok(kernel.link("flannel.1").await?))?;
        ensure!(left.is_none(), "{left:?}");
        ensure!(stage.subnet_file(node).exists() && stage.lease_file(node)?.exists(), "for the next start");
    }
    Ok(())
}

fn the_daemon_ends_with_its_parent(scene: &Scene) -> anyhow::Result<()> {
    let stage = Stage::set(scene, 1, VXLAN)?;
    // A shell that starts the daemon in the background and waits to be killed.
    let mut shell = Command::new("/bin/sh");
    let daemon = stage.command(0);
    shell
        .args(["-c", "\"$@\" & echo daemon $!; wait", "sh"])
        .arg(daemon.get_program())
        .args(daemon.get_args());
    shell.arg("-exit-with-parent");
    let mut shell = stage.cluster.nodes()[0].spawn(shell)?;
    shell.wait_for_line(READY, PATIENCE)?;
    shell.kill()?;
    until("the device goes with the daemon", || {
        stage.kernel(0, async |kernel: Kernel| Ok(kernel.link("flannel.1").await?.is_none()))
    })
}
