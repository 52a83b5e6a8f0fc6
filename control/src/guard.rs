//! The guard: where the kernel carries VXLAN, only nodes with a lease get packets in.
//!
//! The kernel's VXLAN device takes a packet from anybody who knows its port and number, and so anybody who can reach a node
//! could send into the pods' network. The engine drops what comes from strangers; for the kernel's device a table of
//! nftables does: `ip flannel-rs-guard-VNI`, and `ip6 flannel-rs-guard-VNI` for an underlay of IPv6.
//!
//! - Only packets for our network identifier are judged: it is 24 bits long and 96 bits behind the start of the UDP header
//!   (RFC 7348), so other VXLAN devices of the host keep their packets, on the same port too. A packet on that port whose
//!   identifier cannot be read is judged as one of ours: it is no VXLAN packet, or the first piece of one that was cut
//!   for the purpose.
//! - The set of peers is kept in step with the leases; a peer comes in before its route is there and goes after it.
//! - A daemon that is gone for good, or was replaced by flannel, updates no set. So the table judges only while it is
//!   told every few minutes that somebody looks after it (`set alive`): it fails open, to what flannel gives.
//! - Drops are counted, and the count outlives repairs of the table and restarts of the daemon.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane_core::{Family, Vni};
use hostnet::filter::{IpVersion, ProgramError, nft};
use serde_json::Value;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// So long the table judges without hearing from a daemon.
const ALIVE: Duration = Duration::from_secs(300);
/// So often it is told that there is one.
const PULSE: Duration = Duration::from_secs(60);
/// What the tables' names begin with; the network identifier follows.
const NAME: &str = "flannel-rs-guard-";
const COUNTER: &str = "strangers";
/// Longer than `nft` takes for thousands of peers. Routes wait for it, so it is no longer than that.
const PATIENCE: Duration = Duration::from_secs(3);

/// The guard of one kernel VXLAN device.
#[derive(Debug)]
pub struct Guard {
    port: u16,
    vni: Vni,
    version: IpVersion,
    /// What should be in the set.
    peers: BTreeSet<IpAddr>,
    /// What `nft` showed after the table was made, without what changes by itself; `None`: it has yet to be made.
    shape: Option<Vec<Value>>,
    told_alive: Option<Instant>,
    seen_drops: Option<u64>,
    trouble: Option<String>,
}

impl Guard {
    /// For the device with this port (of the underlay) and network identifier; `family` is the underlay's. Nothing is
    /// there before the first [`Guard::admit`].
    pub fn new(port: u16, vni: Vni, family: Family) -> Self {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let peers = BTreeSet::new();
        Self { port, vni, version, peers, shape: None, told_alive: None, seen_drops: None, trouble: None }
    }

    /// These and no others get packets in, by the addresses that they send from. Addresses of the other family are
    /// passed over.
    pub async fn admit(&mut self, peers: &BTreeSet<IpAddr>) {
        let peers = peers.iter().copied().filter(|peer| self.is_of_family(peer)).collect();
        self.change(peers).await;
    }

    /// These get packets in beside those that do already: what to call before routes to new peers are made.
    pub async fn admit_more(&mut self, peers: &BTreeSet<IpAddr>) {
        let more = peers.iter().copied().filter(|peer| self.is_of_family(peer));
        let peers = self.peers.iter().copied().chain(more).collect();
        self.change(peers).await;
    }

    /// Reads the table back, puts right what somebody changed, and tells it that a daemon looks after it.
    pub async fn keep(&mut self) {
        let outcome = timeout(PATIENCE, self.try_keep()).await;
        self.report(outcome);
    }

    /// Packets of strangers dropped since the table was first made; `None` while there is none.
    pub async fn drops(&self) -> Option<u64> {
        let family = nft::keyword(self.version);
        let text = nft::json(&["counter", family, &self.name(), COUNTER]).await.ok()?;
        Some(Reading::parse(&text).drops)
    }

    /// The same as of the last [`Guard::keep`], without asking.
    pub fn seen_drops(&self) -> Option<u64> {
        self.seen_drops
    }

