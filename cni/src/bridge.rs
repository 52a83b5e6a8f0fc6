//! The `bridge` plugin: a container on a bridge of the host, by a veth pair.
//!
//! ```text
//!  ADD   bridge ─► veth pair into the container ─┬─► veth on the bridge ────────────────────┬─► masquerade
//!                                                └─► IPAM ADD ─► gateway address on the     │
//!                                                    bridge ─► addresses, routes inside ────┘
//!  DEL   the container's device (and with it the pair), IPAM DEL beside it ─► masquerade
//! ```
//!
//! What stands beside each other runs at once: the kernel waits some milliseconds for its readers (RCU) before a device is on
//! a bridge or gone, and that is most of the time that ADD and DEL take.
//!
//! The pair's end on the host has a name made of network, container and device, and a group made of the network: a plugin
//! that is killed between two steps leaves nothing that DEL or GC could not find.

use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use hostnet::state::Mac;

use crate::delegate;
use crate::masquerade;
use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Command, Request};
use crate::sandbox::{enter, open, run};

mod check;
mod config;
mod gateway;
mod inside;
mod links;
mod names;
mod spoof;

use config::Config;
use gateway::Gateways;

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let config = Config::of(request)?;
        config.check_name()?;
        let namespace = open(&request.netns)?;
        run(add(&config, request, &namespace))
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        // The address is free a moment before the kernel is done with the device, which is down from the first moment on.
        let (unplugged, freed) = at_once(
            || run(unplug(&config, request)),
            || match &config.ipam {
                Some(kind) => delegate::ask(kind, Command::Del, request, &request.config),
                None => Ok(()),
            },
        );
        unplugged.and(freed)
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        if let Some(kind) = &config.ipam {
            delegate::ask(kind, Command::Check, request, &request.config)?;
        }
        let previous = request.previous()?.ok_or_else(|| CniError::config("CHECK needs prevResult"))?;
        run(check::check(&config, request, &previous))
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        let valid = request.valid_attachments()?;
        let swept = run(async {
            let links = links::sweep(&request.network, &valid).await;
            let rules = masquerade::gc(&request.network, &valid).await;
            let spoof = match config.mac_spoof_check {
                true => spoof::gc(&request.network, &valid).await,
                false => Ok(()),
            };
            links.and(rules).and(spoof)
        });
        let freed = match &config.ipam {
            Some(kind) => delegate::ask_if_known(kind, Command::Gc, request, &request.config),
            None => Ok(()),
        };
        swept.and(freed)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        match &config.ipam {
            Some(kind) => delegate::ask_if_known(kind, Command::Status, request, &request.config),
            None => Ok(()),
        }
    }
}

/// Reads a configuration and does nothing with it.
///
/// # Errors
/// Which option makes no sense, and why.
pub fn reads(request: &Request) -> Result<(), CniError> {
    Config::of(request).map(drop)
}

async fn add(config: &Config, request: &Request, namespace: &NetNs) -> Result<AddResult, CniError> {
    let kernel = Kernel::connect().await?;
    links::ensure_bridge(&kernel, config).await?;
    let host_end = links::plug(&kernel, config, request, namespace).await?;
    let mut has_address = false;
    let connected = connect(config, request, &kernel, namespace, &host_end, &mut has_address).await;
    if connected.is_err() {
        // A runtime that does not send DEL after a failed ADD leaks nothing then. Only what this ADD made: the same container
        // may be connected already, in another namespace.
        links::delete(&kernel, &host_end).await.ok();
        if has_address {
            unruled(config, request).await.ok();
            if let Some(kind) = &config.ipam {
                delegate::ask(kind, Command::Del, request, &request.config).ok();
            }
        }
    }
    connected
}

/// From a pair of devices to a connected container.
async fn connect(
    config: &Config,
    request: &Request,
    kernel: &Kernel,
    namespace: &NetNs,
    host_end: &str,
    has_address: &mut bool,
) -> Result<AddResult, CniError> {
    let ifname = &request.attachment.ifname;
    let (attached, given) = at_once(
        || run(async { links::attach(&Kernel::connect().await?, config, host_end).await }),
        || match &config.ipam {
            Some(kind) => delegate::add(kind, request, &request.config),
            None => Ok(AddResult::default()),
        },
    );
    let mut result = given?;
    *has_address = config.ipam.is_some();
    attached?;
    if config.ipam.is_some() && result.ips.is_empty() {
        return Err(CniError::internal("IPAM plugin returned missing IP config"));
    }
    let gateways = Gateways::of(config, &mut result)?;
    if config.is_gateway {
        gateways.put(kernel, config, host_end).await?;
    }
    let inside = enter(namespace, async {
        let kernel = Kernel::connect().await?;
        if !config.disable_container_interface {
            inside::configure(&kernel, config, ifname, &result).await?;
        }
        links::described(&kernel, ifname, &request.netns).await
    })?;
    if !config.disable_container_interface {
        links::await_carrier(kernel, host_end).await?;
    }
    if config.ip_masq {
        config.masquerade(request, &result).add().await?;
    }
    if config.mac_spoof_check {
        spoof::add(&request.network, &request.attachment, host_end, &inside.mac).await?;
    }
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    // In the order that the reference plugin tells them, behind which the addresses count.
    result.interfaces = vec![
        links::described(kernel, &config.bridge, "").await?,
        links::described(kernel, host_end, "").await?,
        inside,
    ];
    Ok(result)
}

/// Takes away what ADD made, all but the address. Each part is tried whatever became of the others.
async fn unplug(config: &Config, request: &Request) -> Result<(), CniError> {
    let ifname = &request.attachment.ifname;
    let inside = match NetNs::open(Path::new(&request.netns)) {
        Ok(namespace) => enter(&namespace, inside::remove(ifname)),
        // A namespace that is gone took its devices along.
        Err(_) => Ok(()),
    };
    let kernel = Kernel::connect().await?;
    let outside = links::unplug(&kernel, request).await;
    inside.and(outside).and(unruled(config, request).await)
}

/// Takes the packet filter rules away.
async fn unruled(config: &Config, request: &Request) -> Result<(), CniError> {
    let rules = match config.ip_masq {
        true => {
            let known = request.previous().ok().flatten().unwrap_or_default();
            config.masquerade(request, &known).remove().await
        }
        false => Ok(()),
    };
    let spoof = match config.mac_spoof_check {
        true => spoof::remove(&request.network, &request.attachment).await,
        false => Ok(()),
    };
    rules.and(spoof)
}

/// Does two things at the same time; `first` begins first.
fn at_once<A: Send, B>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        (first.join().unwrap_or_else(|panic| resume_unwind(panic)), second)
    })
}

/// `aa:bb:cc:dd:ee:ff`.
fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
