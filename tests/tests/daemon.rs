//! `flanneld` among others: files that other programs read, kernel nodes, crashes under traffic, machines that lack
//! something. (What one daemon does by itself is tested beside its code.)

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use dataplane_core::{Family, IpNet, MacAddr};
use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use lab::cluster::vxlan::{KernelVxlan, VxlanEnd};
use lab::traffic::ping::{Answer, Ping};
use lab::traffic::tcp;
use lab::{Cluster, Node, Plan, PodNetwork, Scene, Underlay};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{self, Daemon, pod_network};
use promises::host::until;
use promises::lease_dir::write_config;
use promises::{binary, harness, netlink, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-daemon",
        lab::cases![
            subnet_env_is_flannels_byte_for_byte,
            a_kernel_node_and_a_daemon_carry_each_others_pods,
            a_crash_under_traffic_costs_no_byte,
            a_second_daemon_does_not_disturb_the_first,
            a_lease_that_ends_takes_its_route_along,
            the_own_lease_is_renewed_before_it_ends,
            pods_hear_that_nobody_is_there,
            spoiled_files_of_the_last_run_do_not_stop_a_start,
            without_a_tun_device_it_says_what_to_do,
            without_permission_it_says_what_to_do,
        ],
    )
}

/// One file a node, by the node's public address.
fn leases(dir: &Path) -> anyhow::Result<BTreeMap<IpAddr, (String, serde_json::Value)>> {
    let mut leases = BTreeMap::new();
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let value: serde_json::Value = serde_json::from_slice(&fs::read(entry.path())?)?;
        let owner = value["PublicIP"].as_str().context("a PublicIP")?.parse()?;
        leases.insert(owner, (name, value));
    }
    Ok(leases)
}

