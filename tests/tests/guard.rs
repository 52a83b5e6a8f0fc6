//! The guard of kernel VXLAN: nodes with a lease get packets in, strangers do not and are counted, and nobody else's
//! VXLAN suffers.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use control::guard::Guard;
use dataplane_core::{Family, MacAddr, Vni};
use hostnet::netns::NetNs;
use lab::cluster::vxlan::{KernelVxlan, VxlanEnd, subnets};
use lab::traffic::ping::Ping;
use lab::{Cluster, Plan, PodNetwork, Scene, Underlay};
use promises::cluster::{Inner, net_conf};
use promises::daemon::{Daemon, pod_network};
use promises::rules::{need, sender_seen, sh};
use promises::{harness, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-guard",
        lab::cases![
            a_stranger_gets_nothing_in_and_is_counted,
            a_stranger_gets_nothing_in_over_ipv6,
            vxlan_of_another_number_on_the_same_port_is_not_judged,
            a_spoiled_guard_is_put_right_and_keeps_its_count,
            a_guard_that_nobody_looks_after_lets_everything_pass,
            five_thousand_peers_come_and_go_in_one_transaction_each,
            guards_that_are_used_no_more_are_swept_away,
            a_daemon_over_kernel_vxlan_keeps_strangers_out,
            without_the_guard_kernel_vxlan_is_open_as_flannels,
            a_daemon_with_an_engine_takes_the_guard_of_an_earlier_run_away,
        ],
    )
}

/// Three nodes joined by kernel VXLAN as flannel programs it, a pod on each. The guard is on the first.
struct Three {
    cluster: Cluster,
    family: Family,
}

impl Three {
    fn start(vni: u32, family: Family) -> anyhow::Result<Self> {
        need("nft")?;
        let mut cluster = Cluster::build(&Plan::nodes(3))?;
        let subnets = subnets(3, family == Family::V4, family == Family::V6);
        let settings = KernelVxlan { vni, ..KernelVxlan::default() };
        let networks = cluster.kernel_vxlan(&settings, &subnets).map_err(|error| {
            match format!("{error:#}").contains("EOPNOTSUPP") {
                true => lab::skip("the kernel has no VXLAN"),
                false => error,
            }
        })?;
        for (node, network) in cluster.nodes_mut().iter_mut().zip(&networks) {
            node.add_pod(network)?;
        }
        let three = Self { cluster, family };
        for index in [1, 2] {
            reach::ping(three.path(index)?).context("before there is a guard")?;
        }
        Ok(three)
    }

    fn path(&self, from: usize) -> anyhow::Result<lab::traffic::Path<'_>> {
        let nodes = self.cluster.nodes();
        reach::path(&nodes[from].pods()[0], &nodes[0].pods()[0], self.family)
    }

    /// Whether the pod of a node reaches the one of the first.
    fn gets_in(&self, from: usize) -> anyhow::Result<bool> {
        let path = self.path(from)?;
        let ping = Ping { timeout: Duration::from_secs(1), ..Ping::new(path.address) };
        Ok(ping.send_from(path.from)?.microseconds().is_some())
    }

    fn guarded(&self) -> &NetNs {
        self.cluster.nodes()[0].namespace()
    }

    fn address(&self, node: usize) -> anyhow::Result<IpAddr> {
        let mut addresses = self.cluster.nodes()[node].addresses();
        addresses.find(|address| Family::of(address) == self.family).context("an address")
    }

    fn peers(&self, nodes: &[usize]) -> anyhow::Result<BTreeSet<IpAddr>> {
        nodes.iter().map(|node| self.address(*node)).collect()
    }

    fn guard(&self, vni: u32) -> anyhow::Result<Guard> {
        Ok(Guard::new(8472, Vni::new(vni).context("a number of 24 bits")?, self.family))
    }
}

/// Runs `work` on a thread inside the namespace.
fn inside<T: Send>(namespace: &NetNs, work: impl AsyncFnOnce() -> T + Send) -> anyhow::Result<T> {
    namespace.run("guard", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work()))
    })?
}

fn a_stranger_gets_nothing_in_and_is_counted(_: &Scene) -> anyhow::Result<()> {
    stranger(Family::V4)
}

fn a_stranger_gets_nothing_in_over_ipv6(_: &Scene) -> anyhow::Result<()> {
    stranger(Family::V6)
}

