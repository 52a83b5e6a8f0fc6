//! A host in memory, with the kernel's side effects and with refusals on demand. For tests.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use nix::errno::Errno;

use crate::change::Change;
use crate::host::{Host, HostError};
use crate::state::{Address, FdbEntry, HostState, LinkState, Neighbour, Route, RouteKind, Scope};

/// A host in memory. It has the devices it was given, tells routes apart as the kernel does, and deletes what the
/// kernel deletes along with an address or a device.
#[derive(Debug, Default)]
pub struct FakeHost {
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    links: Vec<LinkState>,
    /// In the order they were added: the first IPv4 address of a subnet takes the others with it.
    addresses: Vec<Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    fdb: Vec<FdbEntry>,
    sysctls: BTreeMap<String, String>,
    calls: usize,
    refusals: Vec<(usize, Errno)>,
    changes: Vec<Change>,
}

impl FakeHost {
    /// A host with these devices, down, with an MTU of 1500 and nothing on them.
    pub fn with_devices<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let host = Self::default();
        for name in names {
            host.add_device(name);
        }
        host
    }

    /// A host in this state, whose devices are those of `state.links`.
    pub fn in_state(state: &HostState) -> Self {
        let inside = Inside {
            links: state.links.iter().cloned().collect(),
            addresses: state.addresses.iter().cloned().collect(),
            routes: state.routes.iter().cloned().collect(),
            neighbours: state.neighbours.iter().cloned().collect(),
            fdb: state.fdb.iter().cloned().collect(),
            sysctls: state.sysctls.clone(),
            ..Inside::default()
        };
        Self { inside: Mutex::new(inside) }
    }

    /// A device appears, down.
    pub fn add_device(&self, name: &str) {
        self.inside().links.push(LinkState { up: false, ..LinkState::up(name, 1500) });
    }

    /// A device goes, and what is on it.
    pub fn remove_device(&self, name: &str) {
        let mut inside = self.inside();
        inside.links.retain(|link| link.device != name);
        inside.addresses.retain(|address| address.device != name);
        inside.routes.retain(|route| route.device != name);
        inside.neighbours.retain(|neighbour| neighbour.device != name);
        inside.fdb.retain(|entry| entry.device != name);
    }

    /// Makes the `n`-th call from here on (the next is 1; reading and applying both count) fail with this error.
    pub fn fail_call(&self, n: usize, errno: Errno) {
        let mut inside = self.inside();
        let call = inside.calls + n;
        inside.refusals.push((call, errno));
    }

    /// The changes that were made, in order.
    pub fn changes(&self) -> Vec<Change> {
        self.inside().changes.clone()
    }

    /// The whole state, whatever the scope.
    pub fn state(&self) -> HostState {
        let inside = self.inside();
        HostState {
            links: inside.links.iter().cloned().collect(),
            addresses: inside.addresses.iter().cloned().collect(),
            routes: inside.routes.iter().cloned().collect(),
            neighbours: inside.neighbours.iter().cloned().collect(),
            fdb: inside.fdb.iter().cloned().collect(),
            sysctls: inside.sysctls.clone(),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for FakeHost {
    async fn read(&self, scope: &Scope) -> Result<HostState, HostError> {
        self.inside().called(|| "read the host's state".to_owned())?;
        let mut state = self.state();
        state.links.retain(|link| scope.devices.contains(&link.device));
        state.addresses.retain(|address| scope.covers_address(address));
        state.routes.retain(|route| scope.covers_route(route));
        state.neighbours.retain(|neighbour| scope.covers_neighbour(neighbour));
        state.fdb.retain(|entry| scope.covers_fdb(entry));
        state.sysctls.retain(|name, _value| scope.sysctls.contains(name));
        Ok(state)
    }

    async fn apply(&self, change: &Change) -> Result<(), HostError> {
        let mut inside = self.inside();
        inside.called(|| change.to_string())?;
        if !inside.make(change) {
            return Err(HostError::new(change.to_string(), Errno::ENODEV));
        }
        inside.changes.push(change.clone());
        Ok(())
    }
}

impl Inside {
    fn called(&mut self, action: impl FnOnce() -> String) -> Result<(), HostError> {
        self.calls += 1;
        match self.refusals.iter().find(|(call, _errno)| *call == self.calls) {
            Some((_call, errno)) => Err(HostError::new(action(), *errno)),
            None => Ok(()),
        }
    }

    /// False if something was to be added to a device that is not there.
    fn make(&mut self, change: &Change) -> bool {
        let exists = |device: &str| self.links.iter().any(|link| link.device == device);
        match change {
            Change::SetLink(want) => {
                let link = self.links.iter_mut().find(|link| link.device == want.device);
                return link.map(|link| set_link(link, want)).is_some();
            }
            Change::SetSysctl { name, value } => {
                self.sysctls.insert(name.clone(), value.clone());
            }
            Change::AddAddress(Address { device, .. })
            | Change::ReplaceNeighbour(Neighbour { device, .. })
            | Change::ReplaceFdb(FdbEntry { device, .. })
            | Change::ReplaceRoute(Route { kind: RouteKind::Unicast, device, .. })
                if !exists(device) =>
            {
                return false;
            }
            Change::AddAddress(address) => {
                if !self.addresses.contains(address) {
                    self.addresses.push(address.clone());
                }
            }
            Change::ReplaceNeighbour(want) => {
                self.neighbours.retain(|entry| (&entry.device, entry.ip) != (&want.device, want.ip));
                self.neighbours.push(want.clone());
            }
            Change::ReplaceFdb(want) => {
                self.fdb.retain(|entry| (&entry.device, entry.mac) != (&want.device, want.mac));
                self.fdb.push(want.clone());
            }
            Change::ReplaceRoute(want) => self.replace_route(want.clone().normalized()),
            Change::DeleteRoute(gone) => {
                let gone = gone.clone().normalized();
                let hit = |route: &Route| {
                    (route.dest, route.metric, route.via, &route.device)
                        == (gone.dest, gone.metric, gone.via, &gone.device)
                };
                if let Some(position) = self.routes.iter().position(hit) {
                    self.routes.remove(position);
                }
            }
            Change::DeleteFdb(gone) => self.fdb.retain(|entry| entry != gone),
            Change::DeleteNeighbour(gone) => {
                self.neighbours.retain(|entry| (&entry.device, entry.ip) != (&gone.device, gone.ip));
            }
            Change::DeleteAddress(gone) => self.delete_address(gone),
        }
        true
    }

    /// The first one of the same destination and metric is replaced; others of them stay.
    fn replace_route(&mut self, want: Route) {
        let same_key = |route: &&mut Route| (route.dest, route.metric) == (want.dest, want.metric);
        match self.routes.iter_mut().find(same_key) {
            Some(route) => *route = want,
            None => self.routes.push(want),
        }
    }

    /// With the first IPv4 address of a subnet go the others, and with each the routes that use it as their source.
    fn delete_address(&mut self, gone: &Address) {
        let in_subnet = |address: &Address| {
            address.device == gone.device
                && address.net.trunc() == gone.net.trunc()
                && matches!(gone.net, IpNet::V4(_))
        };
        let first = self.addresses.iter().find(|address| in_subnet(address)) == Some(gone);
        let lost = |address: &Address| address == gone || (first && in_subnet(address));
        let sources: Vec<IpAddr> =
            self.addresses.iter().filter(|address| lost(address)).map(|address| address.net.addr()).collect();
        self.addresses.retain(|address| !lost(address));
        self.routes.retain(|route| route.source.is_none_or(|source| !sources.contains(&source)));
    }
}

fn set_link(link: &mut LinkState, want: &LinkState) {
    *link = LinkState {
        mac: want.mac.or(link.mac),
        alias: want.alias.clone().or_else(|| link.alias.take()),
        ..want.clone()
    };
}
