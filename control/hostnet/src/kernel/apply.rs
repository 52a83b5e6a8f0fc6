//! The kernel as a [`Host`]: what of its state a scope covers, and changes that may be made twice.
use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::{Kernel, LinkSettings, address, link, neighbour, route};
use crate::change::Change;
use crate::host::{Host, HostError};
use crate::state::{Address, HostState, Link, LinkState, Route, RouteKind, Scope};
use crate::sysctl;

/// How many requests wait for their answers at once: their acknowledgements must fit the socket's buffer, of which the
/// kernel gives at least 208 KiB and takes under 1.5 KiB for each.
const IN_FLIGHT: usize = 100;

impl Host for Kernel {
    async fn read(&self, scope: &Scope) -> Result<HostState, HostError> {
        Self::read(self, scope).await
    }

    async fn apply(&self, change: &Change) -> Result<(), HostError> {
        Self::apply(self, change).await
    }

    async fn apply_all(&self, changes: &[Change]) -> Vec<Result<(), HostError>> {
        Self::apply_all(self, changes).await
    }
}

impl Kernel {
    /// Everything that is there and that `scope` covers. Devices of the scope that do not exist are simply not in it.
    pub async fn read(&self, scope: &Scope) -> Result<HostState, HostError> {
        let links = self.links().await?;
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let addresses = self.addresses_on(&names).await?.into_iter();
        let addresses = addresses.map(|found| Address { device: found.device, net: found.net });
        let mut state = HostState {
            addresses: addresses.filter(|address| scope.covers_address(address)).collect(),
            routes: self
                .routes_on(&names)
                .await?
                .into_iter()
                .filter(|route| scope.covers_route(route))
                .collect(),
            sysctls: scope.sysctls.iter().filter_map(|name| Some((name.clone(), settable(name)?))).collect(),
            ..HostState::default()
        };
        for link in links.into_iter().filter(|link| scope.devices.contains(&link.name)) {
            let neighbours = present(self.neighbours_by_index(&link.name, link.index).await)?;
            state.neighbours.extend(neighbours.into_iter().filter(|entry| scope.covers_neighbour(entry)));
            if link.vxlan.is_some() {
                let fdb = present(self.fdb_by_index(&link.name, link.index).await)?;
                state.fdb.extend(fdb.into_iter().filter(|entry| scope.covers_fdb(entry)));
            }
            let Link { name: device, mtu, up, mac, alias, .. } = link;
            state.links.insert(LinkState { device, mtu, up, mac, alias });
        }
        Ok(state)
    }

    /// Makes one change. What is already so is no error: neither adding what is there nor deleting what is not, nor
    /// deleting from a device that is gone.
    pub async fn apply(&self, change: &Change) -> Result<(), HostError> {
        let results = self.apply_all(std::slice::from_ref(change)).await;
        results.into_iter().next().unwrap_or(Ok(()))
    }

    /// Makes changes in their order without waiting for the answer to one before the next is sent, and answers one by
    /// one. Devices are looked up once, before the first change.
    pub async fn apply_all(&self, changes: &[Change]) -> Vec<Result<(), HostError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let indices: BTreeMap<String, u32> = match self.links().await {
            Ok(links) => links.into_iter().map(|link| (link.name, link.index)).collect(),
            Err(error) => {
                return changes
                    .iter()
                    .map(|change| Err(HostError { action: change.to_string(), ..error.clone() }))
                    .collect();
            }
        };
        let requests: Vec<_> = changes.iter().map(|change| self.make(change, &indices)).collect();
        stream::iter(requests).buffered(IN_FLIGHT).collect().await
    }

    async fn make(&self, change: &Change, indices: &BTreeMap<String, u32>) -> Result<(), HostError> {
        if let Change::SetSysctl { name, value } = change {
            return sysctl::set(name, value);
        }
        let made = match request(change, indices) {
            Ok((message, flags)) => self.change(message, flags, || change.to_string()).await,
            Err(error) => Err(error),
        };
        match change {
            Change::DeleteRoute(_)
            | Change::DeleteFdb(_)
            | Change::DeleteNeighbour(_)
            | Change::DeleteAddress(_) => gone(made),
            _ => made,
        }
    }
}

/// The request for a change, and its flags; `ENODEV` if its device is not among `indices`.
fn request(
    change: &Change,
    indices: &BTreeMap<String, u32>,
) -> Result<(RouteNetlinkMessage, u16), HostError> {
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    let index_of = |device: &str| {
        indices.get(device).copied().ok_or_else(|| HostError::new(change.to_string(), Errno::ENODEV))
    };
    let index_for = |route: &Route| match route.kind {
        RouteKind::Unicast => index_of(&route.device).map(Some),
        RouteKind::Unreachable | RouteKind::Blackhole => Ok(None),
    };
    Ok(match change {
        Change::SetSysctl { .. } => {
            return Err(HostError::new(format!("ask netlink to {change}"), Errno::EINVAL));
        }
        Change::SetLink(want) => {
            let settings = LinkSettings {
                up: Some(want.up),
                mtu: Some(want.mtu),
                mac: want.mac,
                alias: want.alias.clone(),
                ..LinkSettings::default()
            };
            (RouteNetlinkMessage::SetLink(link::setting(&want.device, &settings)), 0)
        }
        Change::AddAddress(Address { device, net }) => (address::adding(index_of(device)?, *net), SET),
        Change::ReplaceNeighbour(entry) => {
            (neighbour::setting_neighbour(entry, index_of(&entry.device)?), SET)
        }
        Change::ReplaceFdb(entry) => (neighbour::setting_fdb(entry, index_of(&entry.device)?), SET),
        Change::ReplaceRoute(route) => (route::replacing(route, index_for(route)?), SET),
        Change::DeleteRoute(route) => (route::deleting(route, index_for(route)?), 0),
        Change::DeleteFdb(entry) => (neighbour::deleting_fdb(entry, index_of(&entry.device)?), 0),
        Change::DeleteNeighbour(entry) => (neighbour::deleting_neighbour(entry, index_of(&entry.device)?), 0),
        Change::DeleteAddress(Address { device, net }) => (address::deleting(index_of(device)?, *net), 0),
    })
}

/// The value of a kernel setting that this process could change.
fn settable(name: &str) -> Option<String> {
    let value = sysctl::read(name).ok()?;
    sysctl::is_writable(name).then_some(value)
}

/// A device that went away between two dumps has nothing on it.
fn present<T>(listed: Result<Vec<T>, HostError>) -> Result<Vec<T>, HostError> {
    match listed {
        Err(error) if error.errno == Errno::ENODEV => Ok(vec![]),
        listed => listed,
    }
}

/// What the kernel says when that which is to be deleted is not there: routes, table entries, addresses, devices.
fn gone(deleted: Result<(), HostError>) -> Result<(), HostError> {
    const ABSENT: [Errno; 4] = [Errno::ESRCH, Errno::ENOENT, Errno::EADDRNOTAVAIL, Errno::ENODEV];
    match deleted {
        Err(error) if ABSENT.contains(&error.errno) => Ok(()),
        deleted => deleted,
    }
}
