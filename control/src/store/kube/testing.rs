//! Nodes for tests.

use serde_json::{Value, json};

use super::annotations::Keys;
use super::node::{Claim, Families, NodeObject};
use crate::lease::Lease;

/// flannel's own.
pub(super) fn keys() -> Keys {
    Keys::new("flannel.alpha.coreos.com").unwrap()
}

/// IPv4 only.
pub(super) fn families() -> Families {
    Families { v4: true, v6: false }
}

/// A node of flannel's that is being described.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    name: String,
    created: u64,
    version: u64,
    uid: String,
    cidr: String,
    address: String,
    managed: bool,
}

/// A node that was created `created` seconds after some time.
pub(super) fn node(name: &str, created: u64, version: u64) -> Draft {
    Draft {
        name: name.to_owned(),
        created,
        version,
        uid: format!("uid-{name}"),
        cidr: "10.244.1.0/24".to_owned(),
        address: "192.0.2.1".to_owned(),
        managed: true,
    }
}

impl Draft {
    pub(super) fn cidr(mut self, cidr: &str) -> Self {
        cidr.clone_into(&mut self.cidr);
        self
    }

    pub(super) fn address(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    pub(super) fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    pub(super) fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    pub(super) fn unmanaged(mut self) -> Self {
        self.managed = false;
        self
    }

    /// As the API tells it.
    pub(super) fn json(&self) -> Value {
        let mut annotations = json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
            "flannel.alpha.coreos.com/public-ip": self.address,
        });
        if self.managed {
            annotations["flannel.alpha.coreos.com/kube-subnet-manager"] = "true".into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": self.uid,
                "resourceVersion": self.version.to_string(),
                "creationTimestamp": format!("2026-01-01T{:02}:{:02}:{:02}Z", self.created / 3600 % 24, self.created / 60 % 60, self.created % 60),
                "annotations": annotations,
            },
            "spec": {"podCIDR": self.cidr, "podCIDRs": [self.cidr]},
        })
    }

    pub(super) fn build(&self) -> NodeObject {
        serde_json::from_value(self.json()).unwrap()
    }

    pub(super) fn lease(&self) -> Lease {
        match self.build().claim(&keys(), families()) {
            Claim::Holds(lease) => lease,
            other => panic!("{other:?}"),
        }
    }
}
