//! The IPAM plugin `host-local`: addresses of configured ranges, each reserved by a file. Configuration, files and lock are
//! the reference plugin's, and both can use one directory at the same time.
//!
//! [`config`] is what is asked for, [`range`] the order in which addresses are tried, [`store`] the directory, [`boot`] what
//! happens to it when the machine starts again.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::plugin::Plugin;
use crate::protocol::{AddResult, Attachment, CniError, Code, Dns, IpConfig, Request};

pub mod boot;
pub mod config;
mod lock;
pub mod range;
pub mod resolv_conf;
pub mod store;

use config::Config;
use range::RangeSet;
use store::{Owner, Store};

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    const NAME: &'static str = "host-local";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let config = Config::read(request)?;
        let dns = config.resolv_conf.as_deref().map_or_else(|| Ok(Dns::default()), resolv_conf::read)?;
        let mut store = Store::open(&config.directory)?;
        let ips = allocate(&config, &mut store, &request.attachment)?;
        Ok(AddResult { ips, routes: config.routes, dns, ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        match Store::existing(&config::directory(request)?)? {
            Some(mut store) => release(&mut store, &request.attachment),
            None => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::read(request)?;
        let previous = request.previous()?.unwrap_or_default();
        check(&config, Store::existing(&config.directory)?.as_ref(), &previous, &request.attachment)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.valid_attachments()?;
        match Store::existing(&config::directory(request)?)? {
            Some(mut store) => collect(&mut store, &valid),
            None => Ok(()),
        }
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let unavailable = |error: CniError| CniError { code: Code::NOT_AVAILABLE, ..error };
        let config = Config::read(request)?;
        let store = Store::open(&config.directory).map_err(unavailable)?;
        store.probe().map_err(unavailable)?;
        // A container needs an address of each set.
        let is_full = |set: &&RangeSet| candidates(&config, &store, set, None).next().is_none();
        match config.sets.iter().find(is_full) {
            Some(set) => Err(unavailable(exhausted(&config, &store, set))),
            None => Ok(()),
        }
    }
}

/// Reserves an address of each range set; all, or none.
///
/// # Errors
/// Which set has none to give, and why; or what could not be written.
pub fn allocate(
    config: &Config,
    store: &mut Store,
    attachment: &Attachment,
) -> Result<Vec<IpConfig>, CniError> {
    let mut requested = config.requested.clone();
    let mut wanted = Vec::new();
    for set in &config.sets {
        let mine = requested.iter().position(|ip| set.range_of(*ip).is_some());
        wanted.push(mine.map(|index| requested.remove(index)));
    }
    if !requested.is_empty() {
        let list: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
        let sets: Vec<String> = config.sets.iter().map(RangeSet::to_string).collect();
        return Err(CniError::internal(format!("failed to allocate all requested IPs: {}", list.join(" ")))
            .with_details(format!(
                "one address of each of the range sets {} can be asked for",
                sets.join(" and ")
            )));
    }
    let mut given: Vec<IpConfig> = Vec::new();
    for (index, (set, wanted)) in config.sets.iter().zip(wanted).enumerate() {
        match allocate_one(config, store, attachment, index, set, wanted) {
            Ok(ip) => given.push(ip),
            Err(mut error) => {
                // The first error is the one to tell; DEL finds what could not be freed.
                given.iter().for_each(|ip| drop(store.free(ip.address.addr())));
                error.message = format!("failed to allocate for range {index}: {}", error.message);
                return Err(error);
            }
        }
    }
    Ok(given)
}

fn allocate_one(
    config: &Config,
    store: &mut Store,
    attachment: &Attachment,
    index: usize,
    set: &RangeSet,
    wanted: Option<IpAddr>,
) -> Result<IpConfig, CniError> {
    let has = |(ip, owner): &(IpAddr, &Owner)| owner.is(attachment) && set.range_of(*ip).is_some();
    if let Some((ip, _)) = store.taken().find(has) {
        let id = &attachment.container_id;
        let text = format!("{ip} has been allocated to {id}, duplicate allocation is not allowed");
        return Err(CniError::internal(text)
            .with_details(format!("DEL of {} in that container frees it", attachment.ifname)));
    }
    if let Some(ip) = wanted.filter(|ip| config.is_gateway(*ip)) {
        return Err(CniError::internal(format!("requested ip {ip} is subnet's gateway")));
    }
    loop {
        let next = match wanted {
            // A set may be too large to be walked through.
            Some(ip) => {
                set.range_of(ip).map(|range| (ip, range)).filter(|_| *store.owner(ip) == Owner::Nobody)
            }
            None => candidates(config, store, set, store.last(index)).next(),
        };
        let Some((ip, range)) = next else {
            return Err(match wanted {
                Some(ip) => unavailable(store, set, ip),
                None => exhausted(config, store, set),
            });
        };
        let (gateway, length) = (range.gateway(), range.prefix_len());
        // An address that somebody takes without the lock is not tried again.
        if store.reserve(ip, attachment, index)? {
            let address = IpNet::new(ip, length)
                .map_err(|error| CniError::internal(format!("{ip}/{length}: {error}")))?;
            return Ok(IpConfig { interface: None, address, gateway: Some(gateway) });
        }
    }
}

/// The free addresses of a set, in the order in which they are given.
fn candidates<'a>(
    config: &'a Config,
    store: &'a Store,
    set: &'a RangeSet,
    last: Option<IpAddr>,
) -> impl Iterator<Item = (IpAddr, &'a range::Range)> {
    set.after(last).filter(|(ip, _)| *store.owner(*ip) == Owner::Nobody && !config.is_gateway(*ip))
}

