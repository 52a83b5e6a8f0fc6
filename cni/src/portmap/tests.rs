//! CHECK, GC and names of `portmap` without a packet filter.

use serde_json::{Value, json};

use super::*;
use crate::protocol::Interface;

fn request(config: Value) -> Request {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => "ADD".to_owned(),
            "CNI_CONTAINERID" => "1234".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_NETNS" => "/none".to_owned(),
            "CNI_PATH" => "/x".to_owned(),
            _ => return None,
        })
    };
    let mut whole = json!({"cniVersion": "1.0.0", "name": "test"});
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    Request::read(variable, whole.to_string().as_bytes()).unwrap()
}

fn mappings() -> Value {
    json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0"},
        {"hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8443, "containerPort": 443, "protocol": "tcp", "hostIP": "2001:db8::1"},
    ]})
}

/// What iptables and nftables get where nothing is there yet.
fn texts(config: Value, ip: &str) -> (String, String) {
    let request = request(config);
    let config = Config::read(&request).unwrap();
    let ways = config.ways(&request, &[ip.parse().unwrap()]);
    let way = ways.first().unwrap();
    (iptables::Rules::of(way).creation(), nft::commands(way))
}

#[test]
fn iptables_gets_the_rules_of_the_reference_plugin() {
    let (text, _) = texts(json!({"runtimeConfig": mappings()}), "10.244.1.5/24");
    assert_eq!(text, include_str!("tests/v4.iptables"));
    let (text, _) = texts(json!({"runtimeConfig": mappings()}), "fd00:1::5/64");
    assert_eq!(text, include_str!("tests/v6.iptables"));
}

#[test]
fn nftables_gets_tables_that_the_reference_plugin_cleans() {
    let (_, text) = texts(json!({"runtimeConfig": mappings()}), "10.244.1.5/24");
    assert_eq!(nft::frame(IpVersion::V4, "test") + &text, include_str!("tests/v4.nft"));
    let (_, text) = texts(json!({"runtimeConfig": mappings()}), "fd00:1::5/64");
    assert_eq!(nft::frame(IpVersion::V6, "test") + &text, include_str!("tests/v6.nft"));
}

#[test]
fn without_snat_nothing_is_marked_or_masqueraded() {
    let (iptables, nft) = texts(json!({"runtimeConfig": mappings(), "snat": false}), "10.244.1.5/24");
    assert!(!iptables.contains("MASQ") && !iptables.contains("MARK"), "{iptables}");
    assert!(!nft.contains("masquerade comment"), "{nft}");
}

#[test]
fn all_is_masqueraded_where_that_is_asked_for() {
    let (iptables, nft) = texts(json!({"runtimeConfig": mappings(), "masqAll": true}), "10.244.1.5/24");
    assert!(iptables.contains(" -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK\n"), "{iptables}");
    assert!(!iptables.contains("127.0.0.1") && !iptables.contains("-s 10.244"), "{iptables}");
    assert!(nft.contains("masquerading ip daddr 10.244.1.5 tcp dport 80 ct status dnat"), "{nft}");
    assert!(!nft.contains("127.0.0.1") && !nft.contains("saddr"), "{nft}");
}

#[test]
fn a_foreign_chain_marks_where_it_is_named() {
    let config = json!({"runtimeConfig": mappings(), "externalSetMarkChain": "KUBE-MARK-MASQ"});
    let (text, _) = texts(config, "10.244.1.5/24");
    assert!(text.contains("-j KUBE-MARK-MASQ\n") && !text.contains("CNI-HOSTPORT-MASQ"), "{text}");
    let (text, _) = texts(json!({"runtimeConfig": mappings(), "markMasqBit": 31}), "10.244.1.5/24");
    assert!(text.contains("--set-xmark 0x80000000/0x80000000\n"), "{text}");
}

#[test]
fn more_ports_than_a_rule_holds_are_split() {
    let many: Vec<Value> =
        (1..=31).map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"})).collect();
    let config = json!({"runtimeConfig": {"portMappings": many}, "conditionsV4": ["-i", "eth0", "!", "-s", "1.2.3.4"]});
    let (text, _) = texts(config, "10.244.1.5/24");
    assert_eq!(text.matches("-I CNI-HOSTPORT-DNAT 1 -p tcp").count(), 3, "{text}");
    assert_eq!(text.matches("-i eth0 ! -s 1.2.3.4 -j CNI-DN-").count(), 3, "{text}");
}

