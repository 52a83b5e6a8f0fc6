//! The IPAM plugin `static`: a container gets the addresses that its configuration names. Nothing is reserved, so nothing is
//! ever to be freed.
//!
//! ```text
//!  runtimeConfig.ips, else args.cni.ips, else ipam.addresses with those of CNI_ARGS IP and GATEWAY
//! ```

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Code, Dns, IpConfig, Request, Route, Version};

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct Static;

impl Plugin for Static {
    const NAME: &'static str = "static";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        read(request)
    }

    fn del(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let wanted = read(request)?;
        let Some(previous) = request.previous()? else {
            return Err(CniError::config("Required prevResult missing"));
        };
        let is_there = |ip: &IpConfig| previous.ips.iter().any(|other| other.address == ip.address);
        match wanted.ips.iter().find(|ip| !is_there(ip)) {
            None => Ok(()),
            Some(ip) => {
                let text =
                    format!("static: {} is configured, and the container was not given it", ip.address);
                Err(CniError::check(text)
                    .with_details("start the container anew after a change of its addresses"))
            }
        }
    }

    fn gc(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        read(request).map(drop).map_err(|error| CniError { code: Code::NOT_AVAILABLE, ..error })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    ipam: Option<Ipam>,
    runtime_config: Option<Ips>,
    args: Option<Args>,
}

#[derive(Deserialize)]
struct Ipam {
    addresses: Option<Vec<Address>>,
    routes: Option<Vec<Route>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(deserialize_with = "with_prefix")]
    address: IpNet,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct Args {
    cni: Option<Ips>,
}

#[derive(Deserialize)]
struct Ips {
    ips: Option<Vec<String>>,
}

fn with_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    parse(&String::deserialize(deserializer)?, "ipam.addresses")
        .map_err(|error| de::Error::custom(error.message))
}

/// The result of ADD.
///
/// # Errors
/// Which part of the configuration or of `CNI_ARGS` is wrong.
pub fn read(request: &Request) -> Result<AddResult, CniError> {
    let network: Network = request.config()?;
    let ipam = network.ipam.ok_or_else(|| CniError::config("IPAM config missing 'ipam' key"))?;
    let mut ips = Vec::new();
    for Address { address, gateway } in ipam.addresses.into_iter().flatten() {
        let gateway = gateway.as_deref().filter(|text| !text.is_empty()).map(parse_gateway).transpose()?;
        ips.push(IpConfig { interface: None, address, gateway });
    }
    add_environment(request, &mut ips)?;
    let given = |ips: Option<Ips>| ips.and_then(|ips| ips.ips).filter(|ips| !ips.is_empty());
    let by_args = given(network.args.and_then(|args| args.cni)).map(|ips| ("args.cni.ips", ips));
    let by_runtime = given(network.runtime_config).map(|ips| ("runtimeConfig.ips", ips));
    if let Some((place, list)) = by_runtime.or(by_args) {
        ips = list.iter().map(|text| parse(text, place).map(without_gateway)).collect::<Result<_, _>>()?;
    }
    let of_v4 = ips.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if request.version < Version::V0_3_0 && (of_v4 > 1 || ips.len() - of_v4 > 1) {
        let text = format!("CNI version {} does not support more than 1 address per family", request.version);
        return Err(CniError::config(text));
    }
    let routes = ipam.routes.unwrap_or_default();
    Ok(AddResult { ips, routes, dns: ipam.dns.unwrap_or_default(), ..AddResult::default() })
}

/// `IP=10.1.0.5/24,fd00::5/64;GATEWAY=10.1.0.1`: a gateway becomes that of each address whose network it is in.
fn add_environment(request: &Request, ips: &mut Vec<IpConfig>) -> Result<(), CniError> {
    let [more, gateways] = request.args.known(["IP", "GATEWAY"])?;
    for text in more.into_iter().flat_map(|list| list.split(',')) {
        ips.push(without_gateway(parse(text, "CNI_ARGS IP")?));
    }
    for text in gateways.into_iter().flat_map(|list| list.split(',')) {
        let gateway = parse_gateway(text)?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(())
}

fn without_gateway(address: IpNet) -> IpConfig {
    IpConfig { interface: None, address, gateway: None }
}

fn parse(text: &str, place: &str) -> Result<IpNet, CniError> {
    text.trim().parse().map_err(|_no_prefix| {
        CniError::config(format!("{place} has {text:?}, expected an address with the length of its prefix"))
            .with_details("like 10.244.1.5/24 or fd00::5/64")
    })
}

fn parse_gateway(text: &str) -> Result<IpAddr, CniError> {
    text.trim().parse().map_err(|_no_address| CniError::config(format!("invalid gateway address: {text:?}")))
}

#[cfg(test)]
mod tests;
