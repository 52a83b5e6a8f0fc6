//! The plugin `portmap`: ports of the host lead to ports of a container.
//!
//! It stands in a list of plugins behind the one that made the container's device, takes the container's addresses from
//! its result and hands that on. Names and forms of the rules are those of the reference plugin, so that a container that
//! it connected can be disconnected here and the other way round.
//!
//! ```text
//!  a client ─► 192.0.2.1:8080 ─(dnat)─► 10.244.1.5:80       conditionsV4, conditionsV6, hostIP: which packets
//!  the host ─► 127.0.0.1:8080 ─(dnat)─► 10.244.1.5:80       snat: masqueraded, or the container would answer itself
//!  the container itself, and its neighbours: likewise
//! ```

mod config;
mod iptables;
mod nft;

use std::io::{self, Write};
use std::net::IpAddr;

use hostnet::filter::nft::is_installed;
use hostnet::filter::{IpVersion, conntrack};
use hostnet::kernel::Kernel;
use hostnet::sysctl;
use ipnet::IpNet;

use crate::filter::{Backend, failed, in_both, missing, not_as_made, told};
use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Code, Request};
use config::{Config, Protocol, Way, addresses};

/// The option of the configuration that chooses the system.
const OPTION: &str = "backend";

/// Maps ports of the host to containers.
#[derive(Clone, Copy, Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    const NAME: &'static str = "portmap";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let config = Config::read(request)?;
        let previous = request.previous()?.ok_or_else(|| {
            CniError::config("portmap must be called as chained plugin: there is no prevResult")
                .with_details("put it behind the main plugin in the list of plugins (a .conflist)")
        })?;
        let ips = addresses(&previous, &request.attachment.ifname);
        let ways = config.ways(request, &ips);
        if !ways.is_empty() {
            wait(async {
                add(&config, &ways, &request.attachment.container_id).await?;
                let_loopback_out(&config, &ways).await?;
                forget_flows(&ways).await;
                Ok(())
            })?;
        }
        Ok(previous)
    }

    /// Without `prevResult`, and with a configuration that ADD would refuse, it takes away what is the container's.
    fn del(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::read(request);
        if config.as_ref().is_ok_and(|config| config.mappings.is_empty()) {
            return Ok(());
        }
        let previous = request.previous().ok().flatten();
        let ips =
            previous.map(|previous| addresses(&previous, &request.attachment.ifname)).unwrap_or_default();
        let ways = config.as_ref().map(|config| config.ways(request, &ips)).unwrap_or_default();
        let backend = config.as_ref().ok().and_then(|config| config.backend);
        wait(async {
            let removed = remove(request, &ways, backend).await;
            forget_flows(&ways).await;
            removed
        })
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::read(request)?;
        let previous = request.previous()?.ok_or_else(|| CniError::config("CHECK needs prevResult"))?;
        let ips = addresses(&previous, &request.attachment.ifname);
        let ways = config.ways(request, &ips);
        match ways.is_empty() {
            true => Ok(()),
            false => wait(check(&config, &ways, &request.attachment.container_id)),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let valid = request.valid_attachments()?;
        let network = &request.network;
        wait(async {
            let (in_iptables, in_nft) = tokio::join!(iptables::gc(network, &valid), nft::gc(network, &valid));
            in_both(&format!("free the port mappings of network {network}"), in_iptables, in_nft)
        })
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::read(request)?;
        let unusable = wait(async {
            Ok(match config.backend {
                Some(Backend::Iptables) => iptables::unusable().await,
                Some(Backend::Nftables) => nft::unusable(&request.network).await,
                None => match iptables::unusable().await {
                    None => None,
                    Some(first) => {
                        nft::unusable(&request.network).await.map(|second| format!("{first}; {second}"))
                    }
                },
            })
        })?;
        match unusable {
            None => Ok(()),
            Some(why) => {
                Err(CniError::new(Code::NOT_AVAILABLE, "portmap cannot map ports").with_details(why))
            }
        }
    }
}

/// A plugin has one thing to do.
fn wait<T>(work: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::new(Code::IO_FAILURE, format!("start the runtime: {error}")))?
        .block_on(work)
}

async fn add(config: &Config, ways: &[Way<'_>], container_id: &str) -> Result<(), CniError> {
    let action = format!("map ports to container {container_id}");
    let failed = |error| failed(&action, OPTION, &error);
    match config.backend {
        Some(Backend::Iptables) => iptables::add(ways).await.map_err(failed),
        Some(Backend::Nftables) => nft::add(ways).await.map_err(failed),
        None => match iptables::add(ways).await {
            Ok(()) => Ok(()),
            Err(first) if is_installed() => {
                // Rules of the one family that worked would be there twice.
                if let Some(way) = ways.first() {
                    iptables::remove(way.network, way.container_id, ways, false).await.ok();
                }
                nft::add(ways).await.map_err(|second| {
                    CniError::internal(format!(
                        "{action}: neither system works: {}; {}",
                        told(&first),
                        told(&second)
                    ))
                })
            }
            Err(error) => Err(failed(error)),
        },
    }
}

/// In both systems: which one ADD chose, it may have chosen for reasons that are gone.
async fn remove(request: &Request, ways: &[Way<'_>], backend: Option<Backend>) -> Result<(), CniError> {
    let (network, id) = (&request.network, &request.attachment.container_id);
    let known: Vec<IpVersion> = ways.iter().map(|way| way.version).collect();
    let versions = if known.is_empty() { IpVersion::ALL.to_vec() } else { known };
    let in_nft = backend == Some(Backend::Nftables);
    let (in_iptables, in_nft) = tokio::join!(
        iptables::remove(network, id, ways, !in_nft),
        nft::remove(network, id, &versions, in_nft)
    );
    in_both(&format!("unmap the ports of container {id}"), in_iptables, in_nft)
}

async fn check(config: &Config, ways: &[Way<'_>], container_id: &str) -> Result<(), CniError> {
    let action = format!("look at the port mappings of container {container_id}");
    let missing = missing(config.backend, iptables::missing(ways), nft::missing(ways));
    match missing.await.map_err(|error| failed(&action, OPTION, &error))? {
        None => Ok(()),
        Some(what) => Err(not_as_made(&format!(
            "the ports of container {container_id} are not mapped as they should be: {what}"
        ))),
    }
}

/// Without this the kernel takes packets from 127.0.0.1 for a mistake where they would leave by a device.
async fn let_loopback_out(config: &Config, ways: &[Way<'_>]) -> Result<(), CniError> {
    let v4 = ways.iter().find(|way| way.version == IpVersion::V4).filter(|_| config.snat);
    let Some(Way { ip: IpNet::V4(ip), .. }) = v4 else { return Ok(()) };
    let kernel = Kernel::connect().await?;
    let Some(reach) = kernel.route_to(IpAddr::V4(ip.addr())).await? else { return Ok(()) };
    let setting = format!("net/ipv4/conf/{}/route_localnet", reach.device);
    match sysctl::read(&setting).as_deref() {
        Ok("1") => Ok(()),
        _ => Ok(sysctl::set(&setting, "1")?),
    }
}

/// A flow that began before the rules came or went would be sent where they did not send it. That it cannot be forgotten
/// is no reason to refuse a container: it is over a while after its last packet.
async fn forget_flows(ways: &[Way<'_>]) {
    for way in ways {
        for mapping in way.mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp) {
            let port = mapping.host_port.get();
            if let Err(error) = conntrack::forget_udp_to(way.version, port).await {
                let text =
                    format!("portmap: flows to UDP port {port} from before are not forgotten: {error}\n");
                io::stderr().write_all(text.as_bytes()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests;
