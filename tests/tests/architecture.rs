//! What may depend on what, each forbidden edge with its reason. The compiler guards the rest (`no_std`,
//! `forbid(unsafe_code)`, lines that are not in a Cargo.toml).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at what it did not expect")]

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Package folder, crates it must not name in its manifest, why.
const MANIFESTS: &[(&str, &[&str], &str)] = &[
    (
        "dataplane/core",
        &[
            "tokio",
            "nix",
            "libc",
            "mio",
            "socket2",
            "tracing",
            "serde",
            "rtnetlink",
            "dataplane.workspace",
            "hostnet",
        ],
        "the packet core is pure: it runs under a fuzzer, in memory and in a worker alike",
    ),
    (
        "dataplane",
        &["tokio", "rtnetlink", "netlink", "control.workspace", "serde"],
        "the dataplane never speaks netlink and waits for nobody",
    ),
    (
        "control/hostnet",
        &["dataplane", "control.workspace", "lab.workspace"],
        "hostnet is shared with the CNI plugins, which link neither daemon nor engine",
    ),
    (
        "cni",
        &["dataplane", "control.workspace", "kube", "clap", "tracing"],
        "a kubelet starts a plugin for every pod: it is small and knows nothing of the daemon",
    ),
];

/// Source file or folder, words that must not stand in its code, why.
const SOURCES: &[(&str, &[&str], &str)] = &[
    (
        "dataplane/core/src/wire",
        &["crate::forward", "crate::merge", "crate::split"],
        "wire is the bottom of the core",
    ),
    ("dataplane/core/src/prefix.rs", &["crate::"], "a table of prefixes knows nothing of packets"),
    (
        "dataplane/core/src/forward.rs",
        &["std::", "Instant", "Vec<", "alloc::", "Box<", "format!"],
        "the forwarder has no clock, no I/O, and allocates nothing",
    ),
    ("dataplane/core/src/split.rs", &["std::", "Vec<", "alloc::"], "splitting allocates nothing"),
    (
        "dataplane/src/engine",
        &["crate::sys", "tokio", "use nix"],
        "the engine sees the kernel through the io traits only",
    ),
    ("dataplane/src/io", &["crate::engine"], "queues and ports do not know who drives them"),
    ("control/src/lease.rs", &["tokio", "std::fs", "async fn"], "leases are values"),
    ("control/src/lease", &["tokio", "std::fs", "async fn"], "leases are values"),
    (
        "control/src/network.rs",
        &["tokio", "async fn", "hostnet::kernel"],
        "net-conf.json is a text, wherever it came from",
    ),
    ("control/src/store", &["crate::backend", "crate::plan"], "stores know nothing of what leases are for"),
    ("control/src/backend", &["crate::store"], "backends do not care where leases come from"),
    (
        "control/src/choose.rs",
        &["tokio", "async fn", "hostnet::kernel", "std::fs"],
        "a choice is a value of what was found out",
    ),
    (
        "control/src/plan.rs",
        &["tokio", "async fn", "std::fs", "crate::store"],
        "a plan is a pure function of leases",
    ),
];

fn rust_files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            rust_files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// Lines of code: without comments, and without what follows the first `#[cfg(test)]`.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .collect()
}

#[test]
fn manifests_keep_the_dependency_rule() {
    for (package, forbidden, why) in MANIFESTS {
        let manifest = fs::read_to_string(format!("{ROOT}/{package}/Cargo.toml")).unwrap();
        let own = manifest.split("[dev-dependencies]").next().unwrap();
        let dependencies = own.split_once("[dependencies]").unwrap().1;
        for line in dependencies.lines() {
            let breach =
                forbidden.iter().find(|name| line.starts_with(**name) && !line.starts_with("dataplane-core"));
            assert!(breach.is_none(), "{package}/Cargo.toml depends on `{line}`, but {why}");
        }
    }
}

#[test]
fn sources_keep_the_dependency_rule() {
    for (place, forbidden, why) in SOURCES {
        let mut files = Vec::new();
        rust_files(&Path::new(ROOT).join(place), &mut files);
        assert!(!files.is_empty(), "{place} is not there: adjust this table");
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            for (number, line) in code(file) {
                let breach = forbidden.iter().find(|word| line.contains(**word));
                assert!(
                    breach.is_none(),
                    "{}:{number}: `{}` breaks the rule: {why}",
                    file.display(),
                    line.trim()
                );
            }
        }
    }
}

#[test]
fn unsafe_lives_in_one_module() {
    let mut files = Vec::new();
    for package in ["dataplane", "control", "cni", "benches", "tests"] {
        rust_files(&Path::new(ROOT).join(package), &mut files);
    }
    assert!(files.len() > 40);
    for file in files {
        let path = file.to_string_lossy().replace("/tests/../", "/");
        let exempt = path.contains("/dataplane/src/sys") || path.ends_with("architecture.rs");
        for (number, line) in code(&file) {
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| line.contains(word));
            assert!(!is_unsafe || exempt, "{path}:{number}: unsafe outside dataplane/src/sys");
        }
    }
}

#[test]
fn every_source_file_says_what_lives_there() {
    let mut files = Vec::new();
    for package in ["dataplane", "control", "cni", "benches", "tests", "fuzz/fuzz_targets"] {
        rust_files(&Path::new(ROOT).join(package), &mut files);
    }
    for file in files.iter().filter(|file| !file.to_string_lossy().contains("/target/")) {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.starts_with("//!"), "{} has no module doc on its first line", file.display());
    }
}

#[test]
fn the_project_stands_on_its_own() {
    let mut files = Vec::new();
    for package in ["dataplane", "control", "cni", "benches", "tests", "fuzz/fuzz_targets"] {
        rust_files(&Path::new(ROOT).join(package), &mut files);
    }
    for name in
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "benches/README.md"]
    {
        files.push(Path::new(ROOT).join(name));
    }
    for file in files.iter().filter(|file| !file.ends_with("architecture.rs")) {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for word in ["/work/", "shared/reference", "flannel-behaviour.md", "dataplane.md"] {
            assert!(!text.contains(word), "{} mentions {word}", file.display());
        }
    }
}
