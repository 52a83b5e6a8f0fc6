//! The guard of kernel VXLAN: nodes with a lease get packets in, strangers do not and are counted, and nobody else's
//! VXLAN suffers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use control::guard::Guard;
use dataplane_core::{Family, Vni};
use hostnet::netns::NetNs;
use lab::cluster::vxlan::{KernelVxlan, subnets};
use lab::traffic::ping::Ping;
use lab::{Cluster, Plan, Scene};
use promises::rules::{need, sh};
use promises::{harness, reach};

fn main() -> ExitCode {
    harness::of_engines(
        "promise-guard",
        lab::cases![
            a_stranger_gets_nothing_in_and_is_counted,
            a_stranger_gets_nothing_in_over_ipv6,
            vxlan_of_another_number_on_the_same_port_is_not_judged,
            a_spoiled_guard_is_put_right_and_keeps_its_count,
            a_guard_that_nobody_looks_after_lets_everything_pass,
            five_thousand_peers_come_and_go_in_one_transaction_each,
            guards_that_are_used_no_more_are_swept_away,
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
