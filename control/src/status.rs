//! What a node says of itself: [`NodeStatus`], one plain value behind the socket, the health server, the metrics and
//! `flanneld status`.
//!
//! Its JSON is an interface: keys are added and never change their meaning. Times are whole seconds since 1970, so
//! whoever reads works out the ages; what is unknown is `null`. Nothing in it is secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::{Counters, DropReason, IpNet};
use serde::{Deserialize, Serialize};

mod checks;
mod shown;

pub use checks::{Check, Verdict};
pub use shown::{age, bytes, span};

/// The form of the JSON. Another number means that keys went away or changed their meaning.
pub const API_VERSION: &str = "flannel-rs/v1";

/// A store that was last heard this long ago is stale. flannel's own watch of the API asks every few minutes at most;
/// ours hears a bookmark or a keep-alive within a minute.
pub const STALE_AFTER: Duration = Duration::from_secs(90);

/// A name from a fixed set when it is made here, and any text when it is read.
pub type Name = Cow<'static, str>;

/// What the daemon shows: the node, and its peers apart, because a cluster has thousands and most readers want none.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The node.
    pub node: NodeStatus,
    /// The other nodes' leases, by subnet.
    pub peers: Arc<[PeerStatus]>,
}

/// One node, all but its peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// [`API_VERSION`].
    pub api_version: Name,
    /// How it goes.
    pub state: State,
    /// What is wrong, what stops packets first; empty when nothing is.
    pub problems: Vec<String>,
    /// Of the daemon.
    pub version: Name,
    /// Of the daemon, in its own process namespace.
    pub pid: u32,
    /// When the daemon started.
    pub started: u64,
    /// When this was read. The daemon reads every second.
    pub at: u64,
    /// Where the leases come from.
    pub store: StoreStatus,
    /// How packets travel; `null` until it is decided.
    pub backend: Option<BackendStatus>,
    /// This node's lease; `null` until there is one.
    pub lease: Option<LeaseStatus>,
    /// For pods, in bytes.
    pub mtu: Option<u16>,
    /// What carries the overlay.
    pub underlay: Option<UnderlayStatus>,
    /// How many other nodes.
    pub peers: PeerCounts,
    /// How the host's devices, addresses and routes are kept.
    pub reconcile: ReconcileStatus,
    /// What is wrong with the packet filter rules.
    pub rules: RulesStatus,
    /// The file that gives pods their network.
    pub subnet_file: FileStatus,
    /// What readiness is made of, in the order in which a node gets there.
    pub checks: Vec<Check>,
}

/// How a node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Packets flow and nothing is wrong.
    Ready,
    /// Packets flow, and something is wrong.
    Degraded,
    /// Packets cannot flow.
    NotReady,
}

/// The store of leases.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// As the log calls it.
    pub name: String,
    /// When it last answered or told something.
    pub last_heard: Option<u64>,
    /// What is wrong since.
    pub trouble: Option<String>,
    /// Since when what is known may be old; `null` while it is fresh.
    pub stale_since: Option<u64>,
}

/// The backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// flannel's name for it: `vxlan`, `udp`.
    pub kind: Name,
    /// Why packets are carried as they are: one line a decision.
    pub reasons: Vec<String>,
    /// One a family, IPv4 first.
    pub devices: Vec<DeviceStatus>,
}

/// One device of the overlay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// `ipv4` or `ipv6`.
    pub family: Name,
    /// `engine` or `kernel`.
    pub carrier: Name,
    /// It is there and carries packets.
    pub running: bool,
    /// In bytes.
    pub mtu: u16,
    /// Where it receives and what it sends from.
    pub endpoint: SocketAddr,
    /// The VtepMAC; `null` where the format has none.
    pub mac: Option<String>,
    /// Packets since the engine began; `null` where the kernel carries them.
    pub traffic: Option<Traffic>,
}

/// An engine's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// From the wire to the pods.
    pub received: Flow,
    /// From the pods to the wire.
    pub sent: Flow,
    /// ICMP replies made.
    pub icmp_replies: u64,
    /// ICMP replies held back by the rate limit.
    pub icmp_limited: u64,
    /// Packets from outside the cluster that were passed.
    pub foreign_sources: u64,
    /// Inner checksums that a peer left unfinished and that were finished here.
    pub unfinished_checksums: u64,
    /// Messages that found the socket's buffer full.
    pub socket_overflows: u64,
    /// Packets that found the device's ring full.
    pub ring_overflows: u64,
}

/// Packets of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Taken in.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Passed on.
    pub passed: u64,
    /// Their bytes.
    pub passed_bytes: u64,
    /// Dropped, by reason; every reason is there.
    pub drops: BTreeMap<Name, u64>,
}

