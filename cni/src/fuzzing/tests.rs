//! The bodies of the fuzz targets on stable Rust.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => (0_u8..4, 0_u8..=255, 0_u8..=33).prop_map(|(net, host, length)| json!(format!("10.0.{net}.{host}/{length}"))),
        3 => (0_u8..4, 22_u8..=32).prop_map(|(net, length)| json!(format!("10.0.{net}.0/{length}"))),
        3 => (0_u8..4, 0_u8..=255).prop_map(|(net, host)| json!(format!("10.0.{net}.{host}"))),
        2 => (0_u16..4, 0_u8..=128).prop_map(|(net, length)| json!(format!("fd00:0:0:{net}::/{length}"))),
        1 => any::<u16>().prop_map(|host| json!(format!("fd00::{host:x}"))),
        1 => Just(json!("")),
        1 => Just(Value::Null),
        1 => ".*".prop_map(Value::from),
    ]
}

fn range() -> impl Strategy<Value = Value> {
    (text(), proptest::collection::vec((0_usize..4, text()), 0..3)).prop_map(|(subnet, more)| {
        let mut range = json!({"subnet": subnet});
        for (key, value) in more {
            range[["rangeStart", "rangeEnd", "gateway", "other"][key]] = value;
        }
        range
    })
}

fn sets() -> impl Strategy<Value = Value> {
    proptest::collection::vec(proptest::collection::vec(range(), 0..3), 0..3).prop_map(|sets| json!(sets))
}

fn config() -> impl Strategy<Value = Value> {
    let version = proptest::sample::select(Version::ALL.to_vec());
    let texts = || proptest::collection::vec(text(), 0..3);
    (version, range(), sets(), sets(), texts(), texts(), texts()).prop_map(
        |(version, single, ranges, ip_ranges, ips, by_args, routes)| {
            let mut ipam = single;
            ipam["ranges"] = ranges;
            ipam["addresses"] = ips.iter().map(|ip| json!({"address": ip})).collect();
            ipam["routes"] = routes.iter().map(|dst| json!({"dst": dst})).collect();
            json!({
                "cniVersion": version.as_str(), "name": "n", "ipam": ipam,
                "runtimeConfig": {"ipRanges": ip_ranges, "ips": ips},
                "args": {"cni": {"ips": by_args}},
            })
        },
    )
}

proptest! {
    #[test]
    fn any_configuration_keeps_the_promises(config in config(), args in proptest::option::of(text())) {
        let mut data = config.to_string().into_bytes();
        if let Some(Value::String(args)) = args {
            data.extend(format!("\0IP={args}").into_bytes());
        }
        cni_config(&data);
    }

    #[test]
    fn whatever_flannel_reads_keeps_the_promises(
        (config, delegate) in (config(), proptest::collection::vec((0_usize..6, text()), 0..4)),
        (networks, subnet) in (text(), text()),
        scratch in ".*",
    ) {
        let mut config = config;
        config["delegate"] = json!({});
        for (key, value) in delegate {
            config["delegate"][["type", "mtu", "name", "ipam", "vlan", "ipMasq"][key]] = value;
        }
        let plain = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let env = format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            plain(&networks), plain(&subnet)
        );
        cni_flannel(format!("{config}\0{env}\0{scratch}").as_bytes());
    }

    #[test]
    fn any_bytes_keep_the_promises(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        cni_config(&data);
        cni_flannel(&data);
    }
}
