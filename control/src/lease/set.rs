//! All leases as one value. The node's own lease is left out here and nowhere else.

use std::collections::BTreeMap;

use super::{Lease, LeaseUpdate, Subnet};

/// The leases of the cluster by subnet, without this node's own.
///
/// It compares whole values: a peer that comes back with the same subnet and another address or MAC is a change,
/// whether the store tells it as an event or only in a later snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseSet {
    own: Option<Subnet>,
    leases: BTreeMap<Subnet, Lease>,
}

/// One difference that an update made.
#[expect(clippy::large_enum_variant, reason = "few live at a time, and they live briefly")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange {
    /// A node joined.
    Joined(Lease),
    /// A node's public address or backend data differ.
    Changed {
        /// As it was.
        from: Lease,
        /// As it is.
        to: Lease,
    },
    /// Only the end of the lease moved.
    Renewed(Lease),
    /// A node's lease ended or was deleted.
    Left(Lease),
}

impl LeaseSet {
    /// An empty set for the node that holds `own`.
    pub fn new(own: Subnet) -> Self {
        Self { own: Some(own), leases: BTreeMap::new() }
    }

    /// Takes an update in and tells what it changed, in the order of subnets.
    pub fn apply(&mut self, update: LeaseUpdate) -> Vec<LeaseChange> {
        match update {
            LeaseUpdate::Snapshot(all) | LeaseUpdate::Rewound(all) => {
                let next: BTreeMap<_, _> = all
                    .into_iter()
                    .filter(|lease| !self.is_own(&lease.subnet))
                    .map(|lease| (lease.subnet, lease))
                    .collect();
                let previous = std::mem::take(&mut self.leases);
                let mut changes: Vec<_> = previous
                    .iter()
                    .filter(|(subnet, _)| !next.contains_key(subnet))
                    .map(|(_, lease)| LeaseChange::Left(lease.clone()))
                    .collect();
                changes.extend(
                    next.values().filter_map(|lease| difference(previous.get(&lease.subnet).cloned(), lease)),
                );
                self.leases = next;
                changes
            }
            LeaseUpdate::Upsert(lease) => {
                if self.is_own(&lease.subnet) {
                    return Vec::new();
                }
                let previous = self.leases.insert(lease.subnet, lease.clone());
                difference(previous, &lease).into_iter().collect()
            }
            LeaseUpdate::Remove(subnet) => {
                self.leases.remove(&subnet).map(LeaseChange::Left).into_iter().collect()
            }
        }
    }

    /// The other nodes' leases, by subnet.
    pub fn peers(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// How many other nodes there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// There is no other node.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    fn is_own(&self, subnet: &Subnet) -> bool {
        self.own.as_ref() == Some(subnet)
    }
}

fn difference(from: Option<Lease>, to: &Lease) -> Option<LeaseChange> {
    match from {
        None => Some(LeaseChange::Joined(to.clone())),
        Some(from) if from == *to => None,
        Some(from) if from.attrs == to.attrs => Some(LeaseChange::Renewed(to.clone())),
        Some(from) => Some(LeaseChange::Changed { from, to: to.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::testing::lease;
    use proptest::prelude::*;

    fn own() -> LeaseSet {
        LeaseSet::new(lease(1, 1).subnet)
    }

    #[test]
    fn the_own_lease_is_never_a_peer() {
        let mut set = own();
        assert!(set.apply(LeaseUpdate::Upsert(lease(1, 1))).is_empty());
        assert!(set.apply(LeaseUpdate::Snapshot(vec![lease(1, 1), lease(2, 2)])).len() == 1);
        assert!(set.apply(LeaseUpdate::Snapshot(vec![lease(1, 9), lease(2, 2)])).is_empty());
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn a_new_address_in_a_snapshot_is_a_change() {
        let mut set = own();
        set.apply(LeaseUpdate::Snapshot(vec![lease(2, 2)]));
        let changes = set.apply(LeaseUpdate::Snapshot(vec![lease(2, 7)]));
        assert_eq!(changes, [LeaseChange::Changed { from: lease(2, 2), to: lease(2, 7) }]);
    }

    #[test]
    fn a_snapshot_removes_what_it_lacks() {
        let mut set = own();
        set.apply(LeaseUpdate::Snapshot(vec![lease(2, 2), lease(3, 3)]));
        assert_eq!(set.apply(LeaseUpdate::Snapshot(vec![lease(3, 3)])), [LeaseChange::Left(lease(2, 2))]);
        assert_eq!(set.apply(LeaseUpdate::Remove(lease(3, 3).subnet)), [LeaseChange::Left(lease(3, 3))]);
        assert!(set.is_empty());
        assert!(set.apply(LeaseUpdate::Remove(lease(3, 3).subnet)).is_empty());
    }

    proptest! {
        /// Whatever came before, a snapshot leaves exactly its leases; and events lead to the same set as a snapshot.
        #[test]
        fn events_and_snapshots_agree(steps in proptest::collection::vec((1u8..6, 1u8..4, any::<bool>()), 0..20)) {
            let mut by_event = own();
            let mut model = BTreeMap::new();
            for (third, host, gone) in steps {
                let lease = lease(third, host);
                if gone {
                    model.remove(&lease.subnet);
                    by_event.apply(LeaseUpdate::Remove(lease.subnet));
                } else {
                    model.insert(lease.subnet, lease.clone());
                    by_event.apply(LeaseUpdate::Upsert(lease));
                }
            }
            let mut by_snapshot = own();
            by_snapshot.apply(LeaseUpdate::Snapshot(vec![lease(5, 9), lease(4, 9)]));
            by_snapshot.apply(LeaseUpdate::Snapshot(model.into_values().collect()));
            prop_assert_eq!(by_event, by_snapshot);
        }
    }
}
