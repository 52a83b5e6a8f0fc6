//! One way's two nodes, with traffic ready to flow between them.

use std::net::IpAddr;
use std::path::{Path as FilePath, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::netns::NetNs;

use super::crowd::{self, Crowd};
use super::join::{self, PATIENCE, Running};
use super::scenario::Ground;
use super::way::{Carrier, Way};
use crate::cluster::{Cluster, LinkModel, Plan, Pod, PodNetwork, Underlay};
use crate::daemons::Backend;
use crate::traffic::Path;
use crate::traffic::ping::Ping;

/// Two nodes, and what carries packets between them.
#[derive(Debug)]
pub struct Track {
    /// Who carries the packets.
    pub way: Way,
    /// How the link between the nodes treats large packets.
    pub model: LinkModel,
    /// A pod of each node that the first one knows, when that is a crowd.
    crowd: Vec<IpAddr>,
    /// Where daemons keep leases.
    store: Option<PathBuf>,
    /// Before the cluster that it runs on.
    running: Running,
    cluster: Cluster,
}

impl Track {
    /// Builds a pair with a pod behind each node and waits until the pods reach each other. `dir` is for the daemons' files.
    ///
    /// # Errors
    ///
    /// When the machine lacks what it takes, a daemon ends, or no packet arrives.
    pub fn build(way: &Way, model: LinkModel, program: &FilePath, dir: &FilePath) -> anyhow::Result<Self> {
        let mut cluster = pair(model, way.leaves_checksums(model))?;
        let flanneld = join::flanneld(way, program, dir);
        let (networks, running) = join::join(way, &cluster, flanneld.as_ref(), dir)?;
        add_pods(&mut cluster, &networks)?;
        let store = flanneld.map(|flanneld| flanneld.store());
        let mut track = Self { way: way.clone(), model, crowd: Vec::new(), store, running, cluster };
        track.wait_for_first_packet()?;
        Ok(track)
    }

    /// Builds one node with a pod that knows `count` others, all of them addresses of the second node.
    ///
    /// # Errors
    ///
    /// When the machine lacks what it takes, or a daemon ends.
    pub fn build_crowd(
        way: &Way,
        model: LinkModel,
        program: &FilePath,
        dir: &FilePath,
        count: usize,
    ) -> anyhow::Result<Self> {
        let mut cluster = pair(model, way.leaves_checksums(model))?;
        let (network, running) = crowd::join(way, &cluster, program, dir, count)?;
        add_pods(&mut cluster, &[network])?;
        let crowd = crowd::destinations(count)?;
        Ok(Self { way: way.clone(), model, crowd, store: None, running, cluster })
    }

    /// What can be measured on it.
    pub fn ground(&self) -> Ground {
        if self.crowd.is_empty() { Ground::Pair } else { Ground::Crowd }
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
        self.running.pids()
    }

    /// The pod that sends.
    pub(super) fn sender(&self) -> anyhow::Result<&NetNs> {
        Ok(self.cluster.pods().next().context("there is no pod")?.namespace())
    }

    /// The crowd, where there is one.
    pub(super) fn crowd(&self) -> anyhow::Result<Crowd<'_>> {
        let (port, overhead) = crowd::on_the_wire(self.backend());
        let wire = self.cluster.nodes().get(1).context("a pair has two nodes")?.namespace();
        Ok(Crowd { destinations: &self.crowd, wire, port, overhead })
    }

    /// The format on the wire; the kernel's is VXLAN.
    pub(super) fn backend(&self) -> Backend {
        match self.way.carrier {
            Carrier::Engine { backend, .. } => backend,
            _ => Backend::Vxlan,
        }
    }

    /// The directory of the daemons' leases.
    pub(super) fn store(&self) -> Option<PathBuf> {
        self.store.clone()
    }

    /// An error if a daemon has ended, with its last lines.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.running.check()
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

fn pair(model: LinkModel, tx_checksum: bool) -> anyhow::Result<Cluster> {
    Cluster::build(&Plan { model, underlay: Underlay::V4, tx_checksum, ..Plan::pair() })
}

fn add_pods(cluster: &mut Cluster, networks: &[PodNetwork]) -> anyhow::Result<()> {
    for (node, network) in cluster.nodes_mut().iter_mut().zip(networks) {
        node.add_pod(network)?;
    }
    Ok(())
}
