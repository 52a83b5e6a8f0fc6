//! `vxlan`, carried by the kernel: a device a family as flannel makes it, and for each peer a neighbour, a forwarding
//! entry and a route.
//!
//! ```text
//!   10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink     packets for the subnet go to its base address
//!   10.5.2.0 lladdr 5a:…:02 nud permanent             which has the MAC that the node published
//!   5a:…:02 dst 192.0.2.2 self permanent              which is behind the node's public address
//! ```

use dataplane_core::{Encap, Peer};
use hostnet::kernel::Vxlan;
use hostnet::state::{FdbEntry, HostState, LinkState, Neighbour, Route};

use super::{ALIAS, Tunnel, own_route};

/// Options of the device that no other node sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// Group policy extension.
    pub gbp: bool,
    /// Learns MAC addresses from what arrives.
    pub learning: bool,
}

/// The device as the kernel is asked for it. It sends from the address that this node has, where flannel names the
/// public one, which behind a NAT is nobody's here.
pub(super) fn device(tunnel: &Tunnel, underlay: &str, options: Options) -> Option<Vxlan> {
    let Encap::Vxlan { vni } = tunnel.encap else { return None };
    Some(Vxlan {
        local: Some(tunnel.bind.ip()),
        device: Some(underlay.to_owned()),
        mtu: Some(tunnel.mtu.get().into()),
        mac: Some(tunnel.mac.0),
        learning: options.learning,
        gbp: options.gbp,
        ..Vxlan::new(&tunnel.device, vni.get(), tunnel.bind.port())
    })
}

/// The device's state, whoever made it.
pub(super) fn link(tunnel: &Tunnel) -> LinkState {
    LinkState {
        mac: Some(tunnel.mac.0),
        alias: Some(ALIAS.to_owned()),
        ..LinkState::up(&tunnel.device, tunnel.mtu.get().into())
    }
}

/// The setting that keeps router advertisements, which a peer could send through the tunnel, from making addresses and
/// routes here.
pub(super) fn accept_ra(tunnel: &Tunnel) -> String {
    format!("net/ipv6/conf/{}/accept_ra", tunnel.device)
}

/// What leads to a peer.
pub(super) fn add_peer(tunnel: &Tunnel, peer: &Peer, host: &mut HostState) {
    for subnet in &peer.subnets {
        let base = subnet.network();
        host.neighbours.insert(Neighbour { device: tunnel.device.clone(), ip: base, mac: peer.mac.0 });
        let via = Route { via: Some(base), onlink: true, ..Route::new(*subnet, &tunnel.device) };
        host.routes.insert(own_route(via));
    }
    host.fdb.insert(FdbEntry { device: tunnel.device.clone(), mac: peer.mac.0, dst: peer.endpoint.ip() });
}
