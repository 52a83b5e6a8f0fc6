//! The plan: what this host should look like and what the engines should know, from our lease and all others. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use dataplane_core::{Family, IpNet, Local, MacAddr, Peer, PeerTable, PeerTableError};
use hostnet::state::{Address, HostState, LinkState, Scope};

use crate::backend::{Backend, Tunnel};
use crate::lease::{Lease, LeaseSet, Subnet, overlap};

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Links, addresses and routes of the overlay's devices.
    pub host: HostState,
    /// For each tunnel, in the backend's order, what its engine should know.
    pub peers: Vec<Peers>,
    /// Leases that are not used, each with the reason.
    pub refused: BTreeMap<Subnet, Refusal>,
}

/// What one engine should know. Two equal values are one peer table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// This node.
    pub local: Local,
    /// The others, by subnet.
    pub peers: Vec<Peer>,
}

/// Why a lease is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The node runs another backend; its packets look different.
    OtherBackend {
        /// Its `BackendType`.
        theirs: String,
    },
    /// It names no public address of the family.
    NoPublicAddress(Family),
    /// It names no VtepMAC of the family.
    NoMac(Family),
    /// Its subnet is not inside the cluster's network.
    OutsideNetwork(IpNet),
    /// Its subnet overlaps ours.
    OverlapsOurs(IpNet),
    /// Another lease, which is used, has the same addresses.
    OverlapsOther(Subnet),
    /// Its public address is inside the cluster's network: the tunnel would be carried by itself.
    EndpointInside(IpAddr),
    /// Its public address is ours: packets would come back.
    EndpointIsOurs(IpAddr),
    /// Its public address is none that a node can have.
    NotUnicast(IpAddr),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |family: &Family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match self {
            Self::OtherBackend { theirs } => write!(f, "that node runs backend {theirs:?}"),
            Self::NoPublicAddress(family) => write!(f, "it names no public {} address", name(family)),
            Self::NoMac(family) => write!(f, "it names no VtepMAC for {}", name(family)),
            Self::OutsideNetwork(network) => write!(f, "it is outside the network {network}"),
            Self::OverlapsOurs(ours) => write!(f, "it overlaps our own subnet {ours}"),
            Self::OverlapsOther(other) => write!(f, "it overlaps the lease of {other}"),
            Self::EndpointInside(ip) => {
                write!(f, "its public address {ip} is inside the overlay, which cannot carry itself")
            }
            Self::EndpointIsOurs(ip) => write!(f, "its public address {ip} is this node's own"),
            Self::NotUnicast(ip) => write!(f, "its public address {ip} is none that a node can have"),
        }
    }
}

impl Plan {
    /// Plans for `backend` with `own` as this node's lease.
    pub fn new(backend: &Backend, own: &Lease, leases: &LeaseSet) -> Self {
        let mut plan = Self { host: HostState::default(), peers: Vec::new(), refused: BTreeMap::new() };
        for tunnel in backend.tunnels() {
            plan.add_tunnel(backend, tunnel, own, leases);
        }
        plan
    }

    /// The part of the host that the plan speaks for.
    pub fn scope(backend: &Backend) -> Scope {
        Scope {
            devices: backend.tunnels().iter().map(|tunnel| tunnel.device.clone()).collect(),
            networks: backend.tunnels().iter().map(|tunnel| tunnel.network).collect(),
            gateway_routes: false,
        }
    }

    fn add_tunnel(&mut self, backend: &Backend, tunnel: &Tunnel, own: &Lease, leases: &LeaseSet) {
        let Some(ours) = net_of(&own.subnet, tunnel.family) else { return };
        let base = ours.network();
        self.host.links.insert(LinkState {
            device: tunnel.device.clone(),
            mtu: tunnel.mtu.get().into(),
            up: true,
        });
        // A host prefix: no broadcast address and no connected route come with it.
        self.host.addresses.insert(Address { device: tunnel.device.clone(), net: IpNet::from(base) });
        let local = Local {
            subnets: vec![ours],
            networks: vec![tunnel.network],
            mac: tunnel.mac,
            addresses: vec![base],
        };
        let mut peers: Vec<Peer> = Vec::new();
        let mut taken = Taken::default();
        for lease in leases.peers() {
            // A node without this family is no peer of this tunnel, and no fault either.
            let Some(theirs) = net_of(&lease.subnet, tunnel.family) else { continue };
            let peer = peer(backend, tunnel, ours, theirs, lease)
                .and_then(|peer| taken.take(theirs, lease.subnet).map(|()| peer));
            match peer {
                Ok(peer) => peers.push(peer),
                Err(why) => {
                    self.refused.entry(lease.subnet).or_insert(why);
                }
            }
        }
        self.host.routes.extend(backend.routes(tunnel, &peers));
        self.peers.push(Peers { local, peers });
    }
}

impl Peers {
    /// The table for the engine. What could contradict itself was refused while planning, so an error is a bug worth
    /// its message and not worth the network.
    pub fn table(&self) -> Result<PeerTable, PeerTableError> {
        PeerTable::build(self.local.clone(), &self.peers)
    }
}

fn peer(
    backend: &Backend,
    tunnel: &Tunnel,
    ours: IpNet,
    theirs: IpNet,
    lease: &Lease,
) -> Result<Peer, Refusal> {
    let mac: MacAddr = backend.peer_mac(tunnel, &lease.attrs.backend)?;
    let endpoint: IpAddr = match tunnel.family {
        Family::V4 => lease.attrs.public_ip.map(IpAddr::V4),
        Family::V6 => lease.attrs.public_ipv6.map(IpAddr::V6),
    }
    .ok_or(Refusal::NoPublicAddress(tunnel.family))?;
    if endpoint.is_unspecified()
        || endpoint.is_multicast()
        || endpoint.is_loopback()
        || is_broadcast(endpoint)
    {
        return Err(Refusal::NotUnicast(endpoint));
    }
    if !tunnel.network.contains(&theirs) {
        return Err(Refusal::OutsideNetwork(tunnel.network));
    }
    if overlap(&ours, &theirs) {
        return Err(Refusal::OverlapsOurs(ours));
    }
    if backend.tunnels().iter().any(|tunnel| tunnel.network.contains(&endpoint)) {
        return Err(Refusal::EndpointInside(endpoint));
    }
    if endpoint == tunnel.bind.ip() || endpoint == tunnel.public {
        return Err(Refusal::EndpointIsOurs(endpoint));
    }
    // The port is not in the lease: every node has the same.
    Ok(Peer { endpoint: SocketAddr::new(endpoint, tunnel.bind.port()), mac, subnets: vec![theirs] })
}

/// Networks that do not overlap, by their first address: thousands of leases are checked against each other in one pass.
#[derive(Debug, Default)]
struct Taken(BTreeMap<IpAddr, (IpAddr, Subnet)>);

impl Taken {
    /// Takes the room of `net` for the lease of `subnet`, unless another lease has some of it.
    fn take(&mut self, net: IpNet, subnet: Subnet) -> Result<(), Refusal> {
        let (first, last) = (net.network(), net.broadcast());
        // Of ranges that do not overlap only the last that begins before our end can reach into ours.
        match self.0.range(..=last).next_back() {
            Some((_, (end, other))) if *end >= first => Err(Refusal::OverlapsOther(*other)),
            _ => {
                self.0.insert(first, (last, subnet));
                Ok(())
            }
        }
    }
}

fn net_of(subnet: &Subnet, family: Family) -> Option<IpNet> {
    match family {
        Family::V4 => subnet.v4().map(IpNet::V4),
        Family::V6 => subnet.v6().map(IpNet::V6),
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests;
