//! Promises about packet filter rules, kept with the real programs in private namespaces: what they list is what was
//! asked for, a second time changes nothing, and whatever somebody does to our chains is noticed and put right.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what went wrong by failing, and why it was skipped aloud"
)]
use std::process::Command;

use hostnet::filter::iptables::{Chain, Iptables, KeptChain};
use hostnet::filter::nft::{self, KeptTable, Table};
use hostnet::filter::{IpVersion, ProgramError};
use hostnet::netns::NetNs;

const JUMP: &str = r#"-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

fn chain() -> Chain {
    let rule = |text: &str| text.to_owned();
    Chain {
        table: "nat",
        name: "FLANNEL-POSTRTG",
        from: "POSTROUTING",
        jump: JUMP.to_owned(),
        rules: vec![
            rule(r#"-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#),
            rule(r#"-s 10.5.72.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#),
            rule(
                r#"! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            ),
        ],
    }
}

fn table() -> Table {
    Table {
        version: IpVersion::V6,
        name: "flannel-test".to_owned(),
        comment: "rules for a test".to_owned(),
        objects: Vec::new(),
        chains: vec![nft::Chain {
            name: "postrtg".to_owned(),
            comment: "a chain".to_owned(),
            hook: "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
            rules: vec![
                "meta mark 0x00004000 return".to_owned(),
                "ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 masquerade fully-random".to_owned(),
            ],
        }],
    }
}

/// Runs the test in a namespace of its own; skips aloud where this user may not make one or a program is missing.
fn with(programs: &[&str], test: impl AsyncFnOnce() + Send) {
    for program in programs {
        let found =
            Command::new("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin command -v {program}")]).output();
        if !found.unwrap().status.success() {
            eprintln!("skipped: there is no {program}: install nftables and iptables");
            return;
        }
    }
    match NetNs::new() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: making a network namespace: {error}");
        }
        made => made
            .unwrap()
            .run("filter", || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(test());
            })
            .unwrap(),
    }
}

