//! Results, requested addresses and a model: whatever is asked in whatever order, no address twice and none lost.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

mod model;

pub(super) fn asked(command: &str, id: &str, ifname: &str, config: &Value) -> Request {
    asked_with(command, id, ifname, config, "")
}

pub(super) fn asked_with(command: &str, id: &str, ifname: &str, config: &Value, args: &str) -> Request {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => command.to_owned(),
            "CNI_CONTAINERID" => id.to_owned(),
            "CNI_IFNAME" => ifname.to_owned(),
            "CNI_NETNS" => "/none".to_owned(),
            "CNI_PATH" => "/x".to_owned(),
            "CNI_ARGS" => args.to_owned(),
            _ => return None,
        })
    };
    Request::read(variable, config.to_string().as_bytes()).map_err(|(_, error)| error).unwrap()
}

/// A network of its own in a directory of its own.
struct Net {
    directory: TempDir,
    config: Value,
}

impl Net {
    fn new(ranges: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ipam = json!({"type": "host-local", "dataDir": directory.path(), "ranges": ranges});
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam});
        Self { directory, config }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("net")
    }

    fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }

    fn add(&self, id: &str, requested: &[&str]) -> Result<Vec<String>, CniError> {
        let config = self.with("runtimeConfig", json!({"ips": requested}));
        let result = HostLocal.add(&asked("ADD", id, "eth0", &config))?;
        Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    fn del(&self, id: &str) -> Result<(), CniError> {
        HostLocal.del(&asked("DEL", id, "eth0", &self.config))
    }

    fn gc(&self, valid: &Value) -> Result<(), CniError> {
        HostLocal.gc(&asked("GC", "", "", &self.with("cni.dev/valid-attachments", valid.clone())))
    }

    fn status(&self) -> Result<(), CniError> {
        HostLocal.status(&asked("STATUS", "", "", &self.config))
    }

    fn check(&self, id: &str, previous: Value) -> Result<(), CniError> {
        HostLocal.check(&asked("CHECK", id, "eth0", &self.with("prevResult", previous)))
    }

    /// Address to content, without what is none.
    fn reserved(&self) -> BTreeMap<IpAddr, String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten();
        let files = entries.filter_map(|entry| {
            let path = entry.unwrap().path();
            let ip = path.file_name()?.to_str()?.parse().ok()?;
            Some((ip, fs::read_to_string(path).unwrap()))
        });
        files.collect()
    }
}

fn small() -> Net {
    Net::new(json!([[{"subnet": "10.0.0.0/29"}]]))
}

#[test]
fn addresses_go_round_and_the_gateway_is_never_given() {
    let net = small();
    for host in [2, 3, 4, 5, 6, 2, 3] {
        assert_eq!(net.add("c", &[]).unwrap(), [format!("10.0.0.{host}/29")]);
        net.del("c").unwrap();
    }
}

