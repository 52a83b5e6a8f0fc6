//! The store in the Kubernetes API, `--kube-subnet-mgr`: every Node is a lease.
//!
//! ```text
//! spec.podCIDR(s)                                     the subnet; the controller manager assigns it, for the node's life
//! metadata.annotations flannel.alpha.coreos.com/…     what the node publishes; patched through nodes/status
//! status.conditions NetworkUnavailable                False once packets can flow
//! ```
//!
//! It needs what flannel's manifest grants: nodes get, list, watch; nodes/status patch; pods get where `NODE_NAME` is not
//! set. A lease has no end here, and belongs to the node whatever address it has.
//!
//! - `annotations`: keys and texts; `node`: from a Node to a lease; both pure
//! - `table`: all nodes and who holds what; `follow`: list and watch as a state machine; both pure
//! - `access`: the client; `watch`: the task that moves the state machine

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::IpNet;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::access::Access;
use self::annotations::{Keys, Name};
use self::follow::{Failure, Follow};
use self::node::{Claim, Families, NodeObject};
use self::table::Table;
use super::followed::Followed;
use super::{LeaseRequest, LeaseStore, PublicAddresses, StoreError};
use crate::lease::{BackendData, Lease, LeaseAttrs, Subnet};
use crate::network::NetworkConfig;
use crate::settings::KubeSettings;

mod access;
mod annotations;
#[cfg(test)]
mod fake;
mod follow;
mod node;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watch;

const NODES: &str = "/api/v1/nodes";
/// How long a patch is tried before the caller hears of it.
const PATCHING: Duration = Duration::from_secs(8);
/// What the store is called where it is set up.
const STORE: &str = "the Kubernetes store";

/// The store.
pub struct KubeStore {
    access: Arc<Access>,
    keys: Keys,
    settings: KubeSettings,
    net_config_path: PathBuf,
    /// Read once, as in flannel: another ConfigMap needs a restart.
    network: OnceCell<NetworkConfig>,
    /// Our node, once it is known.
    node: OnceCell<String>,
}

/// The parts of a Pod that are read.
#[derive(Debug, Default, Deserialize)]
struct PodObject {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
struct PodSpec {
    #[serde(default, rename = "nodeName")]
    node_name: Option<String>,
}

impl KubeStore {
    /// Checks the settings; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// When the annotation prefix is none, or nothing says which node this is.
    pub fn open(settings: &KubeSettings, net_config_path: &Path) -> Result<Self, StoreError> {
        let refuse = |doing, why: String, remedy: &str| StoreError::Refused {
            store: STORE.to_owned(),
            doing,
            why,
            remedy: remedy.to_owned(),
        };
        let keys = Keys::new(&settings.annotation_prefix).map_err(|error| {
            refuse(
                "use this --kube-annotation-prefix",
                error.to_string(),
                "give one like flannel.alpha.coreos.com or example.org/flannel",
            )
        })?;
        if settings.node_name.is_none() && settings.pod.is_none() {
            return Err(refuse(
                "start",
                "nothing says which node this is".to_owned(),
                "set NODE_NAME, or POD_NAME and POD_NAMESPACE; a DaemonSet takes them from fieldRef spec.nodeName, \
                 metadata.name and metadata.namespace",
            ));
        }
        let node = OnceCell::new_with(settings.node_name.clone());
        Ok(Self {
            access: Arc::new(Access::new(settings)),
            keys,
            settings: settings.clone(),
            net_config_path: net_config_path.to_owned(),
            network: OnceCell::new(),
            node,
        })
    }

    /// Our node's name: as given, or our pod's.
    async fn node_name(&self) -> Result<&str, StoreError> {
        let name = self.node.get_or_try_init(|| async {
            let (pod, namespace) = self.settings.pod.as_ref().ok_or_else(|| {
                StoreError::NotYet("nothing says which node this is: set NODE_NAME".to_owned())
            })?;
            let request =
                Request::new(format!("/api/v1/namespaces/{namespace}/pods")).get(pod, &GetParams::default());
            let object: PodObject = self.access.ask(request).await.map_err(|failure| {
                self.failed("read this pod", &format!("pods: get in {namespace}, or set NODE_NAME"), failure)
            })?;
            object.spec.node_name.filter(|name| !name.is_empty()).ok_or_else(|| {
                StoreError::NotYet(format!(
                    "the pod {namespace}/{pod} is on no node yet, by what the API says"
                ))
            })
        });
        name.await.map(String::as_str)
    }

