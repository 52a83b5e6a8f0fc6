//! What every store promises, as tests that any store can run: implement [`Harness`], then call [`lease_store_contract`].
//!
//! A store in this process is tested in paused time (`lease_store_contract!(harness)`), a server in another process in its
//! own time (`lease_store_contract!(server: harness)`, where `None` skips the test). Time passes for leases by
//! [`Harness::advance`] in both.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Clock, LeaseRequest, LeaseStore, LeaseWatch, StoreError};
use crate::lease::testing::learn;
use crate::lease::{BackendData, Key, LEASE_TTL, Lease, LeaseAttrs, Subnet, VxlanData, overlap};
use dataplane_core::MacAddr;

/// One empty store and its time.
pub(crate) trait Harness {
    type Store: LeaseStore;

    /// A client of the store, as one node has it.
    fn store(&self) -> Self::Store;

    /// Replaces the network configuration.
    fn configure(&self, text: &str);

    /// Lets time pass for every client.
    fn advance(&self, by: Duration);

    /// Writes an entry without an end, as an operator would reserve a subnet.
    fn reserve(&self, key: &str, value: &str);

    /// Deletes an entry, as an operator would.
    fn delete(&self, key: &str);

    /// Writes an entry that is no lease.
    fn spoil(&self, key: &str, value: &[u8]);
}

/// A clock that moves when it is told to.
#[derive(Debug, Clone)]
pub(crate) struct HandClock(Arc<Mutex<SystemTime>>);

impl HandClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000))))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for HandClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Makes one test of each promise for the harness that `$make` returns.
macro_rules! lease_store_contract {
    (@one [$($time:tt)*] $make:expr, $promise:ident) => {
        #[tokio::test $($time)*]
        async fn $promise() {
            if let Some(harness) = $make {
                crate::store::contract::$promise(harness).await;
            }
        }
    };
    (@each $time:tt $make:expr => $($promise:ident),+ $(,)?) => {
        $( lease_store_contract! { @one $time $make, $promise } )+
    };
    ($make:expr => $($promise:ident),+ $(,)?) => {
        lease_store_contract! { @each [(start_paused = true)] Some($make) => $($promise),+ }
    };
    (server: $make:expr) => {
        lease_store_contract! { @all [] $make }
    };
    ($make:expr) => {
        lease_store_contract! { @all [(start_paused = true)] Some($make) }
    };
    (@all $time:tt $make:expr) => {
        lease_store_contract! {
            @each $time $make =>
            a_lease_lasts_a_day_and_is_told,
            the_same_public_address_gets_the_same_subnet,
            attributes_are_replaced_on_return,
            previous_subnet_is_reused,
            a_previous_subnet_that_is_taken_is_not_reused,
            a_previous_subnet_outside_the_network_is_not_reused,
            an_own_lease_that_no_longer_fits_is_replaced,
            bounds_and_length_are_kept,
            the_pool_runs_out_and_says_so,
            an_ended_lease_is_free_for_others,
            renewing_moves_the_end,
            a_reservation_stays_one,
            a_reservation_of_another_node_is_left_alone,
            a_lease_of_another_owner_is_never_overwritten,
            a_deleted_lease_is_published_again,
            a_node_with_another_address_keeps_its_subnet,
            a_deleted_lease_that_overlaps_another_is_lost,
            the_watch_tells_joins_changes_and_ends,
            an_entry_that_makes_no_sense_costs_nobody_else,
            a_lease_that_is_spoiled_is_no_node_that_left,
            both_families_are_leased_together,
            the_mac_of_an_earlier_run_is_found,
            without_a_public_address_there_is_no_lease,
        }
    };
}
pub(crate) use lease_store_contract;

const NETWORK: &str = r#"{"Network": "10.5.0.0/16"}"#;

fn ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

fn attrs(host: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some(ip(host)), public_ipv6: None, backend: BackendData::Udp }
}

fn subnet(key: &str) -> Subnet {
    key.parse::<Key>().unwrap().0
}

