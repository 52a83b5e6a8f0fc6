//! Backends: how packets travel. What one backend does differently from another is all in its own file, and pure.
//!
//! Either backend makes one [`Tunnel`] a family: IPv4 pods over an IPv4 underlay, IPv6 pods over an IPv6 one, each
//! with its own device and its own engine.

use std::net::{IpAddr, SocketAddr};

use dataplane_core::{Encap, Family, IpNet, LinkMtu, MacAddr, OverlayMtu, Peer};
use hostnet::state::Route;

use crate::lease::{BackendData, Lease, LeaseAttrs, LeaseSet};
use crate::network::{BackendConfig, NetworkConfig};
use crate::plan::{Plan, Refusal};
use crate::underlay::Underlay;

pub mod mac;
mod udp;
mod vxlan_engine;

pub use udp::Udp;
pub use vxlan_engine::VxlanEngine;

/// One device with one engine behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the TUN device.
    pub device: String,
    /// Of the pods, and of the underlay.
    pub family: Family,
    /// Format on the wire.
    pub encap: Encap,
    /// Of the device and of the pods.
    pub mtu: OverlayMtu,
    /// Where the engine receives and what it sends from.
    pub bind: SocketAddr,
    /// What peers know us by; differs from `bind` behind a NAT.
    pub public: IpAddr,
    /// The whole cluster's network of the family.
    pub network: IpNet,
    /// Our published VtepMAC; zero where the format has none.
    pub mac: MacAddr,
}

/// The backend that carries the packets of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// flannel's `udp`.
    Udp(Udp),
    /// flannel's `vxlan`, carried by the engine.
    Vxlan(VxlanEngine),
}

/// A backend that cannot be on this underlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Nothing is left for packets.
    #[error(
        "MTU {} of the underlay leaves too little for the overlay: {} needs at least {}",
        mtu.0,
        match encap { Encap::Raw => "udp", Encap::Vxlan { .. } => "vxlan" },
        dataplane_core::mtu::overhead(encap, *family) + smallest(*family)
    )]
    MtuTooSmall {
        /// The underlay's.
        mtu: LinkMtu,
        /// The format.
        encap: Encap,
        /// The family.
        family: Family,
    },
}

impl Backend {
    /// The names of the devices that need a VtepMAC, by family; none for `udp`.
    pub fn vtep_devices(config: &BackendConfig) -> Option<[(Family, String); 2]> {
        match config {
            BackendConfig::Udp { .. } => None,
            BackendConfig::Vxlan { vni, .. } => {
                Some([Family::V4, Family::V6].map(|family| (family, vxlan_engine::device(*vni, family))))
            }
        }
    }

    /// The backend that `config` names, on `underlay`. `mac` answers which VtepMAC a family has.
    pub fn new(
        config: &NetworkConfig,
        underlay: &Underlay,
        mac: impl Fn(Family) -> MacAddr,
    ) -> Result<Self, BackendError> {
        let bare = |encap: Encap, port: u16, link: LinkMtu, device: &dyn Fn(Family) -> String| {
            ends(config, underlay)
                .map(|(family, network, local, public)| {
                    let mtu = OverlayMtu::over(link, &encap, family)
                        .filter(|mtu| mtu.get() >= smallest(family))
                        .ok_or(BackendError::MtuTooSmall { mtu: link, encap, family })?;
                    Ok(Tunnel {
                        device: device(family),
                        family,
                        encap,
                        mtu,
                        bind: SocketAddr::new(local, port),
                        public,
                        network,
                        mac: MacAddr::default(),
                    })
                })
                .collect::<Result<Vec<_>, BackendError>>()
        };
        match config.backend {
            BackendConfig::Udp { port } => {
                Ok(Self::Udp(Udp { tunnels: bare(Encap::Raw, port, underlay.mtu, &udp::device)? }))
            }
            BackendConfig::Vxlan { vni, port, mtu } => {
                let link = mtu.map_or(underlay.mtu, LinkMtu);
                let mut tunnels =
                    bare(Encap::Vxlan { vni }, port, link, &|family| vxlan_engine::device(vni, family))?;
                for tunnel in &mut tunnels {
                    tunnel.mac = mac(tunnel.family);
                }
                Ok(Self::Vxlan(VxlanEngine { vni, tunnels }))
            }
        }
    }

    /// One or two, IPv4 first.
    pub fn tunnels(&self) -> &[Tunnel] {
        match self {
            Self::Udp(udp) => &udp.tunnels,
            Self::Vxlan(vxlan) => &vxlan.tunnels,
        }
    }

    /// What this node publishes.
    pub fn attrs(&self) -> LeaseAttrs {
        let public =
            |family| self.tunnels().iter().find(|tunnel| tunnel.family == family).map(|tunnel| tunnel.public);
        LeaseAttrs {
            public_ip: public(Family::V4)
                .and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None }),
            public_ipv6: public(Family::V6)
                .and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None }),
            backend: match self {
                Self::Udp(_) => BackendData::Udp,
                Self::Vxlan(vxlan) => vxlan.data(),
            },
        }
    }

    /// The MTU for pods: what fits through every tunnel. flannel gives IPv6 pods the IPv4 value, and lets path MTU
    /// discovery find the twenty bytes that are missing.
    pub fn mtu(&self) -> Option<OverlayMtu> {
        self.tunnels().iter().map(|tunnel| tunnel.mtu).min()
    }

    /// What should be. PURE: the whole difference between backends.
    pub fn plan(&self, own: &Lease, leases: &LeaseSet) -> Plan {
        Plan::new(self, own, leases)
    }

    /// The VtepMAC that a peer's lease names, or why it is no peer of ours.
    pub(crate) fn peer_mac(&self, tunnel: &Tunnel, data: &BackendData) -> Result<MacAddr, Refusal> {
        match self {
            Self::Udp(_) => udp::peer_mac(data),
            Self::Vxlan(_) => vxlan_engine::peer_mac(tunnel.family, data),
        }
    }

    /// The routes that bring packets for peers to a tunnel's device.
    pub(crate) fn routes(&self, tunnel: &Tunnel, peers: &[Peer]) -> Vec<Route> {
        match self {
            Self::Udp(_) => udp::routes(tunnel),
            Self::Vxlan(_) => vxlan_engine::routes(tunnel, peers),
        }
    }
}

/// Family, network, local and public address of each tunnel to be.
fn ends(
    config: &NetworkConfig,
    underlay: &Underlay,
) -> impl Iterator<Item = (Family, IpNet, IpAddr, IpAddr)> {
    let v4 = config
        .v4
        .as_ref()
        .zip(underlay.v4)
        .map(|(pool, end)| (Family::V4, pool.network(), IpAddr::V4(end.local), IpAddr::V4(end.public)));
    let v6 = config
        .v6
        .as_ref()
        .zip(underlay.v6)
        .map(|(pool, end)| (Family::V6, pool.network(), IpAddr::V6(end.local), IpAddr::V6(end.public)));
    v4.into_iter().chain(v6)
}

/// The least MTU that makes a usable link: what every IPv4 host takes (RFC 791), and IPv6's own minimum (RFC 8200),
/// below which the kernel switches IPv6 off on a device.
const fn smallest(family: Family) -> u16 {
    match family {
        Family::V4 => 576,
        Family::V6 => 1280,
    }
}
