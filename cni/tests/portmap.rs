//! Promises about port mappings, kept with the real programs in private namespaces.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
use std::net::{IpAddr, UdpSocket};
use std::process::ExitCode;

use lab::Scene;
use serde_json::{Value, json};

#[path = "portmap/life.rs"]
mod life;
#[path = "portmap/reference.rs"]
mod reference;
#[path = "portmap/world.rs"]
mod world;

use life::{
    a_container_in_two_networks_keeps_what_the_other_gave, del_needs_nothing_but_the_name,
    gc_frees_only_what_belongs_to_no_attachment, killed_after_any_step_nothing_is_left_after_del,
    many_at_once_lose_nothing_and_leave_nothing, what_somebody_removes_is_made_again_by_the_next_add,
    what_somebody_removes_is_told_by_check,
};
use reference::{
    what_the_reference_plugin_made_goes_with_our_del, what_we_made_goes_with_the_reference_plugins_del,
};
use world::{Plugin, World, config, needs, sh, tcp, udp, udp_from};

fn main() -> ExitCode {
    lab::harness(
        "cni-portmap",
        lab::cases![
            ports_are_reached_from_everywhere_with_iptables,
            ports_are_reached_from_everywhere_with_nftables,
            ports_at_one_address_are_reached_there_only,
            only_packets_for_this_host_are_mapped,
            the_newest_container_has_the_port,
            flows_of_udp_follow_the_rules,
            rules_of_others_are_left_alone,
            del_needs_nothing_but_the_name,
            gc_frees_only_what_belongs_to_no_attachment,
            a_container_in_two_networks_keeps_what_the_other_gave,
            what_somebody_removes_is_told_by_check,
            what_somebody_removes_is_made_again_by_the_next_add,
            status_tells_whether_ports_can_be_mapped,
            many_at_once_lose_nothing_and_leave_nothing,
            killed_after_any_step_nothing_is_left_after_del,
            iptables_legacy_serves_as_well,
            what_the_reference_plugin_made_goes_with_our_del,
            what_we_made_goes_with_the_reference_plugins_del,
        ],
    )
}

const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// Every rule of any system that is about a container.
fn rules_of_containers() -> Vec<String> {
    let all = sh(
        "iptables-save -t nat; ip6tables-save -t nat; nft list table ip cni_hostport 2>/dev/null || true; \
                  nft list table ip6 cni_hostport 2>/dev/null || true",
    );
    let is_ours = |line: &&str| line.contains("CNI-DN-") || line.contains("comment \"c");
    all.lines().filter(is_ours).map(str::to_owned).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn reached_from_everywhere(backend: &str) -> anyhow::Result<()> {
    let world = World::new()?;
    let plugin = Plugin::ours(config(backend));
    let before = rules_of_containers();
    assert_eq!(tcp("192.0.2.1:8080"), None, "nothing is mapped yet");
    let result: Value = serde_json::from_str(&plugin.must("ADD"))?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "the result goes through: {result}");
    plugin.must("CHECK");
    for ask in [tcp, udp] {
        let client = |to: &str| world.client.run("client", || ask(to)).unwrap();
        assert_eq!(client("192.0.2.1:8080"), Some(ip("198.51.100.2")), "a client keeps its address");
        assert_eq!(client("198.51.100.1:8080"), Some(ip("198.51.100.2")), "at every address of the host");
        assert_eq!(client("[2001:db8::1]:8080"), Some(ip("fd51::2")));
        assert!(ask("192.0.2.1:8080").is_some(), "the host itself");
        assert!(ask("[2001:db8::1]:8080").is_some(), "the host itself, IPv6");
        assert_eq!(ask("127.0.0.1:8080"), Some(ip("10.244.1.1")), "the host's loopback address");
        let container = |to: &str| world.container.run("container", || ask(to)).unwrap();
        assert_eq!(container("192.0.2.1:8080"), Some(ip("10.244.1.1")), "the container itself");
        assert_eq!(container("[2001:db8::1]:8080"), Some(ip("fd00:1::1")), "the container itself, IPv6");
        let neighbour = |to: &str| world.neighbour.run("neighbour", || ask(to)).unwrap();
        assert_eq!(neighbour("192.0.2.1:8080"), Some(ip("10.244.1.1")), "its neighbour");
        assert_eq!(neighbour("[2001:db8::1]:8080"), Some(ip("fd00:1::1")), "its neighbour, IPv6");
    }
    let made = rules_of_containers();
    plugin.must("ADD");
    assert_eq!(rules_of_containers(), made, "a second time changes nothing");
    plugin.must("DEL");
    assert_eq!(rules_of_containers(), before);
    for ask in [tcp, udp] {
        for to in ["192.0.2.1:8080", "127.0.0.1:8080", "[2001:db8::1]:8080"] {
            assert_eq!(ask(to), None, "{to} after DEL");
        }
        assert_eq!(world.client.run("client", || ask("192.0.2.1:8080"))?, None, "the client after DEL");
    }
    plugin.must("DEL");
    Ok(())
}

