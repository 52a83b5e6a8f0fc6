//! The committed corpora and every input that once broke a promise, run on stable without a fuzzer.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at what it did not expect")]

use std::fs;
use std::path::Path;

use dataplane_core::fuzzing::{Receiver, icmp, merge, vnet_split};

fn replay(target: &str, mut body: impl FnMut(&[u8])) {
    let mut count = 0;
    for kind in ["corpus", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            // Printed only when the body panics.
            println!("{}", path.display());
            body(&fs::read(&path).unwrap());
            count += 1;
        }
    }
    assert!(count > 0, "no corpus for {target}");
}

#[test]
fn receive() {
    let mut receiver = Receiver::default();
    replay("receive", |data| receiver.receive(data));
}

#[test]
fn vnet_splits() {
    replay("vnet_split", vnet_split);
}

#[test]
fn merges() {
    replay("merge", merge);
}

#[test]
fn icmp_replies() {
    replay("icmp", icmp);
}

#[test]
fn net_conf() {
    replay("net_conf", control::fuzzing::net_conf);
}

#[test]
fn subnet_env() {
    replay("subnet_env", control::fuzzing::subnet_env);
}

#[test]
fn lease_files() {
    replay("lease_file", control::fuzzing::lease_file);
}

#[test]
fn etcd_leases() {
    replay("etcd_leases", control::fuzzing::etcd_leases);
}

#[test]
fn flags() {
    replay("flags", control::fuzzing::flags);
}

#[test]
fn annotations() {
    replay("annotations", control::fuzzing::annotations);
}

#[test]
fn every_fuzz_target_is_replayed() {
    let here = include_str!("corpus_replay.rs");
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    for entry in fs::read_dir(targets).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(here.contains(&format!("replay(\"{name}\"")), "{name} is not replayed");
    }
}

#[test]
fn rule_listings() {
    replay("rule_listing", control::fuzzing::rule_listing);
}

#[test]
fn cni_configs() {
    replay("cni_config", cni::fuzzing::cni_config);
}

#[test]
fn cni_flannel_and_its_files() {
    replay("cni_flannel", cni::fuzzing::cni_flannel);
}
