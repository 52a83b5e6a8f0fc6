//! A node of ours beside a node of real flannel: flannel's own backends program their devices from the leases that our
//! daemon publishes, and ours from theirs.

use std::path::Path as FilePath;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use lab::traffic::Path;
use lab::traffic::ping::Ping;
use lab::{Cluster, Plan, Scene};
use promises::cluster::{Inner, net_conf};
use promises::daemon::{Daemon, pod_network};
use promises::{flannel, harness, reach};

use Kind::{Flannel, Ours, OursInTheKernel};

fn main() -> ExitCode {
    harness::of_flannel(
        "promise-flannel",
        lab::cases![
            udp_with_flannel_first,
            udp_with_flannel_last,
            vxlan_with_flannel_first,
            vxlan_with_flannel_last,
            dual_stack_vxlan_with_flannel_first,
            dual_stack_vxlan_with_flannel_last,
            vxlan_in_the_kernel_with_flannel_first,
            dual_stack_vxlan_in_the_kernel_with_flannel_last,
            host_gw_with_flannel_first,
            host_gw_with_flannel_last,
            a_packet_makes_as_many_hops_as_through_flannel,
        ],
    )
}

fn udp_with_flannel_first(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "udp", Inner::V4, [Flannel, Ours])
}

fn udp_with_flannel_last(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "udp", Inner::V4, [Ours, Flannel])
}

fn vxlan_with_flannel_first(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::V4, [Flannel, Ours])
}

fn vxlan_with_flannel_last(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::V4, [Ours, Flannel])
}

fn dual_stack_vxlan_with_flannel_first(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::Dual, [Flannel, Ours])
}

fn dual_stack_vxlan_with_flannel_last(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::Dual, [Ours, Flannel])
}

fn vxlan_in_the_kernel_with_flannel_first(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::V4, [Flannel, OursInTheKernel])
}

fn dual_stack_vxlan_in_the_kernel_with_flannel_last(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "vxlan", Inner::Dual, [OursInTheKernel, Flannel])
}

fn host_gw_with_flannel_first(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "host-gw", Inner::Dual, [Flannel, Ours])
}

fn host_gw_with_flannel_last(scene: &Scene) -> anyhow::Result<()> {
    carry_each_others_pods(scene, "host-gw", Inner::V4, [Ours, Flannel])
}

fn carry_each_others_pods(
    scene: &Scene,
    backend: &str,
    inner: Inner,
    kinds: [Kind; 2],
) -> anyhow::Result<()> {
    let mut mixed = Mixed::start(scene.dir(), backend, inner, kinds)?;
    let families = inner.families();
    let flannels = mixed.mtu(|kind| kind == Flannel)?;
    let ours = mixed.mtu(|kind| kind != Flannel)?;
    // In dual stack flannel gives pods 1450, and its IPv6 device takes 1430 all the same: datagrams between are refused
    // until the pod has learnt the path's MTU. Our pods know from the start.
    let tunnel = backend == "vxlan";
    let expected = if inner == Inner::Dual && tunnel { (1450, 1430) } else { (flannels, flannels) };
    ensure!((flannels, ours) == expected, "MTU of pods: {flannels} and {ours}");
    let largest = if inner == Inner::Dual { usize::try_from(ours)? - 48 } else { 1700 };
    mixed.flows(families, |path| {
        reach::every_udp_size(path, (1..=largest).step_by(3).chain([largest]))?;
        reach::every_tcp_size(path, (1..=1700).step_by(17).chain([65_000]))?;
        reach::transfer(path, 20_000_000).map(drop)
    })?;
    for (index, kind) in kinds.iter().enumerate() {
        mixed.restart(index)?;
        mixed
            .flows(families, |path| reach::transfer(path, 1_000_000).map(drop))
            .with_context(|| format!("{kind:?} has started again"))?;
    }
    Ok(())
}