fn ports_are_reached_from_everywhere_with_iptables(_: &Scene) -> anyhow::Result<()> {
    needs(&["iptables", "ip6tables", "nft"])?;
    reached_from_everywhere("iptables")
}

fn ports_are_reached_from_everywhere_with_nftables(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    reached_from_everywhere("nftables")
}

fn ports_at_one_address_are_reached_there_only(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let world = World::new()?;
    for backend in BACKENDS {
        let mapping = |host_ip: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip});
        let ours = |host_ip: &str| {
            Plugin::ours(config(backend)).with("runtimeConfig", json!({"portMappings": [mapping(host_ip)]}))
        };
        let client = |to: &str| world.client.run("client", || tcp(to)).unwrap().is_some();
        for (host_ip, reached) in [
            ("192.0.2.1", [true, false, false]),
            ("0.0.0.0", [true, true, false]),
            ("::", [false, false, true]),
            ("2001:db8::1", [false, false, true]),
        ] {
            let plugin = ours(host_ip);
            plugin.must("ADD");
            plugin.must("CHECK");
            let found = ["192.0.2.1:8080", "198.51.100.1:8080", "[2001:db8::1]:8080"].map(client);
            assert_eq!(found, reached, "{backend} {host_ip}");
            plugin.must("DEL");
            assert_eq!(rules_of_containers(), [""; 0], "{backend} {host_ip}");
        }
    }
    Ok(())
}

fn only_packets_for_this_host_are_mapped(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let world = World::new()?;
    for backend in BACKENDS {
        let plugin = Plugin::ours(config(backend));
        plugin.must("ADD");
        // On its way to somebody else through this host.
        let passing = world.client.run("client", || tcp("10.244.1.6:8080"))?;
        assert_eq!(passing, None, "{backend}");
        plugin.must("DEL");
        // Conditions: of another client only.
        let condition = match backend {
            "iptables" => json!(["-s", "198.51.100.77"]),
            _ => json!(["ip", "saddr", "198.51.100.77"]),
        };
        let plugin = plugin.with("conditionsV4", condition);
        plugin.must("ADD");
        plugin.must("CHECK");
        assert_eq!(world.client.run("client", || tcp("192.0.2.1:8080"))?, None, "{backend}");
        assert!(world.client.run("client", || tcp("[2001:db8::1]:8080"))?.is_some(), "{backend}");
        plugin.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0]);
    }
    Ok(())
}

fn the_newest_container_has_the_port(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let world = World::new()?;
    for backend in BACKENDS {
        let plugin = Plugin::ours(config(backend));
        // A container that is gone, and that nobody disconnected.
        let gone = json!({"ips": [{"address": "10.244.1.99/24"}], "cniVersion": "1.0.0"});
        let stale = Plugin { container: "c0", ..plugin.with("prevResult", gone) };
        stale.must("ADD");
        assert_eq!(world.client.run("client", || tcp("192.0.2.1:8080"))?, None, "{backend}");
        plugin.must("ADD");
        assert!(world.client.run("client", || tcp("192.0.2.1:8080"))?.is_some(), "{backend}");
        stale.must("DEL");
        plugin.must("CHECK");
        plugin.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0]);
    }
    Ok(())
}

