//! The node as others see it: its state turned into a [`Reading`], without asking anybody.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use dataplane_core::{Counters, Family};
use hostnet::change::Change;
use hostnet::reconcile::Outcome;

use super::super::carrier::{Carrier, State};
use super::Node;
use crate::backend::Tunnel;
use crate::choose::Method;
use crate::lease::{BackendData, Lease};
use crate::status::{
    API_VERSION, BackendStatus, DeviceStatus, FileStatus, Identity, LeaseStatus, Name, NodeStatus,
    PeerCounts, PeerStatus, Reading, ReconcileStatus, RulesStatus, State as Shown, StoreStatus, Traffic,
    UnderlayStatus, seconds,
};

/// The kinds of things that are put right, as metrics and JSON name them.
const REPAIRS: [&str; 6] = ["sysctl", "link", "address", "route", "neighbour", "fdb"];

/// What the node remembers for its status only.
#[derive(Debug)]
pub(super) struct Tally {
    /// When the host was last as it should be.
    settled: Option<SystemTime>,
    repairs: BTreeMap<Name, u64>,
    /// Made when leases or the plan may have changed: a reading every second should not cost thousands of leases.
    peers: Arc<[PeerStatus]>,
}

impl Default for Tally {
    fn default() -> Self {
        let repairs = REPAIRS.into_iter().map(|kind| (Cow::Borrowed(kind), 0)).collect();
        Self { settled: None, repairs, peers: Arc::default() }
    }
}

impl Tally {
    /// Takes in what a step did. What was changed on purpose is no repair.
    pub(super) fn note(&mut self, outcome: &Outcome, on_purpose: bool) {
        if outcome.is_settled() {
            self.settled = Some(SystemTime::now());
        }
        if on_purpose {
            return;
        }
        for change in &outcome.applied {
            if let Some(count) = self.repairs.get_mut(kind(change)) {
                *count += 1;
            }
        }
    }
}

/// One of [`REPAIRS`].
fn kind(change: &Change) -> &'static str {
    match change {
        Change::SetSysctl { .. } => "sysctl",
        Change::SetLink(_) => "link",
        Change::AddAddress(_) | Change::DeleteAddress(_) => "address",
        Change::ReplaceRoute(_) | Change::DeleteRoute(_) => "route",
        Change::ReplaceNeighbour(_) | Change::DeleteNeighbour(_) => "neighbour",
        Change::ReplaceFdb(_) | Change::DeleteFdb(_) => "fdb",
    }
}

impl Node {
    /// Makes the list of peers anew.
    pub(super) fn tally_peers(&mut self) {
        self.tally.peers = self.leases.peers().map(|lease| self.peer(lease)).collect();
    }

    /// What there is to say, as of this moment.
    pub(in crate::daemon) fn reading(
        &self,
        identity: Identity,
        store: StoreStatus,
        underlay_trouble: Option<&str>,
    ) -> Reading {
        let mut node = NodeStatus {
            api_version: Cow::Borrowed(API_VERSION),
            state: Shown::NotReady,
            problems: Vec::new(),
            version: Cow::Borrowed(env!("CARGO_PKG_VERSION")),
            pid: identity.pid,
            started: seconds(identity.started),
            at: seconds(SystemTime::now()),
            store,
            backend: Some(self.backend_status()),
            lease: Some(LeaseStatus {
                subnets: self.own.subnet.nets().collect(),
                public: public(&self.own),
                expires: self.own.expires.map(seconds),
            }),
            mtu: Some(self.backend.mtu()),
            underlay: Some(self.underlay_status(underlay_trouble)),
            peers: PeerCounts {
                used: self.leases.len().saturating_sub(self.refused.len()),
                refused: self.refused.len(),
            },
            reconcile: ReconcileStatus {
                last_ok: self.tally.settled.map(seconds),
                repairs: self.tally.repairs.clone(),
                trouble: self.device_trouble.clone().or_else(|| self.trouble.clone()),
            },
            rules: RulesStatus { trouble: self.rules_trouble(), guard_drops: None },
            subnet_file: FileStatus {
                path: self.settings.subnet_file.clone(),
                written: self.env_is_written,
                trouble: self.env_trouble.clone(),
            },
            checks: Vec::new(),
        };
        node.judge();
        Reading { node, peers: self.tally.peers.clone() }
    }