    /// What keeps the guard from being in place, with what to do about it.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Takes away the tables of every guard in this network namespace but those named by their identifiers: of a backend
    /// that is used no more, or where guards are switched off. Answers how many there were.
    ///
    /// # Errors
    /// `nft` cannot be run, or the kernel refuses. That there is no `nft` is none: then there are no tables either.
    pub async fn sweep(kept: &[(Vni, Family)]) -> Result<usize, ProgramError> {
        let text = match nft::json(&["tables"]).await {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Ok(0),
            Err(error) => return Err(error),
        };
        let kept: Vec<Self> = kept.iter().map(|(vni, family)| Self::new(0, *vni, *family)).collect();
        let mut gone = 0;
        for (version, name) in guards(&text) {
            if !kept.iter().any(|guard| guard.version == version && guard.name() == name) {
                gone += usize::from(nft::delete(version, &name).await?);
            }
        }
        Ok(gone)
    }

    async fn change(&mut self, peers: BTreeSet<IpAddr>) {
        if self.shape.is_some() && peers == self.peers {
            return;
        }
        let outcome = timeout(PATIENCE, self.try_change(peers)).await;
        self.report(outcome);
    }

    async fn try_change(&mut self, peers: BTreeSet<IpAddr>) -> Result<(), ProgramError> {
        let difference = self.difference(&peers);
        self.peers = peers;
        if self.shape.is_some() && nft::apply(&difference).await.is_ok() {
            return Ok(());
        }
        // Somebody changed the set, or it was never there.
        self.make().await
    }

    async fn try_keep(&mut self) -> Result<(), ProgramError> {
        let reading = self.read().await?;
        self.seen_drops = reading.as_ref().map(|reading| reading.drops);
        let is_right =
            reading.as_ref().is_some_and(|r| Some(&r.shape) == self.shape.as_ref() && r.peers == self.peers);
        if !is_right {
            if self.shape.is_some() {
                tracing::warn!(
                    "somebody had changed our guard of kernel VXLAN, put right: table {}",
                    self.address()
                );
            }
            return self.make().await;
        }
        let is_due = self.told_alive.is_none_or(|told| told.elapsed() >= PULSE);
        if is_due || !reading.is_some_and(|reading| reading.alive) {
            nft::apply(&self.pulse()).await?;
            self.told_alive = Some(Instant::now());
        }
        Ok(())
    }

    /// Makes the table whole, in one transaction; the count goes on.
    async fn make(&mut self) -> Result<(), ProgramError> {
        let before = self.read().await?.unwrap_or_default();
        nft::apply(&self.table((before.drops, before.bytes)).replacement()).await?;
        self.told_alive = Some(Instant::now());
        let made = self.read().await?.unwrap_or_default();
        self.seen_drops = Some(made.drops);
        self.shape = Some(made.shape);
        Ok(())
    }

