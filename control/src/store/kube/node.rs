//! What a lease needs of a Node object, and the lease it makes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use dataplane_core::IpNet;
use serde::Deserialize;

use super::annotations::{Annotations, Keys, Name};
use crate::json::Remark;
use crate::lease::{BackendData, Lease, LeaseAttrs, Subnet};

/// The parts of a Node that are read. All else (images, conditions, capacity: most of it) is skipped while parsing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct NodeObject {
    #[serde(default)]
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

/// `metadata`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) name: String,
    /// A node that was deleted and made again has another.
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) resource_version: String,
    /// RFC 3339 in UTC with whole seconds, so the order of texts is that of times.
    #[serde(default)]
    pub(super) creation_timestamp: Option<String>,
    /// `None` on a node that nobody annotated.
    #[serde(default)]
    pub(super) annotations: Option<Annotations>,
}

/// `spec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Spec {
    #[serde(default, rename = "podCIDR")]
    pub(super) pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<String>>,
}

/// `status`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) conditions: Option<Vec<Condition>>,
    #[serde(default)]
    pub(super) addresses: Option<Vec<Address>>,
}

/// One of `status.addresses`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Address {
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) address: String,
}

/// One of `status.conditions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Condition {
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: Option<String>,
}

/// The families that this cluster's pods have. What a node says about another is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// What a node is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// Not a node of flannel.
    Foreign,
    /// It holds a lease.
    Holds(Lease),
    /// A node of flannel that says something nobody can use.
    Spoiled(NodeError),
}

/// Why a node has no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NodeError {
    /// The controller manager has not given it one, or has for another family.
    #[error("it has no podCIDR of a family that this network has")]
    NoPodCidr,
    /// Kubernetes has at most one of a family.
    #[error("it has {0} podCIDRs, and a node has at most two")]
    TooManyPodCidrs(usize),
    /// Not a network that pods can live in.
    #[error("its podCIDR {0:?} is not a network of pods, such as 10.244.1.0/24")]
    BadPodCidr(String),
    /// Peers would not know where to send.
    #[error("its annotation {0} is missing, so nobody knows where to send its pods' packets")]
    NoAddress(String),
    /// An address that is none.
    #[error("its annotation {key} is {text:?}, which is not an address of this family")]
    BadAddress {
        /// The whole key.
        key: String,
        /// The start of the value.
        text: String,
    },
    /// The backend's data.
    #[error("its backend data (annotations {key} and its -v6- twin) is wrong at {remark}")]
    BadData {
        /// The whole key.
        key: String,
        /// Place and reason.
        remark: Remark,
    },
}

impl NodeObject {
    /// The addresses by which the kubelet says the node is reached inside the cluster.
    pub(super) fn internal_addresses(&self) -> Vec<IpAddr> {
        let internal = self.status.addresses.iter().flatten().filter(|address| address.kind == "InternalIP");
        internal.filter_map(|address| address.address.parse().ok()).collect()
    }

    /// The annotations; none on a node without a map of them.
    pub(super) fn annotations(&self) -> &Annotations {
        static NONE: Annotations = Annotations::new();
        self.metadata.annotations.as_ref().unwrap_or(&NONE)
    }