fn stranger(family: Family) -> anyhow::Result<()> {
    let three = Three::start(1, family)?;
    let mut guard = three.guard(1)?;
    let [one, both, none] = [three.peers(&[1])?, three.peers(&[1, 2])?, BTreeSet::new()];
    inside(three.guarded(), async || guard.admit(&one).await)?;
    ensure!(guard.trouble().is_none(), "{:?}", guard.trouble());
    ensure!(three.gets_in(1)?, "a leased peer's packets pass");
    let drops = inside(three.guarded(), async || guard.drops().await)?;
    ensure!(drops == Some(0), "nobody was dropped yet: {drops:?}");
    ensure!(!three.gets_in(2)?, "a stranger's do not");
    let drops = inside(three.guarded(), async || guard.drops().await)?;
    ensure!(drops.is_some_and(|drops| drops >= 1), "{drops:?}");
    inside(three.guarded(), async || guard.admit_more(&both).await)?;
    ensure!(three.gets_in(2)? && three.gets_in(1)?, "a peer that joined");
    inside(three.guarded(), async || guard.admit(&none).await)?;
    ensure!(!three.gets_in(1)? && !three.gets_in(2)?, "nobody has a lease");
    inside(three.guarded(), async || guard.admit(&one).await)?;
    ensure!(three.gets_in(1)? && !three.gets_in(2)?, "one again");
    let more = inside(three.guarded(), async || guard.drops().await)?;
    ensure!(more > drops, "{more:?} after {drops:?}");
    Ok(())
}

fn vxlan_of_another_number_on_the_same_port_is_not_judged(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(7, Family::V4)?;
    let mut guard = three.guard(1)?;
    inside(three.guarded(), async || guard.admit(&BTreeSet::new()).await)?;
    ensure!(guard.trouble().is_none(), "{:?}", guard.trouble());
    ensure!(three.gets_in(1)? && three.gets_in(2)?, "VXLAN 7 is none of ours");
    let mut own = three.guard(7)?;
    inside(three.guarded(), async || own.admit(&BTreeSet::new()).await)?;
    ensure!(!three.gets_in(1)?, "a guard of its own judges it");
    Ok(())
}

fn a_spoiled_guard_is_put_right_and_keeps_its_count(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(1, Family::V4)?;
    let mut guard = three.guard(1)?;
    let one = three.peers(&[1])?;
    inside(three.guarded(), async || guard.admit(&one).await)?;
    ensure!(!three.gets_in(2)?, "a stranger");
    let stranger = three.address(2)?;
    for harm in [
        format!("nft add element ip flannel-rs-guard-1 peers '{{ {stranger} }}'"),
        "nft flush set ip flannel-rs-guard-1 peers".to_owned(),
        "nft flush chain ip flannel-rs-guard-1 input".to_owned(),
        "nft insert rule ip flannel-rs-guard-1 input accept".to_owned(),
        "nft delete element ip flannel-rs-guard-1 alive '{ udp }'".to_owned(),
    ] {
        let before = inside(three.guarded(), async || guard.drops().await)?;
        sh(three.guarded(), &harm)?;
        inside(three.guarded(), async || guard.keep().await)?;
        ensure!(guard.trouble().is_none(), "{harm}: {:?}", guard.trouble());
        ensure!(three.gets_in(1)? && !three.gets_in(2)?, "after {harm}");
        let after = inside(three.guarded(), async || guard.drops().await)?;
        ensure!(after > before, "{harm}: {after:?} after {before:?}");
    }
    // What is as it should be is left alone.
    let handles = sh(three.guarded(), "nft --handle --stateless list chain ip flannel-rs-guard-1 input")?;
    inside(three.guarded(), async || guard.keep().await)?;
    ensure!(
        handles == sh(three.guarded(), "nft --handle --stateless list chain ip flannel-rs-guard-1 input")?
    );
    // A daemon that starts again goes on counting.
    let before = inside(three.guarded(), async || guard.drops().await)?;
    let mut next = three.guard(1)?;
    inside(three.guarded(), async || next.admit(&one).await)?;
    ensure!(inside(three.guarded(), async || next.drops().await)? >= before, "the count starts anew");
    // A set that was emptied behind our back does not keep a peer out.
    sh(three.guarded(), "nft flush set ip flannel-rs-guard-1 peers")?;
    let other = three.peers(&[2])?;
    inside(three.guarded(), async || next.admit(&other).await)?;
    ensure!(three.gets_in(2)? && !three.gets_in(1)?, "{:?}", next.trouble());
    Ok(())
}

