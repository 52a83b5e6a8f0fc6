//! The `bridge` plugin: a container on a bridge of the host, by a veth pair.
//!
//! ```text
//!  ADD   bridge ─► veth pair into the container ─► IPAM ADD ─► gateway address on the bridge ─► veth on the bridge
//!        ─► addresses and routes in the container ─► masquerade
//!  DEL   the container's device (and with it the pair) ─► IPAM DEL ─► masquerade
//! ```
//!
//! The pair's end on the host has a name made of network, container and device, and a group made of the network: a plugin
//! that is killed between two steps leaves nothing that DEL or GC could not find.

use std::future::Future;
use std::path::Path;

use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use hostnet::state::Mac;

use crate::delegate;
use crate::masquerade;
use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Code, Command, Interface, Request};

mod check;
mod config;
mod gateway;
mod inside;
mod links;
mod names;

use config::Config;
use gateway::Gateways;

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    const NAME: &'static str = "bridge";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let config = Config::of(request)?;
        let namespace = open(&request.netns)?;
        on_the_network(add(&config, request, &namespace))
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        on_the_network(async {
            let unplugged = unplug(request).await;
            let freed = match &config.ipam {
                Some(kind) => delegate::ask(kind, Command::Del, request, &request.config),
                None => Ok(()),
            };
            unplugged.and(freed)
        })
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        if let Some(kind) = &config.ipam {
            delegate::ask(kind, Command::Check, request, &request.config)?;
        }
        let previous = request.previous()?.ok_or_else(|| CniError::config("CHECK needs prevResult"))?;
        on_the_network(check::check(&config, request, &previous))
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        let valid = request.valid_attachments()?;
        let swept = on_the_network(async {
            let links = links::sweep(&request.network, &valid).await;
            links.and(masquerade::gc(&request.network, &valid).await)
        });
        let freed = match &config.ipam {
            Some(kind) => {
                delegate::unless_unknown(delegate::ask(kind, Command::Gc, request, &request.config))
            }
            None => Ok(()),
        };
        swept.and(freed)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        match &config.ipam {
            Some(kind) => {
                delegate::unless_unknown(delegate::ask(kind, Command::Status, request, &request.config))
            }
            None => Ok(()),
        }
    }
}

async fn add(config: &Config, request: &Request, namespace: &NetNs) -> Result<AddResult, CniError> {
    let kernel = Kernel::connect().await?;
    links::ensure_bridge(&kernel, config).await?;
    let host_end = links::plug(&kernel, config, request, namespace).await?;
    let connected = connect(config, request, &kernel, namespace, &host_end).await;
    if connected.is_err() {
        // A runtime that does not send DEL after a failed ADD leaks nothing then. The device in the container was made a
        // moment ago, so that no address of this attachment is anybody's who lives.
        unplug(request).await.ok();
        if let Some(kind) = &config.ipam {
            delegate::ask(kind, Command::Del, request, &request.config).ok();
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
) -> Result<AddResult, CniError> {
    let ifname = &request.attachment.ifname;
    let mut result = match &config.ipam {
        Some(kind) => delegate::add(kind, request, &request.config)?,
        None => AddResult::default(),
    };
    if config.ipam.is_some() && result.ips.is_empty() {
        return Err(CniError::internal("IPAM plugin returned missing IP config"));
    }
    let gateways = Gateways::of(config, &mut result)?;
    if config.is_gateway {
        gateways.put(kernel, config).await?;
    }
    links::attach(kernel, config, host_end).await?;
    if !config.disable_container_interface {
        on_other(namespace, inside::configure(config, ifname, &result))?;
        links::await_carrier(kernel, host_end).await?;
    }
    if config.ip_masq {
        config.masquerade(request, &result).add().await?;
    }
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    result.interfaces = interfaces(config, request, kernel, namespace, host_end).await?;
    Ok(result)
}

/// Takes away what ADD made, all but the address. Each part is tried whatever became of the others.
async fn unplug(request: &Request) -> Result<(), CniError> {
    let ifname = &request.attachment.ifname;
    let inside = match NetNs::open(Path::new(&request.netns)) {
        Ok(namespace) => on_other(&namespace, inside::remove(ifname)),
        // A namespace that is gone took its devices along.
        Err(_) => Ok(()),
    };
    let kernel = Kernel::connect().await?;
    let outside = links::unplug(&kernel, request).await;
    let config = Config::of(request)?;
    let rules = match config.ip_masq {
        true => {
            let known = request.previous().ok().flatten().unwrap_or_default();
            config.masquerade(request, &known).remove().await
        }
        false => Ok(()),
    };
    inside.and(outside).and(rules)
}

/// The bridge, the host's end and the container's, in the order that the reference plugin tells them.
async fn interfaces(
    config: &Config,
    request: &Request,
    kernel: &Kernel,
    namespace: &NetNs,
    host_end: &str,
) -> Result<Vec<Interface>, CniError> {
    let mut interfaces = Vec::new();
    for name in [config.bridge.as_str(), host_end] {
        interfaces.push(links::described(kernel, name, "").await?);
    }
    let ifname = request.attachment.ifname.clone();
    let sandbox = request.netns.clone();
    let inside = async move {
        let kernel = Kernel::connect().await?;
        links::described(&kernel, &ifname, &sandbox).await
    };
    interfaces.push(on_other(namespace, inside)?);
    Ok(interfaces)
}

fn open(path: &str) -> Result<NetNs, CniError> {
    NetNs::open(Path::new(path)).map_err(|error| {
        CniError::new(Code::INVALID_NETNS, format!("failed to open netns {path:?}: {error}"))
            .with_details("the container's namespace is gone, or CNI_NETNS is not the path of one")
    })
}

/// Runs the plugin's work. One thread: a plugin lives for some milliseconds, and starting more would take longer.
fn on_the_network<T>(work: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::internal(format!("start: {error}")))?;
    runtime.block_on(work)
}

/// The same inside a namespace, on a thread of its own.
fn on_other<T: Send>(
    namespace: &NetNs,
    work: impl Future<Output = Result<T, CniError>> + Send,
) -> Result<T, CniError> {
    namespace.run("container", || on_the_network(work)).unwrap_or_else(|error| {
        Err(CniError::new(Code::INVALID_NETNS, format!("enter the container's network namespace: {error}")))
    })
}

/// `aa:bb:cc:dd:ee:ff`.
fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
