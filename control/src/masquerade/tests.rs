//! The texts, compared letter by letter with files. `tests/golden/iptables-v4.txt` and the chains `postrtg` and `forward`
//! of the nftables files are flannel's own.

use super::*;

fn rules(network: &str, subnet: &str) -> PodRules {
    PodRules {
        network: network.parse().unwrap(),
        subnet: subnet.parse().unwrap(),
        masquerade: true,
        forward: true,
    }
}

fn v4() -> PodRules {
    rules("10.5.0.0/16", "10.5.72.0/24")
}

fn v6() -> PodRules {
    rules("fd00:5::/48", "fd00:5:0:48::/64")
}

/// As `iptables -S` would show one chain after the other.
fn listing(chains: &[iptables::Chain]) -> String {
    chains
        .iter()
        .map(|chain| {
            let rules: String =
                chain.rules.iter().map(|rule| format!("-A {} {rule}\n", chain.name)).collect();
            format!("-A {} {}\n-N {}\n{rules}", chain.from, chain.jump, chain.name)
        })
        .collect()
}

#[test]
fn iptables_texts_are_flannels_in_flannels_order() {
    assert_eq!(listing(&v4().chains(true)), include_str!("../../tests/golden/iptables-v4.txt"));
    assert_eq!(listing(&v6().chains(true)), include_str!("../../tests/golden/iptables-v6.txt"));
}

#[test]
fn nftables_texts_are_flannels_in_flannels_order() {
    assert_eq!(v4().table(true).to_string(), include_str!("../../tests/golden/nftables-v4.txt"));
    assert_eq!(v6().table(true).to_string(), include_str!("../../tests/golden/nftables-v6.txt"));
}

#[test]
fn ports_are_only_random_where_that_is_wanted() {
    for (random, plain) in [
        (listing(&v4().chains(true)), listing(&v4().chains(false))),
        (v6().table(true).to_string(), v6().table(false).to_string()),
    ] {
        assert_eq!(random.replace(" --random-fully", "").replace(" fully-random", ""), plain);
        assert_ne!(random, plain);
    }
}

#[test]
fn what_is_not_asked_for_is_unwanted() {
    let names = |chains: Vec<iptables::Chain>| chains.iter().map(|chain| chain.name).collect::<Vec<_>>();
    for (masquerade, forward) in [(false, false), (false, true), (true, false), (true, true)] {
        let rules = PodRules { masquerade, forward, ..v4() };
        let (wanted, unwanted) = (names(rules.chains(true)), names(rules.unwanted_chains()));
        assert_eq!(wanted.contains(&POSTROUTING_CHAIN), masquerade);
        assert_eq!(wanted.contains(&FORWARD_CHAIN), forward);
        assert_eq!(wanted.len() + unwanted.len(), 2);
        assert!(wanted.iter().all(|name| !unwanted.contains(name)));
        let table = rules.table(true).to_string();
        assert_eq!(table.contains("masquerade fully-random"), masquerade);
        assert_eq!(table.contains("chain forward {"), forward);
    }
}

/// Where a packet goes, by the rules of the tables themselves.
fn verdict(rules: &[Rule], mark: u32, from: &str, to: &str) -> Option<Verdict> {
    let inside = |place: &Place, address: &str| {
        let address: std::net::IpAddr = address.parse().unwrap();
        place.net.contains(&address) != place.outside
    };
    let holds = |condition: &Condition| match condition {
        Condition::Mark => mark & MARK == MARK,
        Condition::MarkAlone => mark == MARK,
        Condition::From(place) => inside(place, from),
        Condition::To(place) => inside(place, to),
    };
    rules.iter().find(|rule| rule.conditions.iter().all(holds)).map(|rule| rule.verdict)
}

#[test]
fn nftables_does_to_every_packet_what_iptables_does() {
    let rules = v4();
    let (own, other, outside, group) = ("10.5.72.9", "10.5.1.9", "192.0.2.77", "224.0.0.251");
    for mark in [0, 1, MARK] {
        for from in [own, other, outside] {
            for to in [own, other, outside, group] {
                if (from, to) == (other, other) {
                    // No way through this node: see the module's header.
                    continue;
                }
                let by_iptables = verdict(&rules.leaving(), mark, from, to) == Some(Verdict::Masquerade);
                let by_nftables = [rules.leaving_by_nftables(), rules.for_outsiders()]
                    .iter()
                    .any(|chain| verdict(chain, mark, from, to) == Some(Verdict::Masquerade));
                assert_eq!(by_nftables, by_iptables, "mark {mark:#x}, {from} to {to}");
            }
        }
    }
    let masqueraded = |from, to| verdict(&rules.leaving(), 0, from, to) == Some(Verdict::Masquerade);
    assert!(masqueraded(own, outside) && masqueraded(outside, other));
    assert!(!masqueraded(own, other) && !masqueraded(outside, own) && !masqueraded(own, group));
}
