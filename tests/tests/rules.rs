//! Masquerading and forwarding: what leaves the cluster bears its node's address and nothing else does, in iptables and in
//! nftables, over IPv4 and IPv6, whatever somebody does to the rules meanwhile.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use hostnet::state::Route;
use lab::{Cluster, Node, Plan, Pod, Scene};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use promises::daemon::{Daemon, pod_network};
use promises::host;
use promises::rules::{need, sender_seen, sh};
use promises::{harness, netlink};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-rules",
        lab::cases![
            pods_leave_the_cluster_with_their_nodes_address_by_iptables,
            pods_leave_the_cluster_with_their_nodes_address_by_nftables,
            iptables_lists_flannels_text,
            nftables_lists_flannels_text,
            iptables_rules_that_somebody_changed_come_back,
            nftables_rules_that_somebody_changed_come_back,
            another_start_changes_no_rule,
            the_other_system_is_left_clean,
            rules_of_an_earlier_network_are_replaced,
            without_the_programs_it_runs_and_names_the_package,
        ],
    )
}

/// This node gets 10.5.72.0/24 and fd00:5:0:48::/64, as in the golden files.
const PINNED: &str = r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.72.0", "SubnetMax": "10.5.72.0", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetMin": "fd00:5:0:48::", "IPv6SubnetMax": "fd00:5:0:48::""#;
const FREE: &str = r#""Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48""#;

const GOLDEN_IPTABLES: [&str; 2] = [
    include_str!("../../control/tests/golden/iptables-v4.txt"),
    include_str!("../../control/tests/golden/iptables-v6.txt"),
];
const GOLDEN_NFTABLES: [&str; 2] = [
    include_str!("../../control/tests/golden/nftables-v4.txt"),
    include_str!("../../control/tests/golden/nftables-v6.txt"),
];

