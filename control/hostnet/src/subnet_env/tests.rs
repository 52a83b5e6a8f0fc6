//! Promises about `subnet.env`.
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;

const DUAL: &str = "FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24
FLANNEL_IPV6_NETWORK=fd00::/48
FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
";

fn dual() -> SubnetEnv {
    SubnetEnv {
        networks: vec![net("10.5.0.0/16"), net("fd00::/48")],
        subnets: vec![net("10.5.72.0/24"), net("fd00:0:0:1::/64")],
        mtu: 1450,
        ip_masq: true,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn the_text_is_flannels_byte_for_byte() {
    assert_eq!(dual().to_string(), DUAL);
    assert_eq!(SubnetEnv::parse(DUAL), Ok(dual()));
    let v4 = SubnetEnv {
        networks: vec![net("10.5.0.0/16")],
        subnets: vec![net("10.5.72.0/24")],
        mtu: 1472,
        ip_masq: false,
    };
    assert_eq!(
        v4.to_string(),
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    );
}

#[test]
fn order_and_host_bits_of_what_is_given_do_not_show() {
    let shuffled = SubnetEnv {
        networks: vec![net("fd00::/48"), net("10.5.7.7/16")],
        subnets: vec![net("fd00:0:0:1::1/64"), net("10.5.72.9/24")],
        ..dual()
    };
    assert_eq!(shuffled.to_string(), DUAL);
}

#[test]
fn what_dotenv_readers_allow_is_allowed() {
    let text = "# by hand\r\n\r\nexport FLANNEL_NETWORK='10.5.0.0/16' # quoted\n\
                \tFLANNEL_SUBNET = \"10.5.72.1/24\"\nFLANNEL_SUBNET=10.5.73.1/24\nexport\tFLANNEL_MTU: 1450 # why\n\
                FLANNEL_IPMASQ=true\nOTHER=1";
    let env = SubnetEnv::parse(text).unwrap();
    assert_eq!(env.subnets, [net("10.5.73.0/24")], "the last assignment counts");
    assert_eq!((env.networks, env.mtu), (vec![net("10.5.0.0/16")], 1450));
}

#[test]
fn networks_may_be_a_list_and_subnets_not() {
    let text = DUAL.replace("=10.5.0.0/16", "=10.5.0.0/16,10.6.0.0/16,10.5.0.0/16");
    let networks = [net("10.5.0.0/16"), net("10.6.0.0/16"), net("fd00::/48")];
    assert_eq!(SubnetEnv::parse(&text).unwrap().networks, networks);
    let text = DUAL.replace("=10.5.72.1/24", "=10.5.72.1/24,10.5.73.1/24");
    let error = SubnetEnv::parse(&text).unwrap_err().to_string();
    assert_eq!(error, "line 2: FLANNEL_SUBNET is \"10.5.72.1/24,10.5.73.1/24\", expected a single prefix");
}

#[test]
fn a_bad_line_is_named_with_what_was_expected() {
    for (old, new, message) in [
        ("1450", "1450x", r#"line 5: FLANNEL_MTU is "1450x", expected a number of bytes, like 1450"#),
        ("1450", "-1", r#"line 5: FLANNEL_MTU is "-1", expected a number of bytes, like 1450"#),
        ("true", "yes", r#"line 6: FLANNEL_IPMASQ is "yes", expected true or false"#),
        ("10.5.72.1/24", "10.5.72.1", r#"line 2: FLANNEL_SUBNET is "10.5.72.1", expected an IPv4 prefix"#),
        ("10.5.72.1/24", "fd00::/64", r#"line 2: FLANNEL_SUBNET is "fd00::/64", expected an IPv4 prefix"#),
        ("10.5.72.1/24", "", r#"line 2: FLANNEL_SUBNET is "", expected an IPv4 prefix"#),
        (
            "fd00::/48",
            "10.0.0.0/8",
            r#"line 3: FLANNEL_IPV6_NETWORK is "10.0.0.0/8", expected an IPv6 prefix"#,
        ),
        ("FLANNEL_MTU=1450", "FLANNEL_MTU", r#"line 5: "FLANNEL_MTU": expected KEY=value"#),
        ("1450", "'1450", r#"line 5: "FLANNEL_MTU='1450": the closing quote is missing"#),
        ("1450", "'1450'0", r#"line 5: "FLANNEL_MTU='1450'0": text behind the closing quote"#),
        ("FLANNEL_MTU=", "=", r#"line 5: "=1450": expected a key"#),
    ] {
        let error = SubnetEnv::parse(&DUAL.replace(old, new)).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}\nwanted {message}");
    }
}

#[test]
fn a_torn_file_is_an_error_wherever_it_was_torn() {
    for length in 0..DUAL.trim_end().len() {
        let result = SubnetEnv::parse(&DUAL[..length]);
        assert!(result.is_err(), "{length} bytes: {result:?}");
    }
    let missing = |text: &str| SubnetEnv::parse(text).unwrap_err().to_string();
    assert!(missing("").starts_with("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK is missing"));
    assert!(missing("FLANNEL_NETWORK=10.5.0.0/16").starts_with("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET is"));
}

#[test]
fn the_previous_subnet_survives_what_a_whole_file_may_not_have() {
    let previous = Previous::parse("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=oops, 10.5.72.1/24\n");
    assert_eq!((previous.networks, previous.subnets), (vec![net("10.5.0.0/16")], vec![net("10.5.72.0/24")]));
    assert_eq!(previous.problems.len(), 1, "{:?}", previous.problems);
    assert!(previous.problems[0].starts_with("line 2: FLANNEL_SUBNET is"));

    let several = Previous::parse("FLANNEL_SUBNET=10.5.72.1/24,10.5.73.1/24\nFLANNEL_IPV6_SUBNET=fd00::1/64");
    assert_eq!(several.subnets, [net("fd00::/64")]);
    assert_eq!(several.problems.len(), 1);

    let unreadable = Previous::parse("FLANNEL_SUBNET=10.5.72.1/24\nwhat is this");
    assert_eq!(unreadable.subnets, []);
    assert_eq!(unreadable.problems, ["line 2: \"what is this\": expected KEY=value"]);
}

#[test]
fn a_missing_file_is_no_problem_at_a_first_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("subnet.env");
    assert_eq!(Previous::read(&path), Previous::default());
    let error = SubnetEnv::read(&path).unwrap_err().to_string();
    assert!(error.contains("subnet.env: No such file"), "{error}");
}

#[test]
fn hostile_files_are_refused_by_name_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("subnet.env");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Previous::read(&path).problems.len(), 1);
        SubnetEnv::read(&path).unwrap_err().to_string()
    };
    let not_text = refused(b"FLANNEL_MTU=1450\n\xff\xfe\n");
    assert!(not_text.ends_with("subnet.env: line 2: not UTF-8 text"), "{not_text}");
    let endless = refused(&vec![b'#'; 1 << 20]);
    assert!(endless.contains("longer than 65536 bytes"), "{endless}");
    let zeros = refused(&[0; 512]);
    assert!(zeros.contains("line 1: ") && zeros.len() < 1000, "{zeros}");
    assert!(SubnetEnv::read(directory.path()).is_err());
}

#[test]
fn writing_replaces_the_file_at_once_with_mode_0644() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/flannel/subnet.env");
    dual().write(&path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let mut held_open = File::open(&path).unwrap();
    let changed = SubnetEnv { mtu: 1400, ..dual() };
    changed.write(&path).unwrap();
    assert_eq!(SubnetEnv::read(&path).unwrap(), changed);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    let mut before = String::new();
    held_open.read_to_string(&mut before).unwrap();
    assert_eq!(before, DUAL, "who has the old file open still reads the old file");
    let names = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1, "no temporary file is left");
}

#[test]
fn a_write_that_fails_says_where() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("flannel"), "a file where a directory should be").unwrap();
    let error = dual().write(&directory.path().join("flannel/subnet.env")).unwrap_err().to_string();
    assert!(error.contains("flannel/subnet.env: "), "{error}");
}

fn any_env() -> impl Strategy<Value = SubnetEnv> {
    let v4 = || (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| v4_net(bits, length));
    let v6 = || (any::<u128>(), 0u8..=128).prop_map(|(bits, length)| v6_net(bits, length));
    let families = prop_oneof![
        (v4(), v4()).prop_map(|(network, subnet)| (vec![network], vec![subnet])),
        (v6(), v6()).prop_map(|(network, subnet)| (vec![network], vec![subnet])),
        (v4(), v6(), v4(), v6()).prop_map(|(n4, n6, s4, s6)| (vec![n4, n6], vec![s4, s6])),
    ];
    (families, any::<u32>(), any::<bool>()).prop_map(|((networks, subnets), mtu, ip_masq)| SubnetEnv {
        networks,
        subnets,
        mtu,
        ip_masq,
    })
}

fn v4_net(bits: u32, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(bits.into(), length).unwrap().trunc())
}

fn v6_net(bits: u128, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new(bits.into(), length).unwrap().trunc())
}

proptest! {
    #[test]
    fn what_is_written_reads_back(env in any_env()) {
        prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env.clone()));
        let previous = Previous::parse(&env.to_string());
        prop_assert_eq!((previous.networks, previous.subnets), (env.networks, env.subnets));
        prop_assert!(previous.problems.is_empty());
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in "(FLANNEL_[A-Z0-9_]{0,12}|export)?[ =:,'\"#/.0-9a-f\\n\\PC]{0,80}") {
        let lenient = Previous::parse(&text);
        if let Ok(env) = SubnetEnv::parse(&text) {
            prop_assert_eq!(&lenient.subnets, &env.subnets);
            prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env));
        }
    }
}