    /// The node's subnets of the families: the first of each. `Ok(None)`: none is assigned yet.
    pub(super) fn subnet(&self, families: Families) -> Result<Option<Subnet>, NodeError> {
        let listed = self.spec.pod_cidrs.as_deref().unwrap_or_default();
        let single = self.spec.pod_cidr.as_slice();
        let texts = if listed.is_empty() { single } else { listed };
        if texts.len() > 2 {
            return Err(NodeError::TooManyPodCidrs(texts.len()));
        }
        let (mut v4, mut v6) = (None, None);
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let bad = || NodeError::BadPodCidr(shown(text));
            let net: IpNet = text.parse().map_err(|_| bad())?;
            // One address is no network for pods, and has no key in any store.
            if net.prefix_len() == net.max_prefix_len() || net.prefix_len() == 0 {
                return Err(bad());
            }
            match net {
                IpNet::V4(net) if families.v4 => v4 = v4.or_else(|| Some(net.trunc())),
                IpNet::V6(net) if families.v6 => v6 = v6.or_else(|| Some(net.trunc())),
                IpNet::V4(_) | IpNet::V6(_) => {}
            }
        }
        Ok(Subnet::new(v4, v6))
    }

    /// What the node is to us.
    pub(super) fn claim(&self, keys: &Keys, families: Families) -> Claim {
        if keys.read(self.annotations(), Name::Managed) != Some("true") {
            return Claim::Foreign;
        }
        match self.lease(keys, families) {
            Ok(lease) => Claim::Holds(lease),
            Err(error) => Claim::Spoiled(error),
        }
    }

    /// The lease of a node, whether or not it is marked as flannel's. A family whose address or podCIDR is missing is left
    /// out: a node that has not heard of the second family yet keeps the first. (flannel drops such a node whole.)
    pub(super) fn lease(&self, keys: &Keys, families: Families) -> Result<Lease, NodeError> {
        let annotations = self.annotations();
        let subnet = self.subnet(families)?.ok_or(NodeError::NoPodCidr)?;
        let public_ip = address::<Ipv4Addr>(keys, annotations, Name::PublicIp, families.v4)?
            .filter(|ip| !ip.is_unspecified());
        let public_ipv6 = address::<Ipv6Addr>(keys, annotations, Name::PublicIpv6, families.v6)?
            .filter(|ip| !ip.is_unspecified());
        let v4 = subnet.v4().filter(|_| public_ip.is_some());
        let v6 = subnet.v6().filter(|_| public_ipv6.is_some());
        let missing = if subnet.v4().is_some() { Name::PublicIp } else { Name::PublicIpv6 };
        let subnet = Subnet::new(v4, v6).ok_or_else(|| NodeError::NoAddress(keys.of(missing)))?;
        let data = |name, on: bool| keys.read(annotations, name).filter(|_| on);
        let backend = BackendData::from_texts(
            data(Name::BackendType, true).unwrap_or_default(),
            data(Name::BackendData, families.v4),
            data(Name::BackendV6Data, families.v6 && public_ipv6.is_some()),
        )
        .map_err(|remark| NodeError::BadData { key: keys.of(Name::BackendData), remark })?;
        Ok(Lease { subnet, attrs: LeaseAttrs { public_ip, public_ipv6, backend }, expires: None })
    }
}

fn address<T: FromStr>(
    keys: &Keys,
    annotations: &Annotations,
    name: Name,
    on: bool,
) -> Result<Option<T>, NodeError> {
    match keys.read(annotations, name).filter(|text| on && !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(NodeError::BadAddress { key: keys.of(name), text: shown(text) }),
        },
    }
}

