//! Golden rules: those of the reference plugins.

use hostnet::filter::IpVersion;

use super::*;

fn attachment() -> Attachment {
    Attachment { container_id: "1234".to_owned(), ifname: "eth0".to_owned() }
}

fn masquerade(ips: &[&str]) -> Masquerade {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Masquerade { backend: None, network: "test".to_owned(), attachment: attachment(), ips }
}

#[test]
fn iptables_gets_the_rules_of_the_reference_plugins() {
    let both = masquerade(&["10.244.1.5/24", "fd00:1::5/64"]);
    let v4 = iptables::Rules::of(&both, IpVersion::V4).unwrap();
    assert_eq!(
        v4.creation(),
        r#"*nat
-N CNI-2bbe0c48b91a7d1b8a6753a8
-A CNI-2bbe0c48b91a7d1b8a6753a8 -d 10.244.1.0/24 -m comment --comment "name: \"test\" id: \"1234\"" -j ACCEPT
-A CNI-2bbe0c48b91a7d1b8a6753a8 ! -d 224.0.0.0/4 -m comment --comment "name: \"test\" id: \"1234\"" -j MASQUERADE
-A POSTROUTING -s 10.244.1.5/32 -m comment --comment "name: \"test\" id: \"1234\"" -j CNI-2bbe0c48b91a7d1b8a6753a8
COMMIT
"#
    );
    let v6 = iptables::Rules::of(&both, IpVersion::V6).unwrap();
    assert_eq!(
        v6.creation(),
        r#"*nat
-N CNI-2bbe0c48b91a7d1b8a6753a8
-A CNI-2bbe0c48b91a7d1b8a6753a8 -d fd00:1::/64 -m comment --comment "name: \"test\" id: \"1234\"" -j ACCEPT
-A CNI-2bbe0c48b91a7d1b8a6753a8 ! -d ff00::/8 -m comment --comment "name: \"test\" id: \"1234\"" -j MASQUERADE
-A POSTROUTING -s fd00:1::5/128 -m comment --comment "name: \"test\" id: \"1234\"" -j CNI-2bbe0c48b91a7d1b8a6753a8
COMMIT
"#
    );
    assert!(iptables::Rules::of(&masquerade(&["fd00:1::5/64"]), IpVersion::V4).is_none());
}

#[test]
fn traffic_to_a_second_network_of_a_container_is_not_masqueraded() {
    let two = masquerade(&["10.1.0.5/24", "10.2.0.5/24"]);
    let text = iptables::Rules::of(&two, IpVersion::V4).unwrap().creation();
    let at = |part: &str| text.find(part).unwrap();
    assert!(at("-d 10.2.0.0/24") < at("MASQUERADE"), "{text}");
    // Nor when it comes with another device, after the first one's chain was made.
    let first = iptables::Rules::of(&masquerade(&["10.1.0.5/24"]), IpVersion::V4).unwrap().creation();
    let own: Vec<String> = first
        .lines()
        .filter_map(|line| line.strip_prefix("-A CNI-2bbe0c48b91a7d1b8a6753a8 "))
        .map(str::to_owned)
        .collect();
    let text =
        iptables::Rules::of(&masquerade(&["10.2.0.5/24"]), IpVersion::V4).unwrap().completion(&own, &[]);
    let at = |part: &str| text.find(part).unwrap();
    assert!(at("-d 10.1.0.0/24") < at("MASQUERADE") && at("-d 10.2.0.0/24") < at("MASQUERADE"), "{text}");
    assert_eq!(text.matches("MASQUERADE").count(), 1, "{text}");
}

#[test]
fn nftables_gets_the_rules_of_the_reference_plugins() {
    let text = nft::frame() + &nft::commands(&masquerade(&["10.244.1.5/24", "fd00:1::5/64", "10.9.9.9/32"]));
    // `printf test | sha512sum`, `printf eth0:1234 | sha512sum`
    let comment = "ee26b0dd4af7e749-43243da06b17813b, net: test, if: eth0, id: 1234";
    let expected = format!(
        "add table inet cni_plugins_masquerade
add chain inet cni_plugins_masquerade masq_checks
add chain inet cni_plugins_masquerade postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
flush chain inet cni_plugins_masquerade postrouting
add rule inet cni_plugins_masquerade postrouting ip daddr 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
list table inet cni_plugins_masquerade
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.244.1.5 ip daddr != 10.244.1.0/24 masquerade comment \"{comment}\"
add rule inet cni_plugins_masquerade masq_checks ip6 saddr fd00:1::5 ip6 daddr != fd00:1::/64 masquerade comment \"{comment}\"
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.9.9.9 ip daddr != 10.9.9.9 masquerade comment \"{comment}\"
"
    );
    assert_eq!(text, expected);
}

#[test]
fn comments_are_cut_to_what_the_kernel_takes() {
    let mut long = masquerade(&["10.244.1.5/24"]);
    long.network = "n".repeat(300);
    long.attachment = Attachment { container_id: "c".repeat(64), ifname: "ü\"ü".to_owned() };
    let text = nft::commands(&long);
    let (_, comment) = text.rsplit_once("comment \"").unwrap();
    assert_eq!(comment.trim_end().len(), 129, "128 and the quotation mark");
    let text = iptables::Rules::of(&long, IpVersion::V4).unwrap().creation();
    let comment = crate::filter::words(text.lines().last().unwrap_or_default());
    assert!(crate::filter::word_after(&comment, "--comment").is_none_or(|comment| comment.len() <= 255));
}

#[test]
fn a_comment_is_read_as_it_was_written() {
    assert_eq!(iptables::read_comment("name: \"cbr0\" id: \"4f1d\""), Some(("cbr0", "4f1d")));
    assert_eq!(iptables::read_comment("dnat name: \"cbr0\" id: \"4f1d\""), None);
    assert_eq!(iptables::read_comment("name: \"cbr0"), None);
}