async fn acquire<H: Harness>(h: &H, host: u8, previous: Option<&str>) -> Result<Lease, StoreError> {
    let store = h.store();
    let network = store.network().await?;
    store.acquire(&network, &LeaseRequest { attrs: attrs(host), previous: previous.map(subnet) }).await
}

async fn renew<H: Harness>(h: &H, own: &Lease) -> Result<Lease, StoreError> {
    let store = h.store();
    let network = store.network().await?;
    store.renew(&network, own).await
}

/// The leases that the next snapshot or event leaves.
async fn next_leases(watch: &mut impl LeaseWatch, known: &mut Vec<Lease>) {
    learn(known, watch.next().await);
}

/// Watches until `done`; a promise that is not kept ends in the test's own time limit, not in a wrong answer.
async fn watch_until(watch: &mut impl LeaseWatch, known: &mut Vec<Lease>, done: impl Fn(&[Lease]) -> bool) {
    tokio::time::timeout(Duration::from_secs(600), async {
        while !done(known) {
            next_leases(watch, known).await;
        }
    })
    .await
    .expect("the watch tells what happened");
}

pub(crate) async fn a_lease_lasts_a_day_and_is_told<H: Harness>(h: H) {
    h.configure(NETWORK);
    let lease = acquire(&h, 1, None).await.unwrap();
    let held = h.store().held_by(ip(1).into()).await.unwrap().unwrap();
    assert_eq!(held, lease);
    h.advance(LEASE_TTL - Duration::from_secs(2));
    assert!(h.store().held_by(ip(1).into()).await.unwrap().is_some());
    h.advance(Duration::from_secs(3));
    assert!(h.store().held_by(ip(1).into()).await.unwrap().is_none());
}

pub(crate) async fn the_same_public_address_gets_the_same_subnet<H: Harness>(h: H) {
    h.configure(NETWORK);
    let first = acquire(&h, 1, None).await.unwrap();
    acquire(&h, 2, None).await.unwrap();
    for _ in 0..5 {
        // Whatever subnet.env says: the store is right.
        assert_eq!(acquire(&h, 1, Some("10.5.200.0-24")).await.unwrap().subnet, first.subnet);
    }
}

pub(crate) async fn attributes_are_replaced_on_return<H: Harness>(h: H) {
    h.configure(NETWORK);
    let store = h.store();
    let network = store.network().await.unwrap();
    let first = acquire(&h, 1, None).await.unwrap();
    let data = VxlanData { vni: Some(1), mac: MacAddr([2, 0, 0, 0, 0, 1]) };
    let vxlan =
        LeaseAttrs { backend: BackendData::Vxlan { v4: Some(data), v6: None }, ..first.attrs.clone() };
    let request = LeaseRequest { attrs: vxlan.clone(), previous: None };
    let second = store.acquire(&network, &request).await.unwrap();
    assert_eq!((second.subnet, &second.attrs), (first.subnet, &vxlan));
    assert_eq!(store.held_by(ip(1).into()).await.unwrap().unwrap().attrs, vxlan);
}

pub(crate) async fn previous_subnet_is_reused<H: Harness>(h: H) {
    h.configure(NETWORK);
    acquire(&h, 2, None).await.unwrap();
    assert_eq!(acquire(&h, 1, Some("10.5.250.0-24")).await.unwrap().subnet, subnet("10.5.250.0-24"));
}

pub(crate) async fn a_previous_subnet_that_is_taken_is_not_reused<H: Harness>(h: H) {
    h.configure(NETWORK);
    let other = acquire(&h, 2, None).await.unwrap();
    let mine = acquire(&h, 1, Some(&other.subnet.key().to_string())).await.unwrap();
    assert_ne!(mine.subnet, other.subnet);
}

pub(crate) async fn a_previous_subnet_outside_the_network_is_not_reused<H: Harness>(h: H) {
    h.configure(NETWORK);
    for previous in ["10.6.1.0-24", "10.5.1.0-25", "10.5.0.0-24"] {
        assert_ne!(acquire(&h, 1, Some(previous)).await.unwrap().subnet, subnet(previous));
    }
}

