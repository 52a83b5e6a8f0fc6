//! Backends: how packets travel. What one backend does differently from another is all in its own file, and pure.
//!
//! A backend with a tunnel makes one [`Tunnel`] a family: IPv4 pods over an IPv4 underlay, IPv6 pods over an IPv6 one,
//! each with a device of its own. `host-gw` has routes and no device, `alloc` has neither.

use std::net::{IpAddr, SocketAddr};

use dataplane_core::{Encap, Family, IpNet, LinkMtu, MacAddr, OverlayMtu, Peer, Vni};
use hostnet::kernel::Vxlan;
use hostnet::state::{HostState, LinkState, Route, RouteProtocol};

use crate::choose::Method;
use crate::lease::{BackendData, Lease, LeaseAttrs, LeaseSet};
use crate::network::{BackendConfig, NetworkConfig};
use crate::plan::{Plan, Refusal};
use crate::underlay::Underlay;

mod host_gw;
pub mod mac;
mod udp;
mod vxlan;
mod vxlan_engine;
mod vxlan_kernel;

/// The mark on devices of this project: `ip link` shows it as their `alias`.
pub const ALIAS: &str = "flannel-rs";

/// One family of the network, and this node's two addresses in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Of the pods, and of the underlay.
    pub family: Family,
    /// The whole cluster's network of the family.
    pub network: IpNet,
    /// The address on the underlay.
    pub local: IpAddr,
    /// What peers know us by; another one behind a NAT.
    pub public: IpAddr,
}

/// The longest name of a device (`IFNAMSIZ` without its zero).
const LONGEST_NAME: usize = 15;

/// The setting that takes IPv6 off a device.
fn disable_ipv6(tunnel: &Tunnel) -> String {
    format!("net/ipv6/conf/{}/disable_ipv6", tunnel.device)
}

/// One device with an engine behind it, or the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the device.
    pub device: String,
    /// Of the pods, and of the underlay.
    pub family: Family,
    /// Format on the wire.
    pub encap: Encap,
    /// Of the device and of the pods.
    pub mtu: OverlayMtu,
    /// Where packets are received and what they are sent from.
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
pub struct Backend {
    method: Method,
    ends: Vec<End>,
    /// One for each of `ends`, in their order, or none at all.
    tunnels: Vec<Tunnel>,
    underlay: Underlay,
    direct_routing: bool,
    options: vxlan_kernel::Options,
}

/// A backend that cannot be on this underlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Nothing is left for packets.
    #[error(
        "an MTU of {} (the underlay's, or the key MTU of the backend) leaves too little for the overlay: {} needs at least {}",
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
    /// Linux has no name of that length for a device.
    #[error(
        "the VNI makes the device's name {name}, and Linux allows {LONGEST_NAME} characters: choose a VNI of at most 9999999 \
         (IPv4) or 9999 (IPv6)"
    )]
    NameTooLong {
        /// The device's.
        name: String,
    },
    /// Packets without a tunnel do not pass a NAT.
    #[error(
        "host-gw cannot be used behind a NAT: peers would route to {public}, and this node has {local}. Use vxlan, or \
         leave --public-ip out"
    )]
    BehindNat {
        /// What this node publishes.
        public: IpAddr,
        /// What it has.
        local: IpAddr,
    },
}

impl Backend {
    /// The names of the devices that need a VtepMAC, by family; none for backends without one.
    pub fn vtep_devices(config: &BackendConfig) -> Option<[(Family, String); 2]> {
        match config {
            BackendConfig::Udp { .. } | BackendConfig::HostGw | BackendConfig::Alloc => None,
            BackendConfig::Vxlan { vni, .. } => {
                Some([Family::V4, Family::V6].map(|family| (family, vxlan::device(*vni, family))))
            }
        }
    }

    /// The backend that `config` names, carried by `method`, on `underlay`. `mac` answers which VtepMAC a family has.
    pub fn new(
        config: &NetworkConfig,
        method: Method,
        underlay: &Underlay,
        mac: impl Fn(Family) -> MacAddr,
    ) -> Result<Self, BackendError> {
        let mut backend = Self {
            method,
            ends: ends(config, underlay).collect(),
            tunnels: Vec::new(),
            underlay: underlay.clone(),
            direct_routing: false,
            options: vxlan_kernel::Options { gbp: false, learning: false },
        };
        match config.backend {
            BackendConfig::Alloc => {}
            BackendConfig::HostGw => {
                if let Some(end) = backend.ends.iter().find(|end| end.local != end.public) {
                    return Err(BackendError::BehindNat { public: end.public, local: end.local });
                }
            }
            BackendConfig::Udp { port } => {
                backend.add_tunnels(Encap::Raw, port, underlay.mtu, udp::device, |_| MacAddr::default())?;
            }
            BackendConfig::Vxlan { vni, port, mtu, gbp, learning, direct_routing } => {
                let mut link = mtu.map_or(underlay.mtu, LinkMtu);
                if method == Method::KernelVxlan {
                    // The kernel lowers its device's MTU to what fits the underlay, and pods are to have the same.
                    link = link.min(underlay.mtu);
                }
                backend.direct_routing = direct_routing;
                backend.options = vxlan_kernel::Options { gbp, learning };
                let device = |family| vxlan::device(vni, family);
                backend.add_tunnels(Encap::Vxlan { vni }, port, link, device, mac)?;
            }
        }
        Ok(backend)
    }

