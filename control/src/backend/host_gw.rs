//! `host-gw`: no tunnel. Each node is the gateway of its subnet, for nodes on the same link.
//!
//! `DirectRouting` of the other backends is the same route, for those of their peers that are on the link.

use dataplane_core::{MacAddr, Peer};
use hostnet::state::{HostState, Route};

use super::own_route;
use crate::lease::BackendData;
use crate::plan::Refusal;
use crate::underlay::Underlay;

/// There is no MAC; a node of another backend does not expect bare packets.
pub(super) fn peer_mac(data: &BackendData) -> Result<MacAddr, Refusal> {
    if data.is_host_gw() {
        Ok(MacAddr::default())
    } else {
        Err(Refusal::OtherBackend { theirs: data.kind().to_owned() })
    }
}

/// The peer is on the underlay's own link, so that it can be a gateway.
pub(super) fn reaches(underlay: &Underlay, peer: &Peer) -> Result<(), Refusal> {
    let endpoint = peer.endpoint.ip();
    if underlay.is_on_link(endpoint) {
        Ok(())
    } else {
        Err(Refusal::NotOnLink { endpoint, device: underlay.device.clone() })
    }
}

/// The peer as the gateway of its subnets.
pub(super) fn add_peer(underlay: &Underlay, peer: &Peer, host: &mut HostState) {
    host.routes.extend(peer.subnets.iter().map(|subnet| {
        own_route(Route { via: Some(peer.endpoint.ip()), ..Route::new(*subnet, &underlay.device) })
    }));
}