pub(crate) async fn an_own_lease_that_no_longer_fits_is_replaced<H: Harness>(h: H) {
    h.configure(NETWORK);
    let old = acquire(&h, 1, None).await.unwrap();
    h.configure(r#"{"Network": "10.6.0.0/16"}"#);
    let new = acquire(&h, 1, None).await.unwrap();
    assert!(new.subnet.to_string().starts_with("10.6."), "{}", new.subnet);
    let mut known = Vec::new();
    next_leases(&mut h.store().watch().await.unwrap(), &mut known).await;
    assert!(!known.iter().any(|lease| lease.subnet == old.subnet), "the old one is deleted");
}

pub(crate) async fn bounds_and_length_are_kept<H: Harness>(h: H) {
    h.configure(
        r#"{"Network": "10.5.0.0/16", "SubnetLen": 28, "SubnetMin": "10.5.9.16", "SubnetMax": "10.5.9.48"}"#,
    );
    let mut got = Vec::new();
    for host in 1..=3 {
        got.push(acquire(&h, host, None).await.unwrap().subnet.to_string());
    }
    got.sort();
    assert_eq!(got, ["10.5.9.16/28", "10.5.9.32/28", "10.5.9.48/28"]);
}

pub(crate) async fn the_pool_runs_out_and_says_so<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24}"#);
    for host in 1..=3 {
        acquire(&h, host, None).await.unwrap();
    }
    assert!(matches!(acquire(&h, 4, None).await, Err(StoreError::OutOfSubnets { count: 3, .. })));
    assert!(acquire(&h, 3, None).await.is_ok(), "who has one keeps it");
}

pub(crate) async fn an_ended_lease_is_free_for_others<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.3.0"}"#);
    acquire(&h, 1, None).await.unwrap();
    assert!(acquire(&h, 2, None).await.is_err());
    h.advance(LEASE_TTL + Duration::from_secs(1));
    assert_eq!(acquire(&h, 2, None).await.unwrap().subnet, subnet("10.5.3.0-24"));
}

pub(crate) async fn renewing_moves_the_end<H: Harness>(h: H) {
    h.configure(NETWORK);
    let lease = acquire(&h, 1, None).await.unwrap();
    h.advance(Duration::from_secs(3600));
    let renewed = renew(&h, &lease).await.unwrap();
    assert_eq!(renewed.expires.unwrap(), lease.expires.unwrap() + Duration::from_secs(3600));
    h.advance(LEASE_TTL - Duration::from_secs(60));
    assert_eq!(h.store().held_by(ip(1).into()).await.unwrap(), Some(renewed));
}

pub(crate) async fn a_reservation_stays_one<H: Harness>(h: H) {
    h.configure(NETWORK);
    h.reserve("10.5.77.0-24", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    for _ in 0..3 {
        let lease = acquire(&h, 1, None).await.unwrap();
        assert_eq!((lease.subnet, lease.expires), (subnet("10.5.77.0-24"), None));
        assert_eq!(renew(&h, &lease).await.unwrap().expires, None);
        h.advance(LEASE_TTL * 3);
    }
}

pub(crate) async fn a_reservation_of_another_node_is_left_alone<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.2.0"}"#);
    h.reserve("10.5.2.0-24", r#"{"PublicIP":"192.0.2.9"}"#);
    h.advance(LEASE_TTL * 2);
    assert_eq!(acquire(&h, 1, Some("10.5.2.0-24")).await.unwrap().subnet, subnet("10.5.3.0-24"));
    assert!(acquire(&h, 2, None).await.is_err());
}

pub(crate) async fn a_lease_of_another_owner_is_never_overwritten<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.3.0"}"#);
    let mine = acquire(&h, 1, None).await.unwrap();
    // We sleep past the end, and another node gets the subnet.
    h.advance(LEASE_TTL + Duration::from_secs(1));
    let theirs = acquire(&h, 2, None).await.unwrap();
    assert_eq!(theirs.subnet, mine.subnet);
    let error = renew(&h, &mine).await.unwrap_err();
    let StoreError::Lost { owner, .. } = error else { panic!("{error}") };
    assert_eq!(owner, IpAddr::from(ip(2)));
    assert_eq!(h.store().held_by(ip(2).into()).await.unwrap(), Some(theirs));
}

