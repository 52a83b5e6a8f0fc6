//! The bodies of the fuzz targets. One function has three callers: the fuzzer, the replay of the corpus, a property test.
//!
//! Each panics where a promise is broken, and only there.

use std::collections::BTreeSet;

use hostnet::subnet_env::SubnetEnv;
use serde_json::Value;

use crate::bridge;
use crate::flannel;
use crate::host_local::config::Config;
use crate::host_local::resolv_conf;
use crate::protocol::{AddResult, Request, Version};
use crate::static_ipam;

/// What a runtime writes to stdin of an IPAM plugin, and after a byte 0 its `CNI_ARGS`: accepted range sets hold together,
/// and a result survives print and read.
pub fn cni_config(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let stdin = parts.next().unwrap_or_default();
    let args = String::from_utf8_lossy(parts.next().unwrap_or_default());
    for command in ["ADD", "GC"] {
        let variable = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => command.to_owned(),
                "CNI_ARGS" => args.clone().into_owned(),
                _ => "x".to_owned(),
            })
        };
        match Request::read(variable, stdin) {
            Ok(request) => read(&request),
            Err((version, error)) => {
                assert!(!error.message.is_empty() && !error.to_json(version).is_empty());
            }
        }
    }
    // It is no configuration, and any text is one.
    resolv_conf::parse(&String::from_utf8_lossy(data));
}

/// What `flannel`, `bridge` and `portmap` read: stdin, after a byte 0 the text of `subnet.env`, after another a scratch file.
/// What flannel hands on says what it must, in the order of its keys, and is read back as it was written.
pub fn cni_flannel(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let [stdin, subnet_env, scratch] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    flannel::scratch_of(scratch);
    let variable = |name: &str| Some(if name == "CNI_COMMAND" { "ADD" } else { "x" }.to_owned());
    let Ok(request) = Request::read(variable, stdin) else { return };
    // Any answer will do.
    bridge::reads(&request).ok();
    let Ok(env) = SubnetEnv::parse(&String::from_utf8_lossy(subnet_env)) else { return };
    if let Ok(delegate) = flannel::delegate_of(&request, &env) {
        assert_eq!(delegate.get("name").and_then(Value::as_str), Some(request.network.as_str()));
        assert!(delegate.get("type").is_some_and(Value::is_string));
        let ranges = delegate.pointer("/ipam/ranges").and_then(Value::as_array);
        assert_eq!(ranges.map(Vec::len), Some(env.subnets.len()));
        assert!(delegate.as_object().is_some_and(|object| object.keys().is_sorted()));
        assert_eq!(flannel::scratch_of(delegate.to_string().as_bytes()), Some(delegate));
    }
}

fn read(request: &Request) {
    if let Ok(config) = Config::read(request) {
        assert!(!config.sets.is_empty(), "a container would get no address");
        for (index, set) in config.sets.iter().enumerate() {
            assert!(config.sets.iter().skip(index + 1).all(|other| !set.overlaps(other)));
            // A range set may have more addresses than anybody can look at.
            let first: Vec<_> = set.after(None).take(100).map(|(ip, _)| ip).collect();
            let distinct: BTreeSet<_> = first.iter().collect();
            assert_eq!(first.len() as u128, set.size().min(100));
            assert_eq!(distinct.len(), first.len());
            assert!(first.iter().all(|ip| set.range_of(*ip).is_some()));
            let last = first.last().copied();
            assert!(set.after(last).next().is_some());
        }
        let distinct: BTreeSet<_> = config.requested.iter().collect();
        assert_eq!(distinct.len(), config.requested.len());
    }
    for result in [static_ipam::read(request).ok(), request.previous().ok().flatten()].into_iter().flatten() {
        for version in Version::ALL {
            let Ok(json) = result.to_json(version) else { continue };
            let read = AddResult::from_json(&json);
            assert!(read.is_ok(), "{version}: {json}");
            assert!(version != Version::NEWEST || read.as_ref() == Ok(&result), "{json}");
        }
    }
    // Any answer will do.
    request.valid_attachments().ok();
}

#[cfg(test)]
mod tests;