/// Puts a lease into the store as another node would.
fn publish(dir: &Path, key: &str, owner: &str, mac: [u8; 6], ends: Option<SystemTime>) -> anyhow::Result<()> {
    let subnets = dir.join("store/subnets");
    fs::create_dir_all(&subnets)?;
    let expiry = match ends {
        Some(ends) => format!(r#","Expiry":{}"#, ends.duration_since(UNIX_EPOCH)?.as_secs()),
        None => String::new(),
    };
    let mac = MacAddr(mac);
    let value = format!(
        r#"{{"PublicIP":"{owner}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}{expiry}}}"#
    );
    let aside = dir.join("aside");
    fs::write(&aside, value)?;
    Ok(fs::rename(aside, subnets.join(key))?)
}

fn has_route(namespace: &NetNs, dest: &str) -> anyhow::Result<bool> {
    let dest: IpNet = dest.parse()?;
    netlink::inside(namespace, async |kernel: Kernel| {
        Ok(kernel.routes().await?.iter().any(|route| route.dest == dest))
    })
}

fn v4_plan(nodes: usize) -> Plan {
    Plan { underlay: Underlay::V4, ..Plan::nodes(nodes) }
}

fn subnet_env_is_flannels_byte_for_byte(scene: &Scene) -> anyhow::Result<()> {
    let v4 = r#""Network": "10.5.0.0/16", "SubnetMin": "10.5.72.0", "SubnetMax": "10.5.72.0""#;
    let v6 = r#""EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetMin": "fd00:5:0:48::", "IPv6SubnetMax": "fd00:5:0:48::""#;
    let six_only = format!(r#""EnableIPv4": false, {v6}"#);
    let both = format!("{v4}, {v6}");
    let four_lines = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n";
    let six_lines = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:48::1/64\n";
    for (name, networks, backend, flags, expected) in [
        ("four", v4, "vxlan", &[][..], format!("{four_lines}FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")),
        ("udp", v4, "udp", &["-ip-masq"], format!("{four_lines}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n")),
        (
            "six",
            &six_only,
            "vxlan",
            &["--ip-masq=true"],
            format!("{six_lines}FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"),
        ),
        (
            "both",
            &both,
            "vxlan",
            &["--ip-masq=false"],
            format!("{four_lines}{six_lines}FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"),
        ),
    ] {
        let dir = scene.dir().join(name);
        write_config(&dir, &format!(r#"{{{networks}, "Backend": {{"Type": "{backend}"}}}}"#))?;
        let cluster = Cluster::build(&Plan::nodes(1))?;
        let daemon = Daemon::spawn(&cluster.nodes()[0], &dir, flags)?;
        daemon.ready()?;
        let file = daemon.subnet_file().to_owned();
        assert_eq!(fs::read_to_string(&file)?, expected, "{name}");
        assert_eq!(file.metadata()?.permissions().mode() & 0o777, 0o644);
        daemon.stop()?;
        assert_eq!(fs::read_to_string(&file)?, expected, "it stays for the next start");
    }
    Ok(())
}

/// Node a is flannel's: a kernel VXLAN device, and a lease. Node b is ours. Neither is told of the other but by leases.
fn a_kernel_node_and_a_daemon_carry_each_others_pods(scene: &Scene) -> anyhow::Result<()> {
    let dir = scene.dir();
    let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::pair() })?;
    write_config(dir, &net_conf("vxlan", Inner::V4))?;
    let theirs =
        VxlanEnd { subnet: "10.5.7.0/24".parse()?, mac: [2, 0, 0, 0, 4, 1], public: [192, 0, 2, 1].into() };
    publish(dir, "10.5.7.0-24", "192.0.2.1", theirs.mac, None)?;
    let daemon = Daemon::spawn(&cluster.nodes()[1], dir, &[])?;
    let env = daemon.ready()?;
    let ours = end_in_lease(dir, [192, 0, 2, 2].into(), &env.subnets)?;
    cluster.nodes()[0].kernel_vxlan(&KernelVxlan::default(), &theirs, &[ours]).map_err(
        |error| match format!("{error:#}").contains("EOPNOTSUPP") {
            true => lab::skip("the kernel has no VXLAN"),
            false => error,
        },
    )?;
    let their_network = PodNetwork { subnets: vec![theirs.subnet], mtu: env.mtu };
    for (node, network) in cluster.nodes_mut().iter_mut().zip([their_network, pod_network(&env)]) {
        node.add_pod(&network)?;
    }
    let flows = || {
        let pods: Vec<_> = cluster.pods().collect();
        for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
            let path = reach::path(from, to, Family::V4)?;
            reach::ping(path)?;
            reach::every_udp_size(path, (1..=1650).step_by(13))?;
            reach::transfer(path, 50_000_000)?;
        }
        // The base addresses too: operators ping them, and the host's own traffic to pods comes from them.
        for (node, base) in [(0, ours.subnet.network()), (1, theirs.subnet.network())] {
            let answer = Ping::new(base).send_from(cluster.nodes()[node].namespace())?;
            ensure!(answer.microseconds().is_some(), "{base} answers {answer:?}");
        }
        anyhow::Ok(())
    };
    flows()?;
    // The kernel node is told nothing when ours starts again: its MAC is the same.
    daemon.kill()?;
    let again = Daemon::spawn(&cluster.nodes()[1], dir, &[])?;
    ensure!(again.ready()? == env, "another subnet");
    ensure!(end_in_lease(dir, [192, 0, 2, 2].into(), &env.subnets)? == ours, "another MAC");
    flows()?;
    again.stop().map(drop)
}

/// What a daemon's lease tells the others.
fn end_in_lease(dir: &Path, owner: IpAddr, subnets: &[IpNet]) -> anyhow::Result<VxlanEnd> {
    let leases = leases(dir)?;
    let (name, value) = leases.get(&owner).with_context(|| format!("{owner} has no lease"))?;
    let subnet = *subnets.first().context("a subnet")?;
    ensure!(*name == subnet.to_string().replace('/', "-"), "{name} is not {subnet}");
    ensure!(value["BackendType"] == "vxlan" && value["BackendData"]["VNI"] == 1, "{value}");
    let mac: MacAddr = value["BackendData"]["VtepMAC"].as_str().context("a VtepMAC")?.parse()?;
    Ok(VxlanEnd { subnet, mac: mac.0, public: owner })
}

/// The daemon dies twice while a transfer runs, as for want of memory, and a supervisor starts it again.
fn a_crash_under_traffic_costs_no_byte(scene: &Scene) -> anyhow::Result<()> {
    let mut ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let mut daemons = std::mem::take(&mut ours.daemons);
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    // Two seconds of traffic at least, so that it is still going on when the daemons die.
    let plan = tcp::Transfer { rate: Some(4e8), ..tcp::Transfer::bytes(100_000_000).checked() };
    let report = thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp::transfer(path, &plan));
        for (node, env) in ours.cluster.nodes().iter().zip(&ours.envs) {
            let daemon = daemons.remove(0);
            thread::sleep(Duration::from_millis(300));
            daemon.kill()?;
            let again = Daemon::spawn(node, scene.dir(), &[])?;
            ensure!(again.ready()? == *env, "the subnet changed");
            daemons.push(again);
        }
        ensure!(!transfer.is_finished(), "the transfer was over too soon");
        transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?
    })?;
    ensure!(report.integrity.is_some_and(|integrity| integrity.intact()), "the content differs");
    ensure!(report.seconds < 15.0, "it took {} s", report.seconds);
    daemons.into_iter().try_for_each(|daemon| daemon.stop().map(drop))
}