pub(crate) async fn a_deleted_lease_is_published_again<H: Harness>(h: H) {
    h.configure(NETWORK);
    let mine = acquire(&h, 1, None).await.unwrap();
    h.delete(&mine.subnet.key().to_string());
    assert_eq!(h.store().held_by(ip(1).into()).await.unwrap(), None);
    let again = renew(&h, &mine).await.unwrap();
    assert_eq!((again.subnet, &again.attrs), (mine.subnet, &mine.attrs));
    assert_eq!(h.store().held_by(ip(1).into()).await.unwrap(), Some(again));
}

pub(crate) async fn a_node_with_another_address_keeps_its_subnet<H: Harness>(h: H) {
    h.configure(NETWORK);
    let mine = acquire(&h, 1, None).await.unwrap();
    let theirs = acquire(&h, 2, None).await.unwrap();
    let store = h.store();
    let network = store.network().await.unwrap();
    // Twice: a node that heard no answer asks again.
    for _ in 0..2 {
        let moved = store.readdress(&network, &mine, &attrs(7)).await.unwrap();
        assert_eq!((moved.subnet, &moved.attrs), (mine.subnet, &attrs(7)));
        assert_eq!(store.held_by(ip(7).into()).await.unwrap(), Some(moved));
    }
    assert_eq!(store.held_by(ip(1).into()).await.unwrap(), None);
    let not_mine = Lease { subnet: theirs.subnet, ..mine };
    assert!(matches!(store.readdress(&network, &not_mine, &attrs(7)).await, Err(StoreError::Lost { .. })));
    assert_eq!(store.held_by(ip(2).into()).await.unwrap(), Some(theirs));
}

