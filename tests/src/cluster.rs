//! A cluster of our nodes: a `flanneld` on each, leases in a shared directory, a pod behind each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use hostnet::subnet_env::SubnetEnv;
use lab::{Cluster, Plan, Pod};

use crate::daemon::{Books, Daemon, pod_network};

/// Which families the pods have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Dual,
}

impl Inner {
    /// The families.
    #[must_use]
    pub fn families(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }
}

/// A `net-conf.json` with the given backend and the tests' networks.
#[must_use]
pub fn net_conf(backend: &str, inner: Inner) -> String {
    let v4 = r#""Network": "10.5.0.0/16""#;
    let v6 = r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48""#;
    let networks = match inner {
        Inner::V4 => v4.to_owned(),
        Inner::V6 => format!(r#""EnableIPv4": false, {v6}"#),
        Inner::Dual => format!("{v4}, {v6}"),
    };
    format!(r#"{{ {networks}, "Backend": {{ "Type": "{backend}" }} }}"#)
}

/// A daemon on each node, started at once, and what each `subnet.env` says when all are ready.
///
/// # Errors
///
/// When one cannot be started or does not get ready; its log is quoted.
pub fn daemons(
    cluster: &Cluster,
    dir: &Path,
    flags: &[&str],
) -> anyhow::Result<(Vec<Daemon>, Vec<SubnetEnv>)> {
    let started = cluster.nodes().iter().map(|node| Daemon::spawn(node, dir, flags));
    let daemons = started.collect::<anyhow::Result<Vec<_>>>()?;
    let envs = daemons.iter().map(Daemon::ready).collect::<anyhow::Result<_>>()?;
    Ok((daemons, envs))
}

/// Nodes, daemons, pods. Dropping it ends all of them.
#[derive(Debug)]
pub struct Ours {
    /// In the order of the nodes.
    pub daemons: Vec<Daemon>,
    /// What each `subnet.env` says.
    pub envs: Vec<SubnetEnv>,
    /// After the daemons, so that they end before what they stand on.
    pub cluster: Cluster,
}

impl Ours {
    /// Builds the nodes, writes the configuration into the store in `dir`, starts a daemon on each node at once, waits for
    /// all of them, and adds a pod to each node from what its `subnet.env` says.
    ///
    /// # Errors
    ///
    /// When a step fails; a daemon's log is quoted.
    pub fn start(plan: &Plan, dir: &Path, net_conf: &str) -> anyhow::Result<Self> {
        Self::start_with(plan, dir, net_conf, &[])
    }

    /// The same with these flags for every daemon.
    ///
    /// # Errors
    ///
    /// As [`Ours::start`].
    pub fn start_with(plan: &Plan, dir: &Path, net_conf: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let mut cluster = Cluster::build(plan)?;
        fs::create_dir_all(dir.join("store"))?;
        fs::write(dir.join("store/config"), net_conf)?;
        let (daemons, envs) = daemons(&cluster, dir, flags)?;
        for (node, env) in cluster.nodes_mut().iter_mut().zip(&envs) {
            node.add_pod(&pod_network(env))?;
        }
        Ok(Self { daemons, envs, cluster })
    }

    /// The first pod of node `index`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pod(&self, index: usize) -> anyhow::Result<&Pod> {
        self.cluster.nodes().get(index).and_then(|node| node.pods().first()).context("no such pod")
    }

    /// Waits until every pod reaches every address of every other.
    ///
    /// # Errors
    ///
    /// Which pod does not reach which, after 20 seconds.
    pub fn all_reach_each_other(&self) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        for _ in 0..20 {
            let matrix = self.cluster.matrix(Duration::from_secs(1))?;
            ensure!(!matrix.is_empty(), "nobody to ask");
            missing = matrix.into_iter().filter(|cell| cell.answer.microseconds().is_none()).collect();
            if missing.is_empty() {
                return Ok(());
            }
        }
        anyhow::bail!("not reached: {missing:?}")
    }

    /// Stops every daemon, and checks that its books balance. Answers them, node by node.
    ///
    /// # Errors
    ///
    /// When one does not end well or its books do not balance.
    pub fn stop(self) -> anyhow::Result<Vec<Vec<Books>>> {
        self.daemons.into_iter().map(Daemon::stop).collect()
    }
}