fn a_second_daemon_does_not_disturb_the_first(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let before = leases(scene.dir())?;
    let second = Daemon::spawn(&ours.cluster.nodes()[0], scene.dir(), &[])?;
    let log = second.ends_with_an_error()?;
    ensure!(log.contains("another flanneld has") && log.contains("Stop that one first"), "{log}");
    ensure!(leases(scene.dir())? == before, "it changed a lease");
    reach::transfer(reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?, 5_000_000)?;
    ours.stop().map(drop)
}

/// A node that is gone for good: nobody deletes its lease, it only ends.
fn a_lease_that_ends_takes_its_route_along(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    let only_two = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.2.0", "Backend": {"Type": "vxlan"}}"#;
    write_config(scene.dir(), only_two)?;
    publish(
        scene.dir(),
        "10.5.2.0-24",
        "192.0.2.9",
        [2, 0, 0, 0, 0, 9],
        Some(SystemTime::now() + Duration::from_secs(4)),
    )?;
    let daemon = Daemon::spawn(node, scene.dir(), &[])?;
    let env = daemon.ready()?;
    ensure!(env.subnets == ["10.5.1.0/24".parse::<IpNet>()?], "the free one: {env:?}");
    ensure!(has_route(node.namespace(), "10.5.2.0/24")?, "no route to the other node");
    until("the route goes when the lease ends", || Ok(!has_route(node.namespace(), "10.5.2.0/24")?))
        .with_context(|| daemon.log())?;
    daemon.stop().map(drop)
}

fn the_own_lease_is_renewed_before_it_ends(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let daemon = Daemon::spawn(&cluster.nodes()[0], scene.dir(), &[])?;
    let env = daemon.ready()?;
    let owner = IpAddr::from([192, 0, 2, 1]);
    let end = || anyhow::Ok(leases(scene.dir())?[&owner].1["Expiry"].as_u64());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs());
    let day = end()?.context("an end")? - now()?;
    ensure!((86_300..=86_400).contains(&day), "a lease lasts a day, not {day} s");
    // As if 23 and a half hours had gone by: the margin is an hour.
    let ours = end_in_lease(scene.dir(), owner, &env.subnets)?;
    let key = ours.subnet.to_string().replace('/', "-");
    publish(scene.dir(), &key, "192.0.2.1", ours.mac, Some(SystemTime::now() + Duration::from_secs(1800)))?;
    daemon.wait_for_line("Lease renewed")?;
    ensure!(end()?.context("an end")? > now()? + 86_000, "{:?}", leases(scene.dir())?);
    // A lease without an end is a reservation, and stays one.
    publish(scene.dir(), &key, "192.0.2.1", ours.mac, None)?;
    daemon.stop()?;
    let again = Daemon::spawn(&cluster.nodes()[0], scene.dir(), &[])?;
    ensure!(again.ready()? == env, "another subnet");
    ensure!(end()?.is_none(), "{:?}", leases(scene.dir())?);
    again.stop().map(drop)
}

/// flannel's `udp` routes the whole network into the tunnel; a pod that asks for an address in no lease gets an answer.
fn pods_hear_that_nobody_is_there(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start(&Plan::pair(), scene.dir(), &net_conf("udp", Inner::Dual))?;
    ours.all_reach_each_other()?;
    for (family, nobody) in [(Family::V4, "10.5.255.9"), (Family::V6, "fd00:5:0:ffff::9")] {
        let base = ours.envs[0].subnets.iter().find(|subnet| Family::of(&subnet.addr()) == family);
        let answer = Ping::new(nobody.parse()?).send_from(ours.pod(0)?.namespace())?;
        let expected = Answer::Unreachable { from: base.context("a subnet")?.network(), code: 0 };
        ensure!(answer == expected, "{answer:?}, not {expected:?}");
    }
    ours.stop().map(drop)
}

