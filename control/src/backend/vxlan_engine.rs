//! `vxlan`, carried by the engine.
//!
//! A TUN device has no neighbours and no forwarding table: each peer is one route here and one entry of the engine's
//! peer table.

use dataplane_core::Peer;
use hostnet::state::{HostState, Route, RouteScope};

use super::{Tunnel, own_route};

/// One route a peer, so that the kernel itself answers for subnets that nobody has.
pub(super) fn add_peer(tunnel: &Tunnel, peer: &Peer, host: &mut HostState) {
    host.routes.extend(
        peer.subnets.iter().map(|subnet| {
            own_route(Route { scope: RouteScope::LINK, ..Route::new(*subnet, &tunnel.device) })
        }),
    );
}
