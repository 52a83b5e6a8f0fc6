//! Port mappings that make sense, and those that do not.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn parse(config: Value) -> Result<Config, CniError> {
    Config::parse(&config)
}

fn refused(config: Value) -> String {
    parse(config).unwrap_err().to_string()
}

fn with_mapping(mapping: Value) -> Value {
    json!({"runtimeConfig": {"portMappings": [mapping]}})
}

#[test]
fn what_is_left_out_is_as_documented() {
    let config = parse(json!({})).unwrap();
    assert!(config.snat && !config.masquerade_all && config.mappings.is_empty());
    assert_eq!((config.backend, config.mark), (None, Mark::Bit(13)));
    let nulls = json!({"conditionsV4": null, "runtimeConfig": null, "markMasqBit": null, "backend": ""});
    assert_eq!(parse(nulls).unwrap(), parse(json!({})).unwrap());
}

#[test]
fn strange_port_mappings_are_refused_with_a_reason() {
    for (mapping, reason) in [
        (json!({"containerPort": 80}), "invalid host port number: 0"),
        (json!({"hostPort": 80}), "invalid container port number: 0"),
        (json!({"hostPort": -1, "containerPort": 80}), "invalid host port number: -1"),
        (json!({"hostPort": 65536, "containerPort": 80}), "each from 1 to 65535"),
        (json!({"hostPort": 1, "containerPort": 80, "protocol": "icmp"}), "it is tcp, udp or sctp"),
        (
            json!({"hostPort": 1, "containerPort": 80, "hostIP": "localhost"}),
            "invalid hostIP of a port mapping",
        ),
        (json!({"hostPort": "80", "containerPort": 80}), "failed to parse network configuration"),
    ] {
        let said = refused(with_mapping(mapping));
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn one_port_leads_to_one_place() {
    let one = json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"});
    let other = json!({"hostPort": 80, "containerPort": 8081});
    let twice = json!({"runtimeConfig": {"portMappings": [one, one]}});
    assert_eq!(parse(twice).unwrap().mappings.len(), 1);
    let said = refused(json!({"runtimeConfig": {"portMappings": [one, other]}}));
    assert!(said.contains("tcp port 80 of the host is to lead to port 8080 and to port 8081"), "{said}");
    let udp = json!({"hostPort": 80, "containerPort": 8081, "protocol": "udp"});
    assert_eq!(parse(json!({"runtimeConfig": {"portMappings": [one, udp]}})).unwrap().mappings.len(), 2);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for (config, reason) in [
        (
            json!({"markMasqBit": 5, "externalSetMarkChain": "X"}),
            "cannot specify externalSetMarkChain and markMasqBit",
        ),
        (json!({"markMasqBit": 32}), "a packet's mark has the bits 0 to 31"),
        (json!({"externalSetMarkChain": "X", "backend": "nftables"}), "is a chain of iptables"),
        (json!({"externalSetMarkChain": "X -j ACCEPT"}), "is no name of a chain"),
        (json!({"externalSetMarkChain": ""}), "is no name of a chain"),
        (json!({"backend": "ebpf"}), "it is iptables or nftables"),
        (json!({"conditionsV4": ["-s 1.2.3.4\nCOMMIT"]}), "without semicolons and line ends"),
        (json!({"conditionsV6": ["accept; drop"]}), "without semicolons and line ends"),
    ] {
        let said = refused(config);
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn options_that_one_system_understands_choose_it() {
    let chosen = |config| parse(config).unwrap().backend;
    assert_eq!(chosen(json!({"conditionsV4": ["-s", "1.2.3.4"]})), Some(Backend::Iptables));
    assert_eq!(chosen(json!({"conditionsV6": ["!", "-i", "eth0"]})), Some(Backend::Iptables));
    assert_eq!(chosen(json!({"conditionsV6": ["iifname", "eth0"]})), Some(Backend::Nftables));
    assert_eq!(chosen(json!({"externalSetMarkChain": "X"})), Some(Backend::Iptables));
    assert_eq!(chosen(json!({"markMasqBit": 5})), Some(Backend::Iptables));
    assert_eq!(chosen(json!({"markMasqBit": 5, "backend": "nftables"})), Some(Backend::Nftables));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_i64..70_000).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        prop_oneof!["tcp", "udp", "::1", "192.0.2.1", "nftables", "-s"].prop_map(Value::from),
    ];
    let key = prop_oneof![
        "runtimeConfig",
        "portMappings",
        "hostPort",
        "containerPort",
        "protocol",
        "hostIP",
        "backend",
        "snat",
        "masqAll",
        "markMasqBit",
        "externalSetMarkChain",
        "conditionsV4",
        "conditionsV6"
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_configuration_makes_it_panic(config in any_json()) {
        let _read = Config::parse(&config);
    }

    /// Whatever a mapping says, no line of an input for the programs is broken by it.
    #[test]
    fn nothing_in_a_condition_starts_a_line_of_its_own(words in prop::collection::vec(".{0,20}", 0..5)) {
        if let Ok(config) = parse(json!({"conditionsV4": words})) {
            prop_assert!(config.conditions_v4.iter().all(|word| !word.contains(['\n', '\r', ';', '\0'])));
        }
    }
}
