//! Promises about the masquerade of a container, kept with the real programs in private namespaces.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use cni::filter::Backend;
use cni::masquerade::{Masquerade, gc};
use cni::protocol::Attachment;
use hostnet::netns::NetNs;
use lab::Scene;

#[path = "portmap/world.rs"]
#[expect(dead_code, reason = "port mappings need more of it")]
mod world;

use world::{needs, sh};

fn main() -> ExitCode {
    lab::harness(
        "cni-masquerade",
        lab::cases![
            rules_of_iptables_are_made_once_and_removed,
            rules_of_nftables_are_made_once_and_removed,
            rules_of_another_device_and_of_others_stay,
            gc_frees_only_what_belongs_to_no_attachment,
            what_somebody_removes_is_told_by_check,
            without_a_choice_iptables_is_used_and_both_are_cleaned,
            what_a_container_sends_leaves_under_the_hosts_address,
            what_the_reference_bridge_made_is_ours_and_the_other_way_round,
        ],
    )
}

fn masquerade(backend: Backend, id: &str, ifname: &str, ips: &[&str]) -> Masquerade {
    Masquerade {
        backend: Some(backend),
        network: "pods".to_owned(),
        attachment: Attachment { container_id: id.to_owned(), ifname: ifname.to_owned() },
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn in_iptables() -> String {
    sh("iptables -t nat -S; ip6tables -t nat -S")
}

fn in_nft() -> String {
    sh("nft list table inet cni_plugins_masquerade 2>/dev/null || true")
}

const IPS: [&str; 2] = ["10.244.1.5/24", "fd00:1::5/64"];

fn rules_of_iptables_are_made_once_and_removed(_: &Scene) -> anyhow::Result<()> {
    needs(&["iptables", "ip6tables"])?;
    let before = in_iptables();
    let one = masquerade(Backend::Iptables, "c1", "eth0", &IPS);
    wait(one.remove())?;
    assert_eq!(in_iptables(), before, "removing what is not there changes nothing");
    wait(one.add())?;
    let made = in_iptables();
    assert_eq!(made.matches("MASQUERADE").count(), 2, "{made}");
    wait(one.check())?;
    wait(one.add())?;
    assert_eq!(in_iptables(), made, "a second time changes nothing");
    wait(one.remove())?;
    assert_eq!(in_iptables(), before);
    wait(one.add())?;
    wait(Masquerade { ips: Vec::new(), ..one }.remove())?;
    assert_eq!(in_iptables(), before, "without addresses too");
    Ok(())
}

fn rules_of_nftables_are_made_once_and_removed(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft"])?;
    let one = masquerade(Backend::Nftables, "c1", "eth0", &IPS);
    wait(one.remove())?;
    assert_eq!(in_nft(), "", "removing what is not there changes nothing");
    wait(one.add())?;
    let made = in_nft();
    assert_eq!(made.matches("masquerade comment").count(), 2, "{made}");
    wait(one.check())?;
    wait(one.add())?;
    assert_eq!(in_nft(), made, "a second time changes nothing");
    wait(one.remove())?;
    assert!(!in_nft().contains("masquerade comment"), "{}", in_nft());
    wait(one.add())?;
    wait(Masquerade { ips: Vec::new(), ..one }.remove())?;
    assert!(!in_nft().contains("masquerade comment"), "without addresses too: {}", in_nft());
    Ok(())
}

fn rules_of_another_device_and_of_others_stay(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    sh(
        "iptables -t nat -N KUBE; iptables -t nat -A POSTROUTING -m comment --comment 'a \"b' -j KUBE; nft add table ip o",
    );
    for backend in [Backend::Iptables, Backend::Nftables] {
        let before = (in_iptables(), in_nft());
        let first = masquerade(backend, "c1", "eth0", &["10.1.0.5/24"]);
        let second = masquerade(backend, "c1", "eth1", &["10.2.0.5/24"]);
        let other = masquerade(backend, "c2", "eth0", &["10.1.0.6/24"]);
        for one in [&first, &second, &other] {
            wait(one.add())?;
        }
        wait(first.remove())?;
        wait(second.check())?;
        wait(other.check())?;
        assert!(wait(first.check()).is_err());
        wait(second.remove())?;
        wait(other.check())?;
        wait(other.remove())?;
        assert_eq!(in_iptables(), before.0);
        assert!(!in_nft().contains("masquerade comment"));
    }
    assert!(sh("nft list tables").contains("table ip o\n"));
    Ok(())
}

fn gc_frees_only_what_belongs_to_no_attachment(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let before = in_iptables();
    for backend in [Backend::Iptables, Backend::Nftables] {
        let kept = masquerade(backend, "c1", "eth0", &IPS);
        let gone = masquerade(backend, "c2", "eth0", &["10.244.1.6/24", "fd00:1::6/64"]);
        let elsewhere = Masquerade { network: "others".to_owned(), ..gone.clone() };
        for one in [&kept, &gone, &elsewhere] {
            wait(one.add())?;
        }
        wait(gc("pods", std::slice::from_ref(&kept.attachment)))?;
        wait(kept.check())?;
        wait(elsewhere.check())?;
        assert!(wait(gone.check()).is_err());
        wait(gc("pods", &[]))?;
        wait(gc("others", &[]))?;
    }
    assert_eq!(in_iptables(), before);
    assert!(!in_nft().contains("masquerade comment"));
    Ok(())
}

fn what_somebody_removes_is_told_by_check(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    for (backend, harm, named) in [
        (Backend::Iptables, "iptables -t nat -F POSTROUTING", "-A POSTROUTING -s 10.244.1.5/32"),
        (Backend::Nftables, "nft flush chain inet cni_plugins_masquerade masq_checks", "ip saddr 10.244.1.5"),
        (Backend::Nftables, "nft flush chain inet cni_plugins_masquerade postrouting", "nothing leads to"),
        (Backend::Nftables, "nft delete table inet cni_plugins_masquerade", "no table"),
    ] {
        let one = masquerade(backend, "c1", "eth0", &["10.244.1.5/24"]);
        wait(one.add())?;
        wait(one.check())?;
        sh(harm);
        let error = wait(one.check()).unwrap_err();
        assert!(error.message.contains(named), "{harm}: {error}");
        wait(one.add())?;
        wait(one.check())?;
        wait(one.remove())?;
    }
    Ok(())
}

fn without_a_choice_iptables_is_used_and_both_are_cleaned(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let before = in_iptables();
    let nobodys = Masquerade { backend: None, ..masquerade(Backend::Iptables, "c1", "eth0", &IPS) };
    wait(nobodys.add())?;
    assert!(in_iptables().contains("MASQUERADE") && in_nft().is_empty());
    wait(masquerade(Backend::Nftables, "c1", "eth0", &IPS).add())?;
    wait(nobodys.check())?;
    wait(nobodys.remove())?;
    assert_eq!(in_iptables(), before);
    assert!(!in_nft().contains("masquerade comment"));
    Ok(())
}

fn what_a_container_sends_leaves_under_the_hosts_address(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let world = world::World::new()?;
    let seen = |to: &str| -> anyhow::Result<String> {
        let any = if to.contains('[') { "[::]:0" } else { "0.0.0.0:0" };
        let receiver = world.client.run("client", || UdpSocket::bind(to))??;
        receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
        let sender = world.container.run("container", || UdpSocket::bind(any))??;
        sender.send_to(b"x", receiver.local_addr()?)?;
        let (_, peer) = receiver.recv_from(&mut [0; 8])?;
        Ok(peer.ip().to_string())
    };
    for backend in [Backend::Iptables, Backend::Nftables] {
        let one = masquerade(backend, "c1", "eth0", &IPS);
        assert_eq!(seen("198.51.100.2:99")?, "10.244.1.5");
        wait(one.add())?;
        assert_eq!(seen("198.51.100.2:99")?, "198.51.100.1", "{backend}");
        assert_eq!(seen("[fd51::2]:99")?, "fd51::1", "{backend}");
        wait(one.remove())?;
        assert_eq!(seen("[fd51::2]:99")?, "fd00:1::5", "{backend}");
    }
    Ok(())
}

/// Debian's bridge plugin connects a container with `ipMasq`; what it made is found here, and what is made here it removes.
fn what_the_reference_bridge_made_is_ours_and_the_other_way_round(scene: &Scene) -> anyhow::Result<()> {
    needs(&["iptables", "/usr/lib/cni/bridge", "/usr/lib/cni/host-local"])?;
    let container = NetNs::new()?;
    let file = format!("/proc/{}/fd/{}", std::process::id(), container.as_fd().as_raw_fd());
    let config = format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,
            "ipam":{{"type":"host-local","subnet":"10.244.1.0/24","dataDir":"{}"}}}}"#,
        scene.dir().display()
    );
    let theirs = |command: &str| {
        let mut child = Command::new("/usr/lib/cni/bridge")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", &file)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}: {said}");
    };
    let before = in_iptables();
    theirs("ADD");
    let made = in_iptables();
    assert!(made.contains("MASQUERADE"), "{made}");
    let ours = masquerade(Backend::Iptables, "c1", "eth0", &["10.244.1.2/24"]);
    wait(ours.check())?;
    wait(ours.remove())?;
    assert_eq!(in_iptables(), before);
    wait(ours.add())?;
    assert_eq!(in_iptables(), made, "the same rules, word for word");
    theirs("DEL");
    assert_eq!(in_iptables(), before);
    Ok(())
}
