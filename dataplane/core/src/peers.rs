//! Who owns which subnet: one immutable value, built whole by the control plane and swapped whole.
//!
//! Peers' subnets, our own and the cluster networks lie in one prefix map, so one look-up answers
//! "whose is this address?" for every check in both directions.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::prefix::{NONE, PrefixMap};
use crate::wire::{Family, MacAddr};

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its public address and UDP port.
    pub endpoint: SocketAddr,
    /// Its published VtepMAC; not used by the raw format.
    pub mac: MacAddr,
    /// The subnets it leases.
    pub subnets: Vec<IpNet>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Local {
    /// The subnets we lease: packets for them are ours.
    pub subnets: Vec<IpNet>,
    /// The cluster networks: a source inside them must belong to the peer that sends.
    pub networks: Vec<IpNet>,
    /// Our published VtepMAC.
    pub mac: MacAddr,
    /// The addresses of the overlay device; ICMP errors come from them.
    pub addresses: Vec<IpAddr>,
}

impl Local {
    /// The first address of a family, if the device has one.
    #[must_use]
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(address) == family)
    }
}

/// Why a peer table cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTableError {
    /// Two owners for one subnet. Leave one out, then build again.
    DuplicateSubnet(IpNet),
    /// A peer's endpoint lies inside a lease: its tunnel would be carried by the tunnel.
    EndpointInOverlay(SocketAddr),
}

impl fmt::Display for PeerTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateSubnet(subnet) => write!(f, "two nodes hold subnet {subnet}"),
            Self::EndpointInOverlay(endpoint) => {
                write!(f, "endpoint {endpoint} lies inside the overlay itself")
            }
        }
    }
}

impl core::error::Error for PeerTableError {}

/// A peer's end of the tunnel: all of it that packets need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Its public address and UDP port.
    pub endpoint: SocketAddr,
    /// Its published VtepMAC; not used by the raw format.
    pub mac: MacAddr,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A peer's subnet.
    Peer(&'a Vtep),
    /// Our own subnet.
    Own,
    /// Inside the cluster networks, leased by nobody.
    Cluster,
    /// Outside.
    Foreign,
}

const OWN: u32 = NONE - 1;
const CLUSTER: u32 = NONE - 2;

/// Everything the dataplane knows about the cluster.
#[derive(Clone, Debug)]
pub struct PeerTable {
    local: Local,
    peers: Vec<Vtep>,
    /// Endpoint addresses, sorted: who may send us datagrams. By family, for an `IpAddr` is four times an IPv4 address.
    senders_v4: Vec<u32>,
    senders_v6: Vec<u128>,
    v4: PrefixMap<u32>,
    v6: PrefixMap<u128>,
}

impl PeerTable {
    /// A table without peers.
    #[must_use]
    pub fn empty(local: Local) -> Self {
        Self::assemble(local, &[])
    }

    /// Builds the table.
    ///
    /// # Errors
    /// [`PeerTableError`] names the subnet or endpoint that contradicts the rest.
    pub fn build(local: Local, peers: &[Peer]) -> Result<Self, PeerTableError> {
        let mut subnets: Vec<IpNet> = local
            .subnets
            .iter()
            .chain(peers.iter().flat_map(|peer| &peer.subnets))
            .map(IpNet::trunc)
            .collect();
        subnets.sort_unstable();
        if let Some(twice) = subnets.array_windows().find(|[a, b]| a == b).map(|[a, _]| *a) {
            return Err(PeerTableError::DuplicateSubnet(twice));
        }
        drop(subnets);
        let table = Self::assemble(local, peers);
        let inside = |peer: &&Vtep| matches!(table.owner(peer.endpoint.ip()), Owner::Peer(_) | Owner::Own);
        if let Some(peer) = table.peers.iter().find(inside) {
            return Err(PeerTableError::EndpointInOverlay(peer.endpoint));
        }
        Ok(table)
    }