/// As if the daemon were gone for minutes: its sign of life has run out.
fn a_guard_that_nobody_looks_after_lets_everything_pass(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(1, Family::V4)?;
    let mut guard = three.guard(1)?;
    let one = three.peers(&[1])?;
    inside(three.guarded(), async || guard.admit(&one).await)?;
    let alive = sh(three.guarded(), "nft list set ip flannel-rs-guard-1 alive")?;
    ensure!(alive.contains("udp timeout 5m expires"), "{alive}");
    ensure!(!three.gets_in(2)?, "a stranger");
    sh(three.guarded(), "nft flush set ip flannel-rs-guard-1 alive")?;
    ensure!(three.gets_in(2)?, "nobody says who is a stranger");
    Ok(())
}

fn five_thousand_peers_come_and_go_in_one_transaction_each(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(1, Family::V4)?;
    let mut guard = three.guard(1)?;
    let mut peers: BTreeSet<IpAddr> =
        (0..5000u32).map(|number| IpAddr::V4((0xc633_0000 + number).into())).collect();
    peers.insert(three.address(1)?);
    inside(three.guarded(), async || guard.admit(&peers).await)?;
    ensure!(guard.trouble().is_none(), "{:?}", guard.trouble());
    ensure!(three.gets_in(1)? && !three.gets_in(2)?);
    let generation =
        || sh(three.guarded(), "nft --handle --stateless list chain ip flannel-rs-guard-1 input");
    let before = generation()?;
    let one = three.peers(&[2])?;
    inside(three.guarded(), async || guard.admit(&one).await)?;
    ensure!(three.gets_in(2)? && !three.gets_in(1)?);
    ensure!(generation()? == before, "only the set changes");
    Ok(())
}

fn guards_that_are_used_no_more_are_swept_away(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(1, Family::V4)?;
    for vni in [1, 2] {
        let mut guard = three.guard(vni)?;
        inside(three.guarded(), async || guard.admit(&BTreeSet::new()).await)?;
    }
    sh(three.guarded(), "nft add table ip flannel-ipv4")?;
    let kept = [(Vni::new(2).context("a number")?, Family::V4)];
    let gone = inside(three.guarded(), async || Guard::sweep(&kept).await)??;
    let tables = sh(three.guarded(), "nft list tables")?;
    ensure!(
        gone == 1 && tables == "table ip flannel-rs-guard-2\ntable ip flannel-ipv4\n",
        "{gone}: {tables}"
    );
    ensure!(three.gets_in(1)?, "nobody is judged");
    Ok(())
}

/// Two nodes with a daemon each and a pod, and a third machine that has a VXLAN device, knows the first node's lease, and
/// has none itself.
struct Intruded {
    daemons: Vec<Daemon>,
    cluster: Cluster,
}

impl Intruded {
    fn start(dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        need("nft")?;
        let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(3) })?;
        fs::create_dir_all(dir.join("store"))?;
        fs::write(dir.join("store/config"), net_conf("vxlan", Inner::V4))?;
        let mut daemons = Vec::new();
        let mut networks = Vec::new();
        for node in &cluster.nodes()[..2] {
            let daemon = Daemon::spawn(node, dir, flags)?;
            networks.push(pod_network(&daemon.ready()?));
            daemons.push(daemon);
        }
        let (subnet, mac) = ("10.5.200.0/24".parse()?, [2, 0, 0, 0, 0, 66]);
        let own = VxlanEnd { subnet, mac, public: address_of(&cluster, 2)? };
        let target = end_in_lease(dir, address_of(&cluster, 0)?)?;
        cluster.nodes()[2].kernel_vxlan(&KernelVxlan::default(), &own, &[target]).map_err(|error| {
            match format!("{error:#}").contains("EOPNOTSUPP") {
                true => lab::skip("the kernel has no VXLAN"),
                false => error,
            }
        })?;
        networks.push(PodNetwork { subnets: vec![subnet], mtu: networks[0].mtu });
        for (node, network) in cluster.nodes_mut().iter_mut().zip(&networks) {
            node.add_pod(network)?;
        }
        Ok(Self { daemons, cluster })
    }

    /// Whether a datagram from the pod of a node comes to the pod of the first.
    fn gets_in(&self, from: usize) -> anyhow::Result<bool> {
        let (from, to) = (&self.cluster.nodes()[from].pods()[0], &self.cluster.nodes()[0].pods()[0]);
        let address = to.v4().context("an address")?;
        Ok(sender_seen(from.namespace(), to.namespace(), address)?.is_some())
    }

    fn stop(self) -> anyhow::Result<()> {
        for mut daemon in self.daemons {
            daemon.process().terminate(promises::daemon::PATIENCE)?;
        }
        Ok(())
    }
}

