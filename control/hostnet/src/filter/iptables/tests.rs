//! Reading, comparing and repairing on texts; `tests/packet_filter.rs` does it with the programs.

use proptest::prelude::*;

use super::*;

const JUMP: &str = r#"-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

fn chain() -> Chain {
    Chain {
        table: "nat",
        name: "FLANNEL-POSTRTG",
        from: "POSTROUTING",
        jump: JUMP.to_owned(),
        rules: vec!["-s 10.5.0.0/16 -j RETURN".to_owned(), "-d 10.5.0.0/16 -j MASQUERADE".to_owned()],
    }
}

fn seen(own: Option<&str>, from: &str) -> Seen {
    chain().seen(own, from)
}

const OWN: &str = "-N FLANNEL-POSTRTG\n-A FLANNEL-POSTRTG -s 10.5.0.0/16 -j RETURN\n-A FLANNEL-POSTRTG -d 10.5.0.0/16 -j MASQUERADE\n";

fn from(jumps: &[&str]) -> String {
    let jumps: String = jumps.iter().map(|jump| format!("-A POSTROUTING {jump}\n")).collect();
    format!("-P POSTROUTING ACCEPT\n-A POSTROUTING -j KUBE-POSTROUTING\n{jumps}")
}

#[test]
fn what_is_as_it_should_be_is_recognised() {
    assert_eq!(seen(Some(OWN), &from(&[JUMP])), chain().wanted());
}

#[test]
fn every_kind_of_drift_is_noticed() {
    let swapped = OWN.replace("RETURN", "X").replace("MASQUERADE", "RETURN").replace('X', "MASQUERADE");
    let doubled = format!("{OWN}-A FLANNEL-POSTRTG -d 10.5.0.0/16 -j MASQUERADE\n");
    let foreign = OWN.replacen("-A", "-A FLANNEL-POSTRTG -j ACCEPT\n-A", 1);
    for own in [None, Some("-N FLANNEL-POSTRTG\n"), Some(&swapped), Some(&doubled), Some(&foreign)] {
        assert_ne!(seen(own, &from(&[JUMP])), chain().wanted(), "{own:?}");
    }
    for jumps in [&[][..], &[JUMP, JUMP], &["-s 1.2.3.4/32 -j FLANNEL-POSTRTG"]] {
        assert_ne!(seen(Some(OWN), &from(jumps)), chain().wanted(), "{jumps:?}");
    }
}

#[test]
fn a_repair_fills_the_chain_and_leaves_a_good_jump_alone() {
    let filled = "*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -s 10.5.0.0/16 -j RETURN\n-A FLANNEL-POSTRTG -d 10.5.0.0/16 -j MASQUERADE\n";
    assert_eq!(chain().repair(&seen(None, &from(&[JUMP]))), format!("{filled}COMMIT\n"));
    let append = format!("-A POSTROUTING {JUMP}\n");
    assert_eq!(chain().repair(&Seen::default()), format!("{filled}{append}COMMIT\n"));
    let delete = format!("-D POSTROUTING {JUMP}\n");
    assert_eq!(
        chain().repair(&seen(Some(OWN), &from(&[JUMP, JUMP]))),
        format!("{filled}{delete}{delete}{append}COMMIT\n")
    );
}

#[test]
fn a_removal_takes_the_jumps_before_the_chain() {
    assert_eq!(chain().removal(&seen(None, &from(&[]))), None);
    let input = chain().removal(&seen(Some(OWN), &from(&[JUMP]))).unwrap();
    assert_eq!(
        input,
        format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n-D POSTROUTING {JUMP}\n-X FLANNEL-POSTRTG\nCOMMIT\n")
    );
}

#[test]
fn words_in_a_comment_are_no_target() {
    assert!(leads_to(JUMP, "FLANNEL-POSTRTG"));
    assert!(leads_to("-s 1.2.3.4/32 -g FLANNEL-POSTRTG", "FLANNEL-POSTRTG"));
    assert!(!leads_to(r#"-m comment --comment "see -j FLANNEL-POSTRTG" -j ACCEPT"#, "FLANNEL-POSTRTG"));
    assert!(!leads_to(r#"-m comment --comment "\" -j FLANNEL-POSTRTG" -j ACCEPT"#, "FLANNEL-POSTRTG"));
    assert!(!leads_to("-j FLANNEL-POSTRTG-2", "FLANNEL-POSTRTG"));
}

#[test]
fn releases_are_read_from_what_programs_say_of_themselves() {
    assert_eq!(release("iptables v1.8.9 (nf_tables)\n"), Some([1, 8, 9]));
    assert_eq!(release("ip6tables v1.6\n"), Some([1, 6, 0]));
    assert_eq!(release("iptables v1.4.21"), Some([1, 4, 21]));
    assert_eq!(release("busybox"), None);
    let found = |release| Iptables { version: IpVersion::V4, release, legacy: false };
    assert!(found(Some([1, 6, 2])).can_be_fully_random() && found(None).can_be_fully_random());
    assert!(!found(Some([1, 6, 1])).can_be_fully_random());
}

/// Words of which listings are made.
fn listing() -> impl Strategy<Value = String> {
    proptest::string::string_regex(
        "((-A|-N|-P|:|\\*) ?(FLANNEL-POSTRTG|POSTROUTING)?( (-j|-g|-s|-m comment --comment|\"|\\\\|FLANNEL-POSTRTG|RETURN|é))*\r?\n){0,8}",
    )
    .expect("a pattern")
}

proptest! {
    #[test]
    fn any_listing_is_read_and_its_repair_is_what_is_wanted(own in proptest::option::of(listing()), from in listing()) {
        let seen = seen(own.as_deref(), &from);
        let repair = chain().repair(&seen);
        // Played through by hand, the input leaves the wanted rules and one jump.
        let mut jumps = seen.jumps;
        let mut rules = Vec::new();
        for line in repair.lines() {
            if let Some(rule) = line.strip_prefix("-D POSTROUTING ") {
                let at = jumps.iter().position(|jump| jump == rule);
                prop_assert!(at.is_some(), "deletes what is not there: {rule}");
                jumps.remove(at.unwrap());
            } else if let Some(rule) = line.strip_prefix("-A POSTROUTING ") {
                jumps.push(rule.to_owned());
            } else if let Some(rule) = line.strip_prefix("-A FLANNEL-POSTRTG ") {
                rules.push(rule.to_owned());
            }
        }
        prop_assert_eq!(Seen { rules: Some(rules), jumps }, chain().wanted());
    }

    #[test]
    fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        let seen = seen(Some(&text), &text);
        chain().repair(&seen);
        chain().removal(&seen);
        release(&text);
    }
}
