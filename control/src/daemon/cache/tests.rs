//! What is written is read again, and nothing else is.

use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::lease::{BackendData, LeaseAttrs, VxlanData};

fn store() -> StoreChoice {
    StoreChoice::File { dir: "/leases".into() }
}

fn lease(third: u8, expires: Option<u64>) -> Lease {
    Lease {
        subnet: format!("10.5.{third}.0-24").parse::<Key>().unwrap().0,
        attrs: LeaseAttrs {
            public_ip: Some([192, 0, 2, third].into()),
            public_ipv6: None,
            backend: BackendData::Vxlan {
                v4: Some(VxlanData { vni: Some(1), mac: dataplane_core::MacAddr([2, 0, 0, 0, 0, third]) }),
                v6: None,
            },
        },
        expires: expires.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds)),
    }
}

fn known() -> Known {
    Known {
        network: NetworkConfig::parse(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)
            .unwrap(),
        public: PublicAddresses { v4: Some([198, 51, 100, 1].into()), v6: None },
        own: lease(1, Some(1_763_740_000)),
        leases: vec![lease(2, None), lease(3, Some(1_763_740_001))],
        heard: UNIX_EPOCH + Duration::from_secs(1_763_700_000),
    }
}

#[test]
fn the_network_survives_a_restart_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flannel/leases.json");
    assert_eq!(read(&path, &store()).unwrap(), None);
    Cache::new(&path, &store()).keep(known());
    assert_eq!(read(&path, &store()).unwrap(), Some(known()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn the_file_is_written_when_it_would_say_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leases.json");
    let mut cache = Cache::new(&path, &store());
    let is_written = |cache: &mut Cache, known: Known| {
        fs::remove_file(&path).ok();
        cache.keep(known);
        path.exists()
    };
    let later = |seconds| Known { heard: known().heard + Duration::from_secs(seconds), ..known() };
    assert!(is_written(&mut cache, known()));
    assert!(!is_written(&mut cache, known()) && !is_written(&mut cache, later(599)));
    assert!(is_written(&mut cache, Known { leases: vec![], ..later(599) }));
    assert!(!is_written(&mut cache, Known { leases: vec![], ..later(600) }));
    assert!(is_written(&mut cache, Known { leases: vec![], ..later(1199) }));
}

#[test]
fn a_file_that_another_could_have_written_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leases.json");
    Cache::new(&path, &store()).keep(known());
    for mode in [0o602, 0o620, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(read(&path, &store()).unwrap_err().to_string().contains("others may write"), "{mode:o}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = dir.path().join("link.json");
    symlink(&path, &link).unwrap();
    assert!(matches!(read(&link, &store()), Err(Unusable::Read(_))));
    assert!(matches!(read(dir.path(), &store()), Err(Unusable::Read(_))));
    // Writing in the place of a link replaces the link.
    Cache::new(&link, &store()).keep(known());
    assert!(link.symlink_metadata().unwrap().is_file());
}

#[test]
fn a_file_of_another_store_or_version_is_passed_over() {
    let text = print(&known(), &store()).unwrap();
    let other = StoreChoice::File { dir: "/others".into() };
    let error = parse(text.as_bytes(), &other).unwrap_err().to_string();
    assert_eq!(error, "it is of directory /leases, and this node's leases are in directory /others");
    let next = text.replace("\"version\":1", "\"version\":2,\"more\":1");
    assert!(parse(next.as_bytes(), &store()).unwrap_err().to_string().contains("its version is 2, not 1"));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let text = print(&known(), &store()).unwrap();
    for (from, to, expected) in [
        ("10.5.1.0-24", "10.6.1.0-24", "its own lease 10.6.1.0/24 is outside its network"),
        ("10.5.2.0-24", "10.5.2.9-24", "the lease \"10.5.2.9-24\": not the key of a lease"),
        ("192.0.2.3", "0.0.0.0", "the lease \"10.5.3.0-24\": 1:1: the lease names no node"),
        ("10.5.0.0/16", "10.5.0.0/99", "the network's configuration, 1:13"),
        ("1763700000", "99999999999999999999", "invalid"),
        ("1763700000", "18446744073709551615", "beyond all times"),
        ("\"leases\"", "\"fees\"", "unknown field"),
    ] {
        let error = parse(text.replace(from, to).as_bytes(), &store()).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn stores_have_names_of_their_own() {
    let etcd = |endpoints: &[&str], prefix: &str| {
        name_of(&StoreChoice::Etcd(crate::settings::EtcdSettings {
            endpoints: endpoints.iter().map(|text| (*text).to_owned()).collect(),
            prefix: prefix.to_owned(),
            ca: None,
            identity: None,
            user: Some(("root".to_owned(), "secret".to_owned())),
        }))
    };
    assert_eq!(etcd(&["http://b", "http://a"], "/p"), etcd(&["http://a", "http://b"], "/p"));
    assert_ne!(etcd(&["http://a"], "/p"), etcd(&["http://a"], "/q"));
    assert!(!etcd(&["http://a"], "/p").contains("secret"));
}

#[test]
fn a_node_is_known_by_its_address_or_by_its_name() {
    let kube = |node_name: Option<&str>| {
        StoreChoice::Kube(crate::settings::KubeSettings {
            api_url: None,
            kubeconfig: None,
            annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            node_name: node_name.map(str::to_owned),
            pod: Some(("kube-flannel-x".to_owned(), "kube-flannel".to_owned())),
            set_network_unavailable: true,
        })
    };
    let (ours, other) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 9].into()));
    assert!(is_ours(&known(), &store(), ours) && !is_ours(&known(), &store(), other));
    assert!(is_ours(&known(), &kube(Some("a")), other) && !is_ours(&known(), &kube(None), other));
    assert!(!is_ours(&known(), &kube(Some("a")), None));
    assert_ne!(name_of(&kube(Some("a"))), name_of(&kube(Some("b"))));
    // A podCIDR need not be one that the network's pool would give.
    let mut odd = known();
    odd.network =
        NetworkConfig::parse_without_pool(br#"{"Network": "10.5.0.0/16", "SubnetLen": 28}"#).unwrap();
    let text = print(&odd, &kube(Some("a"))).unwrap();
    assert_eq!(parse(text.as_bytes(), &kube(Some("a"))).unwrap(), odd);
}

proptest! {
    #[test]
    fn a_torn_or_changed_file_is_never_a_panic(cut in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let text = print(&known(), &store()).unwrap().into_bytes();
        let at = cut.index(text.len());
        prop_assert!(parse(&text[..at], &store()).is_err());
        let mut changed = text;
        changed[at] = byte;
        drop(parse(&changed, &store()));
    }
}
