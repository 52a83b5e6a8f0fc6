//! The bodies of the fuzz targets. One function has three callers: the fuzzer, the replay of the corpus, a property test.
//!
//! Each panics where a promise is broken, and only there.

use hostnet::subnet_env::{Previous, SubnetEnv};

#[cfg(feature = "etcd")]
use {
    crate::lease::LeaseUpdate,
    crate::store::etcd::{entry::Pair, keys::Keys, known::Known},
    std::collections::BTreeMap,
    std::time::{Duration, UNIX_EPOCH},
};

use crate::flags::RawFlags;
use crate::guard::read_listing;
use crate::lease::{parse_value, print_value};
use crate::masquerade::every_chain;
use crate::network::NetworkConfig;
use crate::settings::Settings;

/// `net-conf.json`: an accepted configuration has pools that hold together; a refused one says where.
pub fn net_conf(data: &[u8]) {
    match NetworkConfig::parse(data) {
        Ok(config) => {
            assert!(config.pools().next().is_some(), "a configuration without a pool");
            for pool in config.pools() {
                assert_eq!(pool.nth(0), Some(pool.first()));
                assert_eq!(pool.nth(pool.count() - 1), Some(pool.last()));
                assert!(pool.holds(&pool.first()) && pool.holds(&pool.last()));
                assert_eq!(pool.indices(&pool.network()), Some(0..=pool.count() - 1));
            }
        }
        Err(remark) => {
            assert!(remark.at.line >= 1 && remark.at.column >= 1 && !remark.text.is_empty());
        }
    }
}

/// A lease file: what is accepted survives print and parse.
pub fn lease_file(data: &[u8]) {
    let Ok((attrs, expires)) = parse_value(data) else { return };
    let text = print_value(&attrs, expires);
    assert_eq!(parse_value(text.as_bytes()).as_ref(), Ok(&(attrs, expires)), "{text}");
}

/// What etcd tells of the leases, a line an event: `NAME VALUE` was written, `NAME` was deleted. A value that is no lease
/// removes nobody, and events lead to what a list says.
#[cfg(feature = "etcd")]
pub fn etcd_leases(data: &[u8]) {
    let keys = Keys::new("/coreos.com/network");
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut known = Known::new(keys.clone());
    let mut model = BTreeMap::new();
    for (modified, line) in (1..).zip(data.split(|byte| *byte == b'\n')) {
        let mut parts = line.splitn(2, |byte| *byte == b' ');
        let key = [keys.leases().as_bytes(), parts.next().unwrap_or_default()].concat();
        let Some(value) = parts.next() else {
            let told = known.deleted(&key);
            assert_eq!(told, keys.subnet(&key).map(LeaseUpdate::Remove));
            model.remove(&key);
            continue;
        };
        let pair = Pair { key: key.clone(), value: value.to_vec(), etcd_lease: 0, modified };
        let before = known.all();
        match known.put(&pair, now) {
            Some(LeaseUpdate::Upsert(lease)) => {
                assert_eq!(keys.lease(&lease.subnet).into_bytes(), key, "one lease has one key");
                model.insert(key, pair);
            }
            Some(update) => panic!("{update:?}"),
            None => assert_eq!(known.all(), before),
        }
    }
    let pairs: Vec<_> = model.into_values().collect();
    assert_eq!(Known::new(keys).list(&pairs, now), known.all());
}

/// `subnet.env`: what is accepted survives print and parse; the lenient reader takes anything.
pub fn subnet_env(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let previous = Previous::parse(&text);
    assert!(previous.subnets.len() <= 2 && previous.networks.len() <= 2);
    let Ok(env) = SubnetEnv::parse(&text) else { return };
    assert_eq!(SubnetEnv::parse(&env.to_string()).as_ref(), Ok(&env), "{env}");
}

