//! Texts in and out; `promises` sends packets against it.

use proptest::prelude::*;

use super::*;

fn guard(family: Family, peers: &[&str]) -> Guard {
    let mut guard = Guard::new(8472, Vni::new(1).unwrap(), family);
    guard.peers = set(peers);
    guard
}

fn set(peers: &[&str]) -> BTreeSet<IpAddr> {
    peers.iter().map(|peer| peer.parse().unwrap()).collect()
}

/// What `nft` 1.0.6 lists of a guard with two peers that has dropped seven packets.
const LISTED: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}}, {"table": {"family": "ip", "name": "flannel-rs-guard-1", "handle": 2}}, {"counter": {"family": "ip", "name": "strangers", "table": "flannel-rs-guard-1", "handle": 2, "packets": 7, "bytes": 70}}, {"set": {"family": "ip", "name": "peers", "table": "flannel-rs-guard-1", "type": "ipv4_addr", "handle": 3, "elem": ["10.0.0.1", {"elem": {"val": "10.0.0.2", "comment": "x"}}]}}, {"set": {"family": "ip", "name": "alive", "table": "flannel-rs-guard-1", "type": "inet_proto", "handle": 4, "flags": ["timeout"], "elem": [{"elem": {"val": "udp", "timeout": 300, "expires": 299}}]}}, {"chain": {"family": "ip", "table": "flannel-rs-guard-1", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": -10, "policy": "accept"}}]}"#;

#[test]
fn only_packets_of_our_identifier_are_judged() {
    let text = guard(Family::V4, &["192.0.2.2", "192.0.2.3"]).table((7, 70)).to_string();
    assert_eq!(
        text,
        "table ip flannel-rs-guard-1 {\n\
         \tcomment \"packets for VXLAN 1 from nodes without a lease\"\n\
         \tcounter strangers { packets 7 bytes 70 }\n\
         \tset peers { type ipv4_addr; elements = { 192.0.2.2, 192.0.2.3 }; }\n\
         \tset alive { type inet_proto; flags timeout; elements = { udp timeout 300s }; }\n\
         \tchain input {\n\
         \t\tcomment \"VXLAN from leased nodes only\"\n\
         \t\ttype filter hook input priority filter - 10; policy accept;\n\
         \t\tudp dport 8472 @th,96,24 != 0x1 return\n\
         \t\tudp dport 8472 meta l4proto @alive ip saddr != @peers counter name \"strangers\" drop\n\
         \t}\n\
         }\n"
    );
    let text = guard(Family::V6, &[]).table((0, 0)).to_string();
    assert!(text.starts_with("table ip6 flannel-rs-guard-1 {"), "{text}");
    assert!(text.contains("set peers { type ipv6_addr; }") && text.contains("ip6 saddr != @peers"), "{text}");
}

#[test]
fn a_change_of_peers_is_one_transaction_that_adds_before_it_deletes() {
    let guard = guard(Family::V4, &["192.0.2.2", "192.0.2.3"]);
    assert_eq!(
        guard.difference(&set(&["192.0.2.3", "192.0.2.4", "192.0.2.5"])),
        "add element ip flannel-rs-guard-1 peers { 192.0.2.4, 192.0.2.5 }\n\
         delete element ip flannel-rs-guard-1 peers { 192.0.2.2 }\n"
    );
    assert_eq!(guard.difference(&guard.peers), "");
}

#[test]
fn a_listing_is_read_without_what_changes_by_itself() {
    let reading = Reading::parse(LISTED);
    assert_eq!((reading.drops, reading.bytes, reading.alive), (7, 70, true));
    assert_eq!(reading.peers, set(&["10.0.0.1", "10.0.0.2"]));
    let later =
        LISTED.replace("\"packets\": 7", "\"packets\": 8").replace("\"expires\": 299", "\"expires\": 2");
    let later = Reading::parse(&later.replace("\"handle\": 4", "\"handle\": 40"));
    assert_eq!(later.shape, reading.shape);
    assert_eq!(later.drops, 8);
    let drifted = Reading::parse(&LISTED.replace("\"prio\": -10", "\"prio\": 0"));
    assert_ne!(drifted.shape, reading.shape);
}

#[test]
fn guards_are_found_among_all_tables() {
    let text = r#"{"nftables": [{"table": {"family": "ip", "name": "flannel-rs-guard-1"}}, {"table": {"family": "ip6", "name": "flannel-rs-guard-77"}}, {"table": {"family": "inet", "name": "flannel-rs-guard-2"}}, {"table": {"family": "ip", "name": "flannel-ipv4"}}]}"#;
    assert_eq!(
        guards(text),
        [(IpVersion::V4, "flannel-rs-guard-1".to_owned()), (IpVersion::V6, "flannel-rs-guard-77".to_owned())]
    );
}

proptest! {
    #[test]
    fn no_listing_is_too_much(at in 0..LISTED.len(), with in "[\\[\\]{}\",:0-9a-z ]{0,8}") {
        read_listing(&format!("{}{with}{}", &LISTED[..at], &LISTED[at..]));
        read_listing(&format!("{}{with}", &LISTED[..at]));
    }

    #[test]
    fn any_change_ends_at_what_is_wanted(from in addresses(), to in addresses()) {
        let mut guard = guard(Family::V4, &[]);
        guard.peers = from.clone();
        let mut there = from;
        for line in guard.difference(&to).lines() {
            let (_, elements) = line.split_once("{ ").unwrap();
            for element in elements.trim_end_matches(" }").split(", ") {
                let element = element.parse().unwrap();
                // Neither may be in vain: nft refuses to delete what is not there.
                let worked = if line.starts_with("add") { there.insert(element) } else { there.remove(&element) };
                prop_assert!(worked, "{}", line);
            }
        }
        prop_assert_eq!(there, to);
    }
}

fn addresses() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    proptest::collection::btree_set((0u32..20).prop_map(|n| IpAddr::V4((0xc000_0200 + n).into())), 0..10)
}
