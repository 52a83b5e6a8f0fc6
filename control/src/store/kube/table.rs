//! Every node that was told, and the leases that follow from them. Pure.
//!
//! Two nodes with one podCIDR: the older node keeps it, by `creationTimestamp` and then by name, so that every node of
//! the cluster decides alike. The younger holds nothing until the older is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::annotations::Keys;
use super::node::{Claim, Families, NodeObject};
use crate::lease::{Lease, LeaseUpdate, Subnet};

/// Deleted nodes whose late events are recognised. Beyond it the oldest are forgotten; a new list forgets them all.
const REMEMBERED: usize = 4096;

/// Nodes and leases.
#[derive(Debug)]
pub(super) struct Table {
    keys: Keys,
    families: Families,
    nodes: HashMap<String, Seen>,
    /// Who holds what.
    leases: BTreeMap<Subnet, Holder>,
    /// The same by address: first address of a network to its last. No two overlap.
    ranges: BTreeMap<IpAddr, (IpAddr, Subnet)>,
    /// Nodes whose podCIDR an older node holds.
    losers: HashSet<String>,
    /// Nodes that went, with the version at which they did.
    gone: HashMap<String, u64>,
    /// Grows when another node is spoiled or wants what is taken, or one is no more.
    doubts: u64,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    name: String,
    uid: String,
    version: Option<u64>,
    created: String,
    lease: Option<Lease>,
    /// Why its annotations are passed over; the lease is then what was known before, if anything.
    spoiled: Option<String>,
}

#[derive(Debug, Clone)]
struct Holder {
    node: String,
    lease: Lease,
}

/// Two nodes that want the same addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Who has them.
    pub(super) holder: String,
    /// Who does not.
    pub(super) loser: String,
    /// What the loser wants.
    pub(super) subnet: Subnet,
}

impl Table {
    pub(super) fn new(keys: Keys, families: Families) -> Self {
        Self {
            keys,
            families,
            nodes: HashMap::new(),
            leases: BTreeMap::new(),
            ranges: BTreeMap::new(),
            losers: HashSet::new(),
            gone: HashMap::new(),
            doubts: 0,
        }
    }

