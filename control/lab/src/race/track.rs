//! One way's pair of nodes, with a pod each and traffic ready to flow between them.

use std::path::{Path as FilePath, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::way::{Carrier, Way};
use crate::cluster::vxlan::{KernelVxlan, subnets};
use crate::cluster::{Cluster, LinkModel, Plan, Pod, PodNetwork, Underlay};
use crate::daemons::{Daemons, Flanneld};
use crate::traffic::Path;
use crate::traffic::ping::Ping;

/// How long a daemon may take to write its `subnet.env`, and a first packet to arrive.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pair of nodes that one way joins.
#[derive(Debug)]
pub struct Track {
    /// Who carries the packets.
    pub way: Way,
    /// How the link between the nodes treats large packets.
    pub model: LinkModel,
    /// Before the cluster that they run on.
    daemons: Option<Daemons>,
    cluster: Cluster,
}

impl Track {
    /// Builds the pair and waits until its pods reach each other. `dir` is for the daemons' files.
    ///
    /// # Errors
    ///
    /// When the machine lacks what it takes, a daemon ends, or no packet arrives.
    pub fn build(way: &Way, model: LinkModel, flanneld: &FilePath, dir: &FilePath) -> anyhow::Result<Self> {
        let mut cluster = Cluster::build(&Plan { model, underlay: Underlay::V4, ..Plan::pair() })?;
        let (networks, daemons) = match &way.carrier {
            Carrier::HostRoutes => (cluster.host_routes(&subnets(2, true, false))?, None),
            Carrier::KernelVxlan => {
                (cluster.kernel_vxlan(&KernelVxlan::default(), &subnets(2, true, false))?, None)
            }
            Carrier::Engine { backend, off } => {
                let flanneld = Flanneld {
                    program: PathBuf::from(flanneld),
                    dir: dir.to_owned(),
                    backend: *backend,
                    engine_off: (!off.is_empty()).then(|| off.clone()),
                };
                let mut daemons = flanneld.start(&cluster)?;
                (daemons.networks(PATIENCE, |_| {})?, Some(daemons))
            }
        };
        add_pods(&mut cluster, &networks)?;
        let mut track = Self { way: way.clone(), model, daemons, cluster };
        track.wait_for_first_packet()?;
        Ok(track)
    }

    /// From the first node's pod to the second's.
    pub fn there(&self) -> anyhow::Result<Path<'_>> {
        let (a, b) = self.ends()?;
        Ok(Path { from: a.namespace(), to: b.namespace(), address: b.v4().context("pod-b has no IPv4")? })
    }

    /// The other way round.
    pub fn back(&self) -> anyhow::Result<Path<'_>> {
        let (a, b) = self.ends()?;
        Ok(Path { from: b.namespace(), to: a.namespace(), address: a.v4().context("pod-a has no IPv4")? })
    }

    /// Process ids of the daemons that carry the packets.
    pub fn pids(&self) -> Vec<u32> {
        self.daemons.as_ref().map(Daemons::pids).unwrap_or_default()
    }

    /// An error if a daemon has ended, with its last lines.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.daemons.as_mut().map_or(Ok(()), Daemons::check)
    }

    fn ends(&self) -> anyhow::Result<(&Pod, &Pod)> {
        let mut pods = self.cluster.pods();
        pods.next().zip(pods.next()).context("the pair has no two pods")
    }

    fn wait_for_first_packet(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = self.there()?;
            let ping = Ping { timeout: Duration::from_millis(200), ..Ping::new(path.address) };
            let answer = ping.send_from(path.from)?;
            if answer.microseconds().is_some() {
                return Ok(());
            }
            self.check()?;
            if Instant::now() >= deadline {
                bail!("no packet from pod to pod within {PATIENCE:?}; the last ping got {answer:?}");
            }
            // A refused ping answers at once.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn add_pods(cluster: &mut Cluster, networks: &[PodNetwork]) -> anyhow::Result<()> {
    for (node, network) in cluster.nodes_mut().iter_mut().zip(networks) {
        node.add_pod(network)?;
    }
    Ok(())
}
