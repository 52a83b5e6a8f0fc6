//! Leases for tests.

use super::{BackendData, Key, Lease, LeaseAttrs, LeaseUpdate};

/// 10.5.`third`.0/24 of the node 192.0.2.`host`, without an end.
pub(crate) fn lease(third: u8, host: u8) -> Lease {
    Lease {
        subnet: format!("10.5.{third}.0-24").parse::<Key>().unwrap().0,
        attrs: LeaseAttrs {
            public_ip: Some([192, 0, 2, host].into()),
            public_ipv6: None,
            backend: BackendData::Udp,
        },
        expires: None,
    }
}

/// What is known after an update, in no order.
pub(crate) fn learn(known: &mut Vec<Lease>, update: LeaseUpdate) {
    match update {
        LeaseUpdate::Snapshot(all) | LeaseUpdate::Rewound(all) => *known = all,
        LeaseUpdate::Upsert(lease) => {
            known.retain(|known| known.subnet != lease.subnet);
            known.push(lease);
        }
        LeaseUpdate::Remove(gone) => known.retain(|known| known.subnet != gone),
    }
}
