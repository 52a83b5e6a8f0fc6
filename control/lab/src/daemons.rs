//! Real `flanneld` processes, one on every node of a cluster, with their leases in one directory.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::subnet_env::SubnetEnv;
use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::json;

use crate::books::Books;
use crate::cluster::node::DEVICE;
use crate::cluster::{Cluster, Node, PodNetwork, Process};

/// How often a wait looks at files and processes.
const LOOK_UP: Duration = Duration::from_millis(20);
/// How long the last lines of a dead daemon may take to be read.
const LOG_END: Duration = Duration::from_secs(1);
/// Last lines of a dead daemon's log that an error quotes.
const QUOTED: usize = 15;

/// `Backend.Type` of the network that the daemons make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// flannel's raw format.
    Udp,
    /// VXLAN.
    Vxlan,
}

impl Backend {
    /// As `net-conf.json` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Vxlan => "vxlan",
        }
    }
}

/// The network of a small cluster: 255 nodes with a /24 each.
const SMALL_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 16);

/// How to start the daemons of a cluster. [`Flanneld::new`] has no further flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flanneld {
    /// The program: a path to `flanneld`, or `/proc/self/exe` where the caller is one.
    pub program: PathBuf,
    /// An empty directory of their own: leases, configuration and a directory a node with its `subnet.env`.
    pub dir: PathBuf,
    /// The backend in the network's configuration.
    pub backend: Backend,
    /// The pods' network, and how long a node's part of it is.
    pub network: (Ipv4Net, u8),
    /// Further flags, such as `--engine-off=udp-gso`.
    pub flags: Vec<String>,
}

/// The running daemons of one cluster, in the order of its nodes. Dropping it kills them.
#[derive(Debug)]
pub struct Daemons {
    running: Vec<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    node: String,
    subnet_file: PathBuf,
    process: Process,
}

impl Flanneld {
    /// Daemons of a cluster of up to 255 nodes, 10.5.0.0/16 with a /24 each.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>, backend: Backend) -> Self {
        let (program, dir) = (program.into(), dir.into());
        Self { program, dir, backend, network: (SMALL_NETWORK, 24), flags: Vec::new() }
    }

    /// The directory that holds the leases.
    pub fn store(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// Writes the configuration and starts one daemon on every node. They find each other by the lease directory.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written or a process cannot be started.
    pub fn start(&self, cluster: &Cluster) -> anyhow::Result<Daemons> {
        self.start_on(cluster.nodes())
    }

    /// The same on some nodes only.
    ///
    /// # Errors
    ///
    /// As [`Flanneld::start`].
    pub fn start_on<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> anyhow::Result<Daemons> {
        let store = self.store();
        fs::create_dir_all(&store).with_context(|| format!("make {}", store.display()))?;
        let (network, length) = self.network;
        let config = json!({
            "Network": network.to_string(),
            "SubnetLen": length,
            "Backend": {"Type": self.backend.name()},
        });
        let path = store.join("config");
        fs::write(&path, format!("{config:#}\n")).with_context(|| format!("write {}", path.display()))?;
        let mut running = Vec::new();
        for node in nodes {
            // A directory each, as on real nodes: a daemon keeps its MAC beside its subnet.env.
            let own = self.dir.join(node.name());
            fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
            let subnet_file = own.join("subnet.env");
            let process = node.spawn(self.command(&store, &subnet_file))?;
            running.push(Daemon { node: node.name().to_owned(), subnet_file, process });
        }
        Ok(Daemons { running })
    }

    fn command(&self, store: &Path, subnet_file: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0("flanneld").arg("--file-subnet-mgr").arg(store);
        command.arg("--subnet-file").arg(subnet_file).arg("--iface").arg(DEVICE);
        // What is watched, raced and measured here is the engine; a later flag goes before this one.
        // Rules for forwarded packets would be a cost that the other ways of a race do not have.
        command.args(["--engine=always", "--iptables-forward-rules=false"]).args(&self.flags);
        // Variables of the machine's own flanneld would be flags of this one.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"FLANNELD_") {
                command.env_remove(name);
            }
        }
        command
    }
}

