//! Which subnet a node gets: a pure function of what is known. Every store decides with it, each writes in its own way.

use dataplane_core::IpNet;

use super::{LeaseRequest, StoreError};
use crate::lease::{Lease, LeaseAttrs, Subnet, overlap};
use crate::network::{NetworkConfig, Pool};

/// Among how many free subnets one is drawn. Drawing makes nodes that start together rarely want the same one.
const CANDIDATES: usize = 100;

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The subnet to take.
    pub subnet: Subnet,
    /// Where it comes from.
    pub origin: Origin,
    /// Leases of this node that do not fit the network: to be deleted first.
    pub release: Vec<Subnet>,
}

/// Where a subnet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The node holds it already; the entry is replaced.
    Held {
        /// The entry has no end, and keeps none.
        reservation: bool,
    },
    /// The node's pods have it from an earlier run; the entry is created.
    Previous,
    /// It was free; the entry is created.
    Fresh,
}

/// Decides. `leases` are those in force; `unreadable` are subnets whose entry makes no sense: they may be somebody's,
/// so nobody else gets them.
pub fn decide(
    network: &NetworkConfig,
    request: &LeaseRequest,
    leases: &[Lease],
    unreadable: &[Subnet],
    random: &mut fastrand::Rng,
) -> Result<Decision, StoreError> {
    let owner = request.attrs.owner().ok_or(StoreError::NoOwner)?;
    let (fitting, release): (Vec<&Lease>, Vec<&Lease>) = leases
        .iter()
        .filter(|lease| lease.attrs.owner() == Some(owner))
        .partition(|lease| fits(network, &lease.subnet));
    let release: Vec<Subnet> = release.into_iter().map(|lease| lease.subnet).collect();
    let held =
        fitting.iter().find(|lease| Some(lease.subnet) == request.previous).or_else(|| fitting.first());
    if let Some(held) = held {
        let origin = Origin::Held { reservation: held.expires.is_none() };
        return Ok(Decision { subnet: held.subnet, origin, release });
    }
    let taken: Vec<IpNet> = leases
        .iter()
        .map(|lease| lease.subnet)
        .filter(|subnet| !release.contains(subnet))
        .chain(unreadable.iter().copied())
        .flat_map(|subnet| subnet.nets().collect::<Vec<_>>())
        .filter(|net| counts(network, net))
        .collect();
    if let Some(previous) = request.previous
        && fits(network, &previous)
        && !previous.nets().any(|ours| taken.iter().any(|theirs| overlap(&ours, theirs)))
    {
        return Ok(Decision { subnet: previous, origin: Origin::Previous, release });
    }
    let mut draw =
        |pool: &Option<Pool>| pool.as_ref().map(|pool| draw_from(pool, &taken, random)).transpose();
    let (v4, v6) = (draw(&network.v4)?, draw(&network.v6)?);
    let v4 = v4.and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let v6 = v6.and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    let subnet = Subnet::new(v4, v6).expect("a network configuration has at least one pool");
    Ok(Decision { subnet, origin: Origin::Fresh, release })
}

/// The subnet is one that this network would lease: in each family that is on, and in no other.
pub fn fits(network: &NetworkConfig, subnet: &Subnet) -> bool {
    let half = |pool: &Option<Pool>, net: Option<IpNet>| match (pool, net) {
        (Some(pool), Some(net)) => pool.holds(&net),
        (None, None) => true,
        _ => false,
    };
    half(&network.v4, subnet.v4().map(IpNet::V4)) && half(&network.v6, subnet.v6().map(IpNet::V6))
}

/// Who has what is ours: the entry of our subnet with another owner, or, if our entry is gone, one that overlaps it.
pub fn rival<'a>(network: &NetworkConfig, own: &Lease, leases: &'a [Lease]) -> Option<&'a Lease> {
    if let Some(holder) = leases.iter().find(|lease| lease.subnet == own.subnet) {
        return (holder.attrs.owner() != own.attrs.owner()).then_some(holder);
    }
    leases.iter().find(|lease| {
        let mut nets = lease.subnet.nets().filter(|net| counts(network, net));
        nets.any(|theirs| own.subnet.nets().any(|ours| overlap(&ours, &theirs)))
    })
}

