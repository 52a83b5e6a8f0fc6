//! The demo's cluster: made, waited for, looked at.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::kernel::Kernel;
use ipnet::IpNet;
use lab::cluster::{Cell, Node};
use lab::cni::Runtime;
use lab::daemons::{Daemons, Flanneld};
use lab::{Cluster, Plan, PodNetwork, Underlay};
use serde::Serialize;
use serde_json::json;

use super::arguments::Asked;
use super::progress::Progress;

/// This program, also where its file has been replaced or its path hidden since it was started.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// How long daemons may take to write `subnet.env`, and pods then to reach each other.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one ping may take while the cluster comes up.
const PING: Duration = Duration::from_millis(500);
/// Pings between two pods, of which the middle one counts.
const PINGS: usize = 3;

/// A running cluster with its daemons.
pub(super) struct Up {
    /// Before the cluster that they run on.
    daemons: Daemons,
    cluster: Cluster,
    networks: Vec<PodNetwork>,
}

/// Where our CNI plugins are: beside this program, if they were built.
fn plugins() -> Option<PathBuf> {
    let place = std::env::current_exe().ok()?.parent()?.to_owned();
    let all = ["flannel", "bridge", "host-local"];
    all.iter().all(|name| place.join(name).is_file()).then_some(place)
}

/// What a kubelet has as `10-flannel.conflist`, with files of the demo's own beside the node's `subnet.env`. Nothing leaves
/// the demo, so that there is nothing to masquerade.
fn runtime(plugins: &Path, subnet_file: &Path) -> Runtime {
    let config = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
        "subnetFile": subnet_file,
        "dataDir": subnet_file.with_file_name("cni"),
        "ipam": {"dataDir": subnet_file.with_file_name("addresses")},
        "delegate": {"hairpinMode": true, "isDefaultGateway": true, "ipMasq": false},
    });
    Runtime::new(&[plugins], config)
}

/// A node as its daemon set it up.
#[derive(Debug, Serialize)]
pub(super) struct NodeRow {
    pub(super) node: String,
    pub(super) underlay: Option<IpAddr>,
    pub(super) subnets: Vec<IpNet>,
    pub(super) device: String,
    pub(super) mtu: u32,
    pub(super) pod: String,
    pub(super) pod_addresses: Vec<IpAddr>,
}

/// Round trip between two pods.
#[derive(Debug, Serialize)]
pub(super) struct Rtt {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) address: IpAddr,
    /// The middle one of a few.
    pub(super) milliseconds: f64,
}

impl Up {
    /// Makes it and waits until every pod reaches every other.
    pub(super) fn start(asked: &Asked, dir: &Path, progress: &mut Progress) -> anyhow::Result<Self> {
        let count = usize::from(asked.nodes);
        progress.say(format!("making {count} nodes in network namespaces of their own"));
        let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(count) })
            .context("make the nodes")?;
        let flanneld = Flanneld::new(THIS_PROGRAM, dir.join("cluster"), asked.backend);
        progress.say(format!("starting {count} flanneld, one on each node, with leases in a directory"));
        let mut daemons = flanneld.start(&cluster)?;
        let networks = daemons.networks(PATIENCE, |missing| {
            progress.say(format!("waiting for subnet.env of {}", missing.join(", ")));
        })?;
        match plugins() {
            Some(place) => {
                progress.say(format!("making {count} pods by the CNI plugins in {}", place.display()));
                for (node, file) in cluster.nodes_mut().iter_mut().zip(daemons.subnet_files()) {
                    node.add_pod_by(&runtime(&place, file))?;
                }
            }
            None => {
                progress.say(format!("making {count} pods from the subnet.env of their nodes (no CNI plugins beside this program)"));
                for (node, network) in cluster.nodes_mut().iter_mut().zip(&networks) {
                    node.add_pod(network)?;
                }
            }
        }
        let mut up = Self { daemons, cluster, networks };
        up.wait_for_all_pods(progress)?;
        Ok(up)
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// An error if a daemon has ended, with its last lines.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.daemons.check()
    }

    fn wait_for_all_pods(&mut self, progress: &mut Progress) -> anyhow::Result<()> {
        progress.say("waiting until every pod reaches every other".to_owned());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let silent = unanswered(self.cluster.matrix(PING)?);
            if silent.is_empty() {
                return Ok(());
            }
            self.daemons.check()?;
            let list = silent.iter().map(|cell| format!("{} to {}", cell.from, cell.to)).collect::<Vec<_>>();
            if Instant::now() >= deadline {
                let nodes: Vec<String> =
                    self.cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
                bail!(
                    "after {PATIENCE:?} these pods still do not reach each other: {}. The daemons' last lines:\n  {}",
                    list.join(", "),
                    self.daemons.last_lines(&nodes)
                );
            }
            let more = if list.len() > 3 { format!(" and {} more", list.len() - 3) } else { String::new() };
            progress.say(format!("waiting for packets from {}{more}", list[..list.len().min(3)].join(", ")));
        }
    }

    /// The nodes, for a table.
    pub(super) fn rows(&self) -> anyhow::Result<Vec<NodeRow>> {
        self.cluster.nodes().iter().zip(&self.networks).map(|(node, network)| row(node, network)).collect()
    }

    /// Pings every pod from every other, a few times.
    pub(super) fn round_trips(&self) -> anyhow::Result<Vec<Rtt>> {
        let rounds = (0..PINGS).map(|_| self.cluster.matrix(PING)).collect::<anyhow::Result<Vec<_>>>()?;
        let Some(first) = rounds.first() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for (index, cell) in first.iter().enumerate() {
            let of_pair = rounds.iter().filter_map(|round| round.get(index)?.answer.microseconds());
            let mut times: Vec<f64> = of_pair.collect();
            times.sort_by(f64::total_cmp);
            let Some(&middle) = times.get(times.len() / 2) else {
                bail!("{} reached {} before and does not any more: {:?}", cell.from, cell.to, cell.answer);
            };
            found.push(Rtt {
                from: cell.from.clone(),
                to: cell.to.clone(),
                address: cell.address,
                milliseconds: middle / 1e3,
            });
        }
        Ok(found)
    }
}

fn unanswered(cells: Vec<Cell>) -> Vec<Cell> {
    cells.into_iter().filter(|cell| cell.answer.microseconds().is_none()).collect()
}

fn row(node: &Node, network: &PodNetwork) -> anyhow::Result<NodeRow> {
    let links = node.namespace().run("demo-links", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { anyhow::Ok(Kernel::connect().await?.links().await?) })
    })??;
    let device = links.into_iter().find(|link| link.name.starts_with("flannel"));
    let device = device.with_context(|| format!("flanneld on {} made no device", node.name()))?;
    let pod = node.pods().first();
    Ok(NodeRow {
        node: node.name().to_owned(),
        underlay: node.v4().map(IpAddr::V4),
        subnets: network.subnets.clone(),
        device: device.name,
        mtu: network.mtu,
        pod: pod.map(|pod| pod.name().to_owned()).unwrap_or_default(),
        pod_addresses: pod.map(|pod| pod.addresses().collect()).unwrap_or_default(),
    })
}