/// flannel's `udp` is two hops, one at each end; ours too, and it says where a packet's time ran out.
fn a_packet_makes_as_many_hops_as_through_flannel(scene: &Scene) -> anyhow::Result<()> {
    for (backend, hops) in [("udp", 5), ("vxlan", 3)] {
        for kinds in [[Flannel, Flannel], [Flannel, Ours]] {
            let dir = scene.dir().join(format!("{backend}-{:?}", kinds[1]));
            let mixed = Mixed::start(&dir, backend, Inner::V4, kinds)?;
            mixed.flows(&[Family::V4], |path| {
                for (ttl, arrives) in [(hops - 1, false), (hops, true)] {
                    let ping = Ping { ttl: Some(ttl), ..Ping::new(path.address) };
                    let answer = ping.send_from(path.from)?;
                    ensure!(answer.microseconds().is_some() == arrives, "{backend}, TTL {ttl}: {answer:?}");
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Whose program a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flannel,
    /// By the engine, where there is a tunnel.
    Ours,
    /// By the kernel's VXLAN.
    OursInTheKernel,
}

/// Two nodes that know each other by their leases only; `kinds` is the order in which they start.
struct Mixed<'a> {
    dir: &'a FilePath,
    kinds: [Kind; 2],
    daemons: Vec<Daemon>,
    /// After the daemons, so that they end first.
    cluster: Cluster,
}

impl<'a> Mixed<'a> {
    fn start(dir: &'a FilePath, backend: &str, inner: Inner, kinds: [Kind; 2]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir.join("store"))?;
        std::fs::write(dir.join("store/config"), net_conf(backend, inner))?;
        let cluster = Cluster::build(&Plan::pair())?;
        let mut mixed = Self { dir, kinds, daemons: Vec::new(), cluster };
        for index in 0..kinds.len() {
            let daemon = mixed.spawn(index)?;
            let env = daemon.ready().map_err(|error| {
                match format!("{error:#}").contains("operation not supported") {
                    true => lab::skip("the kernel has no VXLAN"),
                    false => error,
                }
            })?;
            mixed.daemons.push(daemon);
            mixed.cluster.nodes_mut()[index].add_pod(&pod_network(&env))?;
        }
        Ok(mixed)
    }

    fn spawn(&self, index: usize) -> anyhow::Result<Daemon> {
        let node = &self.cluster.nodes()[index];
        match self.kinds[index] {
            Flannel => flannel::spawn(node, self.dir),
            Ours => Daemon::spawn(node, self.dir, &[]),
            OursInTheKernel => Daemon::spawn(node, self.dir, &["--engine=never"]),
        }
    }

    /// The MTU that a kind of node gives its pods.
    fn mtu(&self, is_it: impl Fn(Kind) -> bool) -> anyhow::Result<u32> {
        let index = self.kinds.iter().position(|kind| is_it(*kind)).context("no such node")?;
        Ok(self.daemons[index].ready()?.mtu)
    }

    /// Kills one daemon and starts it again.
    fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.daemons.remove(index).kill()?;
        let again = self.spawn(index)?;
        again.ready()?;
        self.daemons.insert(index, again);
        Ok(())
    }

    /// Whether pods reach each other both ways, each node the other's base address, and what `check` says of the path.
    fn flows(
        &self,
        families: &[Family],
        check: impl Fn(Path<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let pods: Vec<_> = self.cluster.pods().collect();
        for &family in families {
            for (from, to) in [(0, 1), (1, 0)] {
                let all = || {
                    let path = reach::path(pods[from], pods[to], family)?;
                    reach::ping(path)?;
                    let mut bases =
                        self.daemons[to].ready()?.subnets.into_iter().map(|subnet| subnet.network());
                    let base = bases.find(|base| Family::of(base) == family);
                    let base = base.context("a subnet of the family")?;
                    let answer = Ping::new(base).send_from(self.cluster.nodes()[from].namespace())?;
                    ensure!(answer.microseconds().is_some(), "{base} answers the node with {answer:?}");
                    check(path)
                };
                all().with_context(|| {
                    let logs = self.daemons.iter().map(Daemon::log).collect::<Vec<_>>().join("\n--\n");
                    format!(
                        "{family:?} from {:?} to {:?}; they say:\n{logs}",
                        self.kinds[from], self.kinds[to]
                    )
                })?;
            }
        }
        Ok(())
    }
}
