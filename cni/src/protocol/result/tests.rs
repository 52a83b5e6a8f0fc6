//! Results in the form of each version.

use super::*;
use crate::protocol::pretty;

fn both_families() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "cni0".to_owned(),
                mac: "0a:58:0a:f4:01:01".to_owned(),
                mtu: 1450,
                ..Interface::default()
            },
            Interface {
                name: "eth0".to_owned(),
                sandbox: "/run/netns/c1".to_owned(),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                interface: Some(1),
                address: "10.244.1.5/24".parse().unwrap(),
                gateway: Some("10.244.1.1".parse().unwrap()),
            },
            IpConfig { interface: Some(1), address: "fd00::5/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route { mtu: 1400, ..Route::to("10.244.0.0/16".parse().unwrap()) },
            Route { gateway: Some("fd00::1".parse().unwrap()), ..Route::to("::/0".parse().unwrap()) },
        ],
        dns: Dns::default(),
    }
}

fn text(version: Version) -> String {
    pretty(&both_families().to_json(version).unwrap()).replace("    ", " ").replace('\n', "")
}

#[test]
fn each_version_has_its_form() {
    let old = "{ \"cniVersion\": \"0.2.0\", \"ip4\": {  \"ip\": \"10.244.1.5/24\",  \"gateway\": \"10.244.1.1\",  \"routes\": \
               [   {    \"dst\": \"10.244.0.0/16\"   }  ] }, \"ip6\": {  \"ip\": \"fd00::5/64\",  \"routes\": [   {    \
               \"dst\": \"::/0\",    \"gw\": \"fd00::1\"   }  ] }, \"dns\": {}}";
    assert_eq!(text(Version::V0_2_0), old);
    let middle = text(Version::V0_3_1);
    assert!(
        middle.contains("\"version\": \"4\",   \"interface\": 1,   \"address\": \"10.244.1.5/24\""),
        "{middle}"
    );
    assert!(!middle.contains("mtu") && middle.ends_with("\"dns\": {}}"), "{middle}");
    let stable = text(Version::V1_0_0);
    assert!(
        !stable.contains("\"version\"") && !stable.contains("mtu") && !stable.contains("dns"),
        "{stable}"
    );
    let newest = text(Version::V1_1_0);
    assert!(newest.contains("\"mtu\": 1450") && newest.contains("\"mtu\": 1400"), "{newest}");
}

#[test]
fn what_is_written_reads_back() {
    for version in Version::ALL {
        let written = both_families().to_json(version).unwrap();
        let read = AddResult::from_json(&written).unwrap();
        assert_eq!(read.to_json(version).unwrap(), written, "{version}");
    }
    assert_eq!(
        AddResult::from_json(&both_families().to_json(Version::NEWEST).unwrap()).unwrap(),
        both_families()
    );
}

#[test]
fn empty_and_null_are_nothing() {
    let value =
        serde_json::json!({"cniVersion": "0.3.1", "ips": null, "routes": [{"dst": "0.0.0.0/0", "gw": ""}]});
    let read = AddResult::from_json(&value).unwrap();
    assert_eq!(read.routes, [Route::to("0.0.0.0/0".parse().unwrap())]);
    assert!(read.to_json(Version::V0_2_0).unwrap_err().message.contains("before 0.3.0"));
}