    fn add_tunnels(
        &mut self,
        encap: Encap,
        port: u16,
        link: LinkMtu,
        device: impl Fn(Family) -> String,
        mac: impl Fn(Family) -> MacAddr,
    ) -> Result<(), BackendError> {
        for &End { family, network, local, public } in &self.ends {
            let mtu = OverlayMtu::over(link, &encap, family)
                .filter(|mtu| mtu.get() >= smallest(family))
                .ok_or(BackendError::MtuTooSmall { mtu: link, encap, family })?;
            let name = device(family);
            if name.len() > LONGEST_NAME {
                return Err(BackendError::NameTooLong { name });
            }
            self.tunnels.push(Tunnel {
                device: name,
                family,
                encap,
                mtu,
                bind: SocketAddr::new(local, port),
                public,
                network,
                mac: mac(family),
            });
        }
        Ok(())
    }

    /// What carries the packets.
    pub fn method(&self) -> Method {
        self.method
    }

    /// One or two, IPv4 first.
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// One for each family, IPv4 first; none for a backend without a device.
    pub fn tunnels(&self) -> &[Tunnel] {
        &self.tunnels
    }

    /// The tunnels that need an engine each.
    pub fn engine_tunnels(&self) -> &[Tunnel] {
        match self.method {
            Method::EngineUdp | Method::EngineVxlan => &self.tunnels,
            Method::KernelVxlan | Method::HostGw | Method::Alloc => &[],
        }
    }

