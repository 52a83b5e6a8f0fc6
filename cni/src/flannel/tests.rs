//! Golden texts: what flannel's own plugin hands to its delegate, byte for byte.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::protocol::{Args, Attachment, Version};

fn request(config: Value) -> Request {
    Request {
        command: Command::Add,
        attachment: Attachment { container_id: "c1".to_owned(), ifname: "eth0".to_owned() },
        netns: "/run/netns/c1".to_owned(),
        args: Args::default(),
        path: Vec::new(),
        network: "cbr0".to_owned(),
        version: Version::V0_3_1,
        config,
    }
}

fn delegate_of(config: Value, subnet_env: &str) -> Result<String, CniError> {
    let request = request(config);
    let config = Config::of(&request)?;
    let env = SubnetEnv::parse(subnet_env).map_err(|error| CniError::internal(error.to_string()))?;
    Ok(delegate_config(&config, &env, &request)?.to_string())
}

const V4: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
                    FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";

#[test]
fn the_installed_configuration_becomes_a_bridge() {
    let installed = json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    let expected = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
    assert_eq!(delegate_of(installed, V4).unwrap(), expected);
}

#[test]
fn every_network_has_a_route_behind_the_users() {
    let config = json!({"name": "cbr0", "ipam": {"dataDir": "/d", "routes": [{"dst": "192.0.2.0/24", "gw": "10.244.1.9"}]}});
    let expected = r#"{"ipMasq":true,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:0:0:1::/64"}]],"routes":[{"dst":"192.0.2.0/24","gw":"10.244.1.9"},{"dst":"10.244.0.0/16"},{"dst":"10.245.0.0/16"},{"dst":"fd00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1430,"name":"cbr0","type":"bridge"}"#;
    assert_eq!(delegate_of(config, DUAL).unwrap(), expected);
}

#[test]
fn what_the_user_says_stays_and_another_delegate_is_no_gateway() {
    let config = json!({"name": "cbr0", "runtimeConfig": {"mac": "x"},
        "delegate": {"type": "ptp", "mtu": 9000, "ipMasq": true, "runtimeConfig": {"old": 1}}, "ipam": {"type": "dhcp"}});
    let expected = r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"dhcp"},"mtu":9000,"name":"cbr0","runtimeConfig":{"mac":"x"},"type":"ptp"}"#;
    assert_eq!(delegate_of(config, V4).unwrap(), expected);
}

#[test]
fn what_is_not_the_users_to_say_is_refused() {
    for (config, said) in [
        (json!({"name": "n", "delegate": {"name": "x"}}), "'delegate' dictionary must not have 'name' field"),
        (json!({"name": "n", "delegate": {"ipam": {}}}), "'delegate' dictionary must not have 'ipam' field"),
        (json!({"name": "n", "delegate": {"type": 1}}), "must have (string) 'type' field"),
        (json!({"name": "n", "delegate": []}), "invalid type"),
        (json!({"name": "n", "ipam": {"routes": [{"dst": "everywhere"}]}}), "'ipam' has bad 'routes'"),
    ] {
        let error = delegate_of(config, V4).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn a_missing_subnet_env_is_told_as_people_search_for_it() {
    let config = Config { subnet_file: Path::new("/nonexistent/subnet.env").to_owned(), ..Config::default() };
    let error = config.read_subnet_env().unwrap_err();
    assert_eq!(error.code, Code::TRY_AGAIN_LATER);
    assert_eq!(
        error.message,
        "failed to load flannel 'subnet.env' file: open /nonexistent/subnet.env: no such file or directory. Check the flannel \
         pod log for this node."
    );
    assert!(error.details.contains("is it running?"), "{}", error.details);
}

fn at(container: &str, ifname: &str) -> Attachment {
    Attachment { container_id: container.to_owned(), ifname: ifname.to_owned() }
}

#[test]
fn devices_of_one_container_have_scratch_files_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path());
    let (one, two) = (json!({"name": "n", "mtu": 1}), json!({"name": "n", "mtu": 2}));
    scratch.write("n", &at("c", "eth0"), &one).unwrap();
    scratch.write("n", &at("c", "net1"), &two).unwrap();
    assert_eq!(scratch.read(&at("c", "eth0")).unwrap(), Some(one));
    assert_eq!(scratch.read(&at("c", "net1")).unwrap(), Some(two));
    scratch.remove("n", &at("c", "eth0")).unwrap();
    assert!(dir.path().join("c").exists(), "net1 is still connected");
    scratch.remove("n", &at("c", "net1")).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn scratch_files_are_read_both_ways_with_flannels_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path());
    let delegate = json!({"name": "n", "type": "bridge"});
    scratch.write("n", &at("ours", "eth0"), &delegate).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("ours")).unwrap(), delegate.to_string());
    std::fs::write(dir.path().join("theirs"), delegate.to_string()).unwrap();
    assert_eq!(scratch.read(&at("theirs", "eth0")).unwrap(), Some(delegate));
    scratch.remove("n", &at("theirs", "eth0")).unwrap();
    assert!(!dir.path().join("theirs").exists());
}

#[test]
fn a_torn_scratch_file_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path());
    for torn in ["", "{\"na", "[]", "\u{0}"] {
        std::fs::write(dir.path().join("c"), torn).unwrap();
        assert_eq!(scratch.read(&at("c", "eth0")).unwrap(), None, "{torn:?}");
    }
    assert_eq!(scratch.of_network("n").unwrap(), []);
}

#[test]
fn gc_passes_over_whatever_is_not_of_its_network() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path());
    for (name, text) in
        [("README", "hello"), ("torn", "{\"na"), (".writing-n@c@eth0", "{"), (".writing-other@c@eth0", "{")]
    {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    std::fs::create_dir(dir.path().join("directory")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    scratch.write("n", &at("z", "eth0"), &json!({"name": "n"})).unwrap();
    let found: Vec<Attachment> = scratch.of_network("n").unwrap().into_iter().map(|(at, _)| at).collect();
    assert_eq!(found, [at("z", "eth0")]);
    scratch.clear_unfinished("n").unwrap();
    scratch.remove("n", &at("z", "eth0")).unwrap();
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".writing-other@c@eth0", "README", "directory", "link", "torn"]);
}

#[test]
fn gc_sees_a_container_once_whoever_wrote_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = Scratch::new(dir.path());
    let delegate = json!({"name": "n"});
    scratch.write("n", &at("a", "eth0"), &delegate).unwrap();
    scratch.write("n", &at("b", "eth0"), &json!({"name": "other"})).unwrap();
    std::fs::write(dir.path().join("c"), delegate.to_string()).unwrap();
    let found: Vec<Attachment> = scratch.of_network("n").unwrap().into_iter().map(|(at, _)| at).collect();
    assert_eq!(found, [at("a", "eth0"), at("c", "")]);
    assert!(scratch::is_listed(&at("c", ""), &[at("c", "net7")]));
    assert!(!scratch::is_listed(&at("a", "eth0"), &[at("a", "net7")]));
}
