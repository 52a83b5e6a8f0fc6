//! The result of ADD: one form inside, those of all versions outside.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::request::as_go_reads;
use super::{CniError, Code, Version};

/// What ADD made, in the newest version's form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The devices that were made, those outside the container too.
    pub interfaces: Vec<Interface>,
    /// The addresses that were given.
    pub ips: Vec<IpConfig>,
    /// The routes in the container.
    pub routes: Vec<Route>,
    /// How names are resolved there.
    pub dns: Dns,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as text; empty: not told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes, since 1.1.0; 0: not told.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Path of the namespace it is in; empty: the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0; none of our plugins sets it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Since 1.1.0; none of our plugins sets it.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "negative_is_none")]
    pub interface: Option<usize>,
    /// The address with the length of its network's prefix.
    pub address: IpNet,
    /// The router of that network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which router; `None`: the address's.
    #[serde(
        rename = "gw",
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "empty_is_none"
    )]
    pub gateway: Option<IpAddr>,
    /// In bytes, since 1.1.0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Largest TCP segment to offer, in bytes, since 1.1.0.
    #[serde(rename = "advmss", default, skip_serializing_if = "is_zero")]
    pub adv_mss: u32,
    /// The metric, since 1.1.0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table, since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's `rtm_scope`, since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// To a network, by the address's gateway.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, gateway: None, mtu: 0, adv_mss: 0, priority: 0, table: None, scope: None }
    }
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers, by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that are tried for short names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of `resolv.conf`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddResult {
    /// The JSON of a version. What a version does not have is left out.
    ///
    /// # Errors
    /// A result without any address has no form before 0.3.0.
    pub fn to_json(&self, version: Version) -> Result<Value, CniError> {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), version.as_str().into());
        if version < Version::V0_3_0 {
            self.write_first_of_each_family(&mut object)?;
            return Ok(Value::Object(object));
        }
        let mut put = |name: &str, list: Vec<Value>| {
            if !list.is_empty() {
                object.insert(name.to_owned(), list.into());
            }
        };
        put("interfaces", self.interfaces.iter().map(|interface| interface.to_json(version)).collect());
        put("ips", self.ips.iter().map(|ip| ip.to_json(version)).collect());
        put("routes", self.routes.iter().map(|route| route.to_json(version)).collect());
        if version < Version::V1_0_0 || !self.dns.is_empty() {
            object.insert("dns".to_owned(), json!(self.dns));
        }
        Ok(Value::Object(object))
    }

    fn write_first_of_each_family(&self, object: &mut Map<String, Value>) -> Result<(), CniError> {
        for (key, is_v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4) else { continue };
            let mut form = json!({"ip": ip.address});
            if let Some(gateway) = ip.gateway {
                form["gateway"] = json!(gateway);
            }
            let of_family = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_v4);
            let routes: Vec<Value> = of_family.map(|route| route.to_json(Version::V0_2_0)).collect();
            if !routes.is_empty() {
                form["routes"] = routes.into();
            }
            object.insert(key.to_owned(), form);
        }
        if object.len() == 1 {
            let text = "a result without an address has no form in CNI versions before 0.3.0";
            return Err(CniError::new(Code::INCOMPATIBLE_VERSION, text));
        }
        object.insert("dns".to_owned(), json!(self.dns));
        Ok(())
    }

    /// Reads a result of any version: what an IPAM plugin answered, or `prevResult`.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn from_json(value: &Value) -> Result<Self, CniError> {
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Read {
            interfaces: Option<Vec<Interface>>,
            ips: Option<Vec<IpConfig>>,
            routes: Option<Vec<Route>>,
            dns: Option<Dns>,
            ip4: Option<Family>,
            ip6: Option<Family>,
        }
        #[derive(Deserialize)]
        struct Family {
            ip: IpNet,
            #[serde(default, deserialize_with = "empty_is_none")]
            gateway: Option<IpAddr>,
            #[serde(default)]
            routes: Option<Vec<Route>>,
        }
        if !value.is_object() {
            return Err(CniError::new(
                Code::DECODING_FAILURE,
                format!("read a CNI result: it is no object: {value}"),
            ));
        }
        let read: Read = Deserialize::deserialize(as_go_reads(value))
            .map_err(|error| CniError::new(Code::DECODING_FAILURE, format!("read a CNI result: {error}")))?;
        let mut result = Self {
            interfaces: read.interfaces.unwrap_or_default(),
            ips: read.ips.unwrap_or_default(),
            routes: read.routes.unwrap_or_default(),
            dns: read.dns.unwrap_or_default(),
        };
        for family in [read.ip4, read.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: family.ip, gateway: family.gateway });
            result.routes.extend(family.routes.unwrap_or_default());
        }
        Ok(result)
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        match version {
            Version::V1_1_0 => json!(self),
            _ => json!(Self { mtu: 0, socket_path: String::new(), pci_id: String::new(), ..self.clone() }),
        }
    }
}

impl IpConfig {
    fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        if version < Version::V1_0_0 {
            let family = if self.address.addr().is_ipv4() { "4" } else { "6" };
            object.insert("version".to_owned(), family.into());
        }
        if let Value::Object(rest) = json!(self) {
            object.extend(rest);
        }
        Value::Object(object)
    }
}

impl Route {
    fn to_json(&self, version: Version) -> Value {
        match version {
            Version::V1_1_0 => json!(self),
            _ => json!(Self { gateway: self.gateway, ..Self::to(self.dst) }),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Some plugins write -1 for no interface.
fn negative_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let number: Option<i64> = Deserialize::deserialize(deserializer)?;
    Ok(number.and_then(|number| usize::try_from(number).ok()))
}

/// Older libraries write a gateway that is not there as an empty text.
fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = Deserialize::deserialize(deserializer)?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests;