#[test]
fn a_gateway_of_another_range_is_never_given_either() {
    let net = Net::new(json!([[
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.11"},
        {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.10", "rangeEnd": "10.0.1.10", "gateway": "10.0.0.11"},
    ]]));
    assert_eq!(net.add("a", &[]).unwrap(), ["10.0.0.10/24"]);
    assert_eq!(net.add("b", &[]).unwrap(), ["10.0.1.10/24"]);
    let error = net.add("c", &["10.0.0.11"]).unwrap_err();
    assert_eq!(error.message, "failed to allocate for range 0: requested ip 10.0.0.11 is subnet's gateway");
    assert!(net.add("c", &[]).unwrap_err().message.contains("(2 of 2 used"));
}

#[test]
fn an_exhausted_pool_says_how_much_is_used_and_where_and_status_is_50() {
    let net = small();
    for id in ["a", "b", "c", "d", "e"] {
        net.status().unwrap();
        net.add(id, &[]).unwrap();
    }
    let full = format!(
        "no IP addresses available in range set: 10.0.0.1-10.0.0.6 (5 of 5 used, see {})",
        net.path().display()
    );
    let error = net.add("f", &[]).unwrap_err();
    assert_eq!(error.message, format!("failed to allocate for range 0: {full}"));
    assert_eq!(net.status().unwrap_err().code, Code::NOT_AVAILABLE);
    assert_eq!(net.status().unwrap_err().message, full);
    net.del("c").unwrap();
    net.status().unwrap();
    assert_eq!(net.add("f", &[]).unwrap(), ["10.0.0.4/29"]);
}

#[test]
fn status_is_50_where_the_directory_cannot_be_written() {
    let net = small();
    fs::write(net.path(), "a file").unwrap();
    let error = net.status().unwrap_err();
    assert_eq!(error.code, Code::NOT_AVAILABLE);
    assert!(error.message.contains(&net.path().display().to_string()), "{error}");
}

#[test]
fn a_later_set_that_is_full_gives_the_earlier_addresses_back() {
    let net = Net::new(json!([
        [{"subnet": "10.0.0.0/24"}],
        [{"subnet": "fd00::/126", "rangeStart": "fd00::2", "rangeEnd": "fd00::2"}],
    ]));
    assert_eq!(net.add("a", &[]).unwrap(), ["10.0.0.2/24", "fd00::2/126"]);
    let error = net.add("b", &[]).unwrap_err();
    assert!(
        error.message.starts_with("failed to allocate for range 1: no IP addresses available"),
        "{error}"
    );
    assert_eq!(net.reserved().len(), 2);
    assert_eq!(net.status().unwrap_err().code, Code::NOT_AVAILABLE, "one full set refuses every container");
}

#[test]
fn the_same_device_of_a_container_is_given_no_second_address() {
    let net = small();
    net.add("a", &[]).unwrap();
    for requested in [&[][..], &["10.0.0.5"]] {
        let error = net.add("a", requested).unwrap_err();
        assert!(
            error.message.ends_with("10.0.0.2 has been allocated to a, duplicate allocation is not allowed")
        );
    }
    HostLocal.add(&asked("ADD", "a", "eth1", &net.config)).expect("another device of it");
    assert_eq!(net.reserved().len(), 2);
    net.del("a").unwrap();
    assert_eq!(net.reserved().values().collect::<Vec<_>>(), ["a\r\neth1"]);
}

#[test]
fn what_is_asked_for_is_given_or_refused_with_the_reason() {
    let net = Net::new(json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]));
    assert_eq!(net.add("a", &["fd00::9", "10.0.0.9/24"]).unwrap(), ["10.0.0.9/24", "fd00::9/64"]);
    net.add("far", &["fd00::ffff:ffff:ffff:ffff"]).expect("found without a walk");
    net.del("far").unwrap();
    let error = net.add("b", &["10.0.0.9"]).unwrap_err();
    assert!(
        error.message.ends_with("address 10.0.0.9 is not available in range set 10.0.0.1-10.0.0.254"),
        "{error}"
    );
    for unused in [&["192.0.2.1"][..], &["10.0.0.7", "10.0.0.8", "192.0.2.1"]] {
        let error = net.add("b", unused).unwrap_err();
        assert!(error.message.starts_with("failed to allocate all requested IPs: "), "{error}");
        assert!(error.message.ends_with("192.0.2.1"), "{error}");
    }
    assert_eq!(net.reserved().len(), 2);
}

#[test]
fn del_does_not_need_a_configuration_that_makes_sense() {
    let net = small();
    net.add("a", &[]).unwrap();
    for ranges in [json!([[{"subnet": "10.9.0.0/31"}]]), json!(7)] {
        let mut config = net.config.clone();
        config["ipam"]["ranges"] = ranges;
        HostLocal.del(&asked("DEL", "unknown", "eth0", &config)).unwrap();
        HostLocal.del(&asked("DEL", "a", "eth0", &config)).unwrap();
        assert_eq!(net.reserved(), BTreeMap::new());
        net.add("a", &[]).unwrap();
    }
}

#[test]
fn del_of_what_never_was_succeeds_and_makes_nothing() {
    let net = small();
    net.del("a").unwrap();
    assert!(!net.path().exists());
    net.add("a", &[]).unwrap();
    net.del("a").unwrap();
    net.del("a").unwrap();
}