    async fn read(&self) -> Result<Option<Reading>, ProgramError> {
        match nft::json(&["table", nft::keyword(self.version), &self.name()]).await {
            Ok(text) => Ok(Some(Reading::parse(&text))),
            Err(ProgramError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn report(&mut self, outcome: Result<Result<(), ProgramError>, Elapsed>) {
        let trouble = match outcome {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            // What was left undone is found when the table is read back.
            Err(_elapsed) => Some(format!("nft did not end within {} s", PATIENCE.as_secs())),
        };
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!(
                "kernel VXLAN takes packets from anybody, as with flannel, until this works: {trouble}; or switch the \
                 guard off with --nftables-guard=false"
            ),
            None => tracing::info!("kernel VXLAN takes packets from leased nodes only"),
        }
        self.trouble = trouble;
    }

    fn is_of_family(&self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self.version == IpVersion::V4)
    }

    fn name(&self) -> String {
        format!("{NAME}{}", self.vni.get())
    }

    fn address(&self) -> String {
        format!("{} {}", nft::keyword(self.version), self.name())
    }

    /// The whole table. `count`: packets and bytes dropped before it was made.
    fn table(&self, (packets, bytes): (u64, u64)) -> nft::Table {
        let (port, vni, source) = (self.port, self.vni.get(), nft::keyword(self.version));
        let address = match self.version {
            IpVersion::V4 => "ipv4_addr",
            IpVersion::V6 => "ipv6_addr",
        };
        let elements = match list(&self.peers) {
            none if none.is_empty() => String::new(),
            some => format!(" elements = {{ {some} }};"),
        };
        let alive = ALIVE.as_secs();
        let objects = vec![
            format!("counter {COUNTER} {{ packets {packets} bytes {bytes} }}"),
            format!("set peers {{ type {address};{elements} }}"),
            format!("set alive {{ type inet_proto; flags timeout; elements = {{ udp timeout {alive}s }}; }}"),
        ];
        let input = nft::Chain {
            name: "input".to_owned(),
            comment: "VXLAN from leased nodes only".to_owned(),
            // Before what administrators and kube-proxy filter: what they count and log are packets that count.
            hook: "type filter hook input priority filter - 10; policy accept;".to_owned(),
            rules: vec![
                format!("udp dport {port} @th,96,24 != {vni:#x} return"),
                format!(
                    "udp dport {port} meta l4proto @alive {source} saddr != @peers counter name \"{COUNTER}\" drop"
                ),
            ],
        };
        let (version, name) = (self.version, self.name());
        let comment = format!("packets for VXLAN {vni} from nodes without a lease");
        nft::Table { version, name, comment, objects, chains: vec![input] }
    }

    /// The commands from the peers that are in the set to those that should be.
    fn difference(&self, to: &BTreeSet<IpAddr>) -> String {
        let address = self.address();
        let mut commands = String::new();
        for (verb, peers) in [("add", to - &self.peers), ("delete", &self.peers - to)] {
            if !peers.is_empty() {
                let _infallible = writeln!(commands, "{verb} element {address} peers {{ {} }}", list(&peers));
            }
        }
        commands
    }

    /// The commands that start the time of `alive` anew. An element that is there keeps its time, so it goes and comes.
    fn pulse(&self) -> String {
        let (address, alive) = (self.address(), ALIVE.as_secs());
        let element = format!("element {address} alive {{ udp");
        format!("add {element} timeout {alive}s }}\ndelete {element} }}\nadd {element} timeout {alive}s }}\n")
    }
}

fn list(peers: &BTreeSet<IpAddr>) -> String {
    peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What `nft -j list` shows of a guard.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    /// Everything but what changes by itself: handles, counts, elements.
    shape: Vec<Value>,
    peers: BTreeSet<IpAddr>,
    alive: bool,
    drops: u64,
    bytes: u64,
}

impl Reading {
    /// From the program's output; what cannot be read is not there.
    fn parse(text: &str) -> Self {
        let mut reading = Self::default();
        for (kind, mut object) in objects(text) {
            let Some(fields) = object.as_object_mut() else { continue };
            fields.remove("handle");
            let is_named = |name: &str| fields.get("name").and_then(Value::as_str) == Some(name);
            match kind.as_str() {
                "metainfo" => continue,
                "counter" if is_named(COUNTER) => {
                    let mut take =
                        |key: &str| fields.remove(key).and_then(|value| value.as_u64()).unwrap_or(0);
                    (reading.drops, reading.bytes) = (take("packets"), take("bytes"));
                }
                "set" => {
                    let (peers, alive) = (is_named("peers"), is_named("alive"));
                    let elements = fields.remove("elem").unwrap_or_default();
                    let elements = elements.as_array().map(Vec::as_slice).unwrap_or_default();
                    if peers {
                        reading.peers = elements.iter().filter_map(address).collect();
                    }
                    reading.alive |= alive && !elements.is_empty();
                }
                _ => {}
            }
            reading.shape.push(serde_json::json!({ kind: object }));
        }
        reading
    }
}

/// An element of a set of addresses: the address, or an object around it where it has a comment or a timeout.
fn address(element: &Value) -> Option<IpAddr> {
    let value = element.get("elem").and_then(|elem| elem.get("val")).unwrap_or(element);
    value.as_str()?.parse().ok()
}

/// The objects of a listing with their kinds, in order.
fn objects(text: &str) -> Vec<(String, Value)> {
    let Ok(Value::Object(mut whole)) = serde_json::from_str(text) else { return Vec::new() };
    let Some(Value::Array(objects)) = whole.remove("nftables") else { return Vec::new() };
    objects
        .into_iter()
        .filter_map(|object| match object {
            Value::Object(object) => object.into_iter().next(),
            _ => None,
        })
        .collect()
}

/// The guards' tables among all tables.
fn guards(text: &str) -> Vec<(IpVersion, String)> {
    let tables = objects(text).into_iter().filter(|(kind, _)| kind == "table");
    tables
        .filter_map(|(_, table)| {
            let name = table.get("name")?.as_str().filter(|name| name.starts_with(NAME))?;
            let version = match table.get("family")?.as_str()? {
                "ip" => IpVersion::V4,
                "ip6" => IpVersion::V6,
                _ => return None,
            };
            Some((version, name.to_owned()))
        })
        .collect()
}

/// Reads whatever text as a listing, for the fuzz target: nothing in it may stop the daemon.
pub(crate) fn read_listing(text: &str) -> usize {
    Reading::parse(text).shape.len() + guards(text).len()
}

#[cfg(test)]
mod tests;
