//! The etcd v3 store: flannel's keys and values, so that nodes of both kinds share one network.
//!
//! ```text
//! keys         PREFIX/config, PREFIX/subnets/10.5.34.0-24
//! entry        a key and value as a lease; when it ends
//! endpoint     one server; tls: its certificates; fault: what it says when it does not do it
//! connection   the server in use, the next one when it fails
//! known        lists and events become updates
//! watch        the task that follows the leases
//! ```
//!
//! Every write is a transaction that compares first: a lease is created only where its key is not there, and replaced
//! only if nobody changed it since it was read. Each time it gets an etcd lease of 24 hours; one whose transaction fails
//! is revoked. A reservation - a key without an etcd lease - is written back without one. (flannel writes blindly on
//! renewal, and gives a reservation an end.)

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::{
    Compare, CompareOp, KeyValue, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
};
use tokio::time::sleep;

use self::connection::Connection;
use self::entry::{Pair, end_in, id_for};
use self::keys::Keys;
use super::allocate::{Origin, decide, may_publish};
use super::followed::Followed;
use super::{Clock, LeaseRequest, LeaseStore, StoreError, SystemClock};
use crate::lease::{LEASE_TTL, Lease, LeaseAttrs, Subnet, print_value};
use crate::network::{ConfigError, NetworkConfig};
use crate::settings::EtcdSettings;

mod connection;
mod endpoint;
pub(crate) mod entry;
mod fault;
pub(crate) mod keys;
pub(crate) mod known;
mod listing;
mod tls;
mod watch;

use listing::Listing;

/// Races that a node loses before it says so. A thousand nodes that start together lose a handful each.
const ROUNDS: u32 = 64;

/// The store in etcd.
#[derive(Debug)]
pub struct EtcdStore<C = SystemClock> {
    connection: Arc<Connection>,
    keys: Keys,
    clock: C,
    /// How long etcd keeps a lease of ours.
    ttl: Duration,
    /// The subnet that we last got, so that looking after it needs one key and not all.
    own: Mutex<Option<Subnet>>,
}

/// What to write, decided from a listing.
struct Claim {
    subnet: Subnet,
    attrs: LeaseAttrs,
    /// It has no end.
    reservation: bool,
    /// Leases of this node to be deleted first.
    release: Vec<Subnet>,
}

/// An etcd lease that is granted and not yet used.
#[derive(Clone, Copy)]
struct Grant {
    id: i64,
    end: SystemTime,
}

impl EtcdStore {
    /// Takes the settings; nothing is connected before something is asked.
    pub fn open(settings: &EtcdSettings) -> Result<Self, StoreError> {
        Self::with_clock(settings, SystemClock, LEASE_TTL)
    }
}

impl<C: Clock> EtcdStore<C> {
    fn with_clock(settings: &EtcdSettings, clock: C, ttl: Duration) -> Result<Self, StoreError> {
        let connection = Arc::new(Connection::new(settings)?);
        Ok(Self { connection, keys: Keys::new(&settings.prefix), clock, ttl, own: Mutex::new(None) })
    }

    async fn pair(&self, key: String) -> Result<Option<Pair>, StoreError> {
        let found = self.connection.get(key.into_bytes()).await?;
        Ok(found.as_ref().map(pair_of))
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        Listing::of(&self.connection, &self.keys, self.clock.now()).await
    }