    fn assemble(local: Local, peers: &[Peer]) -> Self {
        let (mut senders_v4, mut senders_v6) = (Vec::new(), Vec::new());
        for peer in peers {
            match peer.endpoint.ip() {
                IpAddr::V4(ip) => senders_v4.push(u32::from(ip)),
                IpAddr::V6(ip) => senders_v6.push(u128::from(ip)),
            }
        }
        set(&mut senders_v4);
        set(&mut senders_v6);
        // Later entries win over equal earlier ones: the networks come first.
        let networks = local.networks.iter().map(|net| (net, CLUSTER));
        let own = local.subnets.iter().map(|net| (net, OWN));
        let leased = peers.iter().zip(0..).flat_map(|(peer, i)| peer.subnets.iter().map(move |net| (net, i)));
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, value) in networks.chain(leased).chain(own) {
            match net.trunc() {
                IpNet::V4(net) => v4.push((u32::from(net.addr()), net.prefix_len(), value)),
                IpNet::V6(net) => v6.push((u128::from(net.addr()), net.prefix_len(), value)),
            }
        }
        let peers = peers.iter().map(|peer| Vtep { endpoint: peer.endpoint, mac: peer.mac }).collect();
        Self { v4: PrefixMap::build(v4), v6: PrefixMap::build(v6), local, peers, senders_v4, senders_v6 }
    }

    /// Whose `address` is.
    #[inline]
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Owner<'_> {
        let value = match address {
            IpAddr::V4(address) => self.v4.get(u32::from(address)),
            IpAddr::V6(address) => self.v6.get(u128::from(address)),
        };
        match value {
            OWN => Owner::Own,
            CLUSTER => Owner::Cluster,
            NONE => Owner::Foreign,
            peer => self.peers.get(peer as usize).map_or(Owner::Foreign, Owner::Peer),
        }
    }

    /// A peer with the endpoint address `from`, whatever the port: kernel VXLAN hashes flows into it.
    #[must_use]
    pub fn knows(&self, from: IpAddr) -> bool {
        match from {
            IpAddr::V4(from) => self.senders_v4.binary_search(&u32::from(from)).is_ok(),
            IpAddr::V6(from) => self.senders_v6.binary_search(&u128::from(from)).is_ok(),
        }
    }

    /// Ranges of IPv4 addresses, both ends included, that hold the endpoints of all peers: ascending, and at most `most` of
    /// them. The fewer ranges, the more addresses in them are nobody's.
    #[must_use]
    pub fn sender_ranges(&self, most: usize) -> Vec<(u32, u32)> {
        let (Some(&first), Some(&last)) = (self.senders_v4.first(), self.senders_v4.last()) else {
            return Vec::new();
        };
        // The widest gaps stay gaps.
        let mut gaps: Vec<(u32, u32)> =
            self.senders_v4.array_windows().filter(|[a, b]| b - a > 1).map(|[a, b]| (*a, *b)).collect();
        let kept = gaps.len().min(most.saturating_sub(1));
        if kept < gaps.len() {
            gaps.select_nth_unstable_by_key(kept, |(a, b)| u32::MAX - (b - a));
            gaps.truncate(kept);
            gaps.sort_unstable();
        }
        let starts = core::iter::once(first).chain(gaps.iter().map(|(_, b)| *b));
        let ends = gaps.iter().map(|(a, _)| *a).chain([last]);
        starts.zip(ends).collect()
    }

    /// This node.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The other nodes' ends of the tunnel.
    #[must_use]
    pub fn peers(&self) -> &[Vtep] {
        &self.peers
    }
}

/// Makes a sorted set of a list, without room to spare.
fn set<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
    list.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn local() -> Local {
        Local {
            subnets: vec![net("10.244.1.0/24"), net("fd00:0:0:1::/64")],
            networks: vec![net("10.244.0.0/16"), net("fd00::/48")],
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.244.1.0".parse().unwrap()],
        }
    }

    fn peer(endpoint: &str, subnet: &str) -> Peer {
        Peer { endpoint: endpoint.parse().unwrap(), mac: MacAddr::default(), subnets: vec![net(subnet)] }
    }

    #[test]
    fn every_address_has_one_owner() {
        let table = PeerTable::build(
            local(),
            &[peer("192.0.2.2:8472", "10.244.2.0/24"), peer("192.0.2.3:8472", "fd00:0:0:3::/64")],
        )
        .unwrap();
        let owner = |text: &str| table.owner(text.parse().unwrap());
        assert_eq!(owner("10.244.1.7"), Owner::Own);
        assert_eq!(owner("10.244.2.7"), Owner::Peer(&table.peers()[0]));
        assert_eq!(owner("10.244.3.7"), Owner::Cluster);
        assert_eq!(owner("10.245.0.1"), Owner::Foreign);
        assert_eq!(owner("fd00:0:0:3::9"), Owner::Peer(&table.peers()[1]));
        assert_eq!(owner("fd00:0:0:4::9"), Owner::Cluster);
        assert!(table.knows("192.0.2.3".parse().unwrap()));
        assert!(!table.knows("192.0.2.4".parse().unwrap()));
    }

    #[test]
    fn ranges_hold_every_sender_and_keep_the_widest_gaps() {
        let peers: Vec<Peer> =
            ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.9:1", "10.0.7.1:1", "10.9.0.1:1", "[fd00::1]:1"]
                .iter()
                .map(|endpoint| Peer { subnets: Vec::new(), ..peer(endpoint, "192.0.2.0/24") })
                .collect();
        let table = PeerTable::build(Local::default(), &peers).unwrap();
        let (a, b, c, d, e) = (0x0a00_0001, 0x0a00_0002, 0x0a00_0009, 0x0a00_0701, 0x0a09_0001);
        assert_eq!(table.sender_ranges(9), [(a, b), (c, c), (d, d), (e, e)]);
        assert_eq!(table.sender_ranges(4), [(a, b), (c, c), (d, d), (e, e)]);
        assert_eq!(table.sender_ranges(3), [(a, c), (d, d), (e, e)]);
        assert_eq!(table.sender_ranges(2), [(a, d), (e, e)]);
        assert_eq!(table.sender_ranges(1), [(a, e)]);
        assert_eq!(table.sender_ranges(0), [(a, e)]);
        assert_eq!(PeerTable::empty(Local::default()).sender_ranges(9), []);
    }

    #[test]
    fn contradictions_are_named() {
        let twice = PeerTable::build(local(), &[peer("192.0.2.2:1", "10.244.1.0/24")]).unwrap_err();
        assert_eq!(twice, PeerTableError::DuplicateSubnet(net("10.244.1.0/24")));
        let looped = PeerTable::build(local(), &[peer("10.244.2.9:1", "10.244.2.0/24")]).unwrap_err();
        assert_eq!(looped, PeerTableError::EndpointInOverlay("10.244.2.9:1".parse().unwrap()));
    }
}
