//! The bodies of the fuzz targets. One function has three callers: the fuzzer, the replay of the corpus, a property test.
//!
//! Each panics where a promise is broken, and only there.

use std::collections::BTreeSet;

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
