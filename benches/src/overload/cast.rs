//! Nodes, daemons and pods that a measurement of overload needs.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::books::Books;
use lab::cluster::vxlan::{KernelVxlan, subnets};
use lab::daemons::{Backend, Daemons, Flanneld};
use lab::traffic::Path;
use lab::traffic::ping::Ping;
use lab::{Cluster, LinkModel, Plan, Pod, Underlay};

/// How long a daemon may take to be ready or to end, and a first packet to arrive.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `flanneld` with its engine.
    Engine(Backend),
    /// The kernel's VXLAN device, for comparison.
    Kernel,
}

impl Carrier {
    /// As the race calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine(Backend::Udp) => "engine udp",
            Self::Engine(Backend::Vxlan) => "engine vxlan",
            Self::Kernel => "kernel vxlan",
        }
    }
}

/// Where programs and files are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The `flanneld` that is measured.
    pub flanneld: PathBuf,
    /// A directory for lease stores and `subnet.env`; each cast takes a fresh one in it.
    pub dir: PathBuf,
}

/// A running cluster with a pod on every node.
#[derive(Debug)]
pub struct Cast {
    daemons: Option<Daemons>,
    /// Where the daemons' leases are.
    pub store: PathBuf,
    /// After the daemons that run on it.
    pub cluster: Cluster,
}

impl Cast {
    /// Builds `nodes` nodes with these flags for every daemon, and waits until the first pod reaches all others.
    ///
    /// # Errors
    ///
    /// When the machine lacks what it takes, a daemon ends, or no packet arrives.
    pub fn build(
        place: &Place,
        carrier: Carrier,
        model: LinkModel,
        nodes: usize,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let plan = if nodes == 2 { Plan::pair() } else { Plan::nodes(nodes) };
        let mut cluster = Cluster::build(&Plan { model, underlay: Underlay::V4, ..plan })?;
        let dir = fresh(&place.dir)?;
        let (networks, daemons) = match carrier {
            Carrier::Kernel => {
                (cluster.kernel_vxlan(&KernelVxlan::default(), &subnets(nodes, true, false))?, None)
            }
            Carrier::Engine(backend) => {
                let program = place.flanneld.clone();
                let flags =
                    [&["--log-format", "json"], flags].concat().iter().map(ToString::to_string).collect();
                let flanneld = Flanneld { flags, ..Flanneld::new(program, dir.clone(), backend) };
                let mut daemons = flanneld.start(&cluster)?;
                (daemons.networks(PATIENCE, |_| {})?, Some(daemons))
            }
        };
        for (node, network) in cluster.nodes_mut().iter_mut().zip(&networks) {
            node.add_pod(network)?;
        }
        let cast = Self { daemons, store: dir.join("leases"), cluster };
        for to in 1..nodes {
            cast.wait_for_first_packet(to)?;
        }
        Ok(cast)
    }

    /// From the first node's pod to that of node `to`.
    ///
    /// # Errors
    ///
    /// When there is no such pod.
    pub fn path(&self, to: usize) -> anyhow::Result<Path<'_>> {
        self.pod(0)?.path_v4(self.pod(to)?).context("a pod without IPv4")
    }

    /// The pod of a node.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pod(&self, node: usize) -> anyhow::Result<&Pod> {
        self.cluster.nodes().get(node).and_then(|node| node.pods().first()).context("no such pod")
    }

    /// Process ids of the daemons, in the order of the nodes; none where the kernel carries.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.daemons.as_ref().map(Daemons::pids).unwrap_or_default()
    }

    /// Stops the daemons and answers their books in the order of the nodes, and the cluster that they ran on.
    ///
    /// # Errors
    ///
    /// When one does not end well.
    pub fn close(self) -> anyhow::Result<(Vec<Books>, Cluster)> {
        let books = match self.daemons {
            Some(daemons) => daemons.stop(PATIENCE)?.concat(),
            None => Vec::new(),
        };
        Ok((books, self.cluster))
    }

    fn wait_for_first_packet(&self, to: usize) -> anyhow::Result<()> {
        let path = self.path(to)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ping = Ping { timeout: Duration::from_millis(200), ..Ping::new(path.address) };
            let answer = ping.send_from(path.from)?;
            if answer.microseconds().is_some() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("no packet from pod to pod within {PATIENCE:?}; the last ping got {answer:?}");
            }
            // A refused ping answers at once.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A directory in `dir` that is not there yet.
fn fresh(dir: &FilePath) -> anyhow::Result<PathBuf> {
    for number in 0.. {
        let candidate = dir.join(format!("cast-{number}"));
        match fs::create_dir(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("make {}", candidate.display())),
        }
    }
    bail!("no directory is free in {}", dir.display())
}

/// Resident memory of a process in KiB.
///
/// # Errors
///
/// When there is no such process.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
