//! The plan: what this host should look like and what the engines should know, from our lease and all others. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use dataplane_core::{Family, IpNet, Local, MacAddr, Peer, PeerTable, PeerTableError};
use hostnet::kernel::Vxlan;
use hostnet::state::{Address, HostState, Route, RouteKind, RouteProtocol, Scope};

use crate::backend::{Backend, End, Tunnel};
use crate::choose::Method;
use crate::lease::{Lease, LeaseSet, Subnet, overlap};

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Devices that the kernel is asked to make.
    pub devices: Vec<Vxlan>,
    /// The state of the overlay's devices, what is on them, and the routes.
    pub host: HostState,
    /// For each tunnel, in the backend's order, who sends through it; it is what an engine should know.
    pub peers: Vec<Peers>,
    /// Leases that are not used, each with the reason.
    pub refused: BTreeMap<Subnet, Refusal>,
}

/// Who sends through one tunnel, those that are reached by a plain route included: they may answer by the tunnel. Two
/// equal values are one peer table.
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
    /// It cannot be a gateway: its address is not on the underlay's own link.
    NotOnLink {
        /// Its public address.
        endpoint: IpAddr,
        /// The underlay's interface.
        device: String,
    },
    /// It has our VtepMAC.
    MacIsOurs(MacAddr),
    /// Another lease, which is used, has the same VtepMAC at another address, and the kernel keeps one entry a MAC.
    MacOfOther(Subnet),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |family: &Family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match self {
            Self::OtherBackend { theirs } if theirs.is_empty() => {
                write!(f, "that node's lease names no backend, as flannel's udp does")
            }
            Self::OtherBackend { theirs } => write!(f, "that node runs backend {theirs:?}"),
            Self::NoPublicAddress(family) => write!(f, "it names no public {} address", name(family)),
            Self::NoMac(family) => write!(f, "it names no usable VtepMAC for {}", name(family)),
            Self::OutsideNetwork(network) => write!(f, "it is outside the network {network}"),
            Self::OverlapsOurs(ours) => write!(f, "it overlaps our own subnet {ours}"),
            Self::OverlapsOther(other) => write!(f, "it overlaps the lease of {other}"),
            Self::EndpointInside(ip) => {
                write!(f, "its public address {ip} is inside the overlay, which cannot carry itself")
            }
            Self::EndpointIsOurs(ip) => write!(f, "its public address {ip} is this node's own"),
            Self::NotUnicast(ip) => write!(f, "its public address {ip} is none that a node can have"),
            Self::NotOnLink { endpoint, device } => write!(
                f,
                "its public address {endpoint} is not on the link of {device}, so it cannot be a gateway: vxlan reaches \
                 it, with DirectRouting for those that are"
            ),
            Self::MacIsOurs(mac) => write!(f, "its VtepMAC {mac} is this node's own"),
            Self::MacOfOther(other) => write!(f, "its VtepMAC is that of the lease of {other}"),
        }
    }
}

impl Plan {
    /// Plans for `backend` with `own` as this node's lease.
    pub fn new(backend: &Backend, own: &Lease, leases: &LeaseSet) -> Self {
        let mut plan = Self {
            devices: backend.tunnels().iter().filter_map(|tunnel| backend.kernel_device(tunnel)).collect(),
            host: HostState::default(),
            peers: Vec::new(),
            refused: BTreeMap::new(),
        };
        if backend.method() == Method::Alloc {
            return plan;
        }
        for end in backend.ends() {
            if let Some(ours) = net_of(&own.subnet, end.family) {
                plan.add_family(backend, end, ours, leases);
            }
        }
        plan
    }

    /// The part of the host that the plan speaks for.
    pub fn scope(backend: &Backend) -> Scope {
        Scope {
            devices: backend.tunnels().iter().map(|tunnel| tunnel.device.clone()).collect(),
            networks: backend.networks().collect(),
            gateway_routes: false,
            sysctls: backend.sysctls().collect(),
        }
    }

    /// Drops packets for pods of this node that are not there, where no other route of its subnet has them.
    pub fn drop_strays(&mut self, own: &Lease) {
        self.host.routes.extend(own.subnet.nets().map(|net| last_resort(RouteKind::Blackhole, net)));
    }

