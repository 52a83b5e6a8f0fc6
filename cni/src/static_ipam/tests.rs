//! Where the addresses of `static` come from, and which come first.

use serde_json::{Value, json};

use super::*;

fn asked(config: &Value, args: &str) -> Request {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => "ADD".to_owned(),
            "CNI_CONTAINERID" => "c".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_NETNS" => "/none".to_owned(),
            "CNI_PATH" => "/x".to_owned(),
            "CNI_ARGS" => args.to_owned(),
            _ => return None,
        })
    };
    Request::read(variable, config.to_string().as_bytes()).map_err(|(_, error)| error).unwrap()
}

fn config() -> Value {
    json!({"cniVersion": "0.4.0", "name": "n", "ipam": {
        "type": "static",
        "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }})
}

fn shown(result: &AddResult) -> Vec<String> {
    let show = |ip: &IpConfig| match ip.gateway {
        Some(gateway) => format!("{} by {gateway}", ip.address),
        None => ip.address.to_string(),
    };
    result.ips.iter().map(show).collect()
}

#[test]
fn the_configured_addresses_are_given() {
    let result = Static.add(&asked(&config(), "")).unwrap();
    assert_eq!(shown(&result), ["10.1.0.5/24 by 10.1.0.1"]);
    assert_eq!(result.routes.len(), 1);
    assert_eq!(result.dns.nameservers, ["192.0.2.53"]);
    let none = json!({"cniVersion": "0.4.0", "name": "n", "ipam": {"type": "static"}});
    assert_eq!(Static.add(&asked(&none, "")).unwrap(), AddResult::default());
}

#[test]
fn the_environment_adds_addresses_and_gateways() {
    let args = "IP=10.2.0.5/24, fd00::5/64;GATEWAY=10.2.0.1,10.1.0.9,fd00::1";
    let result = Static.add(&asked(&config(), args)).unwrap();
    assert_eq!(
        shown(&result),
        ["10.1.0.5/24 by 10.1.0.9", "10.2.0.5/24 by 10.2.0.1", "fd00::5/64 by fd00::1"]
    );
}

#[test]
fn the_runtimes_addresses_replace_all_others() {
    let mut config = config();
    config["args"] = json!({"cni": {"ips": ["10.3.0.5/24"]}});
    let env = "IP=10.2.0.5/24;GATEWAY=10.4.0.1";
    assert_eq!(shown(&Static.add(&asked(&config, env)).unwrap()), ["10.3.0.5/24"]);
    config["runtimeConfig"] = json!({"ips": ["10.4.0.5/24", "fd00::4/64"]});
    assert_eq!(shown(&Static.add(&asked(&config, env)).unwrap()), ["10.4.0.5/24", "fd00::4/64"]);
    config["runtimeConfig"] = json!({"ips": []});
    assert_eq!(shown(&Static.add(&asked(&config, env)).unwrap()), ["10.3.0.5/24"]);
}

#[test]
fn what_is_wrong_is_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = config();
        change(&mut config);
        config
    };
    for (config, args, text) in [
        (config(), "IP=10.2.0.5", "CNI_ARGS IP has \"10.2.0.5\""),
        (config(), "GATEWAY=x", "invalid gateway address: \"x\""),
        (config(), "FOO=1", "CNI_ARGS has \"FOO\""),
        (with(&|c| c["args"] = json!({"cni": {"ips": ["10.3.0.5"]}})), "", "args.cni.ips has \"10.3.0.5\""),
        (with(&|c| c["runtimeConfig"] = json!({"ips": ["x"]})), "", "runtimeConfig.ips has \"x\""),
        (
            with(&|c| c["ipam"]["addresses"][0]["address"] = json!("10.1.0.5")),
            "",
            "ipam.addresses has \"10.1.0.5\"",
        ),
        (with(&|c| c["ipam"]["addresses"][0]["gateway"] = json!("y")), "", "invalid gateway address: \"y\""),
        (with(&|c| c["ipam"] = Value::Null), "", "IPAM config missing 'ipam' key"),
    ] {
        let error = Static.add(&asked(&config, args)).unwrap_err();
        assert!(error.message.contains(text), "{error}");
    }
    let mut old = config();
    old["cniVersion"] = json!("0.2.0");
    Static.add(&asked(&old, "")).expect("one address");
    let error = Static.add(&asked(&old, "IP=10.1.0.6/24")).unwrap_err();
    assert_eq!(error.message, "CNI version 0.2.0 does not support more than 1 address per family");
}

#[test]
fn check_wants_each_configured_address_in_the_result() {
    let mut config = config();
    Static.check(&asked(&config, "")).unwrap_err();
    config["prevResult"] =
        json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.5/24"}]});
    Static.check(&asked(&config, "")).unwrap();
    let error = Static.check(&asked(&config, "IP=10.1.0.6/24")).unwrap_err();
    assert_eq!(error.code, Code::CHECK_FAILED);
    assert!(error.message.contains("10.1.0.6/24"), "{error}");
    Static.del(&asked(&config, "")).unwrap();
    Static.status(&asked(&config, "")).unwrap();
}
