//! The configuration of `host-local`: the reference plugin's, with its rules.
//!
//! ```text
//!  runtimeConfig.ipRanges ─► ipam.subnet (one old range) ─► ipam.ranges      range sets: one address of each
//!  CNI_ARGS IP, args.cni.ips, runtimeConfig.ips                              addresses that are asked for
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::range::{RangeSet, RawRange};
use crate::protocol::{CniError, Request, Route, Version};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// What ADD and STATUS need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the reservations are.
    pub directory: PathBuf,
    /// A container gets an address of each; at least one, and none that overlap.
    pub sets: Vec<RangeSet>,
    /// Addresses that are asked for, each once.
    pub requested: Vec<IpAddr>,
    /// Passed on to the result.
    pub routes: Vec<Route>,
    /// A `resolv.conf` whose content is passed on to the result.
    pub resolv_conf: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    ipam: Option<Ipam>,
    runtime_config: Option<RuntimeConfig>,
    args: Option<Args>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(flatten)]
    single: RawRange,
    ranges: Option<Vec<Vec<RawRange>>>,
    routes: Option<Vec<Route>>,
    resolv_conf: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    ip_ranges: Option<Vec<Vec<RawRange>>>,
    ips: Option<Vec<Requested>>,
}

#[derive(Deserialize)]
struct Args {
    cni: Option<CniArgs>,
}

#[derive(Deserialize)]
struct CniArgs {
    ips: Option<Vec<Requested>>,
}

/// An address that is asked for, with or without the length of a prefix.
struct Requested(IpAddr);

impl FromStr for Requested {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip = text.parse().or_else(|_no_address| text.parse::<IpNet>().map(|net| net.addr()));
        let ip: IpAddr = ip.map_err(|_neither| format!("{text:?} is no address"))?;
        Ok(Self(ip.to_canonical()))
    }
}

impl<'de> Deserialize<'de> for Requested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Config {
    /// Reads and checks it.
    ///
    /// # Errors
    /// Which part of the configuration or of `CNI_ARGS` is wrong.
    pub fn read(request: &Request) -> Result<Self, CniError> {
        let directory = directory(request)?;
        let network: Network = request.config()?;
        let ipam = network.ipam.ok_or_else(|| CniError::config("IPAM config missing 'ipam' key"))?;
        let (ip_ranges, ips) = network.runtime_config.map(|rc| (rc.ip_ranges, rc.ips)).unwrap_or_default();
        let single = ipam.single.subnet.is_some().then(|| vec![ipam.single]);
        let raw = ip_ranges.into_iter().flatten().chain(single).chain(ipam.ranges.into_iter().flatten());
        let sets = range_sets(raw, request.version)?;

        let [by_environment] = request.args.known(["IP"])?;
        let by_environment = by_environment
            .map(|ip| ip.parse().map_err(|wrong| CniError::config(format!("CNI_ARGS IP: {wrong}"))))
            .transpose()?;
        let by_args = network.args.and_then(|args| args.cni).and_then(|cni| cni.ips);
        let mut requested = Vec::new();
        for Requested(ip) in
            by_environment.into_iter().chain(by_args.into_iter().flatten()).chain(ips.into_iter().flatten())
        {
            if !requested.contains(&ip) {
                requested.push(ip);
            }
        }
        Ok(Self {
            directory,
            sets,
            requested,
            routes: ipam.routes.unwrap_or_default(),
            resolv_conf: ipam.resolv_conf.filter(|path| !path.as_os_str().is_empty()),
        })
    }

    /// Whether an address is a router's: no container gets it, whichever range it is in.
    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.sets.iter().flat_map(RangeSet::ranges).any(|range| range.gateway() == ip)
    }
}

/// Where the reservations of a network are. DEL and GC need nothing else: what they free was reserved under a
/// configuration that may have been another, or that makes no sense any more.
///
/// # Errors
/// `dataDir` is no text.
pub fn directory(request: &Request) -> Result<PathBuf, CniError> {
    let given = request.config.get("ipam").and_then(|ipam| ipam.get("dataDir"));
    let data_dir = match given {
        None | Some(Value::Null) => "",
        Some(Value::String(path)) => path.as_str(),
        Some(other) => {
            return Err(CniError::config(format!(
                "ipam.dataDir is {other}, expected the path of a directory"
            )));
        }
    };
    let data_dir = if data_dir.is_empty() { DEFAULT_DATA_DIR } else { data_dir };
    // The name of a network has no slash and does not begin with a point.
    Ok(PathBuf::from(data_dir).join(&request.network))
}

fn range_sets(raw: impl Iterator<Item = Vec<RawRange>>, version: Version) -> Result<Vec<RangeSet>, CniError> {
    let mut sets: Vec<RangeSet> = Vec::new();
    for (index, ranges) in raw.enumerate() {
        let set = RangeSet::new(&ranges)
            .map_err(|wrong| CniError::config(format!("invalid range set {index}: {wrong}")))?;
        sets.push(set);
    }
    if sets.is_empty() {
        return Err(CniError::config("no IP ranges specified")
            .with_details("ipam needs ranges, like [[{\"subnet\": \"10.244.1.0/24\"}]]"));
    }
    let of_v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if version < Version::V0_3_0 && (of_v4 > 1 || sets.len() - of_v4 > 1) {
        let text = format!("CNI version {version} does not support more than 1 address per family");
        return Err(CniError::config(text));
    }
    for (index, one) in sets.iter().enumerate() {
        if let Some(other) = sets.iter().skip(index + 1).position(|other| one.overlaps(other)) {
            let text = format!("range set {index} overlaps with {}", index + 1 + other);
            return Err(CniError::config(text));
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests;
