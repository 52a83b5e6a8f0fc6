//! The ordered difference between two host states, and one step of it.
//!
//! Order is what keeps traffic flowing while the steps are made one by one: settings, devices and addresses first, then the
//! neighbour and forwarding entries that a route will lean on, then the routes; deletions afterwards, in reverse. A
//! route that changes is replaced in place, so at no moment is its destination without one.
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::state::{Address, FdbEntry, HostState, LinkState, Neighbour, Route};

/// One step from a host state to another. Making a step again does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set a kernel setting.
    SetSysctl {
        /// Its name, as a path.
        name: String,
        /// Its value.
        value: String,
    },
    /// Set a device's MTU, hardware address and alias, and set it up or down.
    SetLink(LinkState),
    /// Add an address.
    AddAddress(Address),
    /// Set a permanent neighbour, in the place of another entry of its address.
    ReplaceNeighbour(Neighbour),
    /// Set a forwarding entry, in the place of another of its MAC address.
    ReplaceFdb(FdbEntry),
    /// Set a route, in the place of another with its destination and metric.
    ReplaceRoute(Route),
    /// Delete a route.
    DeleteRoute(Route),
    /// Delete a forwarding entry.
    DeleteFdb(FdbEntry),
    /// Delete a neighbour.
    DeleteNeighbour(Neighbour),
    /// Delete an address.
    DeleteAddress(Address),
}

impl HostState {
    /// The steps that make `want` of this state, in the order to make them in. None if the two mean the same.
    ///
    /// Devices that `want` says nothing about are left alone. Of two wanted objects that the kernel cannot hold at once
    /// (two routes of one destination and metric, two MAC addresses of one neighbour) the last one stays, and the
    /// difference never ends: who makes `want` has to choose.
    pub fn changes_to(&self, want: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        // Before devices are up, because some settings matter at that moment.
        let set = want
            .sysctls
            .iter()
            .filter(|(name, value)| self.sysctls.get(*name).is_some_and(|has| has != *value));
        changes
            .extend(set.map(|(name, value)| Change::SetSysctl { name: name.clone(), value: value.clone() }));
        let links = want.links.iter().filter(|want| !self.links.iter().any(|have| have.is_as(want)));
        changes.extend(links.cloned().map(Change::SetLink));
        let late_deletions = self.address_changes(want, &mut changes);

        let missing = want.neighbours.difference(&self.neighbours);
        changes.extend(missing.cloned().map(Change::ReplaceNeighbour));
        changes.extend(want.fdb.difference(&self.fdb).cloned().map(Change::ReplaceFdb));

        self.route_changes(want, &mut changes);

        // Of thousands mostly none is in excess, and then nothing needs to be known of the others.
        let mut excess = self.fdb.difference(&want.fdb).peekable();
        if excess.peek().is_some() {
            let kept: BTreeSet<_> = want.fdb.iter().map(|entry| (&entry.device, entry.mac)).collect();
            let excess = excess.filter(|entry| !kept.contains(&(&entry.device, entry.mac)));
            changes.extend(excess.cloned().map(Change::DeleteFdb));
        }
        let mut excess = self.neighbours.difference(&want.neighbours).peekable();
        if excess.peek().is_some() {
            let kept: BTreeSet<_> = want.neighbours.iter().map(|entry| (&entry.device, entry.ip)).collect();
            let excess = excess.filter(|entry| !kept.contains(&(&entry.device, entry.ip)));
            changes.extend(excess.cloned().map(Change::DeleteNeighbour));
        }
        changes.extend(late_deletions.into_iter().map(Change::DeleteAddress));
        changes
    }

    /// Pushes what is to be done about addresses before anything else; returns the deletions that can wait.
    ///
    /// With the first IPv4 address of a subnet the kernel deletes the others of that subnet. So one that has to go
    /// while another of its subnet is wanted goes at once, and the wanted one is added behind it, even if it is there.
    fn address_changes(&self, want: &Self, changes: &mut Vec<Change>) -> Vec<Address> {
        let shares_subnet = |a: &Address, b: &Address| {
            matches!(a.net, IpNet::V4(_)) && a.device == b.device && a.net.trunc() == b.net.trunc()
        };
        let (at_once, late): (Vec<Address>, Vec<Address>) = self
            .addresses
            .difference(&want.addresses)
            .cloned()
            .partition(|have| want.addresses.iter().any(|want| shares_subnet(have, want)));
        let wanted = want.addresses.iter().filter(|want| {
            !self.addresses.contains(want) || at_once.iter().any(|gone| shares_subnet(gone, want))
        });
        let added: Vec<Change> = wanted.cloned().map(Change::AddAddress).collect();
        changes.extend(at_once.into_iter().map(Change::DeleteAddress));
        changes.extend(added);
        late
    }

    fn route_changes(&self, want: &Self, changes: &mut Vec<Change>) {
        let (have, want) = (normalized(&self.routes), normalized(&want.routes));
        changes.extend(want.difference(&have).cloned().map(Change::ReplaceRoute));
        let mut excess = have.difference(&want).peekable();
        if excess.peek().is_none() {
            return;
        }

        let mut of_key: BTreeMap<_, usize> = BTreeMap::new();
        for route in have.iter() {
            *of_key.entry(key(route)).or_default() += 1;
        }
        let replacing: BTreeSet<_> = want.difference(&have).map(key).collect();
        // The kernel looks at no more than this to find the route to delete, so it may take a wanted one for it.
        let alike: BTreeMap<_, _> =
            want.iter().map(|route| ((key(route), route.via, &route.device), route)).collect();
        for excess in excess {
            let key = key(excess);
            let replaced = replacing.contains(&key) && of_key.get(&key) == Some(&1);
            match alike.get(&(key, excess.via, &excess.device)) {
                _ if replaced => {}
                None => changes.push(Change::DeleteRoute(excess.clone())),
                // Whichever of the two is deleted, putting the wanted one in the place of what is left is right.
                Some(wanted) if have.contains(*wanted) => {
                    changes.push(Change::DeleteRoute(excess.clone()));
                    changes.push(Change::ReplaceRoute((*wanted).clone()));
                }
                // The wanted one is on its way; which of them it will replace is known once it is there.
                Some(_) => {}
            }
        }
    }
}

/// The routes in the one spelling; borrowed where they are in it already, as both the plan's and the kernel's are.
fn normalized(routes: &BTreeSet<Route>) -> Cow<'_, BTreeSet<Route>> {
    match routes.iter().all(Route::is_normalized) {
        true => Cow::Borrowed(routes),
        false => Cow::Owned(routes.iter().cloned().map(Route::normalized).collect()),
    }
}

/// What the kernel tells routes apart by.
fn key(route: &Route) -> (IpNet, u32) {
    (route.dest, route.metric)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { name, value } => write!(f, "set {name} to {value}"),
            Self::SetLink(link) => write!(f, "set {link}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::ReplaceNeighbour(neighbour) => write!(f, "replace neighbour {neighbour}"),
            Self::ReplaceFdb(entry) => write!(f, "replace fdb {entry}"),
            Self::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::DeleteFdb(entry) => write!(f, "delete fdb {entry}"),
            Self::DeleteNeighbour(neighbour) => write!(f, "delete neighbour {neighbour}"),
            Self::DeleteAddress(address) => write!(f, "delete address {address}"),
        }
    }
}

#[cfg(test)]
mod tests;
