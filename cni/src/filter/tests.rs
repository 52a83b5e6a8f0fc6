//! Names, quoting, and rules that are read back.

use super::*;

#[test]
fn names_are_those_of_the_reference_plugins() {
    // `printf test1234 | sha512sum`
    assert_eq!(chain_name("CNI-", "test", "1234"), "CNI-2bbe0c48b91a7d1b8a6753a8");
    assert_eq!(chain_name("CNI-DN-", "test", "1234"), "CNI-DN-2bbe0c48b91a7d1b8a675");
    assert_eq!(hash("test1234", 16), "2bbe0c48b91a7d1b");
}

#[test]
fn words_of_a_rule_are_read_as_they_were_quoted() {
    let comment = "name: \"n\" id: \"i\" \\ -j NOWHERE";
    let rule = format!("-s 10.1.0.5/32 -m comment --comment {} -j CNI-x", quoted(comment));
    let words = words(&rule);
    assert_eq!(word_after(&words, "--comment"), Some(comment));
    assert_eq!(word_after(&words, "-j"), Some("CNI-x"));
    assert_eq!(word_after(&words, "-g"), None);
    assert_eq!(quoted("plain"), "plain");
    assert_eq!(quoted(""), "\"\"");
}

#[test]
fn rules_of_nftables_are_read_with_their_chain_and_handle() {
    let listing = "table ip cni_hostport { # handle 1\n\tset x { # handle 9\n\t\ttype mark\n\t}\n\n\
        \tchain hostports { # handle 2\n\t\ttcp dport 80 dnat to 10.1.0.5:8080 comment \"c1\" # handle 4\n\t}\n\n\
        \tchain output { # handle 3\n\t\ttype nat hook output priority -100; policy accept;\n\
        \t\tfib daddr type local jump hostports # handle 7\n\t}\n}\n";
    let rule = |chain: &str, handle, text: &str, comment: &str| NftRule {
        chain: chain.to_owned(),
        handle,
        text: text.to_owned(),
        comment: comment.to_owned(),
    };
    let expected = [
        rule("hostports", 4, "tcp dport 80 dnat to 10.1.0.5:8080", "c1"),
        rule("output", 7, "fib daddr type local jump hostports", ""),
    ];
    assert_eq!(NftRule::all(listing), expected);
    assert_eq!(nft_chain_head(listing, "output"), Some("type nat hook output priority -100; policy accept;"));
    assert_eq!(nft_chain_head(listing, "hostports"), None);
}

#[test]
fn an_option_that_names_no_system_is_refused_with_what_it_may_be() {
    assert_eq!(Backend::from_option("backend", None), Ok(None));
    assert_eq!(Backend::from_option("backend", Some("")), Ok(None));
    assert_eq!(Backend::from_option("backend", Some("nftables")), Ok(Some(Backend::Nftables)));
    let error = Backend::from_option("ipMasqBackend", Some("ebpf")).unwrap_err();
    assert_eq!(error.message, "unknown ipMasqBackend \"ebpf\"");
    assert!(error.details.contains("iptables or nftables"));
}

#[test]
fn a_missing_program_is_told_with_its_package_and_the_plugins_own_option() {
    let error =
        failed("map ports to container c", "backend", &ProgramError::Missing { program: "ip6tables" });
    let text = "map ports to container c: there is no program ip6tables; install the package iptables (Debian and Alpine \
                name it so)";
    assert_eq!(error.message, text);
    assert_eq!(error.details, "backend chooses the system: iptables or nftables");
}
