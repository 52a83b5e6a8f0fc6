//! All leases of one revision.

use std::net::IpAddr;
use std::time::SystemTime;

use etcd_client::GetOptions;

use super::connection::Connection;
use super::entry::{Pair, Spoiled, read};
use super::keys::Keys;
use super::pair_of;
use crate::lease::{Lease, Subnet};
use crate::store::StoreError;

/// Room for a list of 200 000 leases; the client's own limit of 4 MiB is reached by 15 000.
pub(super) const LONGEST: usize = 64 * 1024 * 1024;

/// What one request told.
pub(super) struct Listing {
    /// The revision of etcd at which it was so.
    pub(super) revision: i64,
    /// Every entry, readable or not.
    pub(super) pairs: Vec<Pair>,
    /// The readable ones with the index of their pair.
    leases: Vec<(usize, Lease)>,
    spoiled: Vec<(usize, Spoiled)>,
}

impl Listing {
    /// Asks for all leases, as of the last write that anybody was told of.
    pub(super) async fn of(
        connection: &Connection,
        keys: &Keys,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let answer = connection
            .ask("list the leases", |client| {
                let mut client = client.kv_client().max_decoding_message_size(LONGEST);
                let prefix = keys.leases();
                async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let Some(header) = answer.header() else {
            let why = "its answer has no revision".to_owned();
            return Err(StoreError::Unreachable { store: connection.place(), why });
        };
        let revision = header.revision();
        let pairs: Vec<_> = answer.kvs().iter().map(pair_of).collect();
        let (mut leases, mut spoiled) = (Vec::new(), Vec::new());
        for (index, pair) in pairs.iter().enumerate() {
            match read(keys, pair, now) {
                Ok(lease) => leases.push((index, lease)),
                Err(why) => spoiled.push((index, why)),
            }
        }
        Ok(Self { revision, pairs, leases, spoiled })
    }

    /// The readable leases.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.leases.iter().map(|(_, lease)| lease.clone()).collect()
    }

    /// Subnets whose entry makes no sense.
    pub(super) fn spoiled(&self) -> Vec<Subnet> {
        self.spoiled.iter().filter_map(|(_, spoiled)| spoiled.subnet).collect()
    }

    /// The entry of the lease that this node holds.
    pub(super) fn pair_of(&self, owner: IpAddr) -> Option<&Pair> {
        let (index, _) = self.leases.iter().find(|(_, lease)| lease.attrs.owner() == Some(owner))?;
        self.pairs.get(*index)
    }

    /// The revision of the entry's last change, readable or not.
    pub(super) fn modified(&self, subnet: &Subnet) -> Option<i64> {
        self.entry(subnet).map(|pair| pair.modified)
    }

    /// The etcd lease of the entry, if it has one.
    pub(super) fn etcd_lease(&self, subnet: &Subnet) -> Option<i64> {
        self.entry(subnet).map(|pair| pair.etcd_lease).filter(|id| *id != 0)
    }

    fn entry(&self, subnet: &Subnet) -> Option<&Pair> {
        let readable = self.leases.iter().find(|(_, lease)| lease.subnet == *subnet).map(|(index, _)| *index);
        let spoiled = || self.spoiled.iter().find(|(_, spoiled)| spoiled.subnet == Some(*subnet));
        let index = readable.or_else(|| spoiled().map(|(index, _)| *index))?;
        self.pairs.get(index)
    }
}