#[test]
fn del_frees_what_a_very_old_plugin_reserved_only_if_there_is_nothing_newer() {
    let net = small();
    fs::create_dir(net.path()).unwrap();
    fs::write(net.path().join("10.0.0.5"), "a").unwrap();
    fs::write(net.path().join("10.0.0.6"), " a\r\neth0\n").unwrap();
    net.del("a").unwrap();
    assert_eq!(net.reserved().into_keys().collect::<Vec<_>>(), [IpAddr::from([10, 0, 0, 5])]);
    net.del("a").unwrap();
    assert_eq!(net.reserved(), BTreeMap::new());
}

#[test]
fn gc_frees_what_no_container_holds_and_touches_nothing_else() {
    let net = small();
    for id in ["a", "b"] {
        net.add(id, &[]).unwrap();
    }
    for (name, content) in
        [("10.0.0.4", "a"), ("10.0.0.5", "gone"), ("10.0.0.6", ""), ("notes", "mine"), ("10.9.0.1", "x\r\ny")]
    {
        fs::write(net.path().join(name), content).unwrap();
    }
    fs::create_dir(net.path().join("10.0.0.9")).unwrap();
    net.gc(&json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}])).unwrap();
    let mut left: Vec<String> =
        fs::read_dir(net.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".boot_id", "10.0.0.2", "10.0.0.4", "10.0.0.9", "last_reserved_ip.0", "lock", "notes"]);
    net.gc(&Value::Null).expect_err("without a list nothing is known to be gone");
    net.gc(&json!([])).unwrap();
    assert!(!net.path().join("10.0.0.2").exists());
}

#[test]
fn check_looks_for_the_very_addresses_of_the_result() {
    let net = small();
    let given = |ip: &str| json!({"cniVersion": "1.1.0", "ips": [{"address": ip}]});
    assert_eq!(net.check("a", given("10.0.0.2/29")).unwrap_err().code, Code::CHECK_FAILED);
    net.add("a", &[]).unwrap();
    net.add("b", &[]).unwrap();
    net.check("a", given("10.0.0.2/29")).unwrap();
    net.check("a", Value::Null).unwrap();
    net.check("a", given("192.0.2.1/24")).expect("another plugin's address is not ours to judge");
    let error = net.check("a", given("10.0.0.3/29")).unwrap_err();
    assert!(error.message.contains("10.0.0.3 is not reserved for eth0 of container a"), "{error}");
    net.check("c", Value::Null).unwrap_err();
    let elsewhere = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth1"}],
        "ips": [{"interface": 0, "address": "10.0.0.3/29"}]});
    net.check("a", elsewhere).expect("the address of another device");
}

#[test]
fn resolv_conf_goes_into_the_result() {
    let net = small();
    let path = net.directory.path().join("resolv.conf");
    fs::write(
        &path,
        "# comment\n; another\nnameserver 192.0.2.1\n nameserver fd00::53 trailing\ndomain a.example\n\
         search b.example c.example\nsearch d.example\noptions ndots:5 rotate\nnameserver\nsortlist x\n",
    )
    .unwrap();
    let mut config = net.config.clone();
    config["ipam"]["resolvConf"] = json!(path);
    let dns = HostLocal.add(&asked("ADD", "a", "eth0", &config)).unwrap().dns;
    assert_eq!(dns.nameservers, ["192.0.2.1", "fd00::53"]);
    assert_eq!(dns.domain, "a.example");
    assert_eq!(dns.search, ["b.example", "c.example", "d.example"]);
    assert_eq!(dns.options, ["ndots:5", "rotate"]);
    config["ipam"]["resolvConf"] = json!("/does/not/exist");
    let error = HostLocal.add(&asked("ADD", "b", "eth0", &config)).unwrap_err();
    assert_eq!(error.code, Code::IO_FAILURE);
    assert_eq!(net.reserved().len(), 1, "nothing is reserved for an ADD that fails");
}