/// What fits into a line of the log.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const V4: Families = Families { v4: true, v6: false };
    const V6: Families = Families { v4: false, v6: true };
    const BOTH: Families = Families { v4: true, v6: true };
    const DATA: &str = r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#;

    fn keys() -> Keys {
        Keys::new("flannel.alpha.coreos.com").unwrap()
    }

    fn node(cidrs: &[&str], annotations: &[(&str, &str)]) -> NodeObject {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), json!(value)))
            .collect();
        let text = json!({
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "7", "annotations": annotations, "labels": {"a": "b"}},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs, "taints": []},
            "status": {"images": [{"names": ["x"]}]},
        });
        serde_json::from_value(text).unwrap()
    }

    const USUAL: [(&str, &str); 4] = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", DATA),
        ("public-ip", "192.0.2.1"),
    ];

    fn with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = USUAL.to_vec();
        for change in changes {
            all.retain(|(key, _)| *key != change.0);
            all.push(*change);
        }
        all
    }

    fn held(claim: Claim) -> Lease {
        match claim {
            Claim::Holds(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_of_flannel_is_a_lease() {
        let lease = held(node(&["10.244.1.0/24"], &USUAL).claim(&keys(), V4));
        assert_eq!(lease.subnet.to_string(), "10.244.1.0/24");
        assert_eq!(lease.attrs.public_ip, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(lease.attrs.backend.texts(), (Some(DATA.to_owned()), None));
        assert_eq!(lease.expires, None);
    }

    #[test]
    fn a_node_without_any_annotation_is_no_lease_and_no_panic() {
        let text = r#"{"metadata": {"name": "n", "annotations": null}, "spec": {"podCIDR": "10.244.1.0/24"}, "status": {}}"#;
        let node: NodeObject = serde_json::from_str(text).unwrap();
        assert_eq!(node.claim(&keys(), V4), Claim::Foreign);
        assert_eq!(node.subnet(V4).unwrap().unwrap().to_string(), "10.244.1.0/24");
        let empty: NodeObject = serde_json::from_str("{}").unwrap();
        assert_eq!((empty.claim(&keys(), V4), empty.subnet(V4)), (Claim::Foreign, Ok(None)));
    }

    #[test]
    fn only_the_exact_word_marks_a_node_of_flannel() {
        for word in ["True", "1", "", "true "] {
            let claim = node(&["10.244.1.0/24"], &with(&[("kube-subnet-manager", word)])).claim(&keys(), V4);
            assert_eq!(claim, Claim::Foreign, "{word:?}");
        }
    }

    #[test]
    fn pod_cidrs_come_by_family_in_any_order() {
        let six = [("public-ipv6", "2001:db8::1"), ("backend-v6-data", DATA)];
        let both = node(&["fd00:1::/64", "10.244.1.0/24"], &with(&six));
        assert_eq!(held(both.claim(&keys(), BOTH)).subnet.to_string(), "10.244.1.0/24 and fd00:1::/64");
        assert_eq!(held(both.claim(&keys(), V4)).subnet.to_string(), "10.244.1.0/24");
        let lease = held(both.claim(&keys(), V6));
        assert_eq!((lease.subnet.to_string().as_str(), lease.attrs.public_ip), ("fd00:1::/64", None));
        assert_eq!(lease.attrs.backend.texts(), (None, Some(DATA.to_owned())));
        let mut single = node(&[], &USUAL);
        single.spec.pod_cidr = Some("10.244.1.0/24".to_owned());
        assert_eq!(held(single.claim(&keys(), V4)).subnet.to_string(), "10.244.1.0/24");
    }

    #[test]
    fn a_node_that_knows_one_family_keeps_it_in_a_dual_stack_network() {
        let lease = held(node(&["10.244.1.0/24", "fd00:1::/64"], &USUAL).claim(&keys(), BOTH));
        assert_eq!(lease.subnet.to_string(), "10.244.1.0/24");
        let lease =
            held(node(&["10.244.1.0/24"], &with(&[("public-ipv6", "2001:db8::1")])).claim(&keys(), BOTH));
        assert_eq!(lease.subnet.to_string(), "10.244.1.0/24");
    }

    #[test]
    fn what_nobody_can_use_is_named() {
        let spoiled =
            |cidrs: &[&str], changes: &[(&str, &str)]| match node(cidrs, &with(changes)).claim(&keys(), V4) {
                Claim::Spoiled(error) => error.to_string(),
                other => panic!("{other:?}"),
            };
        let one = &["10.244.1.0/24"][..];
        for (cidrs, changes, expected) in [
            (&[][..], &[][..], "no podCIDR"),
            (&["fd00::/64"], &[], "no podCIDR"),
            (&["10.1.0.0/24", "10.2.0.0/24", "fd00::/64"], &[], "it has 3 podCIDRs"),
            (&["ten"], &[], "\"ten\" is not a network"),
            (&["10.1.1.1/32"], &[], "\"10.1.1.1/32\" is not a network"),
            (&["0.0.0.0/0"], &[], "\"0.0.0.0/0\" is not a network"),
            (one, &[("public-ip", "")], "flannel.alpha.coreos.com/public-ip is missing"),
            (one, &[("public-ip", "0.0.0.0")], "public-ip is missing"),
            (one, &[("public-ip", "here")], "flannel.alpha.coreos.com/public-ip is \"here\""),
            (one, &[("public-ip", "2001:db8::1")], "not an address of this family"),
            (one, &[("backend-data", "{\"VNI\":1}")], "backend-data and its -v6- twin) is wrong at 1:1: "),
            (one, &[("backend-data", "{\"VNI\":1,")], "not JSON"),
        ] {
            let error = spoiled(cidrs, changes);
            assert!(error.contains(expected), "{error}");
        }
    }
}