/// What `iptables -S` and `nft -j` print: whatever it is, its repair is the same chain, made again.
pub fn rule_listing(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    read_listing(&text);
    for chain in every_chain() {
        let seen = chain.seen(Some(&text), &text);
        let repair = chain.repair(&seen);
        assert!(repair.starts_with(&format!("*{}\n:{} - [0:0]\n", chain.table, chain.name)), "{repair}");
        assert!(repair.ends_with("COMMIT\n"), "{repair}");
        let deleted = repair.lines().filter(|line| line.starts_with("-D ")).count();
        assert!(deleted == 0 || deleted == seen.jumps.len(), "{repair}");
        assert_eq!(
            repair.lines().count(),
            3 + deleted + usize::from(seen.jumps != [chain.jump.clone()]),
            "{repair}"
        );
    }
}

/// A Node of the Kubernetes API, and an annotation prefix: what is a lease survives being published again.
pub fn annotations(data: &[u8]) {
    crate::store::kube::fuzz_node(data);
}

/// The command line, one word a line; lines that begin with `FLANNELD_` are variables.
pub fn flags(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (variables, words): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("FLANNELD_"));
    let variables = variables.iter().filter_map(|line| line.split_once('='));
    let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let error = match RawFlags::parse(words.into_iter().map(str::to_owned), environment) {
        Ok(flags) => Settings::settle(&flags).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    assert!(error != Some(String::new()), "an error without a word");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_break_a_promise(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            net_conf(&data);
            lease_file(&data);
            #[cfg(feature = "etcd")]
            etcd_leases(&data);
            subnet_env(&data);
            rule_listing(&data);
            flags(&data);
            annotations(&data);
        }

        #[test]
        fn no_annotations_break_a_promise(
            kind in "|vxlan|host-gw|[a-z]{0,3}",
            data in "null|[{]\"VNI\":[0-9]{1,9},\"VtepMAC\":\"0a:00:00:00:00:0[0-9a-fA-F]\"[}]|.{0,20}",
            six in "null|[{]\"VtepMAC\":\"0a:00:00:00:00:0[0-9a-fA-F]\"[}]|.{0,8}",
            ip in "192\\.0\\.2\\.[0-9]{1,3}|0.0.0.0||.{0,8}",
            ip6 in "2001:db8::[0-9a-f]{0,5}|::|.{0,8}",
            cidrs in proptest::collection::vec("10\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,2}|fd00:[0-9a-f]{1,4}::/[0-9]{1,3}|.{0,4}", 0..4),
        ) {
            let node = serde_json::json!({
                "metadata": {"name": "n", "annotations": {
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/backend-type": kind,
                    "flannel.alpha.coreos.com/backend-data": data,
                    "flannel.alpha.coreos.com/backend-v6-data": six,
                    "flannel.alpha.coreos.com/public-ip": ip,
                    "flannel.alpha.coreos.com/public-ipv6": ip6,
                }},
                "spec": {"podCIDRs": cidrs},
            });
            annotations(node.to_string().as_bytes());
        }

        #[test]
        #[cfg(feature = "etcd")]
        fn no_history_breaks_a_promise(
            data in "((10[.]5[.][0-3][.]0-(24|16)(&fd00::-64)?|x)( [{]\"PublicIP\":\"192[.]0[.]2[.][1-3]\"[}]?)?\n){0,20}",
        ) {
            etcd_leases(data.as_bytes());
        }

        #[test]
        fn no_words_break_a_promise(
            data in "([{}:,\"]|Network|Backend|Type|PublicIP|FLANNEL_SUBNET=|FLANNELD_V=|--v=|10[.]5[.]0[.]0/16|vxlan|[0-9]{1,3}|\n){0,20}",
        ) {
            net_conf(data.as_bytes());
            lease_file(data.as_bytes());
            #[cfg(feature = "etcd")]
            etcd_leases(data.as_bytes());
            subnet_env(data.as_bytes());
            flags(data.as_bytes());
            annotations(data.as_bytes());
        }
    }
}