    fn add_family(&mut self, backend: &Backend, end: &End, ours: IpNet, leases: &LeaseSet) {
        let tunnel = backend.tunnels().iter().find(|tunnel| tunnel.family == end.family);
        if let Some(tunnel) = tunnel {
            backend.add_tunnel(tunnel, &mut self.host);
            // A host prefix: no broadcast address and no connected route come with it.
            let net = IpNet::from(ours.network());
            self.host.addresses.insert(Address { device: tunnel.device.clone(), net });
        }
        // A packet for a node that is not known goes nowhere, least of all by the default route and in the clear.
        self.host.routes.insert(last_resort(RouteKind::Unreachable, end.network));
        let mut peers: Vec<Peer> = Vec::new();
        let mut taken = Taken::default();
        let mut macs = Macs::default();
        for lease in leases.peers() {
            // A node without this family is no peer of this tunnel, and no fault either.
            let Some(theirs) = net_of(&lease.subnet, end.family) else { continue };
            let peer = peer(backend, end, tunnel, ours, theirs, lease).and_then(|peer| {
                macs.check(backend, &peer)?;
                taken.take(theirs, lease.subnet)?;
                macs.take(&peer, lease.subnet);
                Ok(peer)
            });
            match peer {
                Ok(peer) => {
                    backend.add_peer(tunnel, &peer, &mut self.host);
                    peers.push(peer);
                }
                Err(why) => {
                    self.refused.entry(lease.subnet).or_insert(why);
                }
            }
        }
        if let Some(tunnel) = tunnel {
            let local = Local {
                subnets: vec![ours],
                networks: vec![tunnel.network],
                mac: tunnel.mac,
                addresses: vec![ours.network()],
            };
            self.peers.push(Peers { local, peers });
        }
    }
}

fn last_resort(kind: RouteKind, net: IpNet) -> Route {
    Route { protocol: RouteProtocol::FLANNEL_RS, ..Route::last_resort(kind, net) }.normalized()
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
    end: &End,
    tunnel: Option<&Tunnel>,
    ours: IpNet,
    theirs: IpNet,
    lease: &Lease,
) -> Result<Peer, Refusal> {
    let endpoint: Option<IpAddr> = match end.family {
        Family::V4 => lease.attrs.public_ip.map(IpAddr::V4),
        Family::V6 => lease.attrs.public_ipv6.map(IpAddr::V6),
    };
    // First of all: it is this node's, of an earlier run mostly, whatever backend it had then.
    if let Some(endpoint) = endpoint.filter(|endpoint| [end.local, end.public].contains(endpoint)) {
        return Err(Refusal::EndpointIsOurs(endpoint));
    }
    let mac: MacAddr = backend.peer_mac(end.family, &lease.attrs.backend)?;
    let endpoint = endpoint.ok_or(Refusal::NoPublicAddress(end.family))?;
    if endpoint.is_unspecified()
        || endpoint.is_multicast()
        || endpoint.is_loopback()
        || is_broadcast(endpoint)
    {
        return Err(Refusal::NotUnicast(endpoint));
    }
    if !end.network.contains(&theirs) {
        return Err(Refusal::OutsideNetwork(end.network));
    }
    if overlap(&ours, &theirs) {
        return Err(Refusal::OverlapsOurs(ours));
    }
    if backend.networks().any(|network| network.contains(&endpoint)) {
        return Err(Refusal::EndpointInside(endpoint));
    }
    // The port is not in the lease: every node has the same.
    let port = tunnel.map_or(0, |tunnel| tunnel.bind.port());
    let peer = Peer { endpoint: SocketAddr::new(endpoint, port), mac, subnets: vec![theirs] };
    backend.reaches(&peer)?;
    Ok(peer)
}

/// Who has which VtepMAC, where the kernel keeps one place a MAC.
#[derive(Debug, Default)]
struct Macs(BTreeMap<MacAddr, (IpAddr, Subnet)>);

impl Macs {
    /// A node that has two leases has the same MAC at the same address in both.
    fn check(&self, backend: &Backend, peer: &Peer) -> Result<(), Refusal> {
        match self.0.get(&peer.mac) {
            Some((endpoint, other))
                if backend.method() == Method::KernelVxlan && *endpoint != peer.endpoint.ip() =>
            {
                Err(Refusal::MacOfOther(*other))
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, peer: &Peer, subnet: Subnet) {
        self.0.insert(peer.mac, (peer.endpoint.ip(), subnet));
    }
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