/// This node's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseStatus {
    /// One a family, IPv4 first.
    pub subnets: Vec<IpNet>,
    /// What the other nodes send to.
    pub public: Vec<IpAddr>,
    /// When it ends; `null`: never.
    pub expires: Option<u64>,
}

/// The interface that carries the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderlayStatus {
    /// Its name.
    pub device: String,
    /// In bytes.
    pub mtu: u32,
    /// Its addresses that packets leave from.
    pub addresses: Vec<IpAddr>,
    /// Why it carries nothing: it is gone, or lost its address.
    pub trouble: Option<String>,
}

/// How many other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerCounts {
    /// Whose pods are reached.
    pub used: usize,
    /// Whose leases cannot be used.
    pub refused: usize,
}

/// How the host is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileStatus {
    /// When it was last found, or made, as it should be.
    pub last_ok: Option<u64>,
    /// What somebody had changed and was put right, by kind; every kind is there.
    pub repairs: BTreeMap<Name, u64>,
    /// What cannot be put right.
    pub trouble: Option<String>,
}

/// The packet filter rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesStatus {
    /// What is wrong with them.
    pub trouble: Option<String>,
    /// Packets that the guard of kernel VXLAN dropped; `null` where there is none.
    pub guard_drops: Option<u64>,
}

/// A file that the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileStatus {
    /// Where it is.
    pub path: PathBuf,
    /// It is there, as this daemon wrote it.
    pub written: bool,
    /// Why it cannot be written.
    pub trouble: Option<String>,
}

/// Another node's lease, and what is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// One a family, IPv4 first.
    pub subnets: Vec<IpNet>,
    /// What packets for it are sent to.
    pub public: Vec<IpAddr>,
    /// Its VtepMACs, in the order of the families that have one.
    pub macs: Vec<String>,
    /// Its `BackendType`.
    pub backend: String,
    /// How its pods are reached: `engine`, `kernel` or `direct`; `null` where they are not.
    pub via: Option<Name>,
    /// Why its lease is not used.
    pub refused: Option<String>,
    /// When it ends; `null`: never.
    pub expires: Option<u64>,
}

/// The answer to `peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeersAnswer {
    /// [`API_VERSION`].
    pub api_version: Name,
    /// When it was read.
    pub at: u64,
    /// By subnet.
    pub peers: Vec<PeerStatus>,
}

impl NodeStatus {
    /// The status of a daemon that has not got far: it waits for `what`.
    pub fn starting(identity: Identity, subnet_file: PathBuf, store: StoreStatus, what: &str) -> Self {
        let mut status = Self {
            api_version: Cow::Borrowed(API_VERSION),
            state: State::NotReady,
            problems: Vec::new(),
            version: Cow::Borrowed(env!("CARGO_PKG_VERSION")),
            pid: identity.pid,
            started: seconds(identity.started),
            at: seconds(SystemTime::now()),
            store,
            backend: None,
            lease: None,
            mtu: None,
            underlay: None,
            peers: PeerCounts::default(),
            reconcile: ReconcileStatus::default(),
            rules: RulesStatus::default(),
            subnet_file: FileStatus { path: subnet_file, ..FileStatus::default() },
            checks: Vec::new(),
        };
        status.judge();
        if let Some(check) = status.checks.iter_mut().find(|check| check.verdict == Verdict::Failed) {
            check.text = what.to_owned();
        }
        status.problems = vec![format!("starting: {what}")];
        status
    }

    /// Packets can flow.
    pub fn is_ready(&self) -> bool {
        self.state != State::NotReady
    }
}

/// Which process this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// In its own process namespace.
    pub pid: u32,
    /// When it started.
    pub started: SystemTime,
}

impl Identity {
    /// The calling process, which starts at this moment.
    pub fn of_this_process() -> Self {
        Self { pid: std::process::id(), started: SystemTime::now() }
    }
}

impl From<&Counters> for Traffic {
    fn from(counters: &Counters) -> Self {
        let flow = |direction: &dataplane_core::counters::Direction| Flow {
            packets: direction.packets,
            bytes: direction.bytes,
            passed: direction.passed,
            passed_bytes: direction.passed_bytes,
            drops: DropReason::ALL
                .iter()
                .map(|reason| (Cow::Borrowed(reason.name()), direction.dropped(*reason)))
                .collect(),
        };
        Self {
            received: flow(&counters.rx),
            sent: flow(&counters.tx),
            icmp_replies: counters.icmp_replies,
            icmp_limited: counters.icmp_limited,
            foreign_sources: counters.foreign_sources,
            unfinished_checksums: counters.unfinished_checksums,
            socket_overflows: counters.socket_overflows,
            ring_overflows: counters.ring_overflows,
        }
    }
}

/// Whole seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
pub(crate) mod tests;