fn flows_of_udp_follow_the_rules(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables", "conntrack"])?;
    let world = World::new()?;
    for backend in BACKENDS {
        let plugin = Plugin::ours(config(backend));
        let to = "192.0.2.1:8080".parse()?;
        let socket = world.client.run("client", || UdpSocket::bind("0.0.0.0:0"))??;
        // Nothing is tracked before there is a rule of NAT.
        plugin.must("ADD");
        plugin.must("DEL");
        assert_eq!(udp_from(&socket, to), None);
        plugin.must("ADD");
        assert!(udp_from(&socket, to).is_some(), "{backend}: a flow from before ADD");
        plugin.must("DEL");
        assert_eq!(udp_from(&socket, to), None, "{backend}: a flow from before DEL");
    }
    Ok(())
}

fn rules_of_others_are_left_alone(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    sh(
        "iptables -t nat -N KUBE; iptables -t nat -A PREROUTING -j KUBE; iptables -t nat -A POSTROUTING -s 9.9.9.9 -j KUBE; \
        iptables -t nat -A KUBE -m comment --comment 'say \"-j CNI-DN-x\"' -j RETURN; nft add table ip other",
    );
    let theirs = || sh("iptables -t nat -S | grep -e KUBE; nft list tables | grep other");
    let before = theirs();
    for backend in BACKENDS {
        let plugin = Plugin::ours(config(backend));
        plugin.must("ADD");
        assert_eq!(theirs(), before);
        plugin.must("DEL");
        assert_eq!(theirs(), before);
    }
    Ok(())
}

fn status_tells_whether_ports_can_be_mapped(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    for backend in ["", "iptables", "nftables"] {
        let before = sh("nft list ruleset");
        Plugin::ours(config(backend)).with("cniVersion", json!("1.1.0")).must("STATUS");
        assert_eq!(sh("nft list ruleset"), before, "{backend}: looking changes nothing");
    }
    Ok(())
}

fn iptables_legacy_serves_as_well(scene: &Scene) -> anyhow::Result<()> {
    needs(&["iptables-legacy", "ip6tables-legacy", "nft"])?;
    if !sh("iptables-legacy -t nat -S 2>&1 || true").contains("-P PREROUTING") {
        return Err(lab::skip("this kernel has no iptables-legacy"));
    }
    let world = World::new()?;
    for (program, kind) in [
        ("iptables", "iptables-legacy"),
        ("ip6tables", "ip6tables-legacy"),
        ("iptables-restore", "iptables-legacy-restore"),
        ("ip6tables-restore", "ip6tables-legacy-restore"),
    ] {
        let target = sh(&format!("command -v {kind}"));
        std::os::unix::fs::symlink(target.trim(), scene.dir().join(program))?;
    }
    let path = scene.dir().display().to_string();
    let plugin = Plugin { path: &path, ..Plugin::ours(config("iptables")) };
    let left = || sh("iptables-legacy-save -t nat; ip6tables-legacy-save -t nat").matches("CNI-DN-").count();
    plugin.must("ADD");
    plugin.must("CHECK");
    assert!(left() > 0 && rules_of_containers().is_empty(), "they are in the one kind only");
    assert!(world.client.run("client", || tcp("192.0.2.1:8080"))?.is_some());
    assert!(world.client.run("client", || tcp("[2001:db8::1]:8080"))?.is_some());
    plugin.must("ADD");
    plugin.must("DEL");
    assert_eq!(left(), 0);
    assert_eq!(world.client.run("client", || tcp("192.0.2.1:8080"))?, None);
    plugin.must("DEL");
    Ok(())
}