impl Daemons {
    /// Process ids, in the order of the nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.running.iter().map(|daemon| daemon.process.id()).collect()
    }

    /// Asks every daemon to stop, and answers the books of its engines, node by node. They are in the log only where it
    /// is JSON: start with `--log-format json`.
    ///
    /// # Errors
    ///
    /// When one does not end well, or closes no books.
    pub fn stop(self, patience: Duration) -> anyhow::Result<Vec<Vec<Books>>> {
        let mut closed = Vec::new();
        for mut daemon in self.running {
            let status = daemon.process.terminate(patience)?;
            let lines = daemon.process.lines();
            let books = Books::in_log(&lines)?;
            if !status.success() || books.is_empty() {
                let last = lines[lines.len().saturating_sub(QUOTED)..].join("\n  ");
                bail!("flanneld on {} ended with {status} and {} books:\n  {last}", daemon.node, books.len());
            }
            closed.push(books);
        }
        Ok(closed)
    }

    /// An error if one of them has ended, with its last lines.
    ///
    /// # Errors
    ///
    /// See above: that is the point.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for daemon in &mut self.running {
            if daemon.process.status()?.is_some() {
                // With the rest of what it wrote, which is still on its way.
                let status = daemon.process.wait(LOG_END)?;
                let lines = daemon.process.lines();
                let last = lines[lines.len().saturating_sub(QUOTED)..].join("\n  ");
                bail!("flanneld on {} has ended ({status}). Its last lines:\n  {last}", daemon.node);
            }
        }
        Ok(())
    }

    /// Where each daemon writes its `subnet.env`, in the order of the nodes.
    pub fn subnet_files(&self) -> impl Iterator<Item = &Path> {
        self.running.iter().map(|daemon| daemon.subnet_file.as_path())
    }

    /// Nodes whose daemon has not written its `subnet.env` yet.
    pub fn without_subnet(&self) -> Vec<String> {
        let waiting = self.running.iter().filter(|daemon| !daemon.subnet_file.exists());
        waiting.map(|daemon| daemon.node.clone()).collect()
    }

    /// Waits until every daemon has written its `subnet.env` and answers what pods are to be made from.
    /// `each_look` is called while waiting, with the nodes that are still missing.
    ///
    /// # Errors
    ///
    /// When the time is over, a daemon ends, or a file cannot be read.
    pub fn networks(
        &mut self,
        timeout: Duration,
        mut each_look: impl FnMut(&[String]),
    ) -> anyhow::Result<Vec<PodNetwork>> {
        let deadline = Instant::now() + timeout;
        loop {
            self.check()?;
            let missing = self.without_subnet();
            if missing.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let last = self.last_lines(&missing);
                bail!("no subnet.env after {timeout:?} from flanneld on {}:\n  {last}", missing.join(", "));
            }
            each_look(&missing);
            thread::sleep(LOOK_UP);
        }
        let read = |daemon: &Daemon| {
            let file = SubnetEnv::read(&daemon.subnet_file)?;
            Ok(PodNetwork { subnets: file.subnets, mtu: file.mtu })
        };
        self.running.iter().map(read).collect()
    }

    /// The log of a node's daemon so far.
    pub fn lines(&self, node: &str) -> Vec<String> {
        let found = self.running.iter().find(|daemon| daemon.node == node);
        found.map(|daemon| daemon.process.lines()).unwrap_or_default()
    }

    /// The last lines of the logs of some nodes, each with the node's name in front.
    pub fn last_lines(&self, nodes: &[String]) -> String {
        let mut quoted = Vec::new();
        for node in nodes {
            let lines = self.lines(node);
            let last = &lines[lines.len().saturating_sub(QUOTED)..];
            quoted.extend(last.iter().map(|line| format!("{node}: {line}")));
        }
        quoted.join("\n  ")
    }
}