/// Whether the subnet that we hold as `own` says may be written as ours with `attrs`: the entry names our old address or
/// the new one, or is gone and nobody is in its place. [`StoreError::Lost`] otherwise.
pub fn may_publish(
    network: &NetworkConfig,
    own: &Lease,
    attrs: &LeaseAttrs,
    leases: &[Lease],
) -> Result<(), StoreError> {
    let Some(rival) = rival(network, own, leases) else { return Ok(()) };
    match rival.attrs.owner() {
        Some(owner) if rival.subnet != own.subnet || attrs.owner() != Some(owner) => {
            Err(StoreError::Lost { subnet: own.subnet, owner, theirs: rival.subnet })
        }
        _ => Ok(()),
    }
}

/// A lease's network takes room if it is a part of the cluster's. An entry that spans all of it, or lies elsewhere, is
/// nobody's lease here, and must not keep everybody out.
fn counts(network: &NetworkConfig, net: &IpNet) -> bool {
    network.pools().any(|pool| pool.network().contains(net) && *net != pool.network())
}

fn draw_from(pool: &Pool, taken: &[IpNet], random: &mut fastrand::Rng) -> Result<IpNet, StoreError> {
    let mut used: Vec<_> = taken.iter().filter_map(|net| pool.indices(net)).collect();
    used.sort_unstable_by_key(|range| *range.start());
    let mut free = Vec::with_capacity(CANDIDATES);
    let mut next = 0;
    for range in used {
        let room = CANDIDATES - free.len();
        free.extend((next..*range.start()).take(room));
        next = next.max(range.end() + 1);
    }
    let room = CANDIDATES - free.len();
    free.extend((next..pool.count()).take(room));
    random
        .choice(free)
        .and_then(|index| pool.nth(index))
        .ok_or_else(|| StoreError::OutOfSubnets { network: pool.network(), count: pool.count() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::any_subnet;
    use crate::lease::{BackendData, Key};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn network(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    fn attrs(host: u8) -> LeaseAttrs {
        LeaseAttrs { public_ip: Some([192, 0, 2, host].into()), public_ipv6: None, backend: BackendData::Udp }
    }

    fn lease(key: &str, host: u8) -> Lease {
        Lease { subnet: key.parse::<Key>().unwrap().0, attrs: attrs(host), expires: None }
    }

    fn request(host: u8, previous: Option<&str>) -> LeaseRequest {
        LeaseRequest { attrs: attrs(host), previous: previous.map(|key| key.parse::<Key>().unwrap().0) }
    }

    fn decide_seeded(
        network: &NetworkConfig,
        request: &LeaseRequest,
        leases: &[Lease],
        unreadable: &[Subnet],
        seed: u64,
    ) -> Result<Decision, StoreError> {
        decide(network, request, leases, unreadable, &mut fastrand::Rng::with_seed(seed))
    }

    #[test]
    fn one_of_the_first_hundred_free_is_drawn() {
        let network = network(r#"{"Network": "10.5.0.0/16"}"#);
        let held = lease("10.5.1.0-24", 9);
        let drawn: BTreeSet<_> = (0..2000)
            .map(|seed| {
                decide_seeded(&network, &request(1, None), std::slice::from_ref(&held), &[], seed)
                    .unwrap()
                    .subnet
            })
            .collect();
        let expected: BTreeSet<_> =
            (2..=101).map(|third| format!("10.5.{third}.0-24").parse::<Key>().unwrap().0).collect();
        assert_eq!(drawn, expected);
    }

    #[test]
    fn an_own_lease_that_does_not_fit_is_released() {
        let network = network(r#"{"Network": "10.5.0.0/16"}"#);
        for wrong in ["10.6.1.0-24", "10.5.1.0-25", "10.5.0.0-24", "10.5.1.0-24&fd00::-64"] {
            let leases = [lease(wrong, 1), lease("10.5.7.0-24", 2)];
            let decision = decide_seeded(&network, &request(1, None), &leases, &[], 1).unwrap();
            assert_eq!(decision.release, [leases[0].subnet], "{wrong}");
            assert_eq!(decision.origin, Origin::Fresh);
        }
    }

    #[test]
    fn of_two_own_leases_the_one_the_pods_have_is_kept() {
        let network = network(r#"{"Network": "10.5.0.0/16"}"#);
        let leases = [lease("10.5.1.0-24", 1), lease("10.5.2.0-24", 1)];
        let decision = decide_seeded(&network, &request(1, Some("10.5.2.0-24")), &leases, &[], 1).unwrap();
        assert_eq!(decision.subnet, leases[1].subnet);
    }

    #[test]
    fn an_unreadable_entry_is_nobodys_to_take() {
        let network = network(r#"{"Network": "10.5.0.0/28", "SubnetLen": 30}"#);
        let unreadable: Vec<_> =
            ["10.5.0.4-30", "10.5.0.8-30"].map(|key| key.parse::<Key>().unwrap().0).to_vec();
        for seed in 0..20 {
            let decision =
                decide_seeded(&network, &request(1, Some("10.5.0.4-30")), &[], &unreadable, seed).unwrap();
            assert_eq!(decision.subnet.to_string(), "10.5.0.12/30");
        }
        let leases = [lease("10.5.0.12-30", 2)];
        assert!(matches!(
            decide_seeded(&network, &request(1, None), &leases, &unreadable, 1),
            Err(StoreError::OutOfSubnets { count: 3, .. })
        ));
    }

    #[test]
    fn an_entry_that_spans_the_network_keeps_nobody_out() {
        let network = network(r#"{"Network": "10.5.0.0/16"}"#);
        for hostile in ["0.0.0.0-0", "10.0.0.0-8", "10.5.0.0-16"] {
            let leases = [lease(hostile, 9)];
            let previous = Some("10.5.7.0-24");
            let decision = decide_seeded(&network, &request(1, previous), &leases, &[], 1).unwrap();
            assert_eq!(decision.subnet.to_string(), "10.5.7.0/24");
            assert_eq!(rival(&network, &lease("10.5.7.0-24", 1), &leases), None);
        }
        let part = [lease("10.5.0.0-17", 9)];
        assert_eq!(rival(&network, &lease("10.5.7.0-24", 1), &part), Some(&part[0]));
    }

    #[test]
    fn both_families_are_drawn_for_both() {
        let network =
            network(r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#);
        let decision = decide_seeded(&network, &request(1, Some("10.5.2.0-24")), &[], &[], 1).unwrap();
        assert!(matches!(decision.subnet, Subnet::Dual(..)), "a previous subnet of one family does not fit");
    }

    proptest! {
        #[test]
        fn what_is_decided_fits_and_overlaps_nobody(
            others in proptest::collection::vec((any_subnet(), 2u8..), 0..30), thirds in proptest::collection::vec(0u8.., 0..30),
            previous in any_subnet(), seed in any::<u64>(),
        ) {
            let network = network(r#"{"Network": "10.5.0.0/20", "EnableIPv6": true, "IPv6Network": "fd00::/56"}"#);
            let mut leases: Vec<_> =
                others.into_iter().map(|(subnet, host)| Lease { subnet, attrs: attrs(host), expires: None }).collect();
            leases.extend(thirds.into_iter().map(|third| Lease {
                subnet: Subnet::Dual(
                    format!("10.5.{}.0/24", third % 16).parse().unwrap(),
                    format!("fd00:0:0:{third:x}::/64").parse().unwrap(),
                ),
                ..lease("10.5.0.0-24", 2)
            }));
            let request = LeaseRequest { attrs: attrs(1), previous: Some(previous) };
            if let Ok(decision) = decide_seeded(&network, &request, &leases, &[], seed) {
                prop_assert!(fits(&network, &decision.subnet));
                for theirs in leases.iter().flat_map(|lease| lease.subnet.nets().collect::<Vec<_>>()) {
                    let taken = decision.subnet.nets().any(|ours| overlap(&ours, &theirs));
                    prop_assert!(!taken || !counts(&network, &theirs), "{} overlaps {theirs}", decision.subnet);
                }
            }
        }
    }
}