    /// The cluster's networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.ends.iter().map(|end| end.network)
    }

    /// The interface that carries the packets.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// What this node publishes.
    pub fn attrs(&self) -> LeaseAttrs {
        let public = |family| self.ends.iter().find(|end| end.family == family).map(|end| end.public);
        LeaseAttrs {
            public_ip: public(Family::V4)
                .and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None }),
            public_ipv6: public(Family::V6)
                .and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None }),
            backend: match self.method {
                Method::EngineUdp | Method::Alloc => BackendData::Udp,
                Method::HostGw => BackendData::host_gw(),
                Method::EngineVxlan | Method::KernelVxlan => match self.vni() {
                    Some(vni) => vxlan::data(vni, &self.tunnels),
                    None => BackendData::Vxlan { v4: None, v6: None },
                },
            },
        }
    }

    fn vni(&self) -> Option<Vni> {
        self.tunnels.iter().find_map(|tunnel| match tunnel.encap {
            Encap::Vxlan { vni } => Some(vni),
            Encap::Raw => None,
        })
    }

    /// The MTU for pods, in bytes: what fits through every tunnel, or the underlay's where there is none. flannel gives
    /// IPv6 pods the IPv4 value, and lets path MTU discovery find the twenty bytes that are missing.
    pub fn mtu(&self) -> u16 {
        self.tunnels.iter().map(|tunnel| tunnel.mtu.get()).min().unwrap_or(self.underlay.mtu.0)
    }

    /// What should be. PURE: the whole difference between backends.
    pub fn plan(&self, own: &Lease, leases: &LeaseSet) -> Plan {
        Plan::new(self, own, leases)
    }

    /// The VtepMAC that a peer's lease names, or why it is no peer of ours.
    pub(crate) fn peer_mac(&self, family: Family, data: &BackendData) -> Result<MacAddr, Refusal> {
        match self.method {
            Method::EngineUdp => udp::peer_mac(data),
            Method::EngineVxlan | Method::KernelVxlan => vxlan::peer_mac(family, data),
            Method::HostGw | Method::Alloc => host_gw::peer_mac(data),
        }
    }

    /// Whether this backend can send to a peer that is right in itself.
    pub(crate) fn reaches(&self, peer: &Peer) -> Result<(), Refusal> {
        match self.method {
            Method::HostGw => host_gw::reaches(&self.underlay, peer),
            // The kernel takes a packet from our own MAC for a loop, and tells peers apart by theirs.
            Method::KernelVxlan if self.tunnels.iter().any(|tunnel| tunnel.mac == peer.mac) => {
                Err(Refusal::MacIsOurs(peer.mac))
            }
            _ => Ok(()),
        }
    }

    /// What a tunnel is before it has peers.
    pub(crate) fn add_tunnel(&self, tunnel: &Tunnel, host: &mut HostState) {
        let bare = LinkState {
            alias: Some(ALIAS.to_owned()),
            ..LinkState::up(&tunnel.device, tunnel.mtu.get().into())
        };
        if tunnel.family == Family::V6 {
            // Without it the device loses its addresses and routes, and refuses new ones.
            host.sysctls.insert(disable_ipv6(tunnel), "0".to_owned());
        }
        match self.method {
            Method::KernelVxlan => {
                host.links.insert(vxlan_kernel::link(tunnel));
                host.sysctls.insert(vxlan_kernel::accept_ra(tunnel), "0".to_owned());
            }
            Method::EngineUdp => {
                host.links.insert(bare);
                host.routes.insert(udp::route(tunnel));
            }
            Method::EngineVxlan | Method::HostGw | Method::Alloc => {
                host.links.insert(bare);
            }
        }
    }

    /// What leads to a peer.
    pub(crate) fn add_peer(&self, tunnel: Option<&Tunnel>, peer: &Peer, host: &mut HostState) {
        let direct = self.direct_routing && self.underlay.is_on_link(peer.endpoint.ip());
        match (self.method, tunnel) {
            (Method::EngineVxlan | Method::KernelVxlan, _) if direct => {
                host_gw::add_peer(&self.underlay, peer, host);
            }
            (Method::EngineVxlan, Some(tunnel)) => vxlan_engine::add_peer(tunnel, peer, host),
            (Method::KernelVxlan, Some(tunnel)) => vxlan_kernel::add_peer(tunnel, peer, host),
            (Method::HostGw, _) => host_gw::add_peer(&self.underlay, peer, host),
            // One route brings packets for all of them.
            (Method::EngineUdp, _) => {}
            (Method::EngineVxlan | Method::KernelVxlan, None) | (Method::Alloc, _) => {}
        }
    }

    /// How the pods of a node with this lease are reached, in the words of `flanneld peers`.
    pub fn via(&self, lease: &Lease) -> Option<&'static str> {
        let on_link = |ip: Option<IpAddr>| ip.is_some_and(|ip| self.underlay.is_on_link(ip));
        let LeaseAttrs { public_ip, public_ipv6, .. } = &lease.attrs;
        let direct = self.direct_routing
            && (on_link(public_ip.map(IpAddr::V4)) || on_link(public_ipv6.map(IpAddr::V6)));
        match self.method {
            Method::EngineVxlan | Method::KernelVxlan if direct => Some("direct"),
            Method::EngineUdp | Method::EngineVxlan => Some("engine"),
            Method::KernelVxlan => Some("kernel"),
            Method::HostGw => Some("direct"),
            Method::Alloc => None,
        }
    }

    /// The kernel's device for a tunnel, if the kernel carries it.
    pub(crate) fn kernel_device(&self, tunnel: &Tunnel) -> Option<Vxlan> {
        match self.method {
            Method::KernelVxlan => vxlan_kernel::device(tunnel, &self.underlay.device, self.options),
            Method::EngineUdp | Method::EngineVxlan | Method::HostGw | Method::Alloc => None,
        }
    }

    /// The kernel settings that are this backend's.
    pub(crate) fn sysctls(&self) -> impl Iterator<Item = String> {
        let kernels = if self.method == Method::KernelVxlan { &self.tunnels[..] } else { &[] };
        let v6 = self.tunnels.iter().filter(|tunnel| tunnel.family == Family::V6);
        kernels.iter().map(vxlan_kernel::accept_ra).chain(v6.map(disable_ipv6))
    }
}

/// A route that bears our mark, in the kernel's spelling.
fn own_route(route: Route) -> Route {
    Route { protocol: RouteProtocol::FLANNEL_RS, ..route }.normalized()
}

/// Each family of the network with this node's addresses in it.
fn ends(config: &NetworkConfig, underlay: &Underlay) -> impl Iterator<Item = End> {
    let v4 = config.v4.as_ref().zip(underlay.v4).map(|(pool, end)| End {
        family: Family::V4,
        network: pool.network(),
        local: end.local.into(),
        public: end.public.into(),
    });
    let v6 = config.v6.as_ref().zip(underlay.v6).map(|(pool, end)| End {
        family: Family::V6,
        network: pool.network(),
        local: end.local.into(),
        public: end.public.into(),
    });
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
