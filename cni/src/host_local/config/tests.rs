//! Configurations as the reference plugin reads them.

use serde_json::{Value, json};

use super::*;
use crate::host_local::tests::{asked, asked_with};
use crate::protocol::Code;

fn read(config: &Value) -> Result<Config, CniError> {
    Config::read(&asked("ADD", "c", "eth0", config))
}

fn shown(config: &Config) -> Vec<String> {
    config.sets.iter().map(RangeSet::to_string).collect()
}

#[test]
fn ranges_come_from_three_places_in_order() {
    let config = read(&json!({
        "cniVersion": "1.0.0", "name": "n",
        "ipam": {
            "type": "host-local", "subnet": "10.2.0.0/24", "rangeStart": "10.2.0.9",
            "ranges": [[{"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/etc/resolv.conf", "dataDir": "/d",
        },
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]},
    }))
    .unwrap();
    assert_eq!(
        shown(&config),
        [
            "10.1.0.1-10.1.0.254",
            "10.2.0.9-10.2.0.254",
            "10.3.0.1-10.3.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff"
        ]
    );
    assert_eq!(config.directory, PathBuf::from("/d/n"));
    assert_eq!(config.resolv_conf, Some(PathBuf::from("/etc/resolv.conf")));
    assert_eq!(config.routes.len(), 1);
    assert!(config.is_gateway("fd00::1".parse().unwrap()));
}

#[test]
fn what_is_null_or_missing_has_its_default() {
    let config = read(&json!({
        "name": "n", "args": null, "runtimeConfig": {"ips": null},
        "ipam": {"subnet": "10.2.0.0/24", "ranges": null, "routes": null, "dataDir": "", "resolvConf": ""},
    }))
    .unwrap();
    assert_eq!(shown(&config), ["10.2.0.1-10.2.0.254"]);
    assert_eq!(config.directory, PathBuf::from("/var/lib/cni/networks/n"));
    assert_eq!((config.resolv_conf, config.requested), (None, vec![]));
}

#[test]
fn addresses_are_asked_for_in_three_places_with_or_without_a_prefix() {
    let config = json!({
        "name": "n", "ipam": {"subnet": "10.2.0.0/24"},
        "args": {"cni": {"ips": ["10.2.0.6", "10.2.0.5/24"]}},
        "runtimeConfig": {"ips": ["fd00::5/64", "::ffff:10.2.0.7"]},
    });
    let request = asked_with("ADD", "c", "eth0", &config, "IgnoreUnknown=1;IP=10.2.0.5;K8S_POD_NAME=p");
    let requested: Vec<String> =
        Config::read(&request).unwrap().requested.iter().map(IpAddr::to_string).collect();
    assert_eq!(requested, ["10.2.0.5", "10.2.0.6", "fd00::5", "10.2.0.7"]);
    let wrong = asked_with("ADD", "c", "eth0", &config, "IP=10.2.0");
    assert_eq!(Config::read(&wrong).unwrap_err().message, "CNI_ARGS IP: \"10.2.0\" is no address");
}

#[test]
fn a_wrong_configuration_says_why_in_the_words_of_the_reference_plugin() {
    for (config, text) in [
        (json!({"name": "n"}), "IPAM config missing 'ipam' key"),
        (json!({"name": "n", "ipam": {}}), "no IP ranges specified"),
        (json!({"name": "n", "ipam": {"ranges": [[]]}}), "invalid range set 0: empty range set"),
        (
            json!({"name": "n", "ipam": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/31"}]]}}),
            "invalid range set 1: Network 10.1.0.0/31 too small to allocate from",
        ),
        (
            json!({"cniVersion": "1.0.0", "name": "n", "ipam": {
                "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]],
            }}),
            "range set 1 overlaps with 2",
        ),
        (
            json!({"cniVersion": "0.2.0", "name": "n", "ipam": {
                "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "10.1.0.0/24"}]],
            }}),
            "CNI version 0.2.0 does not support more than 1 address per family",
        ),
        (
            json!({"name": "n", "ipam": {"dataDir": 7, "subnet": "10.2.0.0/24"}}),
            "ipam.dataDir is 7, expected the path of a directory",
        ),
    ] {
        let error = read(&config).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (Code::INVALID_CONFIG, text));
    }
    let mut old = json!({"cniVersion": "0.2.0", "name": "n", "ipam": {
        "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }});
    read(&old).expect("one of each family");
    old["ipam"]["ranges"][0][0]["gateway"] = json!(7);
    assert_eq!(read(&old).unwrap_err().code, Code::DECODING_FAILURE);
}
