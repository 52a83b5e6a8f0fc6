//! What the watch knows of the leases: from lists and events to updates. Pure.
//!
//! An entry that makes no sense changes nothing: it is named in the log once, and what was known of its subnet stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::entry::{Pair, Spoiled, read};
use super::keys::Keys;
use crate::lease::{Lease, LeaseUpdate, Subnet};

/// The leases as they were last told.
#[derive(Debug)]
pub(crate) struct Known {
    keys: Keys,
    leases: BTreeMap<Subnet, Held>,
    /// Keys that were named in the log.
    named: BTreeSet<String>,
    /// The youngest change that was seen: the key, and its revision and etcd lease.
    witness: Option<Witness>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    etcd_lease: i64,
}

/// An entry that tells whether etcd still has the history that we have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Witness {
    /// Its key.
    pub(crate) key: Vec<u8>,
    /// The revision of its last change.
    pub(crate) modified: i64,
    /// Its etcd lease.
    pub(crate) etcd_lease: i64,
}

impl Known {
    /// Nothing yet.
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, leases: BTreeMap::new(), named: BTreeSet::new(), witness: None }
    }

    /// Takes a whole list in: what is not in it is gone.
    pub(crate) fn list(&mut self, pairs: &[Pair], now: SystemTime) -> Vec<Lease> {
        let mut before = std::mem::take(&mut self.leases);
        let named = std::mem::take(&mut self.named);
        self.witness = None;
        for pair in pairs {
            self.witness_of(pair);
            match read(&self.keys, pair, now) {
                Ok(lease) => {
                    let known = before.remove(&lease.subnet);
                    self.hold(lease, pair.etcd_lease, known.as_ref());
                }
                Err(spoiled) => {
                    if let Some(known) = spoiled.subnet.and_then(|subnet| before.remove(&subnet)) {
                        self.leases.insert(known.lease.subnet, known);
                    }
                    self.name(spoiled, &named);
                }
            }
        }
        self.all()
    }

    /// All that is known.
    pub(crate) fn all(&self) -> Vec<Lease> {
        self.leases.values().map(|held| held.lease.clone()).collect()
    }

    /// Takes a changed entry in; `None` if it says nothing new.
    pub(crate) fn put(&mut self, pair: &Pair, now: SystemTime) -> Option<LeaseUpdate> {
        self.witness_of(pair);
        match read(&self.keys, pair, now) {
            Ok(lease) => {
                self.named.remove(&String::from_utf8_lossy(&pair.key).into_owned());
                let subnet = lease.subnet;
                let known = self.leases.remove(&subnet);
                self.hold(lease, pair.etcd_lease, known.as_ref());
                let lease = &self.leases.get(&subnet)?.lease;
                (known.map(|known| known.lease).as_ref() != Some(lease))
                    .then(|| LeaseUpdate::Upsert(lease.clone()))
            }
            Err(spoiled) => {
                self.name(spoiled, &BTreeSet::new());
                None
            }
        }
    }

    /// Takes a deleted entry in.
    pub(crate) fn deleted(&mut self, key: &[u8]) -> Option<LeaseUpdate> {
        self.named.remove(&String::from_utf8_lossy(key).into_owned());
        // Its revision is gone with it, so it can be asked for no more.
        self.witness.take_if(|witness| witness.key == key);
        let subnet = self.keys.subnet(key)?;
        self.leases.remove(&subnet);
        Some(LeaseUpdate::Remove(subnet))
    }

    /// What to look at before the history is followed further after a broken connection.
    pub(crate) fn witness(&self) -> Option<&Witness> {
        self.witness.as_ref()
    }

    fn hold(&mut self, mut lease: Lease, etcd_lease: i64, known: Option<&Held>) {
        // Of an end that is only the latest possible, the one first told stays.
        if let Some(known) = known.filter(|known| known.etcd_lease == etcd_lease) {
            lease.expires = known.lease.expires;
        }
        self.leases.insert(lease.subnet, Held { lease, etcd_lease });
    }

    fn witness_of(&mut self, pair: &Pair) {
        if self.witness.as_ref().is_none_or(|witness| witness.modified <= pair.modified) {
            let Pair { key, modified, etcd_lease, .. } = pair;
            self.witness = Some(Witness { key: key.clone(), modified: *modified, etcd_lease: *etcd_lease });
        }
    }

    fn name(&mut self, spoiled: Spoiled, before: &BTreeSet<String>) {
        let Spoiled { key, why, .. } = spoiled;
        if !before.contains(&key) && !self.named.contains(&key) {
            tracing::warn!(%key, %why, "not a lease, passed over; delete the key to free its subnet");
        }
        self.named.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    const PREFIX: &str = "/coreos.com/network/subnets/";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn pair(name: &str, value: &str, modified: i64) -> Pair {
        let key = format!("{PREFIX}{name}").into_bytes();
        Pair { key, value: value.as_bytes().to_vec(), etcd_lease: 7, modified }
    }

    fn good(third: u8, host: u8, modified: i64) -> Pair {
        pair(
            &format!("10.5.{third}.0-24"),
            &format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#),
            modified,
        )
    }

    fn known() -> Known {
        Known::new(Keys::new("/coreos.com/network"))
    }

    fn subnets(all: &[Lease]) -> Vec<String> {
        all.iter().map(|lease| lease.subnet.to_string()).collect()
    }

    #[test]
    fn a_spoiled_entry_removes_nobody_by_event_or_by_list() {
        let mut known = known();
        known.list(&[good(1, 1, 5), good(2, 2, 6)], now());
        let torn = pair("10.5.2.0-24", "{\"PublicIP\":\"192", 7);
        assert_eq!(known.put(&torn, now()), None);
        let update = known.list(&[good(1, 1, 5), torn, pair("nonsense", "", 8)], now());
        assert_eq!(subnets(&update), ["10.5.1.0/24", "10.5.2.0/24"]);
        let update = known.list(&[good(1, 1, 5)], now());
        assert_eq!(subnets(&update), ["10.5.1.0/24"], "gone is gone");
    }

    #[test]
    fn an_entry_that_is_as_known_is_not_told_again() {
        let mut known = known();
        assert!(known.put(&good(1, 1, 5), now()).is_some());
        assert_eq!(known.put(&good(1, 1, 6), now() + Duration::from_secs(5)), None);
        assert!(known.put(&good(1, 2, 7), now()).is_some());
        assert!(known.put(&Pair { etcd_lease: 0, ..good(1, 2, 7) }, now()).is_some(), "a reservation");
    }

    #[test]
    fn the_youngest_entry_is_the_witness_until_it_is_deleted() {
        let mut known = known();
        known.list(&[good(1, 1, 9), good(2, 2, 6)], now());
        assert_eq!(known.witness().unwrap().modified, 9);
        known.put(&good(2, 2, 10), now());
        assert_eq!(known.witness().unwrap().modified, 10);
        known.deleted(&good(2, 2, 10).key);
        assert_eq!(known.witness(), None);
        known.list(&[], now());
        assert_eq!(known.witness(), None);
    }

    proptest! {
        #[test]
        fn events_lead_to_what_a_list_says(
            steps in proptest::collection::vec((0u8..8, 0u8..4, 0u8..10), 0..60)
        ) {
            let mut by_events = known();
            let mut model = BTreeMap::new();
            for (revision, (third, host, kind)) in steps.into_iter().enumerate() {
                let revision = i64::try_from(revision).unwrap();
                let entry = good(third, host, revision);
                match kind {
                    0 | 1 => {
                        by_events.deleted(&entry.key);
                        model.remove(&third);
                    }
                    2 => {
                        let torn = Pair { value: entry.value[..9].to_vec(), ..entry };
                        prop_assert_eq!(by_events.put(&torn, now()), None);
                    }
                    _ => {
                        by_events.put(&entry, now());
                        model.insert(third, entry);
                    }
                }
            }
            let pairs: Vec<_> = model.into_values().collect();
            prop_assert_eq!(by_events.all(), known().list(&pairs, now()));
        }
    }
}