pub(crate) async fn a_deleted_lease_that_overlaps_another_is_lost<H: Harness>(h: H) {
    h.configure(NETWORK);
    let mine = acquire(&h, 1, Some("10.5.8.0-24")).await.unwrap();
    h.delete("10.5.8.0-24");
    h.reserve("10.5.8.0-22", r#"{"PublicIP":"192.0.2.9"}"#);
    assert!(matches!(renew(&h, &mine).await, Err(StoreError::Lost { .. })));
}

pub(crate) async fn the_watch_tells_joins_changes_and_ends<H: Harness>(h: H) {
    h.configure(NETWORK);
    let mut watch = h.store().watch().await.unwrap();
    let mut known = vec![];
    next_leases(&mut watch, &mut known).await;
    assert!(known.is_empty(), "the first update is a snapshot, even of nothing");
    let one = acquire(&h, 1, None).await.unwrap();
    watch_until(&mut watch, &mut known, |leases| leases.contains(&one)).await;
    let data = VxlanData { vni: Some(1), mac: MacAddr([2, 0, 0, 0, 0, 7]) };
    let changed = Lease {
        attrs: LeaseAttrs { backend: BackendData::Vxlan { v4: Some(data), v6: None }, ..one.attrs.clone() },
        ..one.clone()
    };
    let changed = renew(&h, &changed).await.unwrap();
    watch_until(&mut watch, &mut known, |leases| leases.contains(&changed) && !leases.contains(&one)).await;
    let two = acquire(&h, 2, None).await.unwrap();
    watch_until(&mut watch, &mut known, |leases| leases.contains(&two) && leases.contains(&changed)).await;
    h.delete(&two.subnet.key().to_string());
    watch_until(&mut watch, &mut known, |leases| leases == [changed.clone()]).await;
    h.advance(LEASE_TTL + Duration::from_secs(1));
    watch_until(&mut watch, &mut known, <[Lease]>::is_empty).await;
}

pub(crate) async fn an_entry_that_makes_no_sense_costs_nobody_else<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.2.0"}"#);
    let mine = acquire(&h, 1, Some("10.5.2.0-24")).await.unwrap();
    h.spoil("10.5.3.0-24", br#"{"PublicIP":"192.0"#);
    h.spoil("not-a-lease", b"\xff\x00");
    let mut known = Vec::new();
    next_leases(&mut h.store().watch().await.unwrap(), &mut known).await;
    assert_eq!(known, std::slice::from_ref(&mine));
    assert!(renew(&h, &mine).await.is_ok());
    assert!(acquire(&h, 2, None).await.is_err(), "its subnet may be somebody's");
    h.delete("10.5.3.0-24");
    assert!(acquire(&h, 2, None).await.is_ok());
}

pub(crate) async fn a_lease_that_is_spoiled_is_no_node_that_left<H: Harness>(h: H) {
    h.configure(NETWORK);
    let one = acquire(&h, 1, None).await.unwrap();
    let two = acquire(&h, 2, None).await.unwrap();
    let mut watch = h.store().watch().await.unwrap();
    let mut known = Vec::new();
    watch_until(&mut watch, &mut known, |leases| leases.contains(&one) && leases.contains(&two)).await;
    h.spoil(&two.subnet.key().to_string(), b"{\"PublicIP\":\"192");
    let three = acquire(&h, 3, None).await.unwrap();
    watch_until(&mut watch, &mut known, |leases| leases.contains(&three)).await;
    assert!(known.contains(&two), "what was known stays");
    assert_eq!(h.store().held_by(ip(2).into()).await.unwrap(), None, "its owner can tell");
    assert_eq!(renew(&h, &two).await.unwrap().subnet, two.subnet, "and mend it");
    h.advance(LEASE_TTL * 2);
    watch_until(&mut watch, &mut known, <[Lease]>::is_empty).await;
}

pub(crate) async fn both_families_are_leased_together<H: Harness>(h: H) {
    h.configure(r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}"#);
    let lease = acquire(&h, 1, Some("10.5.7.0-24&fd00:5:0:7::-64")).await.unwrap();
    assert_eq!(lease.subnet, subnet("10.5.7.0-24&fd00:5:0:7::-64"));
    let other = acquire(&h, 2, None).await.unwrap();
    assert!(matches!(other.subnet, Subnet::Dual(..)));
    for ours in lease.subnet.nets() {
        assert!(!other.subnet.nets().any(|theirs| overlap(&ours, &theirs)));
    }
    assert_eq!(acquire(&h, 1, None).await.unwrap().subnet, lease.subnet);
}

pub(crate) async fn the_mac_of_an_earlier_run_is_found<H: Harness>(h: H) {
    h.configure(NETWORK);
    let store = h.store();
    let data = VxlanData { vni: Some(1), mac: MacAddr([2, 0, 0, 0, 0, 7]) };
    let vxlan = LeaseAttrs { backend: BackendData::Vxlan { v4: Some(data), v6: None }, ..attrs(1) };
    let request = LeaseRequest { attrs: vxlan.clone(), previous: None };
    store.acquire(&store.network().await.unwrap(), &request).await.unwrap();
    assert_eq!(h.store().held_by(ip(1).into()).await.unwrap().unwrap().attrs, vxlan);
    assert_eq!(h.store().held_by(ip(2).into()).await.unwrap(), None);
}

pub(crate) async fn without_a_public_address_there_is_no_lease<H: Harness>(h: H) {
    h.configure(NETWORK);
    let store = h.store();
    let nobody = LeaseAttrs { public_ip: None, public_ipv6: None, backend: BackendData::Udp };
    let request = LeaseRequest { attrs: nobody, previous: None };
    let network = store.network().await.unwrap();
    assert!(matches!(store.acquire(&network, &request).await, Err(StoreError::NoOwner)));
}