    /// Differs whenever [`conflicts`](Self::conflicts) or [`spoiled`](Self::spoiled) may.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that want what an older node holds.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts: Vec<Conflict> = self
            .losers
            .iter()
            .filter_map(|loser| {
                let subnet = self.nodes.get(loser)?.lease.as_ref()?.subnet;
                let holder = self.holder_of(&subnet)?.node.clone();
                Some(Conflict { holder, loser: loser.clone(), subnet })
            })
            .collect();
        conflicts.sort_by(|a, b| a.loser.cmp(&b.loser));
        conflicts
    }

    /// Nodes whose annotations are passed over, with the reason.
    pub(super) fn spoiled(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes.values().filter_map(|seen| Some((seen.name.as_str(), seen.spoiled.as_deref()?)))
    }

    /// What a listed node is, in the few bytes that are kept of it. What was known of a node that is spoiled stays.
    pub(super) fn look_at(&self, node: &NodeObject) -> Seen {
        let known = self.nodes.get(&node.metadata.name).filter(|known| known.uid == node.metadata.uid);
        let (lease, spoiled) = match node.claim(&self.keys, self.families) {
            Claim::Foreign => (None, None),
            Claim::Holds(lease) => (Some(lease), None),
            Claim::Spoiled(why) => (known.and_then(|known| known.lease.clone()), Some(why.to_string())),
        };
        Seen {
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            version: node.metadata.resource_version.parse().ok(),
            created: node.metadata.creation_timestamp.clone().unwrap_or_default(),
            lease,
            spoiled,
        }
    }

    /// A whole list: what is not in it is gone. Answers every lease.
    pub(super) fn replace(&mut self, all: Vec<Seen>) -> LeaseUpdate {
        self.nodes = all.into_iter().map(|seen| (seen.name.clone(), seen)).collect();
        self.gone.clear();
        self.doubts += 1;
        self.settle_all();
        LeaseUpdate::Snapshot(self.leases.values().map(|holder| holder.lease.clone()).collect())
    }

    /// A node as it is at present. An event older than what is known changes nothing.
    pub(super) fn put(&mut self, node: &NodeObject) -> Vec<LeaseUpdate> {
        let next = self.look_at(node);
        let name = next.name.clone();
        if name.is_empty() || self.is_late(&name, next.version) {
            return Vec::new();
        }
        self.gone.remove(&name);
        let same = self
            .nodes
            .get(&name)
            .is_some_and(|known| known.lease == next.lease && known.created == next.created);
        let spoiled = next.spoiled.clone();
        let known = self.nodes.insert(name.clone(), next);
        if known.and_then(|known| known.spoiled) != spoiled {
            self.doubts += 1;
        }
        if same { Vec::new() } else { self.settle(&name) }
    }

    /// A node that was deleted, at the version that the event names.
    pub(super) fn remove(&mut self, node: &NodeObject) -> Vec<LeaseUpdate> {
        let name = &node.metadata.name;
        let version = node.metadata.resource_version.parse().ok();
        if self.is_late(name, version) {
            return Vec::new();
        }
        if let Some(version) = version {
            if self.gone.len() >= REMEMBERED
                && let Some(oldest) =
                    self.gone.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone())
            {
                self.gone.remove(&oldest);
            }
            self.gone.insert(name.clone(), version);
        }
        match self.nodes.remove(name) {
            Some(known) => {
                self.doubts += u64::from(known.spoiled.is_some());
                self.settle(name)
            }
            None => Vec::new(),
        }
    }

    /// Versions of one kind of object grow (they are etcd's revisions). Where they are no numbers, the order of events
    /// counts.
    fn is_late(&self, name: &str, version: Option<u64>) -> bool {
        let Some(version) = version else { return false };
        let known = self.nodes.get(name).and_then(|known| known.version);
        known.is_some_and(|known| version < known) || self.gone.get(name).is_some_and(|&gone| version <= gone)
    }

    /// After one node changed or went.
    fn settle(&mut self, name: &str) -> Vec<LeaseUpdate> {
        let next = self.nodes.get(name).and_then(|seen| seen.lease.clone());
        let contested = next.as_ref().is_some_and(|lease| {
            self.overlapping(&lease.subnet)
                .into_iter()
                .any(|held| self.leases.get(&held).is_some_and(|holder| holder.node != name))
        });
        if contested || !self.losers.is_empty() {
            let before = std::mem::take(&mut self.leases);
            self.doubts += 1;
            self.settle_all();
            return differences(&before, &self.leases);
        }
        let mut updates = Vec::new();
        // A node has one lease; the table is small enough to look for it, and it is looked for at changes only.
        let held = self.leases.iter().find(|(_, holder)| holder.node == name).map(|(subnet, _)| *subnet);
        if let Some(subnet) = held {
            self.release(&subnet);
            if next.as_ref().is_none_or(|lease| lease.subnet != subnet) {
                updates.push(LeaseUpdate::Remove(subnet));
            }
        }
        if let Some(lease) = next {
            updates.push(LeaseUpdate::Upsert(lease.clone()));
            self.hold(name.to_owned(), lease);
        }
        updates
    }

    /// Decides from nothing: the older come first.
    fn settle_all(&mut self) {
        self.leases.clear();
        self.ranges.clear();
        self.losers.clear();
        let mut claims: Vec<(&str, &str, &Lease)> = self
            .nodes
            .values()
            .filter_map(|seen| Some((seen.created.as_str(), seen.name.as_str(), seen.lease.as_ref()?)))
            .collect();
        claims.sort_unstable_by_key(|(created, name, _)| (*created, *name));
        let claims: Vec<(String, Lease)> =
            claims.into_iter().map(|(_, name, lease)| (name.to_owned(), lease.clone())).collect();
        for (name, lease) in claims {
            if self.overlapping(&lease.subnet).is_empty() {
                self.hold(name, lease);
            } else {
                self.losers.insert(name);
            }
        }
    }

    fn hold(&mut self, node: String, lease: Lease) {
        for net in lease.subnet.nets() {
            self.ranges.insert(net.network(), (net.broadcast(), lease.subnet));
        }
        self.leases.insert(lease.subnet, Holder { node, lease });
    }

    fn release(&mut self, subnet: &Subnet) {
        self.leases.remove(subnet);
        for net in subnet.nets() {
            self.ranges.remove(&net.network());
        }
    }

    /// The held subnets that share an address with `subnet`. IPv4 sorts before IPv6, so one map serves both.
    fn overlapping(&self, subnet: &Subnet) -> Vec<Subnet> {
        let mut found = Vec::new();
        for net in subnet.nets() {
            let (first, last) = (net.network(), net.broadcast());
            let before = self.ranges.range(..first).next_back().filter(|(_, (end, _))| *end >= first);
            found.extend(before.map(|(_, (_, subnet))| *subnet));
            found.extend(self.ranges.range(first..=last).map(|(_, (_, subnet))| *subnet));
        }
        found
    }

    fn holder_of(&self, subnet: &Subnet) -> Option<&Holder> {
        self.overlapping(subnet).first().and_then(|held| self.leases.get(held))
    }
}

/// What went first, then what came: an address that changes hands is never told twice at once.
fn differences(before: &BTreeMap<Subnet, Holder>, after: &BTreeMap<Subnet, Holder>) -> Vec<LeaseUpdate> {
    let gone = before.keys().filter(|subnet| !after.contains_key(subnet)).copied().map(LeaseUpdate::Remove);
    let came = after
        .iter()
        .filter(|(subnet, holder)| before.get(subnet).is_none_or(|was| was.lease != holder.lease))
        .map(|(_, holder)| LeaseUpdate::Upsert(holder.lease.clone()));
    gone.chain(came).collect()
}

#[cfg(test)]
mod tests;
