//! What a CNI plugin makes for a container: its veth pair, in one step, and routes with all that a result can say of them.
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope as Scope, RouteType,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::Kernel;
use super::address::family_of;
use crate::host::HostError;
use crate::netns::NetNs;
use crate::state::{Mac, RouteScope};

/// A veth pair between here and a container.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The end that is here.
    pub name: &'a str,
    /// The end in the container.
    pub peer: &'a str,
    /// The container.
    pub namespace: &'a NetNs,
    /// In bytes, of both ends; `None`: the kernel's 1500.
    pub mtu: Option<u32>,
    /// The container's hardware address; `None`: a random one.
    pub mac: Option<Mac>,
    /// The group of the end that is here. There from the first moment on, unlike an alias: whoever finds the device knows
    /// whose it is.
    pub group: u32,
}

/// A route in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to.
    pub dest: IpNet,
    /// The gateway; `None`: on the wire.
    pub via: Option<IpAddr>,
    /// In bytes; 0: the device's.
    pub mtu: u32,
    /// The largest TCP segment to offer, in bytes; 0: as the MTU allows.
    pub adv_mss: u32,
    /// The metric; 0: the kernel's.
    pub priority: u32,
    /// The routing table; `None`: main.
    pub table: Option<u32>,
    /// How far it is; `None`: anywhere.
    pub scope: Option<RouteScope>,
}

/// The main routing table, as the attribute has it.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

impl Kernel {
    /// Makes the pair; both ends are down. Either both are there afterwards or none.
    pub async fn add_pod_veth(&self, veth: Veth<'_>) -> Result<(), HostError> {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(veth.peer.to_owned()),
            LinkAttribute::NetNsFd(veth.namespace.as_fd().as_raw_fd()),
        ];
        far.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        far.attributes.extend(veth.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut near = vec![LinkAttribute::Group(veth.group)];
        near.extend(veth.mtu.map(LinkAttribute::Mtu));
        self.add_link(veth.name, InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(far)), near, || {
            format!("add veth {} with peer {}", veth.name, veth.peer)
        })
        .await
    }

    /// Puts a route on a device, in the place of one of the same destination and metric.
    pub async fn replace_pod_route(&self, device: &str, route: &PodRoute) -> Result<(), HostError> {
        let action = || match route.via {
            Some(via) => format!("add route {} via {via} dev {device}", route.dest),
            None => format!("add route {} dev {device}", route.dest),
        };
        let index = self.device_index(device, action).await?;
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(route.dest.addr());
        message.header.destination_prefix_length = route.dest.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = Scope::from(route.scope.unwrap_or_default().0);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(route.table.unwrap_or(MAIN)));
        attributes.push(RouteAttribute::Oif(index));
        if route.dest.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(route.dest.trunc().addr().into()));
        }
        attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
        if route.priority > 0 {
            attributes.push(RouteAttribute::Priority(route.priority));
        }
        let mut metrics = Vec::new();
        if route.mtu > 0 {
            metrics.push(RouteMetric::Mtu(route.mtu));
        }
        if route.adv_mss > 0 {
            metrics.push(RouteMetric::Advmss(route.adv_mss));
        }
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, action).await
    }
}