/// Runs a shell line in the namespace of this thread and answers what it prints.
fn sh(line: &str) -> String {
    let line = format!("PATH=$PATH:/usr/sbin; {line}");
    let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn listing() -> String {
    sh("iptables -t nat -S POSTROUTING; iptables -t nat -S FLANNEL-POSTRTG")
}

fn expected() -> String {
    let chain = chain();
    let rules: String = chain.rules.iter().map(|rule| format!("-A {} {rule}\n", chain.name)).collect();
    format!("-P POSTROUTING ACCEPT\n-A POSTROUTING {JUMP}\n-N FLANNEL-POSTRTG\n{rules}")
}

#[test]
fn a_chain_of_iptables_is_made_once_and_then_left_alone() {
    with(&["iptables"], async || {
        let iptables = Iptables::find(IpVersion::V4).await.unwrap();
        assert!(iptables.can_be_fully_random());
        let mut kept = KeptChain::new(chain());
        assert!(kept.keep(&iptables).await.unwrap(), "it was not there");
        assert_eq!(listing(), expected());
        assert!(!kept.keep(&iptables).await.unwrap(), "it is there");
        assert!(!KeptChain::new(chain()).keep(&iptables).await.unwrap(), "for the next daemon too");
        assert_eq!(listing(), expected());
    });
}

#[test]
fn whatever_is_done_to_a_chain_of_iptables_is_put_right() {
    with(&["iptables"], async || {
        let iptables = Iptables::find(IpVersion::V4).await.unwrap();
        let mut kept = KeptChain::new(chain());
        kept.keep(&iptables).await.unwrap();
        for harm in [
            "-F FLANNEL-POSTRTG".to_owned(),
            "-D FLANNEL-POSTRTG 2".to_owned(),
            "-I FLANNEL-POSTRTG -j ACCEPT".to_owned(),
            "-A FLANNEL-POSTRTG -s 10.5.72.0/24 -j RETURN".to_owned(),
            "-R FLANNEL-POSTRTG 1 -s 1.2.3.4 -j RETURN".to_owned(),
            format!("-D POSTROUTING {JUMP}"),
            format!("-A POSTROUTING {JUMP}"),
            "-A POSTROUTING -s 1.2.3.4 -j FLANNEL-POSTRTG".to_owned(),
            "-F POSTROUTING".to_owned(),
        ] {
            sh(&format!("iptables -t nat {harm}"));
            assert_ne!(listing(), expected(), "{harm}");
            assert!(kept.keep(&iptables).await.unwrap(), "{harm}");
            assert_eq!(listing(), expected(), "{harm}");
        }
        // Reordered: the first rule goes to the end.
        let first = &chain().rules[0];
        sh(&format!("iptables -t nat -D FLANNEL-POSTRTG 1; iptables -t nat -A FLANNEL-POSTRTG {first}"));
        assert!(kept.keep(&iptables).await.unwrap());
        assert_eq!(listing(), expected());
    });
}

#[test]
fn the_first_rule_that_is_absent_is_named_and_nothing_is_changed() {
    with(&["iptables"], async || {
        let iptables = Iptables::locate(IpVersion::V4).unwrap();
        assert_eq!(iptables.rules("nat", "FLANNEL-POSTRTG").await.unwrap(), None);
        KeptChain::new(chain()).keep(&iptables).await.unwrap();
        assert_eq!(iptables.rules("nat", "FLANNEL-POSTRTG").await.unwrap(), Some(chain().rules));
        let rule = |rule: &str| rule.to_owned();
        let jump = format!("POSTROUTING {JUMP}");
        let before = listing();
        for (rules, absent) in [
            (vec![jump.clone()], None),
            (vec![jump.clone(), rule("POSTROUTING -j ACCEPT"), jump.clone()], Some(1)),
            (vec![rule("NO-SUCH-CHAIN -j ACCEPT")], Some(0)),
            (vec![], None),
        ] {
            assert_eq!(iptables.first_absent("nat", &rules).await.unwrap(), absent, "{rules:?}");
        }
        assert_eq!(listing(), before);
    });
}

#[test]
fn a_listing_beside_a_change_shows_what_was_there_before() {
    with(&["nft"], async || {
        assert!(nft::is_installed());
        assert_eq!(nft::handles("inet t").await.unwrap(), None);
        nft::apply("add table inet t\nadd chain inet t c\n").await.unwrap();
        let add = "list table inet t\nadd rule inet t c accept comment \"x\"\n";
        assert!(!nft::apply_and_list(add).await.unwrap().contains("accept"));
        assert!(nft::apply_and_list(add).await.unwrap().contains("accept comment \"x\" # handle "));
        assert_eq!(nft::handles("inet t").await.unwrap().unwrap().matches("accept").count(), 2);
        let error = nft::apply("add rule inet t nowhere accept\n").await.unwrap_err();
        assert!(error.is_absent(), "{error}");
    });
}

#[test]
fn rules_of_others_stay_where_they_are() {
    with(&["iptables"], async || {
        sh(
            "iptables -t nat -N KUBE; iptables -t nat -A POSTROUTING -j KUBE; iptables -t nat -A KUBE -s 1.2.3.4 -j RETURN",
        );
        let iptables = Iptables::find(IpVersion::V4).await.unwrap();
        let mut kept = KeptChain::new(chain());
        kept.keep(&iptables).await.unwrap();
        sh("iptables -t nat -A POSTROUTING -s 9.9.9.9 -j ACCEPT; iptables -t nat -F FLANNEL-POSTRTG");
        assert!(kept.keep(&iptables).await.unwrap());
        let after = sh("iptables -t nat -S POSTROUTING; iptables -t nat -S KUBE");
        let ours = format!("-A POSTROUTING {JUMP}\n");
        let theirs = "-A POSTROUTING -s 9.9.9.9/32 -j ACCEPT\n-N KUBE\n-A KUBE -s 1.2.3.4/32 -j RETURN\n";
        assert_eq!(after, format!("-P POSTROUTING ACCEPT\n-A POSTROUTING -j KUBE\n{ours}{theirs}"));
        assert!(iptables.remove(&chain()).await.unwrap());
        assert!(!iptables.remove(&chain()).await.unwrap(), "nothing is left to take away");
        let after = sh("iptables -t nat -S");
        assert!(!after.contains("FLANNEL") && after.contains("9.9.9.9") && after.contains("KUBE"), "{after}");
    });
}

/// The same input through both kinds of iptables, whichever of them this machine calls `iptables`.
#[test]
fn one_input_empties_and_fills_in_both_kinds_of_iptables() {
    for kind in ["iptables-nft", "iptables-legacy"] {
        with(&[kind, &format!("{kind}-restore")], async || {
            let look = || {
                let from = sh(&format!("{kind} -t nat -S POSTROUTING"));
                let own = sh(&format!("{kind} -t nat -S FLANNEL-POSTRTG 2>/dev/null || true"));
                chain().seen(Some(own.as_str()).filter(|own| !own.is_empty()), &from)
            };
            let restore = |input: &str| sh(&format!("{kind}-restore --noflush <<'END'\n{input}END"));
            restore(&chain().repair(&look()));
            assert_eq!(look(), chain().wanted(), "{kind}");
            sh(&format!("{kind} -t nat -I FLANNEL-POSTRTG -j ACCEPT; {kind} -t nat -A POSTROUTING {JUMP}"));
            restore(&chain().repair(&look()));
            assert_eq!(look(), chain().wanted(), "{kind}");
            restore(&chain().removal(&look()).unwrap());
            assert_eq!(chain().removal(&look()), None, "{kind}");
        });
    }
}

#[test]
fn a_table_of_nftables_is_made_once_and_then_left_alone() {
    with(&["nft"], async || {
        let mut kept = KeptTable::new(table());
        assert!(kept.keep().await.unwrap(), "it was not there");
        assert_eq!(sh("nft list ruleset"), table().to_string());
        let before = sh("nft --handle list ruleset");
        assert!(!kept.keep().await.unwrap(), "it is there");
        assert!(!KeptTable::new(table()).keep().await.unwrap(), "for the next daemon too");
        assert_eq!(sh("nft --handle list ruleset"), before);
    });
}

#[test]
fn whatever_is_done_to_a_table_of_nftables_is_put_right() {
    with(&["nft"], async || {
        let mut kept = KeptTable::new(table());
        kept.keep().await.unwrap();
        for harm in [
            "flush chain ip6 flannel-test postrtg",
            "insert rule ip6 flannel-test postrtg accept",
            "add rule ip6 flannel-test postrtg meta mark 0x00004000 return",
            "add chain ip6 flannel-test other",
            "delete table ip6 flannel-test",
        ] {
            sh(&format!("nft '{harm}'"));
            assert!(kept.keep().await.unwrap(), "{harm}");
            assert_eq!(sh("nft list ruleset"), table().to_string(), "{harm}");
        }
        sh("nft add table ip other");
        assert!(nft::delete(IpVersion::V6, "flannel-test").await.unwrap());
        assert!(!nft::delete(IpVersion::V6, "flannel-test").await.unwrap(), "nothing is left to take away");
        assert_eq!(sh("nft list ruleset"), "table ip other {\n}\n");
    });
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    with(&["nft", "iptables"], async || {
        KeptTable::new(table()).keep().await.unwrap();
        let before = sh("nft list ruleset");
        let broken = format!("{}add rule ip6 flannel-test nowhere accept\n", table().replacement());
        let error = nft::apply(&broken).await.unwrap_err();
        assert!(matches!(error, ProgramError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("nft --file - ended with status 1"), "{error}");
        assert_eq!(sh("nft list ruleset"), before);
        assert!(!nft::takes(&broken).await.unwrap());

        let iptables = Iptables::find(IpVersion::V4).await.unwrap();
        KeptChain::new(chain()).keep(&iptables).await.unwrap();
        let mut broken = chain();
        broken.rules.push("-j NOWHERE-AT-ALL".to_owned());
        let error = KeptChain::new(broken).keep(&iptables).await.unwrap_err();
        assert!(error.to_string().starts_with("iptables-restore --noflush"), "{error}");
        assert_eq!(listing(), expected());
    });
}
