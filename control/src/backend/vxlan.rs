//! `vxlan`: what its two carriers have in common, which is all that other nodes see.
//!
//! Names, VNI, MAC and lease data are the same whether the kernel or the engine carries the packets, so nobody can tell
//! and a node may change from one to the other.

use dataplane_core::{Family, MacAddr, Vni};

use super::Tunnel;
use crate::lease::{BackendData, VxlanData};
use crate::plan::Refusal;

/// What flannel publishes for its two devices.
pub(super) fn data(vni: Vni, tunnels: &[Tunnel]) -> BackendData {
    let of = |family| {
        tunnels
            .iter()
            .find(|tunnel| tunnel.family == family)
            .map(|tunnel| VxlanData { vni: Some(vni.get()), mac: tunnel.mac })
    };
    BackendData::Vxlan { v4: of(Family::V4), v6: of(Family::V6) }
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
    // Frames to no address or to a group are for nobody in particular.
    .filter(|mac| *mac != MacAddr::default() && mac.0[0] & 1 == 0)
    .ok_or(Refusal::NoMac(family))
}
