//! `vxlan`, carried by the engine: the lease is the one a kernel node publishes, so kernel nodes cannot tell.
//!
//! A TUN device has no neighbours and no forwarding table: each peer is one route here and one entry of the engine's
//! peer table.

use dataplane_core::{Family, MacAddr, Peer, Vni};
use hostnet::state::{Route, RouteScope};

use super::Tunnel;
use crate::lease::{BackendData, VxlanData};
use crate::plan::Refusal;

/// The `vxlan` backend on the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanEngine {
    pub(super) vni: Vni,
    pub(super) tunnels: Vec<Tunnel>,
}

impl VxlanEngine {
    /// What flannel publishes for its two devices.
    pub(super) fn data(&self) -> BackendData {
        let of = |family| {
            self.tunnels
                .iter()
                .find(|tunnel| tunnel.family == family)
                .map(|tunnel| VxlanData { vni: Some(self.vni.get()), mac: tunnel.mac })
        };
        BackendData::Vxlan { v4: of(Family::V4), v6: of(Family::V6) }
    }
}

/// flannel's names: `flannel.1` and `flannel-v6.1`.
pub(super) fn device(vni: Vni, family: Family) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// Readers ignore the VNI in the data, as flannel's do: it is the network's, not the node's.
pub(super) fn peer_mac(family: Family, data: &BackendData) -> Result<MacAddr, Refusal> {
    let BackendData::Vxlan { v4, v6 } = data else {
        return Err(Refusal::OtherBackend { theirs: data.kind().to_owned() });
    };
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
    .map(|data| data.mac)
    .ok_or(Refusal::NoMac(family))
}

/// One route a peer, so that the kernel itself answers for subnets that nobody has.
pub(super) fn routes(tunnel: &Tunnel, peers: &[Peer]) -> Vec<Route> {
    peers
        .iter()
        .flat_map(|peer| &peer.subnets)
        .map(|subnet| Route { scope: RouteScope::LINK, ..Route::new(*subnet, &tunnel.device) }.normalized())
        .collect()
}