    fn backend_status(&self) -> BackendStatus {
        BackendStatus {
            kind: Cow::Borrowed(self.network.backend.name()),
            reasons: self.choice.to_string().lines().map(str::to_owned).collect(),
            devices: match self.backend.method() {
                Method::KernelVxlan => {
                    self.backend.tunnels().iter().map(|tunnel| self.kernel_device(tunnel)).collect()
                }
                _ => self.carriers.iter().map(engine_device).collect(),
            },
        }
    }

    fn kernel_device(&self, tunnel: &Tunnel) -> DeviceStatus {
        device(tunnel, "kernel", self.device_trouble.is_none(), None)
    }

    fn underlay_status(&self, trouble: Option<&str>) -> UnderlayStatus {
        let ends =
            [self.underlay.v4.map(|end| end.local.into()), self.underlay.v6.map(|end| end.local.into())];
        UnderlayStatus {
            device: self.underlay.device.clone(),
            mtu: self.underlay.mtu.0.into(),
            addresses: ends.into_iter().flatten().collect(),
            trouble: trouble.map(str::to_owned),
        }
    }

    fn peer(&self, lease: &Lease) -> PeerStatus {
        let refused = self.refused.get(&lease.subnet).map(ToString::to_string);
        let macs = match &lease.attrs.backend {
            BackendData::Vxlan { v4, v6 } => {
                [v4, v6].into_iter().flatten().map(|data| data.mac.to_string()).collect()
            }
            _ => Vec::new(),
        };
        PeerStatus {
            subnets: lease.subnet.nets().collect(),
            public: public(lease),
            macs,
            backend: kind_of(&lease.attrs.backend).to_owned(),
            via: refused.is_none().then(|| self.backend.via(lease)).flatten().map(Cow::Borrowed),
            refused,
            expires: lease.expires.map(seconds),
        }
    }
}

fn engine_device(carrier: &Carrier) -> DeviceStatus {
    let counters = match &carrier.engine {
        State::Running(handle) => Some(handle.counters()),
        State::Open(_) => Some(Counters::default()),
        State::Ended => None,
    };
    let traffic = counters.as_ref().map(Traffic::from);
    device(&carrier.tunnel, "engine", matches!(carrier.engine, State::Running(_)), traffic)
}

fn device(tunnel: &Tunnel, carrier: &'static str, running: bool, traffic: Option<Traffic>) -> DeviceStatus {
    DeviceStatus {
        name: tunnel.device.clone(),
        family: Cow::Borrowed(match tunnel.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }),
        carrier: Cow::Borrowed(carrier),
        running,
        mtu: tunnel.mtu.get(),
        endpoint: tunnel.bind,
        mac: (!tunnel.encap.is_hop()).then(|| tunnel.mac.to_string()),
        traffic,
    }
}

/// The `BackendType`, with the name that `udp` does not write.
fn kind_of(data: &BackendData) -> &str {
    match data {
        BackendData::Udp => "udp",
        BackendData::Vxlan { .. } => "vxlan",
        BackendData::Other { kind, .. } => kind,
    }
}

fn public(lease: &Lease) -> Vec<IpAddr> {
    let v4 = lease.attrs.public_ip.filter(|_| lease.subnet.v4().is_some()).map(IpAddr::V4);
    let v6 = lease.attrs.public_ipv6.filter(|_| lease.subnet.v6().is_some()).map(IpAddr::V6);
    v4.into_iter().chain(v6).collect()
}