    /// Decides, writes, and decides anew where somebody was faster.
    async fn claim(
        &self,
        decide: impl Fn(&Listing) -> Result<Claim, StoreError>,
    ) -> Result<Lease, StoreError> {
        let mut spare = None;
        let outcome = self.compete(decide, &mut spare).await;
        if let Some(Grant { id, .. }) = spare {
            self.revoke(id).await;
        }
        let lease = outcome?;
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease.subnet);
        Ok(lease)
    }

    async fn compete(
        &self,
        decide: impl Fn(&Listing) -> Result<Claim, StoreError>,
        spare: &mut Option<Grant>,
    ) -> Result<Lease, StoreError> {
        for round in 0..ROUNDS {
            if round > 0 {
                // Unequal waits, longer with every race lost, keep nodes that start together from racing in step.
                sleep(Duration::from_millis(fastrand::u64(1..=20 << round.min(5)))).await;
            }
            let listing = self.list().await?;
            let claim = decide(&listing)?;
            for subnet in &claim.release {
                self.release(subnet, &listing).await?;
            }
            let grant = match (claim.reservation, *spare) {
                (true, _) => None,
                (false, Some(grant)) => Some(grant),
                (false, None) => Some(self.grant().await?),
            };
            // While it is not known whether the transaction was done, the grant may be in use and must not be revoked.
            *spare = None;
            if self.write(&claim, &listing, grant).await? {
                if let Some(old) = listing.etcd_lease(&claim.subnet) {
                    self.retire(old).await;
                }
                return Ok(Lease {
                    subnet: claim.subnet,
                    attrs: claim.attrs,
                    expires: grant.map(|grant| grant.end),
                });
            }
            *spare = grant;
        }
        let why = format!("other nodes were faster {ROUNDS} times");
        Err(StoreError::Unreachable { store: self.connection.place(), why })
    }

    /// Writes the claim if what it was decided from still holds.
    async fn write(
        &self,
        claim: &Claim,
        listing: &Listing,
        grant: Option<Grant>,
    ) -> Result<bool, StoreError> {
        let key = self.keys.lease(&claim.subnet);
        let mut unchanged = Vec::new();
        match listing.modified(&claim.subnet) {
            Some(revision) => unchanged.push(Compare::mod_revision(key.clone(), CompareOp::Equal, revision)),
            None => {
                unchanged.push(Compare::version(key.clone(), CompareOp::Equal, 0));
                if let Some(v4) = claim.subnet.v4() {
                    // Whatever IPv6 subnet somebody else has with it.
                    let taken = Compare::version(self.keys.leases_of(v4), CompareOp::Equal, 0);
                    unchanged.push(taken.with_prefix());
                }
                if claim.subnet.v6().is_some() {
                    // No key begins with the IPv6 subnet, so no lease at all may be new.
                    let next = listing.revision + 1;
                    let newer = Compare::create_revision(self.keys.leases(), CompareOp::Less, next);
                    unchanged.push(newer.with_prefix());
                }
            }
        }
        let options = grant.map(|grant| PutOptions::new().with_lease(grant.id));
        let put = TxnOp::put(key, print_value(&claim.attrs, None), options);
        self.transact("write the lease", Txn::new().when(unchanged).and_then([put])).await
    }

    /// Deletes a lease of this node; one that somebody changed meanwhile stays.
    async fn release(&self, subnet: &Subnet, listing: &Listing) -> Result<(), StoreError> {
        let Some(revision) = listing.modified(subnet) else { return Ok(()) };
        let key = self.keys.lease(subnet);
        let unchanged = [Compare::mod_revision(key.clone(), CompareOp::Equal, revision)];
        let delete = Txn::new().when(unchanged).and_then([TxnOp::delete(key, None)]);
        self.transact("delete a lease", delete).await.map(drop)
    }

    async fn transact(&self, doing: &'static str, transaction: Txn) -> Result<bool, StoreError> {
        // Repeating it is safe: where it was done already, its comparison fails and the caller looks again.
        self.connection
            .ask(doing, |mut client| {
                let transaction = transaction.clone();
                async move { client.txn(transaction).await }
            })
            .await
            .map(|answer| answer.succeeded())
    }

    async fn grant(&self) -> Result<Grant, StoreError> {
        let seconds = self.ttl.as_secs();
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let end = UNIX_EPOCH + Duration::from_secs(now + seconds);
        let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
        let answer = self
            .connection
            .ask("grant a lease", |mut client| async move {
                // Another id each time: where the answer to the first was lost, it may be granted, and ends unused.
                let options = LeaseGrantOptions::new().with_id(id_for(end, &mut fastrand::Rng::new()));
                client.lease_grant(ttl, Some(options)).await
            })
            .await?;
        Ok(Grant { id: answer.id(), end })
    }

    /// Gives a grant back that nothing hangs on. Where that fails it ends by itself in a day.
    async fn revoke(&self, id: i64) {
        let revoked = self
            .connection
            .ask("revoke a lease", |mut client| async move { client.lease_revoke(id).await })
            .await;
        if let Err(error) = revoked {
            tracing::debug!(%error, "an unused etcd lease stays until it ends");
        }
    }

    /// Revokes the etcd lease that an entry had before, if it is one of ours and nothing else hangs on it.
    async fn retire(&self, id: i64) {
        if end_in(id, self.clock.now()).is_none() {
            return;
        }
        let left = self
            .connection
            .ask("look at a lease", |mut client| async move {
                let options = LeaseTimeToLiveOptions::new().with_keys();
                client.lease_time_to_live(id, Some(options)).await
            })
            .await;
        if left.is_ok_and(|left| left.ttl() > 0 && left.keys().is_empty()) {
            self.revoke(id).await;
        }
    }

    /// The lease that this entry is, with the end as etcd knows it.
    async fn lease_of(&self, pair: &Pair) -> Result<Option<Lease>, StoreError> {
        let now = self.clock.now();
        let Ok(mut lease) = entry::read(&self.keys, pair, now) else { return Ok(None) };
        let id = pair.etcd_lease;
        if id != 0 && end_in(id, now).is_none() {
            let left = self
                .connection
                .ask("ask for a lease's end", |mut client| async move {
                    client.lease_time_to_live(id, None).await
                })
                .await?;
            lease.expires = Some(now + Duration::from_secs(u64::try_from(left.ttl()).unwrap_or(0)));
        }
        Ok(Some(lease))
    }
}

