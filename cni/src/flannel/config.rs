//! The delegate's configuration, key for key as flannel's own plugin makes it.

use hostnet::subnet_env::SubnetEnv;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::Config;
use crate::protocol::{CniError, Request, Route, parse_config};

/// What the delegate gets, its keys in alphabetical order at every level.
///
/// # Errors
/// The configuration's `delegate` or `ipam` says what is not its to say.
pub(super) fn delegate_config(
    config: &Config,
    subnet: &SubnetEnv,
    request: &Request,
) -> Result<Value, CniError> {
    let mut delegate = config.delegate.clone().unwrap_or_default();
    check(&delegate)?;
    if let Some(runtime_config) = &config.runtime_config {
        delegate.insert("runtimeConfig".to_owned(), runtime_config.clone());
    }
    delegate.insert("name".to_owned(), request.network.as_str().into());
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", "bridge".into());
    // The packets are masqueraded once: by the daemon, or by the delegate.
    default("ipMasq", (!subnet.ip_masq).into());
    default("mtu", subnet.mtu.into());
    if delegate.get("type").and_then(Value::as_str) == Some("bridge") {
        delegate.entry("isGateway").or_insert(true.into());
    }
    if let Some(version) = request.config.get("cniVersion").filter(|version| version.as_str() != Some("")) {
        delegate.insert("cniVersion".to_owned(), version.clone());
    }
    delegate.insert("ipam".to_owned(), ipam(config.ipam.clone().unwrap_or_default(), subnet)?);
    Ok(sorted(Value::Object(delegate)))
}

fn check(delegate: &Map<String, Value>) -> Result<(), CniError> {
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            let text = format!("'delegate' dictionary must not have '{key}' field, it'll be set by flannel");
            let elsewhere = match key {
                "ipam" => "keys for the IPAM plugin stand in an 'ipam' beside 'delegate'",
                _ => "the network's name is the delegate's",
            };
            return Err(CniError::config(text).with_details(elsewhere));
        }
    }
    match delegate.get("type") {
        None | Some(Value::String(_)) => Ok(()),
        Some(other) => {
            let text =
                format!("'delegate' dictionary, if present, must have (string) 'type' field: it is {other}");
            Err(CniError::config(text))
        }
    }
}

/// The user's keys, our ranges, and routes to the overlay behind the user's routes.
fn ipam(mut ipam: Map<String, Value>, subnet: &SubnetEnv) -> Result<Value, CniError> {
    ipam.entry("type").or_insert("host-local".into());
    let by_family = |nets: &[IpNet]| {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = nets.iter().partition(|net| net.addr().is_ipv4());
        [v4, v6].concat()
    };
    let ranges: Vec<Value> =
        by_family(&subnet.subnets).iter().map(|net| json!([{"subnet": net.trunc()}])).collect();
    ipam.insert("ranges".to_owned(), ranges.into());
    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(routes) => {
            let checked: Result<Vec<Route>, CniError> = parse_config(&routes);
            checked.map_err(|error| CniError {
                message: format!("'ipam' has bad 'routes': {}", error.message),
                ..error
            })?;
            routes.as_array().cloned().unwrap_or_default()
        }
    };
    routes.extend(by_family(&subnet.networks).iter().map(|net| json!({"dst": net.trunc()})));
    ipam.insert("routes".to_owned(), routes.into());
    Ok(Value::Object(ipam))
}

/// Keys in order at every level: two runs write the same bytes, and those of flannel's plugin.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut pairs: Vec<(String, Value)> =
                object.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        plain => plain,
    }
}
