//! `udp`: flannel's raw format. The lease carries only the public address; one route brings the whole network in.
//!
//! flannel's own `udp` is IPv4 only. IPv6 here is the same format over an IPv6 underlay, on a device of its own.

use dataplane_core::{Family, MacAddr};
use hostnet::state::Route;

use super::{Tunnel, own_route};
use crate::lease::BackendData;
use crate::plan::Refusal;

/// flannel asks the kernel for `flannel%d` and gets `flannel0`.
pub(super) fn device(family: Family) -> String {
    match family {
        Family::V4 => "flannel0".to_owned(),
        Family::V6 => "flannel-v6.0".to_owned(),
    }
}

/// The format has no MAC; any other backend's packets look different.
pub(super) fn peer_mac(data: &BackendData) -> Result<MacAddr, Refusal> {
    match data {
        BackendData::Udp => Ok(MacAddr::default()),
        // flannel writes no type at all; whoever writes a lease by hand writes this.
        BackendData::Other { kind, .. } if kind == "udp" => Ok(MacAddr::default()),
        other => Err(Refusal::OtherBackend { theirs: other.kind().to_owned() }),
    }
}

/// The whole network, as flannel has it: packets for nobody come to the engine too, which answers that there is no
/// such host, so none of them leaves by the default route.
pub(super) fn route(tunnel: &Tunnel) -> Route {
    own_route(Route::new(tunnel.network, &tunnel.device))
}