fn address_of(cluster: &Cluster, node: usize) -> anyhow::Result<IpAddr> {
    cluster.nodes()[node].addresses().next().context("an address")
}

/// What the lease of the node with this address tells the others.
fn end_in_lease(dir: &Path, owner: IpAddr) -> anyhow::Result<VxlanEnd> {
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let value: serde_json::Value = match name.starts_with('.') {
            true => continue,
            false => serde_json::from_slice(&fs::read(entry.path())?)?,
        };
        if value["PublicIP"].as_str() == Some(owner.to_string().as_str()) {
            let mac: MacAddr = value["BackendData"]["VtepMAC"].as_str().context("a VtepMAC")?.parse()?;
            return Ok(VxlanEnd { subnet: name.replace('-', "/").parse()?, mac: mac.0, public: owner });
        }
    }
    anyhow::bail!("{owner} has no lease")
}

fn a_daemon_over_kernel_vxlan_keeps_strangers_out(scene: &Scene) -> anyhow::Result<()> {
    let site = Intruded::start(scene.dir(), &["--engine=never", "--hold-back=0"])?;
    ensure!(site.gets_in(1)?, "a node with a lease: {}", site.daemons[0].log());
    ensure!(!site.gets_in(2)?, "a stranger: {}", site.daemons[0].log());
    let count =
        || sh(site.cluster.nodes()[0].namespace(), "nft list counter ip flannel-rs-guard-1 strangers");
    ensure!(!count()?.contains("packets 0 "), "{}", count()?);
    // The second node's lease ends: its packets stay out too.
    let owner = address_of(&site.cluster, 1)?;
    let lease = end_in_lease(scene.dir(), owner)?.subnet.to_string().replace('/', "-");
    let [first, mut second] = <[Daemon; 2]>::try_from(site.daemons).map_err(|_| anyhow::anyhow!("two"))?;
    second.process().kill()?;
    fs::remove_file(scene.dir().join("store/subnets").join(lease))?;
    first.wait_for_line("a node left")?;
    let site = Intruded { daemons: vec![first], cluster: site.cluster };
    let deadline = std::time::Instant::now() + promises::daemon::PATIENCE;
    while site.gets_in(1)? {
        ensure!(std::time::Instant::now() < deadline, "it still gets in: {}", site.daemons[0].log());
    }
    site.stop()
}

fn without_the_guard_kernel_vxlan_is_open_as_flannels(scene: &Scene) -> anyhow::Result<()> {
    let site = Intruded::start(scene.dir(), &["--engine=never", "--nftables-guard=false"])?;
    ensure!(site.gets_in(1)? && site.gets_in(2)?, "{}", site.daemons[0].log());
    let tables = sh(site.cluster.nodes()[0].namespace(), "nft list tables")?;
    ensure!(!tables.contains("flannel-rs-guard"), "{tables}");
    site.stop()
}

fn a_daemon_with_an_engine_takes_the_guard_of_an_earlier_run_away(scene: &Scene) -> anyhow::Result<()> {
    let site = Intruded::start(scene.dir(), &["--engine=never"])?;
    let node = &site.cluster.nodes()[0];
    let tables = || sh(node.namespace(), "nft list tables");
    ensure!(tables()?.contains("flannel-rs-guard-1"), "{}", tables()?);
    let [mut first, second] = <[Daemon; 2]>::try_from(site.daemons).map_err(|_| anyhow::anyhow!("two"))?;
    first.process().terminate(promises::daemon::PATIENCE)?;
    ensure!(tables()?.contains("flannel-rs-guard-1"), "it goes on while the daemon is replaced");
    let first = Daemon::spawn(node, scene.dir(), &["--engine=always"])?;
    first.ready()?;
    ensure!(!tables()?.contains("flannel-rs-guard"), "{}", tables()?);
    Intruded { daemons: vec![first, second], cluster: site.cluster }.stop()
}