fn spoiled_files_of_the_last_run_do_not_stop_a_start(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let whole =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.40.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    let huge = "FLANNEL_SUBNET=10.5.41.1/24\n".repeat(40_000);
    publish(scene.dir(), "10.5.42.0-24", "192.0.2.9", [2, 0, 0, 0, 0, 9], None)?;
    for (name, content, said) in [
        ("empty", &b""[..], None),
        ("torn", &whole.as_bytes()[..40], None),
        ("binary", b"\x00\xff\xfe\x7fELF", Some("passed over")),
        ("not UTF-8", b"FLANNEL_SUBNET=10.5.40.1/24\nFLANNEL_MTU=\xff\n", Some("line 2")),
        ("no assignment", b"FLANNEL_NETWORK=10.5.0.0/16\nrm -rf /\n", Some("line 2")),
        ("two subnets", b"FLANNEL_SUBNET=10.5.40.1/24,10.5.41.1/24\n", Some("a single prefix")),
        ("no prefix", b"FLANNEL_SUBNET=$(reboot)\n", Some("an IPv4 prefix")),
        ("huge", huge.as_bytes(), Some("longer than")),
        ("another network's", b"FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.3.1/24\n", None),
        ("another node's", b"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.42.1/24\n", None),
    ] {
        let check = || {
            let file = scene.dir().join(node.name()).join("subnet.env");
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(&file, content)?;
            let daemon = Daemon::spawn(node, scene.dir(), &[])?;
            let env = daemon.ready()?;
            if let Some(said) = said {
                daemon.wait_for_line(said)?;
            }
            let network: IpNet = "10.5.0.0/16".parse()?;
            let taken: IpNet = "10.5.42.0/24".parse()?;
            ensure!(env.subnets.iter().all(|subnet| network.contains(subnet) && *subnet != taken), "{env:?}");
            daemon.stop()?;
            // Another start without its lease: the file is all that it has.
            let (name, _) = leases(scene.dir())?.remove(&[192, 0, 2, 1].into()).context("a lease")?;
            fs::remove_file(scene.dir().join("store/subnets").join(name))?;
            Ok(())
        };
        check().with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// What a daemon says that cannot start, and that it publishes nothing.
fn refusal(node: &Node, dir: &Path, daemon: Daemon, parts: &[&str]) -> anyhow::Result<()> {
    let log = daemon.ends_with_an_error()?;
    let last = log.lines().last().unwrap_or_default();
    for part in parts {
        ensure!(last.contains(part), "no {part:?} on {} in: {last}", node.name());
    }
    match fs::read_dir(dir.join("store/subnets"))?.next() {
        None => Ok(()),
        Some(entry) => bail!("it left {:?}", entry?.file_name()),
    }
}

fn without_a_tun_device_it_says_what_to_do(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    // A mount namespace is a thread's own; what it starts inherits it.
    let daemon = thread::scope(|scope| {
        let start = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .map_err(|errno| lab::skip(format!("cannot hide /dev/net: {errno}")))?;
            Daemon::spawn(node, scene.dir(), &[])
        });
        start.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })?;
    refusal(node, scene.dir(), daemon, &["/dev/net/tun", "modprobe tun", "--device /dev/net/tun"])
}

fn without_permission_it_says_what_to_do(_: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    let dir = tempfile::tempdir()?;
    write_config(dir.path(), &net_conf("vxlan", Inner::V4))?;
    for path in [dir.path().to_owned(), dir.path().join("store")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    let command = daemon::command(node.name(), dir.path())?;
    // The program must be within the reach of a user who has none of root's.
    let copy = dir.path().join("flanneld");
    fs::copy(binary::flanneld()?, &copy)?;
    let mut as_nobody = std::process::Command::new(&copy);
    as_nobody.args(command.get_args()).uid(65_534).gid(65_534);
    let process =
        node.spawn(as_nobody).map_err(|error| lab::skip(format!("cannot be another user: {error:#}")))?;
    let daemon = Daemon::of(process, dir.path().join("subnet.env"));
    refusal(node, dir.path(), daemon, &["not permitted", "CAP_NET_ADMIN"])
}