impl<C: Clock + Send + Sync + 'static> LeaseStore for EtcdStore<C> {
    type Watch = Followed;

    fn name(&self) -> String {
        "Etcd Local Manager".to_owned()
    }

    async fn network(&self) -> Result<NetworkConfig, StoreError> {
        let key = self.keys.config();
        let place = || PathBuf::from(&key);
        let Some(pair) = self.pair(key.clone()).await? else {
            let tried = vec![PathBuf::from(format!("the key {key} of {}", self.connection.place()))];
            return Err(StoreError::NoConfig { tried });
        };
        let config = NetworkConfig::parse(&pair.value)
            .map_err(|remark| ConfigError::Text { path: place(), remark })?;
        Ok(config)
    }

    async fn held_by(&self, owner: IpAddr) -> Result<Option<Lease>, StoreError> {
        let own = *self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own
            && let Some(pair) = self.pair(self.keys.lease(&own)).await?
            && let Some(lease) = self.lease_of(&pair).await?
            && lease.attrs.owner() == Some(owner)
        {
            return Ok(Some(lease));
        }
        let listing = self.list().await?;
        match listing.pair_of(owner) {
            Some(pair) => self.lease_of(pair).await,
            None => Ok(None),
        }
    }

    async fn acquire(&self, network: &NetworkConfig, request: &LeaseRequest) -> Result<Lease, StoreError> {
        self.claim(|listing| {
            let mut random = fastrand::Rng::new();
            let decision = decide(network, request, &listing.leases(), &listing.spoiled(), &mut random)?;
            Ok(Claim {
                subnet: decision.subnet,
                attrs: request.attrs.clone(),
                reservation: decision.origin == Origin::Held { reservation: true },
                release: decision.release,
            })
        })
        .await
    }

    async fn renew(&self, network: &NetworkConfig, own: &Lease) -> Result<Lease, StoreError> {
        self.readdress(network, own, &own.attrs).await
    }

    async fn readdress(
        &self,
        network: &NetworkConfig,
        own: &Lease,
        attrs: &LeaseAttrs,
    ) -> Result<Lease, StoreError> {
        self.claim(|listing| {
            let leases = listing.leases();
            may_publish(network, own, attrs, &leases)?;
            let held = leases.iter().find(|lease| lease.subnet == own.subnet);
            let reservation = held.unwrap_or(own).expires.is_none();
            Ok(Claim { subnet: own.subnet, attrs: attrs.clone(), reservation, release: Vec::new() })
        })
        .await
    }

    async fn watch(&self) -> Result<Followed, StoreError> {
        Ok(watch::watch(self.connection.clone(), self.keys.clone(), self.clock.clone()))
    }
}

fn pair_of(kv: &KeyValue) -> Pair {
    Pair {
        key: kv.key().to_vec(),
        value: kv.value().to_vec(),
        etcd_lease: kv.lease(),
        modified: kv.mod_revision(),
    }
}

#[cfg(test)]
mod tests;
