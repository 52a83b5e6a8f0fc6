//! The image's `iptables` is the one that the node's own rules are written with, and stays so.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use promises::manifests::deploy;
use tempfile::TempDir;

const HINT: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
const CANARY: &str = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
const TWO_RULES: &str = "*nat\n:A - [0:0]\n-A A -j RETURN\n-A A -j RETURN\nCOMMIT\n";
const ONE_RULE: &str = "*nat\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n";

/// The image's directories with programs that say which they are: `-save` prints what the node has.
struct Image {
    dir: TempDir,
}

impl Image {
    fn new(nft: &str, legacy: &str, legacy_tables: &str) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        for family in ["iptables", "ip6tables"] {
            for variant in ["nft", "legacy"] {
                for form in ["", "-restore"] {
                    image.program(
                        &format!("{family}-{variant}{form}"),
                        &format!(
                            "echo \"{family} {variant}{form}\"; for a in \"$@\"; do echo \"$a\"; done; cat"
                        ),
                    );
                }
                image
                    .program(&format!("{family}-{variant}-save"), &format!("cat '{}'", image.rules(variant)));
            }
        }
        image.has(nft, legacy, legacy_tables);
        let script = fs::read_to_string(deploy().join("image/iptables")).unwrap();
        assert!(script.contains("/proc/self/net/"));
        let script = script.replace("/proc/self/net/", &format!("{}/", image.dir.path().display()));
        fs::create_dir(image.dir.path().join("first")).unwrap();
        for name in ["iptables", "iptables-save", "iptables-restore"] {
            for name in [name.to_owned(), name.replace("iptables", "ip6tables")] {
                let path = image.path(&name);
                fs::write(&path, &script).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            }
        }
        image
    }

    fn rules(&self, variant: &str) -> String {
        self.dir.path().join(format!("rules-{variant}")).display().to_string()
    }

    /// What the node has: rules of both kinds, and the names of the legacy tables that are loaded.
    fn has(&self, nft: &str, legacy: &str, legacy_tables: &str) {
        fs::write(self.rules("nft"), nft).unwrap();
        fs::write(self.rules("legacy"), legacy).unwrap();
        fs::write(self.dir.path().join("ip_tables_names"), legacy_tables).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("first").join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    /// What the program of this name says when it is called with these words and nothing on standard input.
    fn call(&self, name: &str, words: &[&str]) -> String {
        let path = format!("{}:/usr/bin:/bin", self.dir.path().display());
        let output = Command::new(self.path(name)).args(words).env("PATH", path).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn rules_go_where_the_nodes_rules_are() {
    for (nft, legacy, loaded, expected) in [
        ("", "", "", "nft"),
        (HINT, TWO_RULES, "filter\n", "nft"),
        (CANARY, HINT, "filter\n", "nft"),
        ("", HINT, "mangle\n", "legacy"),
        (TWO_RULES, CANARY, "mangle\n", "legacy"),
        (ONE_RULE, TWO_RULES, "nat\n", "legacy"),
        (TWO_RULES, ONE_RULE, "nat\n", "nft"),
        (ONE_RULE, ONE_RULE, "nat\n", "nft"),
        // Not loaded: what legacy says then is not asked.
        ("", HINT, "", "nft"),
    ] {
        let image = Image::new(nft, legacy, loaded);
        let words = ["-t", "nat", "-A", "POSTROUTING", "--comment", "flanneld masq"];
        let said = image.call("iptables", &words);
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            [&[&*format!("iptables {expected}")], &words[..]].concat()
        );
    }
}

#[test]
fn every_name_is_its_own_program() {
    for first in ["iptables", "ip6tables-restore", "ip6tables"] {
        let image = Image::new("", HINT, "mangle\n");
        image.call(first, &[]);
        for (name, expected) in [
            ("iptables", "iptables legacy\n-w\n"),
            ("ip6tables", "ip6tables legacy\n-w\n"),
            ("iptables-restore", "iptables legacy-restore\n-w\n"),
            ("ip6tables-restore", "ip6tables legacy-restore\n-w\n"),
            ("iptables-save", HINT),
        ] {
            assert_eq!(image.call(name, &["-w"]), expected, "{name} after {first}");
        }
    }
}

#[test]
fn rules_do_not_change_sides_under_the_daemon() {
    let image = Image::new(HINT, "", "");
    assert_eq!(image.call("iptables", &[]), "iptables nft\n");
    image.has("", TWO_RULES, "nat\n");
    assert_eq!(image.call("iptables", &[]), "iptables nft\n");
    assert_eq!(image.call("ip6tables-restore", &[]), "ip6tables nft-restore\n");
}

#[test]
fn a_name_in_the_way_or_a_missing_variant_stops_nothing() {
    let image = Image::new("", "", "");
    // No program to link to for this name, and a link that is there already.
    fs::remove_file(image.dir.path().join("ip6tables-nft-save")).unwrap();
    fs::remove_file(image.path("ip6tables")).unwrap();
    symlink(Path::new("/nonexistent"), image.path("ip6tables")).unwrap();
    assert_eq!(image.call("iptables", &["-S"]), "iptables nft\n-S\n");
    assert_eq!(image.call("ip6tables", &["-S"]), "ip6tables nft\n-S\n");
}
