//! Routes of the main table, and the kernel's choice of a route to an address.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope as Scope, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::Kernel;
use super::address::family_of;
use crate::host::HostError;
use crate::state::{IPV6_DEFAULT_METRIC, Route, RouteKind, RouteProtocol, RouteScope};

/// How the kernel would reach an address at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Name of the device it would leave by.
    pub device: String,
    /// The gateway; `None`: the address is on the device's own wire.
    pub via: Option<IpAddr>,
    /// The source address that this host would use.
    pub source: Option<IpAddr>,
    /// The address is one of this host's own.
    pub local: bool,
}

impl Kernel {
    /// All unicast routes of the main table, IPv4 and IPv6, those the kernel made included. Routes over several next
    /// hops are left out.
    pub async fn routes(&self) -> Result<Vec<Route>, HostError> {
        let mut routes = self.all_routes().await?;
        routes.retain(|route| route.kind == RouteKind::Unicast);
        Ok(routes)
    }

    /// The same, and the unreachable and blackhole routes among them.
    pub async fn all_routes(&self) -> Result<Vec<Route>, HostError> {
        self.routes_on(&self.device_names().await?).await
    }

    pub(super) async fn routes_on(&self, names: &BTreeMap<u32, String>) -> Result<Vec<Route>, HostError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            routes.extend(self.routes_of(family, names).await?);
        }
        Ok(routes)
    }

    async fn routes_of(
        &self,
        family: AddressFamily,
        names: &BTreeMap<u32, String>,
    ) -> Result<Vec<Route>, HostError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.attributes.push(RouteAttribute::Table(RouteHeader::RT_TABLE_MAIN.into()));
        let found = match self.dump(RouteNetlinkMessage::GetRoute(request), "list the routes").await {
            Ok(found) => found,
            // A namespace that never had a route has no main table yet.
            Err(error) if error.errno == Errno::ENOENT => vec![],
            Err(error) => return Err(error),
        };
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) if message.header.address_family == family => {
                    route_of(&message, names)
                }
                _ => None,
            })
            .collect())
    }

    /// Adds a route, in the place of one with the same destination and metric if there is one.
    pub async fn replace_route(&self, route: &Route) -> Result<(), HostError> {
        let action = || format!("replace route {route}");
        let index = self.index_for(route, action).await?;
        self.change(replacing(route, index), NLM_F_CREATE | NLM_F_REPLACE, action).await
    }

    /// Deletes this route; `ESRCH` if there is none with the same destination, gateway, device and metric.
    pub async fn delete_route(&self, route: &Route) -> Result<(), HostError> {
        let action = || format!("delete route {route}");
        let index = self.index_for(route, action).await?;
        self.change(deleting(route, index), 0, action).await
    }

    /// The index of its device, if it is to have one.
    async fn index_for(
        &self,
        route: &Route,
        action: impl FnOnce() -> String,
    ) -> Result<Option<u32>, HostError> {
        match route.kind {
            RouteKind::Unicast => self.device_index(&route.device, action).await.map(Some),
            RouteKind::Unreachable | RouteKind::Blackhole => Ok(None),
        }
    }

    /// The kernel's own answer to "how do I get to `ip`"; `None` if it has no route.
    pub async fn route_to(&self, ip: IpAddr) -> Result<Option<Reach>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        let asked = self
            .ask(RouteNetlinkMessage::GetRoute(message), 0, || format!("look up the route to {ip}"))
            .await;
        let answer = match asked {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => answer,
            Ok(_) => return Ok(None),
            Err(error) if [Errno::ENETUNREACH, Errno::EHOSTUNREACH].contains(&error.errno) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let parts = Parts::of(&answer);
        let names = self.device_names().await?;
        Ok(parts.oif.and_then(|index| names.get(&index)).map(|device| Reach {
            device: device.clone(),
            via: parts.via,
            source: parts.source,
            local: answer.header.kind == RouteType::Local,
        }))
    }
}

/// The request that adds a route or takes the place of one; `index` is its device's.
pub(super) fn replacing(route: &Route, index: Option<u32>) -> RouteNetlinkMessage {
    let mut message = message_of(route, index);
    message.header.protocol = route.protocol.0.into();
    message.header.scope = route.scope.0.into();
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    RouteNetlinkMessage::NewRoute(message)
}

/// The request that deletes a route; `index` is its device's.
pub(super) fn deleting(route: &Route, index: Option<u32>) -> RouteNetlinkMessage {
    let mut message = message_of(route, index);
    // To the kernel "nowhere" is any scope here.
    message.header.scope = Scope::NoWhere;
    RouteNetlinkMessage::DelRoute(message)
}

/// What adding and deleting say alike: kind, destination, gateway, device, metric, source.
fn message_of(route: &Route, index: Option<u32>) -> RouteMessage {
    let dest = route.dest.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(dest.addr());
    message.header.destination_prefix_length = dest.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Blackhole => RouteType::BlackHole,
    };
    message.attributes = vec![RouteAttribute::Priority(metric_of(route))];
    message.attributes.extend(index.map(RouteAttribute::Oif));
    if dest.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(dest.addr().into()));
    }
    message.attributes.extend(route.via.map(|via| match (dest.addr(), via) {
        // An IPv4 destination by an IPv6 gateway (Linux 5.2) has an attribute of its own.
        (IpAddr::V4(_), IpAddr::V6(via)) => RouteAttribute::Via(RouteVia::Inet6(via)),
        _ => RouteAttribute::Gateway(via.into()),
    }));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message
}

/// The metric on the wire: deleting an IPv6 route with metric 0 would take any of that destination.
fn metric_of(route: &Route) -> u32 {
    if route.metric == 0 && route.dest.addr().is_ipv6() { IPV6_DEFAULT_METRIC } else { route.metric }
}

/// The attributes of a route message that we read.
#[derive(Default)]
struct Parts {
    dest: Option<IpAddr>,
    via: Option<IpAddr>,
    source: Option<IpAddr>,
    oif: Option<u32>,
    metric: u32,
    table: u32,
    many: bool,
}

impl Parts {
    fn of(message: &RouteMessage) -> Self {
        let mut parts = Self { table: message.header.table.into(), ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(ip) => parts.dest = ip_of(ip),
                RouteAttribute::Gateway(ip) => parts.via = ip_of(ip),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => parts.via = Some((*ip).into()),
                RouteAttribute::PrefSource(ip) => parts.source = ip_of(ip),
                RouteAttribute::Oif(index) => parts.oif = Some(*index),
                RouteAttribute::Priority(metric) => parts.metric = *metric,
                RouteAttribute::Table(table) => parts.table = *table,
                RouteAttribute::MultiPath(_) => parts.many = true,
                _ => {}
            }
        }
        parts
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let parts = Parts::of(message);
    let header = &message.header;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::BlackHole => RouteKind::Blackhole,
        _ => return None,
    };
    let ours = parts.table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && !parts.many
        && !header.flags.contains(RouteFlags::Cloned);
    if !ours {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let device = match kind {
        RouteKind::Unicast => names.get(&parts.oif?)?.clone(),
        RouteKind::Unreachable | RouteKind::Blackhole => String::new(),
    };
    let route = Route {
        kind,
        dest: IpNet::new(parts.dest.unwrap_or(any), header.destination_prefix_length).ok()?,
        via: parts.via,
        device,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: parts.metric,
        scope: RouteScope(header.scope.into()),
        protocol: RouteProtocol(header.protocol.into()),
        source: parts.source,
    };
    Some(route.normalized())
}
