//! What a lease update says about our own lease. Pure.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::lease::{Lease, LeaseUpdate};

/// The state of our lease as the store tells it.
#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OwnLease {
    /// Nothing was said, or nothing new.
    Unchanged,
    /// It is ours, and its end moved: `None` made a reservation of it.
    Moved(Option<SystemTime>),
    /// It is not there, or somebody overwrote what we publish: publish it again.
    Republish,
    /// Somebody else has it.
    Lost(Lease),
}

/// Compares `update` with the lease we hold. `formerly` are addresses that we had: an update that was on its way when ours
/// changed still has them.
pub(super) fn own_lease(own: &Lease, formerly: &[IpAddr], update: &LeaseUpdate) -> OwnLease {
    let found = match update {
        LeaseUpdate::Snapshot(all) | LeaseUpdate::Rewound(all) => {
            all.iter().find(|lease| lease.subnet == own.subnet)
        }
        LeaseUpdate::Upsert(lease) if lease.subnet == own.subnet => Some(lease),
        LeaseUpdate::Remove(subnet) if *subnet == own.subnet => None,
        LeaseUpdate::Upsert(_) | LeaseUpdate::Remove(_) => return OwnLease::Unchanged,
    };
    match found {
        None => OwnLease::Republish,
        Some(lease) if lease.attrs.owner().is_some_and(|owner| formerly.contains(&owner)) => {
            OwnLease::Republish
        }
        Some(lease) if lease.attrs.owner() != own.attrs.owner() => OwnLease::Lost(lease.clone()),
        Some(lease) if lease.attrs != own.attrs => OwnLease::Republish,
        Some(lease) if lease.expires != own.expires => OwnLease::Moved(lease.expires),
        Some(_) => OwnLease::Unchanged,
    }
}

/// The lease ends within `margin`. A reservation never does.
pub(super) fn renewal_is_due(own: &Lease, margin: Duration, now: SystemTime) -> bool {
    own.expires.is_some_and(|end| end <= now + margin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn lease(third: u8, host: u8) -> Lease {
        let expires = Some(UNIX_EPOCH + Duration::from_secs(100));
        Lease { expires, ..crate::lease::testing::lease(third, host) }
    }

    #[test]
    fn the_own_lease_is_watched() {
        let own = lease(1, 1);
        let other = lease(2, 2);
        let snapshot = |leases: &[&Lease]| LeaseUpdate::Snapshot(leases.iter().copied().cloned().collect());
        let mut moved = own.clone();
        moved.expires = None;
        let stolen = lease(1, 9);
        let mut overwritten = own.clone();
        overwritten.attrs.public_ipv6 = Some("fd00::1".parse().unwrap());
        for (update, expected) in [
            (snapshot(&[&own, &other]), OwnLease::Unchanged),
            (snapshot(&[&other]), OwnLease::Republish),
            (snapshot(&[&stolen]), OwnLease::Lost(stolen.clone())),
            (snapshot(&[&moved]), OwnLease::Moved(None)),
            (LeaseUpdate::Upsert(other.clone()), OwnLease::Unchanged),
            (LeaseUpdate::Upsert(overwritten), OwnLease::Republish),
            (LeaseUpdate::Remove(other.subnet), OwnLease::Unchanged),
            (LeaseUpdate::Remove(own.subnet), OwnLease::Republish),
        ] {
            assert_eq!(own_lease(&own, &[], &update), expected, "{update:?}");
        }
        let theirs = [IpAddr::from([192, 0, 2, 9])];
        assert_eq!(own_lease(&own, &theirs, &snapshot(&[&stolen])), OwnLease::Republish, "it was our own");
    }

    #[test]
    fn a_lease_is_renewed_a_margin_before_its_end_and_a_reservation_never() {
        let mut own = lease(1, 1);
        let due = |own: &Lease, seconds| {
            renewal_is_due(own, Duration::from_secs(40), UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert!(!due(&own, 59));
        assert!(due(&own, 60) && due(&own, 1000));
        own.expires = None;
        assert!(!due(&own, u32::MAX.into()));
    }
}
