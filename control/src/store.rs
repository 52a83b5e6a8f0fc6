//! Where leases are kept: the trait every store implements, and what acquiring means, independent of any store.
//!
//! The semantics are those of flannel's etcd store: a lease lasts 24 hours, a node that comes back under the same public
//! address gets the same subnet, then the one its subnet.env names, then a random one of the first hundred that are free.
//! A reservation (a lease without an end) stays one. Two deliberate differences:
//! - Every write compares the owner first. flannel renews blindly, so a node that slept past its lease takes the subnet
//!   away from the node that got it meanwhile.
//! - A node whose lease was deleted while nobody else took the subnet publishes it again; flannel ends there, and gets
//!   the same subnet back when its supervisor restarts it.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::IpNet;
use tokio::time::Instant;

use crate::lease::{LEASE_TTL, Lease, LeaseAttrs, LeaseUpdate, Subnet};
use crate::network::{ConfigError, NetworkConfig};

pub mod allocate;
#[cfg(test)]
pub(crate) mod contract;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod file;
mod followed;
pub mod kube;

#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use file::FileStore;
pub use followed::Followed;
pub use kube::KubeStore;

/// A place where leases are kept.
pub trait LeaseStore {
    /// What [`watch`](Self::watch) returns.
    type Watch: LeaseWatch;

    /// What the log calls it, in flannel's words where it is one of flannel's: `Kubernetes Subnet Manager - NODE`.
    fn name(&self) -> String;

    /// The network configuration.
    fn network(&self) -> impl Future<Output = Result<NetworkConfig, StoreError>>;

    /// The lease that a node with this public address holds, if there is one: where a restarted node finds its MAC.
    fn held_by(&self, owner: IpAddr) -> impl Future<Output = Result<Option<Lease>, StoreError>>;

    /// Gets a lease for this node and publishes its attributes with it.
    fn acquire(
        &self,
        network: &NetworkConfig,
        request: &LeaseRequest,
    ) -> impl Future<Output = Result<Lease, StoreError>>;

    /// Moves the end of our lease to 24 hours from the present, or publishes it again if it is gone.
    /// A reservation stays without an end. [`StoreError::Lost`] if somebody else holds the subnet.
    fn renew(&self, network: &NetworkConfig, own: &Lease) -> impl Future<Output = Result<Lease, StoreError>>;

    /// Publishes `attrs` for the subnet that we hold as `own` says, when this node's address changed. The entry of the
    /// subnet may still name the old address, name the new one already, or be gone; of anybody else's it is
    /// [`StoreError::Lost`]. The end of the lease moves as in [`renew`](Self::renew), which does for stores that know a
    /// node by something else than its address.
    fn readdress(
        &self,
        network: &NetworkConfig,
        own: &Lease,
        attrs: &LeaseAttrs,
    ) -> impl Future<Output = Result<Lease, StoreError>> {
        async { self.renew(network, &Lease { attrs: attrs.clone(), ..own.clone() }).await }
    }

    /// Addresses by which the cluster knows this node otherwise: a hint for the choice of an interface, the last one.
    fn node_addresses(&self) -> impl Future<Output = Result<Vec<IpAddr>, StoreError>> {
        async { Ok(Vec::new()) }
    }

    /// Public addresses that the store holds for this node, in the place of `--public-ip` and `--public-ipv6`.
    fn public_addresses(&self) -> impl Future<Output = Result<PublicAddresses, StoreError>> {
        async { Ok(PublicAddresses::default()) }
    }

    /// Tells the cluster that this node's network works. Asked for again until it succeeds.
    fn announce_ready(&self) -> impl Future<Output = Result<(), StoreError>> {
        async { Ok(()) }
    }

    /// Starts to watch all leases, ours too.
    fn watch(&self) -> impl Future<Output = Result<Self::Watch, StoreError>>;
}

/// A running watch.
pub trait LeaseWatch {
    /// The next update; the first is a snapshot. A store that cannot be reached gives none: what was known stays.
    /// Cancelling the future loses nothing.
    fn next(&mut self) -> impl Future<Output = LeaseUpdate>;

    /// How the store was last met. What is known of the leases is as old as this.
    fn contact(&self) -> Contact;
}

/// How a store was last met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contact {
    /// When it last answered or told something; `None`: not yet.
    pub last: Option<Instant>,
    /// What is wrong since; `None`: nothing.
    pub trouble: Option<String>,
}

/// Public addresses of this node that a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublicAddresses {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// What a node asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// What it publishes.
    pub attrs: LeaseAttrs,
    /// The subnets its pods have from an earlier run, if known.
    pub previous: Option<Subnet>,
}

/// Why a store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The network configuration is wrong or cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no network configuration.
    #[error(
        "no network configuration: looked for {}. Write one, for example \
         {{\"Network\": \"10.5.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}",
        tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    NoConfig {
        /// Every file that was looked for.
        tried: Vec<PathBuf>,
    },
    /// Every subnet of the pool is taken. Free one, or give the network more.
    #[error("out of subnets: all {count} of {network} are taken")]
    OutOfSubnets {
        /// The pool's network.
        network: IpNet,
        /// How many subnets the pool has.
        count: u128,
    },
    /// Another node holds our subnet. The daemon must stop: whatever it wrote would be somebody else's.
    #[error(
        "the lease of {subnet} is lost: node {owner} holds {theirs}. Packets for these pods go there. \
         Start again to get another subnet, then restart the pods"
    )]
    Lost {
        /// What was ours.
        subnet: Subnet,
        /// Who has it.
        owner: IpAddr,
        /// What they have.
        theirs: Subnet,
    },
    /// The request has no public address, and a lease belongs to one.
    #[error("a lease needs a public address: give --public-ip or --public-ipv6")]
    NoOwner,
    /// The store does not answer, or not sensibly. Trying again may help, and nothing else is needed.
    #[error("{store} cannot be reached: {why}")]
    Unreachable {
        /// The store and where it was looked for.
        store: String,
        /// The cause, in one line, without secrets.
        why: String,
    },
    /// The store answers and refuses. A person has to mend it; until then trying again costs little.
    #[error("{store} refuses to {doing}: {why}; {remedy}")]
    Refused {
        /// The store and where it is.
        store: String,
        /// A verb phrase.
        doing: &'static str,
        /// Its answer, in one line, without secrets.
        why: String,
        /// What a person can do.
        remedy: String,
    },
    /// The store's part for this node is not there yet: somebody else makes it.
    #[error("{0}")]
    NotYet(String),
    /// Somebody holds the store's lock for too long.
    #[error("{} has been locked by another process for {waited:?}: see `lslocks` for which one", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// A verb phrase.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Tells the time. Tests hold their own.
pub trait Clock: Clone {
    /// The present.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The end of a lease that begins `now`, in whole seconds as the stores keep it.
pub fn lease_end(now: SystemTime) -> SystemTime {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default() + LEASE_TTL;
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