fn unavailable(store: &Store, set: &RangeSet, ip: IpAddr) -> CniError {
    CniError::internal(format!("requested IP address {ip} is not available in range set {set}"))
        .with_details(format!("{} says who has it", store.directory().join(ip.to_string()).display()))
}

fn exhausted(config: &Config, store: &Store, set: &RangeSet) -> CniError {
    let gateways = |ip: &IpAddr| config.is_gateway(*ip);
    let used = store.taken().filter(|(ip, _)| set.range_of(*ip).is_some() && !gateways(ip)).count();
    let mut inside: Vec<IpAddr> =
        config.sets.iter().flat_map(RangeSet::ranges).map(range::Range::gateway).collect();
    inside.sort_unstable();
    inside.dedup();
    inside.retain(|ip| set.range_of(*ip).is_some());
    let total = set.size().saturating_sub(inside.len() as u128);
    let directory = store.directory().display();
    CniError::internal(format!(
        "no IP addresses available in range set: {set} ({used} of {total} used, see {directory})"
    ))
    .with_details("GC by the container runtime frees addresses of containers that are gone")
}

/// Frees what an attachment has: only if it has nothing, what a very old plugin reserved for its container.
///
/// # Errors
/// What could not be removed.
pub fn release(store: &mut Store, attachment: &Attachment) -> Result<(), CniError> {
    let exact = Owner::Attachment(attachment.clone());
    let old = Owner::Container(attachment.container_id.clone());
    let goes = if store.taken().any(|(_, owner)| *owner == exact) { exact } else { old };
    store.free_all(|owner| *owner == goes)
}

/// Frees what belongs to no attachment of a list.
///
/// # Errors
/// What could not be removed.
pub fn collect(store: &mut Store, valid: &[Attachment]) -> Result<(), CniError> {
    store.free_all(|owner| *owner != Owner::Unknown && !valid.iter().any(|attachment| owner.is(attachment)))
}

/// The addresses of an earlier result that are of our ranges, or at least one address if it has none of them, must be
/// reserved for the attachment.
fn check(
    config: &Config,
    store: Option<&Store>,
    previous: &AddResult,
    attachment: &Attachment,
) -> Result<(), CniError> {
    let Attachment { container_id, ifname } = attachment;
    let is_reserved = |ip: IpAddr| store.is_some_and(|store| store.owner(ip).is(attachment));
    let of_device = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == *ifname)
    };
    let ours = previous.ips.iter().filter(of_device).map(|ip| ip.address.addr());
    let ours: Vec<IpAddr> =
        ours.filter(|ip| config.sets.iter().any(|set| set.range_of(*ip).is_some())).collect();
    let directory = config.directory.display();
    if let Some(ip) = ours.iter().find(|ip| !is_reserved(**ip)) {
        return Err(CniError::check(format!(
            "host-local: {ip} is not reserved for {ifname} of container {container_id} in {directory}"
        ))
        .with_details("another container may get it; start this one anew"));
    }
    let has_one =
        !ours.is_empty() || store.is_some_and(|store| store.taken().any(|(_, owner)| owner.is(attachment)));
    match has_one {
        true => Ok(()),
        false => Err(CniError::check(format!(
            "host-local: Failed to find address added by container {container_id} for {ifname} in {directory}"
        ))),
    }
}

#[cfg(test)]
mod tests;