    async fn own_node(&self) -> Result<NodeObject, StoreError> {
        let name = self.node_name().await?;
        let request = Request::new(NODES).get(name, &GetParams::default());
        let failed = |failure| match failure {
            Failure::Status { code: 404, .. } => StoreError::NotYet(format!(
                "there is no Node {name:?} in {}: the kubelet registers it; if it never does, NODE_NAME names the wrong \
                 one",
                self.access.place()
            )),
            other => self.failed("read this node", "nodes: get", other),
        };
        self.access.ask(request).await.map_err(failed)
    }

    async fn patch_status(&self, patch: &Value) -> Result<NodeObject, StoreError> {
        let name = self.node_name().await?;
        let request = Request::new(NODES).patch_subresource(
            "status",
            name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        );
        let failed = |failure| self.failed("patch this node's status", "nodes/status: patch", failure);
        self.access.ask(request).await.map_err(failed)
    }

    /// The same again while the server does not answer sensibly, for as long as flannel tries.
    async fn patch_patiently(&self, patch: &Value) -> Result<NodeObject, StoreError> {
        let end = Instant::now() + PATCHING;
        loop {
            match self.patch_status(patch).await {
                Err(StoreError::Unreachable { why, .. }) if Instant::now() < end => {
                    tracing::warn!(%why, "cannot write this node's annotations, trying again");
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(1500..3000))).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn failed(&self, doing: &'static str, right: &str, failure: Failure) -> StoreError {
        let store = self.access.place();
        let why = failure.to_string();
        let remedy = match failure {
            Failure::Status { code: 401, .. } => {
                "the credentials are wrong or have ended: see the token or the certificate in use".to_owned()
            }
            Failure::Status { code: 403, .. } => format!("grant {right} to flannel's ClusterRole"),
            Failure::Status { code: 404, .. } => "see whether its name is right".to_owned(),
            Failure::Status { code: 400 | 422, .. } => {
                "see what it says about the value, and that nothing else changes requests on their way"
                    .to_owned()
            }
            _ => return StoreError::Unreachable { store, why },
        };
        StoreError::Refused { store, doing, why, remedy }
    }

    async fn families(&self) -> Result<Families, StoreError> {
        let network = self.network().await?;
        Ok(Families { v4: network.v4.is_some(), v6: network.v6.is_some() })
    }

    /// Our node and its subnet; [`StoreError::NotYet`] until the controller manager has assigned one.
    async fn assigned(&self, families: Families) -> Result<(NodeObject, Subnet), StoreError> {
        let node = self.own_node().await?;
        let subnet = node.subnet(families).map_err(|error| self.unusable(&node, error.to_string()))?;
        if let Some(subnet) = subnet.filter(|subnet| covers(subnet, families)) {
            return Ok((node, subnet));
        }
        let missing = match families {
            Families { v4: true, v6: true } => "a podCIDR of each family",
            Families { v4: true, .. } => "an IPv4 podCIDR",
            Families { .. } => "an IPv6 podCIDR",
        };
        Err(StoreError::NotYet(format!(
            "waiting for node {:?} to get {missing}: the controller manager assigns it (kubeadm init --pod-network-cidr, or \
             kube-controller-manager --allocate-node-cidrs --cluster-cidr)",
            node.metadata.name
        )))
    }

    fn unusable(&self, node: &NodeObject, why: String) -> StoreError {
        StoreError::Refused {
            store: self.access.place(),
            doing: "give this node a lease",
            why: format!("node {:?}: {why}", node.metadata.name),
            remedy: "correct the Node, or delete it so that it is registered anew".to_owned(),
        }
    }

    fn wrong_address(&self, doing: &'static str, key: &str, text: &str) -> StoreError {
        StoreError::Refused {
            store: self.access.place(),
            doing,
            why: format!("its annotation {key} is {text:?}, which is not an address of this family"),
            remedy: "correct or remove the annotation".to_owned(),
        }
    }

    /// Publishes the attributes where the node says something else, and answers what it says then.
    async fn publish(
        &self,
        node: NodeObject,
        attrs: &LeaseAttrs,
        families: Families,
    ) -> Result<Lease, StoreError> {
        if let Some((key, text)) = self.keys.bad_overwrite(node.annotations()) {
            return Err(self.wrong_address("publish this node's address", &key, &text));
        }
        let node = match self.keys.patch(attrs, node.annotations()) {
            Some(patch) => self.patch_patiently(&patch).await?,
            None => node,
        };
        node.lease(&self.keys, families).map_err(|error| self.unusable(&node, error.to_string()))
    }
}

impl LeaseStore for KubeStore {
    type Watch = Followed;

    fn name(&self) -> String {
        let node = match (self.node.get(), &self.settings.pod) {
            (Some(node), _) => node.clone(),
            (None, Some((pod, namespace))) => format!("the node of pod {namespace}/{pod}"),
            (None, None) => String::new(),
        };
        format!("Kubernetes Subnet Manager - {node}")
    }

    async fn network(&self) -> Result<NetworkConfig, StoreError> {
        let read = || async {
            if !self.net_config_path.exists() {
                return Err(StoreError::NoConfig { tried: vec![self.net_config_path.clone()] });
            }
            Ok(NetworkConfig::read_without_pool(&self.net_config_path)?)
        };
        self.network.get_or_try_init(read).await.cloned()
    }

    /// The lease of our node, whatever address it has.
    async fn held_by(&self, _owner: IpAddr) -> Result<Option<Lease>, StoreError> {
        let families = self.families().await?;
        match self.own_node().await {
            Ok(node) => Ok(node.lease(&self.keys, families).ok()),
            Err(StoreError::NotYet(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn acquire(&self, network: &NetworkConfig, request: &LeaseRequest) -> Result<Lease, StoreError> {
        if request.attrs.owner().is_none() {
            return Err(StoreError::NoOwner);
        }
        let families = self.families().await?;
        let (node, subnet) = self.assigned(families).await?;
        if let Some(stray) = stray(network, &subnet) {
            let pools: Vec<String> = network.pools().map(|pool| pool.network().to_string()).collect();
            return Err(StoreError::Refused {
                store: self.access.place(),
                doing: "give this node a lease",
                why: format!(
                    "the podCIDR {stray} of node {:?} is not in the network {} of {}",
                    node.metadata.name,
                    pools.join(" and "),
                    self.net_config_path.display()
                ),
                remedy:
                    "let Network (in net-conf.json) and the controller manager's --cluster-cidr say the same"
                        .to_owned(),
            });
        }
        self.publish(node, &request.attrs, families).await
    }

    async fn renew(&self, _network: &NetworkConfig, own: &Lease) -> Result<Lease, StoreError> {
        let families = self.families().await?;
        let node = self.own_node().await?;
        let present = node.subnet(families).map_err(|error| self.unusable(&node, error.to_string()))?;
        if let Some(present) = present.filter(|present| !within(&own.subnet, present)) {
            return Err(StoreError::Refused {
                store: self.access.place(),
                doing: "keep this node's lease",
                why: format!(
                    "the podCIDR of node {:?} was {} and is {present}",
                    node.metadata.name, own.subnet
                ),
                remedy:
                    "restart flanneld, and then the pods of this node: they have addresses of the old network"
                        .to_owned(),
            });
        }
        self.publish(node, &own.attrs, families).await
    }

    async fn public_addresses(&self) -> Result<PublicAddresses, StoreError> {
        let node = match self.own_node().await {
            Ok(node) => node,
            Err(StoreError::NotYet(_)) => return Ok(PublicAddresses::default()),
            Err(error) => return Err(error),
        };
        let wrong =
            |(key, text): (String, String)| self.wrong_address("name this node's address", &key, &text);
        let (v4, v6) = self.keys.node_addresses(node.annotations()).map_err(wrong)?;
        Ok(PublicAddresses { v4, v6 })
    }

    async fn node_addresses(&self) -> Result<Vec<IpAddr>, StoreError> {
        match self.own_node().await {
            Ok(node) => Ok(node.internal_addresses()),
            Err(StoreError::NotYet(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn announce_ready(&self) -> Result<(), StoreError> {
        if !self.settings.set_network_unavailable {
            return Ok(());
        }
        let node = self.own_node().await?;
        match ready_patch(&node, SystemTime::now()) {
            Some(patch) => self.patch_status(&patch).await.map(drop),
            None => Ok(()),
        }
    }

    async fn watch(&self) -> Result<Followed, StoreError> {
        let table = Table::new(self.keys.clone(), self.families().await?);
        Ok(watch::watch(self.access.clone(), Follow::new(table, fastrand::Rng::new())))
    }
}

/// The body of a fuzz target: `data` is an annotation prefix, and a Node as the API gives it. What is read as a lease and
/// published again is read as the same lease; what is no lease has a reason.
pub(crate) fn fuzz_node(data: &[u8]) {
    if let Ok(keys) = Keys::new(&String::from_utf8_lossy(data)) {
        assert_eq!(keys.of(Name::Managed).matches('/').count(), 1);
    }
    let keys = Keys::new("flannel.alpha.coreos.com").expect("flannel's own prefix");
    let Ok(node) = serde_json::from_slice::<NodeObject>(data) else { return };
    for (v4, v6) in [(true, false), (false, true), (true, true)] {
        let families = Families { v4, v6 };
        let lease = match node.claim(&keys, families) {
            Claim::Foreign => continue,
            Claim::Spoiled(why) => {
                assert!(!why.to_string().is_empty());
                continue;
            }
            Claim::Holds(lease) => lease,
        };
        let mut again = node.clone();
        let annotations = again.metadata.annotations.get_or_insert_default();
        for overwrite in [Name::PublicIpOverwrite, Name::PublicIpv6Overwrite] {
            annotations.remove(&keys.of(overwrite));
        }
        let desired = keys.desired(&lease.attrs, annotations);
        annotations.extend(desired);
        let Claim::Holds(republished) = again.claim(&keys, families) else {
            panic!("no lease any more: {again:?}")
        };
        assert_eq!(republished.subnet, lease.subnet);
        // JSON numbers of other backends may differ in their last digit.
        if !matches!(lease.attrs.backend, BackendData::Other { .. }) {
            assert_eq!(republished, lease);
        }
    }
}

/// The condition in flannel's words; `None` if the node has it. The time of the change is written only where the state
/// changes: flannel moves it at every start.
fn ready_patch(node: &NodeObject, now: SystemTime) -> Option<Value> {
    const REASON: &str = "FlannelIsUp";
    let conditions = node.status.conditions.as_deref().unwrap_or_default();
    let known = conditions.iter().find(|condition| condition.kind == "NetworkUnavailable");
    let unchanged = known.is_some_and(|known| known.status == "False");
    if unchanged && known.is_some_and(|known| known.reason.as_deref() == Some(REASON)) {
        return None;
    }
    let now = rfc3339(now);
    let mut condition = json!({
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": REASON,
        "message": "Flannel is running on this node",
        "lastHeartbeatTime": now,
    });
    if !unchanged {
        condition["lastTransitionTime"] = now.into();
    }
    Some(json!({"status": {"conditions": [condition]}}))
}

/// `2026-01-31T12:00:00Z`, as Kubernetes writes times.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    k8s_openapi::jiff::Timestamp::from_second(seconds)
        .unwrap_or(k8s_openapi::jiff::Timestamp::MAX)
        .to_string()
}

/// The subnet has every family that is on.
fn covers(subnet: &Subnet, families: Families) -> bool {
    subnet.v4().is_some() == families.v4 && subnet.v6().is_some() == families.v6
}

/// Every network of `part` is one of `whole`.
fn within(part: &Subnet, whole: &Subnet) -> bool {
    part.nets().all(|net| whole.nets().any(|other| other == net))
}

/// A network of the subnet that lies outside the cluster's.
fn stray(network: &NetworkConfig, subnet: &Subnet) -> Option<IpNet> {
    subnet.nets().find(|net| !network.pools().any(|pool| pool.network().contains(net)))
}