fn write_config(dir: &Path, networks: &str, nftables: bool) -> anyhow::Result<()> {
    fs::create_dir_all(dir.join("store"))?;
    let text = format!(r#"{{{networks}, "EnableNFTables": {nftables}, "Backend": {{"Type": "vxlan"}}}}"#);
    Ok(fs::write(dir.join("store/config"), text)?)
}

/// As [`host::until`], with the daemon's log where it never is so.
fn until(what: &str, daemon: &Daemon, so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    host::until(what, so).with_context(|| daemon.log())
}

/// What an administrator sees of flannel's chains, as the golden files have it.
fn iptables(namespace: &NetNs) -> anyhow::Result<[String; 2]> {
    let listing = |program: &str| {
        sh(
            namespace,
            &format!(
                "{program} -t nat -S POSTROUTING | grep -e FLANNEL || true\n\
                 {program} -t nat -S FLANNEL-POSTRTG 2>/dev/null || true\n\
                 {program} -t filter -S FORWARD | grep -e FLANNEL || true\n\
                 {program} -t filter -S FLANNEL-FWD 2>/dev/null || true"
            ),
        )
    };
    Ok([listing("iptables")?, listing("ip6tables")?])
}

fn nftables(namespace: &NetNs) -> anyhow::Result<[String; 2]> {
    let listing = |table: &str| sh(namespace, &format!("nft list table {table} 2>/dev/null || true"));
    Ok([listing("ip flannel-ipv4")?, listing("ip6 flannel-ipv6")?])
}

/// Two nodes of the cluster with a pod each, and a host that is no node.
struct Site {
    daemons: Vec<Daemon>,
    cluster: Cluster,
}

impl Site {
    fn start(dir: &Path, nftables: bool, flags: &[&str]) -> anyhow::Result<Self> {
        write_config(dir, FREE, nftables)?;
        let mut cluster = Cluster::build(&Plan::nodes(3))?;
        let mut daemons = Vec::new();
        for node in &cluster.nodes()[..2] {
            daemons.push(Daemon::spawn(node, dir, flags)?);
        }
        for (node, daemon) in cluster.nodes_mut().iter_mut().zip(&daemons) {
            node.add_pod(&pod_network(&daemon.ready()?))?;
        }
        Ok(Self { daemons, cluster })
    }

    fn node(&self, index: usize) -> &Node {
        &self.cluster.nodes()[index]
    }

    fn pod(&self, index: usize) -> &Pod {
        &self.node(index).pods()[0]
    }

    /// The host outside sends packets for pods by the first node.
    fn route_pods_by_the_first_node(&self) -> anyhow::Result<()> {
        let gateways: Vec<IpAddr> = self.node(0).addresses().collect();
        netlink::inside(self.node(2).namespace(), async |kernel: Kernel| {
            for (net, gateway) in promises::NETWORKS.iter().zip(gateways) {
                let route = Route { via: Some(gateway), ..Route::new(net.parse()?, "eth0") };
                kernel.replace_route(&route).await?;
            }
            Ok(())
        })
    }
}

fn address(addresses: impl Iterator<Item = IpAddr>, family: Family) -> anyhow::Result<IpAddr> {
    let mut addresses = addresses;
    addresses.find(|address| Family::of(address) == family).context("an address of the family")
}

fn pods_leave_the_cluster_with_their_nodes_address_by_iptables(scene: &Scene) -> anyhow::Result<()> {
    need("iptables")?;
    masquerades(scene, false)
}

fn pods_leave_the_cluster_with_their_nodes_address_by_nftables(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    masquerades(scene, true)
}

fn masquerades(scene: &Scene, nftables: bool) -> anyhow::Result<()> {
    let site = Site::start(scene.dir(), nftables, &["--ip-masq"])?;
    site.route_pods_by_the_first_node()?;
    let [a, _, outside] = [0, 1, 2].map(|index| site.node(index));
    for family in [Family::V4, Family::V6] {
        let of = |addresses: &mut dyn Iterator<Item = IpAddr>| address(addresses, family);
        let (pod_a, pod_b) = (of(&mut site.pod(0).addresses())?, of(&mut site.pod(1).addresses())?);
        let (node_a, stranger) = (of(&mut a.addresses())?, of(&mut outside.addresses())?);
        let seen = |from: &NetNs, at: &NetNs, to| sender_seen(from, at, to);
        let (a_pod, b_pod) = (site.pod(0).namespace(), site.pod(1).namespace());

        let left = seen(a_pod, outside.namespace(), stranger)?;
        ensure!(left == Some(node_a), "{family:?}: pod to outside came from {left:?}, not from {node_a}");
        let stayed = seen(a_pod, b_pod, pod_b)?;
        ensure!(stayed == Some(pod_a), "{family:?}: pod to pod came from {stayed:?}, not from {pod_a}");
        let own = seen(outside.namespace(), a_pod, pod_a)?;
        ensure!(own == Some(stranger), "{family:?}: outside to own pod came from {own:?}, not {stranger}");
        // For another node's pod, the answer must find its way back through the node that forwarded it.
        let far =
            seen(outside.namespace(), b_pod, pod_b)?.context("outside to a remote pod: nothing came")?;
        let network: ipnet::IpNet = promises::NETWORKS[usize::from(family == Family::V6)].parse()?;
        ensure!(network.contains(&far), "{family:?}: outside to a remote pod came from {far}");
    }
    for daemon in site.daemons {
        daemon.stop()?;
    }
    Ok(())
}

fn iptables_lists_flannels_text(scene: &Scene) -> anyhow::Result<()> {
    need("iptables")?;
    write_config(scene.dir(), PINNED, false)?;
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    let daemon = Daemon::spawn(node, scene.dir(), &["--ip-masq"])?;
    daemon.ready()?;
    assert_eq!(iptables(node.namespace())?, GOLDEN_IPTABLES);
    daemon.stop()?;
    assert_eq!(iptables(node.namespace())?, GOLDEN_IPTABLES, "pods go on without a daemon");
    Ok(())
}

fn nftables_lists_flannels_text(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    write_config(scene.dir(), PINNED, true)?;
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    let daemon = Daemon::spawn(node, scene.dir(), &["--ip-masq"])?;
    daemon.ready()?;
    assert_eq!(nftables(node.namespace())?, GOLDEN_NFTABLES);
    daemon.stop()?;
    assert_eq!(nftables(node.namespace())?, GOLDEN_NFTABLES, "pods go on without a daemon");
    Ok(())
}

/// Every way in which a chain can be spoiled at once, one after the other in the unit tests.
fn iptables_rules_that_somebody_changed_come_back(scene: &Scene) -> anyhow::Result<()> {
    need("iptables")?;
    comes_back(
        scene,
        false,
        &[
            "iptables -t nat -F FLANNEL-POSTRTG; ip6tables -t nat -F POSTROUTING",
            "iptables -t nat -I FLANNEL-POSTRTG -j ACCEPT; iptables -t filter -F FORWARD; iptables -t filter -F FLANNEL-FWD; iptables -t filter -X FLANNEL-FWD",
            "ip6tables -t nat -D FLANNEL-POSTRTG 1; iptables -t filter -A FLANNEL-FWD -j DROP",
        ],
    )
}

fn nftables_rules_that_somebody_changed_come_back(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    comes_back(
        scene,
        true,
        &[
            "nft flush chain ip flannel-ipv4 postrtg; nft delete table ip6 flannel-ipv6",
            "nft insert rule ip flannel-ipv4 forward drop",
            "nft flush ruleset",
        ],
    )
}

fn comes_back(scene: &Scene, nft: bool, harms: &[&str]) -> anyhow::Result<()> {
    write_config(scene.dir(), PINNED, nft)?;
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    let daemon = Daemon::spawn(node, scene.dir(), &["--ip-masq", "--iptables-resync=1"])?;
    daemon.ready()?;
    let listing = || if nft { nftables(node.namespace()) } else { iptables(node.namespace()) };
    let golden = if nft { GOLDEN_NFTABLES } else { GOLDEN_IPTABLES };
    for harm in harms {
        ensure!(listing()? == golden, "before {harm}: {:?}", listing()?);
        sh(node.namespace(), harm)?;
        until(harm, &daemon, || Ok(listing()? == golden))?;
    }
    daemon.wait_for_line("somebody had changed our packet filter rules, put right")?;
    daemon.stop().map(drop)
}

fn another_start_changes_no_rule(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    need("iptables")?;
    for nft in [true, false] {
        let dir = scene.dir().join(nft.to_string());
        write_config(&dir, PINNED, nft)?;
        let cluster = Cluster::build(&Plan::nodes(1))?;
        let node = &cluster.nodes()[0];
        // Handles tell a rule from one that was made again; those of iptables-nft are seen there too.
        let rules = || {
            sh(
                node.namespace(),
                "nft --handle --stateless list ruleset 2>/dev/null; iptables -t nat -S; ip6tables -t filter -S",
            )
        };
        let mut before = None;
        for start in ["first", "second"] {
            let daemon = Daemon::spawn(node, &dir, &["--ip-masq"])?;
            daemon.ready()?;
            daemon.stop()?;
            let after = rules()?;
            ensure!(after.contains("FLANNEL") || after.contains("flannel-ipv4"), "{start}: {after}");
            if let Some(before) = before.replace(after.clone()) {
                assert_eq!(after, before, "nftables: {nft}");
            }
        }
    }
    Ok(())
}

/// From iptables to nftables and back: each time the rules of the other go, and those of others stay.
fn the_other_system_is_left_clean(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    need("iptables")?;
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    sh(node.namespace(), "iptables -t nat -A POSTROUTING -s 9.9.9.9 -j ACCEPT")?;
    for nft in [false, true, false] {
        write_config(scene.dir(), PINNED, nft)?;
        let daemon = Daemon::spawn(node, scene.dir(), &["--ip-masq"])?;
        daemon.ready()?;
        let empty = [String::new(), String::new()];
        let (theirs, ours) = (iptables(node.namespace())?, nftables(node.namespace())?);
        if nft {
            assert_eq!((theirs, ours), (empty, GOLDEN_NFTABLES.map(str::to_owned)));
        } else {
            assert_eq!((theirs, ours), (GOLDEN_IPTABLES.map(str::to_owned), empty));
        }
        daemon.stop()?;
        ensure!(sh(node.namespace(), "iptables -t nat -S POSTROUTING")?.contains("-s 9.9.9.9/32 -j ACCEPT"));
    }
    Ok(())
}

/// The cluster got another network, and then none of IPv6: nothing of the old is left.
fn rules_of_an_earlier_network_are_replaced(scene: &Scene) -> anyhow::Result<()> {
    need("nft")?;
    need("iptables")?;
    for nft in [false, true] {
        let dir = scene.dir().join(nft.to_string());
        let cluster = Cluster::build(&Plan::nodes(1))?;
        let node = &cluster.nodes()[0];
        write_config(&dir, PINNED, nft)?;
        let first = Daemon::spawn(node, &dir, &["--ip-masq"])?;
        first.ready()?;
        first.stop()?;
        fs::remove_dir_all(dir.join("store/subnets"))?;
        write_config(&dir, r#""Network": "10.6.0.0/16""#, nft)?;
        let second = Daemon::spawn(node, &dir, &["--ip-masq"])?;
        second.ready()?;
        let [four, six] = if nft { nftables(node.namespace())? } else { iptables(node.namespace())? };
        ensure!(four.contains("10.6.0.0/16") && !four.contains("10.5."), "{four}");
        ensure!(six.is_empty(), "{six}");
        second.stop()?;
    }
    Ok(())
}

fn without_the_programs_it_runs_and_names_the_package(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let node = &cluster.nodes()[0];
    for (nft, package) in [(false, "install the package iptables"), (true, "install the package nftables")] {
        write_config(scene.dir(), PINNED, nft)?;
        // A mount namespace is a thread's own; what it starts inherits it.
        let daemon = thread::scope(|scope| {
            let start = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
                for place in ["/usr/sbin", "/usr/local/sbin"] {
                    mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                        .map_err(|errno| lab::skip(format!("cannot hide {place}: {errno}")))?;
                }
                Daemon::spawn(node, scene.dir(), &["--ip-masq", "--iptables-resync=1"])
            });
            start.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })?;
        daemon.ready()?;
        daemon.wait_for_line(package)?;
        let said = daemon.log().lines().filter(|line| line.contains(package)).count();
        ensure!(said == 1, "once is enough: {}", daemon.log());
        daemon.stop()?;
    }
    Ok(())
}