#[test]
fn conditions_of_nftables_stand_before_each_port() {
    let config =
        json!({"runtimeConfig": mappings(), "conditionsV6": ["iifname", "\"eth0\""], "backend": "nftables"});
    let (_, text) = texts(config, "fd00:1::5/64");
    assert!(text.contains("hostports iifname \"eth0\" tcp dport 8080 dnat to [fd00:1::5]:80"), "{text}");
}

#[test]
fn what_is_there_of_the_shared_chains_is_not_made_again() {
    let request = request(json!({"runtimeConfig": mappings()}));
    let config = Config::read(&request).unwrap();
    let ways = config.ways(&request, &["10.244.1.5/24".parse().unwrap()]);
    let rules = iptables::Rules::of(&ways[0]);
    let nothing = rules.completion(&[("PREROUTING", Some(vec![]))].into());
    for made in [
        "-N CNI-HOSTPORT-DNAT\n",
        "-N CNI-HOSTPORT-SETMARK\n",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n",
        "-I POSTROUTING 1 -m comment",
        "-N CNI-DN-2bbe0c48b91a7d1b8a675\n",
    ] {
        assert_eq!(nothing.matches(made).count(), 1, "{made}: {nothing}");
    }
    let old =
        "-p tcp -m comment --comment \"an old one\" -m multiport --dports 9 -j CNI-DN-2bbe0c48b91a7d1b8a675";
    let other = "-p tcp -m multiport --dports 9 -j CNI-DN-another";
    let seen = [
        ("PREROUTING", Some(vec!["-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".to_owned()])),
        ("CNI-HOSTPORT-DNAT", Some(vec![other.to_owned(), old.to_owned()])),
        ("CNI-DN-2bbe0c48b91a7d1b8a675", Some(vec![])),
    ];
    let text = rules.completion(&seen.into());
    assert!(!text.contains("PREROUTING") && !text.contains("-N CNI-HOSTPORT-DNAT"), "{text}");
    assert!(text.contains(&format!("-D CNI-HOSTPORT-DNAT {old}\n-F CNI-DN-")), "{text}");
    assert!(!text.contains("another"), "{text}");
}

#[test]
fn only_addresses_of_the_containers_device_are_mapped() {
    let device = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let ip = |text: &str, interface| crate::protocol::IpConfig {
        interface,
        address: text.parse().unwrap(),
        gateway: None,
    };
    let result = AddResult {
        interfaces: vec![device("cni0", ""), device("eth0", "/ns"), device("eth1", "/ns")],
        ips: vec![
            ip("10.0.0.1/24", Some(0)),
            ip("10.0.1.2/24", Some(2)),
            ip("10.244.1.5/24", Some(1)),
            ip("10.244.1.6/24", Some(1)),
            ip("fd00:1::5/64", None),
        ],
        ..AddResult::default()
    };
    let expected: Vec<IpNet> = vec!["10.244.1.5/24".parse().unwrap(), "fd00:1::5/64".parse().unwrap()];
    assert_eq!(addresses(&result, "eth0"), expected);
}

#[test]
fn a_comment_is_read_as_it_was_written() {
    assert_eq!(iptables::read_comment("dnat name: \"cbr0\" id: \"4f1d\""), Some(("cbr0", "4f1d")));
    assert_eq!(iptables::read_comment("name: \"cbr0\" id: \"4f1d\""), None);
}

#[test]
fn outside_of_a_list_of_plugins_it_says_where_it_belongs() {
    let error = Portmap.add(&request(json!({"runtimeConfig": mappings()}))).unwrap_err();
    assert_eq!(error.message, "portmap must be called as chained plugin: there is no prevResult");
    let passed =
        Portmap.add(&request(json!({"prevResult": {"ips": [{"address": "10.244.1.5/24"}]}}))).unwrap();
    assert_eq!(passed.ips.len(), 1, "without ports the result goes through");
}
