//! Nodes of ours whose leases are in a real etcd, which runs on a lab node of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use etcd_client::{Client, GetOptions};
use hostnet::subnet_env::SubnetEnv;
use lab::etcd::{Etcd, MISSING, Setup};
use lab::{Cluster, Node, Plan, Pod};

use crate::binary;
use crate::daemon::{Daemon, pod_network, subnet_file};

/// `--etcd-prefix` where none is given.
pub const PREFIX: &str = "/coreos.com/network";

/// Nodes with daemons and pods, and a last node with etcd. Dropping it ends all of them.
#[derive(Debug)]
pub struct OverEtcd {
    /// In the order of the nodes; the last node has none.
    pub daemons: Vec<Daemon>,
    /// What each `subnet.env` says.
    pub envs: Vec<SubnetEnv>,
    etcd: Etcd,
    /// After the processes, so that they end before what they stand on.
    pub cluster: Cluster,
}

impl OverEtcd {
    /// Builds the nodes of `plan` and makes the last one that of etcd, with so many servers; writes the configuration,
    /// starts a daemon on each of the first `daemons` nodes, and adds a pod to each of these.
    ///
    /// # Errors
    ///
    /// When a step fails. Where the machine has no etcd that is a skip.
    pub fn start(
        plan: &Plan,
        dir: &Path,
        members: usize,
        net_conf: &str,
        daemons: usize,
    ) -> anyhow::Result<Self> {
        let cluster = Cluster::build(plan)?;
        let host = cluster.nodes().last().context("a node for etcd")?;
        let address = host.addresses().find(std::net::IpAddr::is_ipv4).context("an IPv4 address")?;
        let etcd = host
            .namespace()
            .run("etcd", || Etcd::start(&Setup { members, address, tls: None }))??
            .ok_or_else(|| lab::skip(MISSING))?;
        let mut all = Self { daemons: Vec::new(), envs: Vec::new(), etcd, cluster };
        all.put("config", net_conf)?;
        for index in 0..daemons {
            let daemon = all.spawn(index, dir, &[])?;
            all.daemons.push(daemon);
        }
        all.envs = all.daemons.iter().map(Daemon::ready).collect::<anyhow::Result<_>>()?;
        for (node, env) in all.cluster.nodes_mut().iter_mut().zip(&all.envs) {
            node.add_pod(&pod_network(env))?;
        }
        Ok(all)
    }

    /// Starts a daemon on a node; it is not ready yet.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, index: usize, dir: &Path, extra: &[&str]) -> anyhow::Result<Daemon> {
        let node = self.node(index)?;
        let mut command = Command::new(binary::flanneld()?);
        command
            .arg(self.endpoints())
            .arg(format!("--subnet-file={}", subnet_file(node.name(), dir).display()))
            .arg(format!("--status-socket={}", dir.join(node.name()).join("status.sock").display()))
            .args(["--log-format", "json", "--iface=eth0", "--engine=always"])
            .args(extra);
        Ok(Daemon::of(node.spawn(command)?, subnet_file(node.name(), dir)))
    }

    /// `--etcd-endpoints`, as flannel takes it too.
    #[must_use]
    pub fn endpoints(&self) -> String {
        format!("-etcd-endpoints={}", self.etcd.urls().join(","))
    }

    /// Waits for a daemon that was started on the next node, and gives it a pod.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn adopt(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        let env = daemon.ready()?;
        let index = self.daemons.len();
        self.cluster.nodes_mut().get_mut(index).context("a node")?.add_pod(&pod_network(&env))?;
        self.envs.push(env);
        self.daemons.push(daemon);
        Ok(())
    }

    /// Starts a daemon on one more node, waits for it and gives it a pod.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn join(&mut self, dir: &Path) -> anyhow::Result<()> {
        let daemon = self.spawn(self.daemons.len(), dir, &[])?;
        self.adopt(daemon)
    }

    /// The node.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn node(&self, index: usize) -> anyhow::Result<&Node> {
        self.cluster.nodes().get(index).context("no such node")
    }

    /// The first pod of node `index`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pod(&self, index: usize) -> anyhow::Result<&Pod> {
        self.node(index)?.pods().first().context("no such pod")
    }

    /// Does something to etcd's processes.
    ///
    /// # Errors
    ///
    /// What `work` answers.
    pub fn etcd<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Etcd) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let Self { etcd, cluster, .. } = self;
        let host = cluster.nodes().last().context("a node for etcd")?;
        host.namespace().run("etcd", || work(etcd))?
    }

    /// Asks etcd something as an operator would.
    ///
    /// # Errors
    ///
    /// What `work` answers, or that etcd is not there.
    pub fn by_hand<T: Send>(
        &self,
        work: impl AsyncFnOnce(&mut Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.by_hand_at(&self.etcd.urls(), work)
    }

    /// Asks these servers of it.
    ///
    /// # Errors
    ///
    /// As [`by_hand`](Self::by_hand).
    pub fn by_hand_at<T: Send>(
        &self,
        urls: &[String],
        work: impl AsyncFnOnce(&mut Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let host = self.cluster.nodes().last().context("a node for etcd")?;
        host.namespace().run("etcdctl", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(&mut Client::connect(urls, None).await?).await })
        })?
    }

    /// Writes `PREFIX/name`, without an etcd lease.
    ///
    /// # Errors
    ///
    /// When etcd refuses.
    pub fn put(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let key = format!("{PREFIX}/{name}");
        self.by_hand(async move |client| Ok(client.put(key, value, None).await.map(drop)?))
    }

    /// Keys of all leases below `subnets/` with value and etcd lease.
    ///
    /// # Errors
    ///
    /// When etcd does not answer.
    pub fn leases(&self) -> anyhow::Result<BTreeMap<String, (String, i64)>> {
        let leases = format!("{PREFIX}/subnets/");
        self.by_hand(async move |client| {
            let all = client.get(leases.clone(), Some(GetOptions::new().with_prefix())).await?;
            let read = |kv: &etcd_client::KeyValue| {
                let name = kv.key_str()?.strip_prefix(&leases).context("a key below the prefix")?.to_owned();
                Ok((name, (kv.value_str()?.to_owned(), kv.lease())))
            };
            all.kvs().iter().map(read).collect()
        })
    }

    /// Stops every daemon, and checks that each ends well.
    ///
    /// # Errors
    ///
    /// When one does not.
    pub fn stop(self) -> anyhow::Result<()> {
        for daemon in self.daemons {
            let books = daemon.stop()?;
            ensure!(!books.is_empty(), "no books");
        }
        Ok(())
    }
}
