//! Against a real etcd, one of its own for each test. Skipped aloud where the machine has none.

use std::time::Duration;

use etcd_client::Client;
use lab::etcd::{Etcd, MISSING, Setup};

use super::entry::end_in;
use super::*;
use crate::lease::testing::learn;
use crate::lease::{BackendData, Key, LeaseUpdate};
use crate::store::LeaseWatch;
use crate::store::contract::{HandClock, Harness, lease_store_contract};

mod certificates;
mod histories;
mod nodes;
mod relay;
mod servers;

lease_store_contract!(server: EtcdHarness::new());

pub(super) const PREFIX: &str = "/coreos.com/network";

/// An etcd of one server, and a clock that the nodes have. The server has its own: that a lease ends is done to it, by
/// revoking what would have ended, which etcd itself does when a lease ends. (That one ends by itself is
/// `a_lease_that_etcd_lets_end_is_told`.)
pub(super) struct EtcdHarness {
    pub(super) etcd: Etcd,
    clock: HandClock,
}

impl EtcdHarness {
    pub(super) fn new() -> Option<Self> {
        Self::of(&Setup::default())
    }

    pub(super) fn of(setup: &Setup) -> Option<Self> {
        let etcd = Etcd::start(setup).unwrap();
        if etcd.is_none() {
            skipped(MISSING);
        }
        Some(Self { etcd: etcd?, clock: HandClock::new() })
    }

    pub(super) fn settings(&self) -> EtcdSettings {
        settings(&self.etcd.urls())
    }

    /// Does something to etcd as an operator would, on a thread and over a connection of its own.
    pub(super) fn by_hand<T: Send>(&self, work: impl AsyncFnOnce(&mut Client) -> T + Send) -> T {
        by_hand(&self.etcd.urls(), work)
    }

    pub(super) fn key(name: &str) -> String {
        format!("{PREFIX}/subnets/{name}")
    }
}

pub(super) fn skipped(reason: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    eprintln!("skipped: {name}: {reason}");
}

pub(super) fn settings(urls: &[String]) -> EtcdSettings {
    let prefix = PREFIX.to_owned();
    EtcdSettings { endpoints: urls.to_vec(), prefix, ca: None, identity: None, user: None }
}

pub(super) fn by_hand<T: Send>(urls: &[String], work: impl AsyncFnOnce(&mut Client) -> T + Send) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::connect(urls, None).await.unwrap();
            work(&mut client).await
        })
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap()
}

impl Harness for EtcdHarness {
    type Store = EtcdStore<HandClock>;

    fn store(&self) -> Self::Store {
        EtcdStore::with_clock(&self.settings(), self.clock.clone(), LEASE_TTL).unwrap()
    }

    fn configure(&self, text: &str) {
        let key = format!("{PREFIX}/config");
        self.by_hand(async move |client| client.put(key, text, None).await.map(drop)).unwrap();
    }

    fn advance(&self, by: Duration) {
        let before = self.clock.now();
        self.clock.advance(by);
        let now = self.clock.now();
        self.by_hand(async move |client| {
            let leases = client.leases().await.unwrap();
            for lease in leases.leases() {
                if end_in(lease.id(), before).is_some_and(|end| end <= now) {
                    client.lease_revoke(lease.id()).await.unwrap();
                }
            }
        });
    }

    fn reserve(&self, key: &str, value: &str) {
        self.spoil(key, value.as_bytes());
    }

    fn delete(&self, key: &str) {
        let key = Self::key(key);
        self.by_hand(async move |client| client.delete(key, None).await.map(drop)).unwrap();
    }

    fn spoil(&self, key: &str, value: &[u8]) {
        let (key, value) = (Self::key(key), value.to_vec());
        self.by_hand(async move |client| client.put(key, value, None).await.map(drop)).unwrap();
    }
}

/// What node number `host` asks for.
pub(super) fn request(host: u8) -> LeaseRequest {
    let public_ip = Some([192, 0, 2, host].into());
    let attrs = LeaseAttrs { public_ip, public_ipv6: None, backend: BackendData::Udp };
    LeaseRequest { attrs, previous: None }
}

pub(super) fn previous(host: u8, key: &str) -> LeaseRequest {
    LeaseRequest { previous: Some(subnet(key)), ..request(host) }
}

pub(super) fn subnet(key: &str) -> Subnet {
    key.parse::<Key>().unwrap().0
}

pub(super) async fn join(harness: &impl Harness, request: &LeaseRequest) -> Lease {
    let store = harness.store();
    let network = store.network().await.unwrap();
    store.acquire(&network, request).await.unwrap()
}

/// Watches until what is known is as wanted; the most that a test waits.
pub(super) async fn until(watch: &mut Followed, known: &mut Vec<Lease>, done: impl Fn(&[Lease]) -> bool) {
    let enough = async {
        while !done(known) {
            learn(known, watch.next().await);
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), enough).await.is_err() {
        panic!("in vain; known: {known:?}; {:?}", watch.contact());
    }
}
