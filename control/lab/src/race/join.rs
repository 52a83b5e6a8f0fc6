//! How each way joins the two nodes of a pair.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::way::{Carrier, Started, Way};
use crate::cluster::vxlan::{KernelVxlan, VxlanEnd, subnets};
use crate::cluster::{Cluster, Node, PodNetwork, Process};
use crate::daemons::{Backend, Daemons, Flanneld};
use crate::leases;

/// How long a daemon may take to write its `subnet.env`.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// What runs on the nodes. Dropping it ends it.
#[derive(Debug, Default)]
pub(super) struct Running {
    daemons: Option<Daemons>,
    processes: Vec<Process>,
}

impl Running {
    pub(super) fn pids(&self) -> Vec<u32> {
        let daemons = self.daemons.as_ref().map(Daemons::pids).unwrap_or_default();
        daemons.into_iter().chain(self.processes.iter().map(Process::id)).collect()
    }

    /// An error if one of them has ended, with its last lines.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(daemons) = &mut self.daemons {
            daemons.check()?;
        }
        for process in &mut self.processes {
            if process.status()?.is_some() {
                // With the rest of what it wrote, which is still on its way.
                let status = process.wait(Duration::from_secs(1))?;
                let lines = process.lines();
                let last = lines[lines.len().saturating_sub(15)..].join("\n  ");
                bail!("process {} has ended ({status}). Its last lines:\n  {last}", process.id());
            }
        }
        Ok(())
    }
}

impl From<Daemons> for Running {
    fn from(daemons: Daemons) -> Self {
        Self { daemons: Some(daemons), processes: Vec::new() }
    }
}

/// The daemons of an engine's way, not started yet; `None` for other ways.
pub(super) fn flanneld(way: &Way, program: &Path, dir: &Path) -> Option<Flanneld> {
    match &way.carrier {
        Carrier::Engine { backend, off, settings } => {
            let off = (!off.is_empty()).then(|| format!("--engine-off={off}"));
            let settings = settings.iter().map(|(name, value)| format!("--engine-{name}={value}"));
            let flags = off.into_iter().chain(settings).collect();
            Some(Flanneld { flags, ..Flanneld::new(program, dir, *backend) })
        }
        Carrier::KernelToEngine { .. } => Some(Flanneld::new(program, dir, Backend::Vxlan)),
        Carrier::KernelVxlan { .. } | Carrier::HostRoutes | Carrier::Program(_) => None,
    }
}

/// Joins both nodes and answers what their pods are to be made from.
pub(super) fn join(
    way: &Way,
    cluster: &Cluster,
    flanneld: Option<&Flanneld>,
    dir: &Path,
) -> anyhow::Result<(Vec<PodNetwork>, Running)> {
    let subnets = subnets(2, true, false);
    match (&way.carrier, flanneld) {
        (Carrier::Engine { .. }, Some(flanneld)) => {
            let mut daemons = flanneld.start(cluster)?;
            Ok((daemons.networks(PATIENCE, |_| {})?, daemons.into()))
        }
        (Carrier::KernelToEngine { checksums }, Some(flanneld)) => {
            kernel_to_engine(cluster, flanneld, *checksums)
        }
        (Carrier::KernelVxlan { checksums }, _) => {
            let settings = KernelVxlan { udp_checksum: *checksums, ..KernelVxlan::default() };
            Ok((cluster.kernel_vxlan(&settings, &subnets)?, Running::default()))
        }
        (Carrier::HostRoutes, _) => Ok((cluster.host_routes(&subnets)?, Running::default())),
        (Carrier::Program(program), _) => {
            let Started { networks, processes } = program.0.start(cluster, dir)?;
            Ok((networks, Running { daemons: None, processes }))
        }
        (Carrier::Engine { .. } | Carrier::KernelToEngine { .. }, None) => bail!("{way} needs a flanneld"),
    }
}

/// A device of the kernel on the first node, and on the second a real daemon that knows the first by its lease.
fn kernel_to_engine(
    cluster: &Cluster,
    flanneld: &Flanneld,
    checksums: bool,
) -> anyhow::Result<(Vec<PodNetwork>, Running)> {
    let [theirs, ours] = cluster.nodes() else { bail!("a pair has two nodes") };
    let their_subnet = subnets(1, true, false).into_iter().flatten().next().context("a subnet")?;
    let their_end = VxlanEnd { subnet: their_subnet, mac: [0x02, 0, 0, 0, 4, 1], public: v4(theirs)? };
    leases::write(&flanneld.store(), Backend::Vxlan, &their_end)?;
    let mut daemons = flanneld.start_on([ours])?;
    let networks = daemons.networks(PATIENCE, |_| {})?;
    let our_network = networks.into_iter().next().context("one daemon, one network")?;
    let written = *our_network.subnets.first().context("the daemon has no subnet")?;
    let mac = leases::mac_of(&flanneld.store(), &written.trunc())?;
    let our_end = VxlanEnd { subnet: written.trunc(), mac, public: v4(ours)? };
    let settings = KernelVxlan { udp_checksum: checksums, ..KernelVxlan::default() };
    theirs.kernel_vxlan(&settings, &their_end, &[our_end])?;
    let their_network = PodNetwork { subnets: vec![their_subnet], mtu: our_network.mtu };
    Ok((vec![their_network, our_network], daemons.into()))
}

fn v4(node: &Node) -> anyhow::Result<std::net::IpAddr> {
    Ok(node.v4().with_context(|| format!("{} has no IPv4 address", node.name()))?.into())
}
