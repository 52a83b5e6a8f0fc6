//! The kernel as a [`Host`]: what of its state a scope covers, and changes that may be made twice.
use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{Kernel, LinkSettings};
use crate::change::Change;
use crate::host::{Host, HostError};
use crate::state::{Address, HostState, LinkState, Scope};

impl Host for Kernel {
    async fn read(&self, scope: &Scope) -> Result<HostState, HostError> {
        Self::read(self, scope).await
    }

    async fn apply(&self, change: &Change) -> Result<(), HostError> {
        Self::apply(self, change).await
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
            ..HostState::default()
        };
        for link in links.into_iter().filter(|link| scope.devices.contains(&link.name)) {
            let neighbours = present(self.neighbours_by_index(&link.name, link.index).await)?;
            state.neighbours.extend(neighbours.into_iter().filter(|entry| scope.covers_neighbour(entry)));
            if link.vxlan.is_some() {
                let fdb = present(self.fdb_by_index(&link.name, link.index).await)?;
                state.fdb.extend(fdb.into_iter().filter(|entry| scope.covers_fdb(entry)));
            }
            state.links.insert(LinkState { device: link.name, mtu: link.mtu, up: link.up });
        }
        Ok(state)
    }

    /// Makes one change. What is already so is no error: neither adding what is there nor deleting what is not, nor
    /// deleting from a device that is gone.
    pub async fn apply(&self, change: &Change) -> Result<(), HostError> {
        match change {
            Change::SetLink(link) => {
                let settings =
                    LinkSettings { up: Some(link.up), mtu: Some(link.mtu), ..LinkSettings::default() };
                self.set_link(&link.device, &settings).await
            }
            Change::AddAddress(address) => self.add_address(&address.device, address.net).await,
            Change::ReplaceNeighbour(neighbour) => self.replace_neighbour(neighbour).await,
            Change::ReplaceFdb(entry) => self.replace_fdb(entry).await,
            Change::ReplaceRoute(route) => self.replace_route(route).await,
            Change::DeleteRoute(route) => gone(self.delete_route(route).await),
            Change::DeleteFdb(entry) => gone(self.delete_fdb(entry).await),
            Change::DeleteNeighbour(neighbour) => gone(self.delete_neighbour(neighbour).await),
            Change::DeleteAddress(address) => gone(self.delete_address(&address.device, address.net).await),
        }
    }
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
