//! What a person and a machine can see of a `flanneld`: readiness, metrics, `flanneld status` and `peers`, and what a
//! second daemon is told.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use dataplane_core::Family;
use lab::{Cluster, Plan, Scene, Underlay};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{self, Daemon, pod_network};
use promises::host::until;
use promises::lease_dir::write_config;
use promises::operator::{PORT, ask, connect, exit, get, keys, metrics, request, said, socket};
use promises::{binary, harness, reach};
use serde_json::Value;

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-operator",
        lab::cases![
            readiness_says_what_is_missing_and_comes_when_packets_can_flow,
            metrics_are_prometheus_and_drops_rise_by_what_was_injected,
            the_exit_status_tells_well_from_degraded_from_down,
            a_store_that_is_gone_degrades_and_stops_nothing,
            idle_connections_keep_nobody_out,
            a_taken_port_is_said_and_had_when_it_is_free,
            a_second_daemon_is_told_who_the_first_is,
            two_networks_on_a_node_have_a_daemon_each,
            the_json_has_the_keys_that_scripts_know,
            secrets_are_nowhere,
            net_admin_is_all_the_right_that_is_needed,
        ],
    )
}

const HEALTH: &str = "--healthz-port=10256";
/// Without rules: whether this machine has iptables is no matter here.
const NO_RULES: &str = "--iptables-forward-rules=false";
/// Nodes whose packets are carried and counted by the engine, with the health server.
const FLAGS: [&str; 3] = [HEALTH, NO_RULES, "--engine=always"];

fn v4_plan(nodes: usize) -> Plan {
    Plan { underlay: Underlay::V4, ..Plan::nodes(nodes) }
}

fn readiness_says_what_is_missing_and_comes_when_packets_can_flow(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    // A directory stands where the file belongs.
    let file = daemon::subnet_file(node.name(), scene.dir());
    fs::create_dir_all(&file)?;
    let daemon = Daemon::spawn(node, scene.dir(), &FLAGS)?;
    daemon.wait_for_line("pods get no network until this works")?;
    until("the file is named", || {
        let verbose = get(node, "/readyz?verbose")?;
        ensure!(verbose.status == 503, "{verbose:?}");
        Ok(verbose.body.contains("[-]subnet-file failed: "))
    })?;
    let verbose = get(node, "/readyz?verbose")?.body;
    for fine in ["store", "lease", "device", "routes", "peers", "rules", "guard"] {
        ensure!(verbose.contains(&format!("[+]{fine} ok\n")), "{fine}: {verbose}");
    }
    ensure!(verbose.contains(&file.display().to_string()), "{verbose}");
    let brief = get(node, "/readyz")?;
    ensure!((brief.status, brief.body.as_str()) == (503, "flanneld is not ready yet"), "{brief:?}");
    for alive in ["/healthz", "/livez"] {
        let answer = get(node, alive)?;
        ensure!((answer.status, answer.body.as_str()) == (200, "flanneld is running"), "{answer:?}");
    }
    fs::remove_dir(&file)?;
    daemon.ready()?;
    until("readiness", || Ok(get(node, "/readyz")?.status == 200))?;
    ensure!(get(node, "/readyz")?.body == "flanneld is ready");
    let verbose = get(node, "/readyz?verbose")?.body;
    ensure!(verbose.ends_with("[+]subnet-file ok\nflanneld is ready\n"), "{verbose}");
    // Nobody writes by HTTP, and a long header is not read.
    ensure!(request(node, "POST /readyz HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n")?.status == 405);
    ensure!(get(node, "/debug/pprof")?.status == 404);
    let long = format!("GET /healthz HTTP/1.1\r\nHost: n\r\nX: {}\r\n\r\n", "x".repeat(9000));
    ensure!(request(node, &long)?.status == 431);
    let head = request(node, "HEAD /healthz HTTP/1.1\r\nHost: n\r\n\r\n")?;
    ensure!((head.status, head.body.as_str()) == (200, ""), "{head:?}");
    daemon.stop().map(drop)
}

fn metrics_are_prometheus_and_drops_rise_by_what_was_injected(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(2))?;
    let (node, stranger) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let daemon = Daemon::spawn(node, scene.dir(), &FLAGS)?;
    daemon.ready()?;
    let drop = r#"flannel_drops_total{device="flannel.1",direction="rx",reason="unknown_peer"}"#;
    until("the engine is on the board", || Ok(metrics(node)?.contains_key(drop)))?;
    let heard = "flannel_store_last_success_timestamp_seconds";
    until("the store was heard", || Ok(metrics(node)?.contains_key(heard)))?;
    let before = metrics(node)?;
    for fixed in [
        "flannel_ready",
        "flannel_store_connected",
        "flannel_store_last_success_timestamp_seconds",
        "flannel_lease_expiry_timestamp_seconds",
        "flannel_reconcile_repairs_total{kind=\"route\"}",
        "flannel_reconcile_last_success_timestamp_seconds",
        "flannel_peers{state=\"used\"}",
        "flannel_subnet_file_written",
        "process_start_time_seconds",
    ] {
        ensure!(before.contains_key(fixed), "no {fixed} in {before:?}");
    }
    // Every reason has a series in each direction before anything happens.
    for reason in dataplane_core::DropReason::ALL {
        for way in ["rx", "tx"] {
            let series =
                format!(r#"flannel_drops_total{{device="flannel.1",direction="{way}",reason="{reason}"}}"#);
            ensure!(before.get(&series) == Some(&0.0), "{series}: {:?}", before.get(&series));
        }
    }
    let strange = stranger.namespace().run("stranger", || UdpSocket::bind("0.0.0.0:0"))??;
    let victim = node.v4().context("an address")?;
    for _ in 0..7 {
        strange.send_to(&[8, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3, 4], (victim, 8472))?;
    }
    until("seven are counted", || Ok(metrics(node)?.get(drop) == Some(&7.0)))?;
    let after = metrics(node)?;
    let rose: Vec<_> = after
        .iter()
        .filter(|(series, count)| series.starts_with("flannel_drops_total") && **count > 0.0)
        .collect();
    ensure!(rose.len() == 1, "{rose:?}");
    let status = ask(daemon.subnet_file(), &["status"])?;
    ensure!(said(&status).contains("received unknown_peer 7\n"), "{}", said(&status));
    daemon.stop().map(|_books| ())
}

fn the_exit_status_tells_well_from_degraded_from_down(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start_with(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4), &FLAGS)?;
    let file = ours.daemons[0].subnet_file().to_owned();
    until("all is well", || Ok(exit(&ask(&file, &["status"])?)? == 0))?;
    let status = said(&ask(&file, &["status"])?);
    ensure!(status.starts_with("ready\n"), "{status}");
    for part in ["vxlan: flannel.1 by the ", "10.5.", "1450 over eth0", "heard", "flannel.1: received"] {
        ensure!(status.contains(part), "no {part:?} in {status}");
    }
    // The kernel may have sent multicast into the device, which is a drop of its own.
    ensure!(!status.contains("unknown_peer"), "only drops that happened: {status}");
    let peers = ask(&file, &["peers"])?;
    ensure!(exit(&peers)? == 0 && said(&peers).contains("192.0.2.2"), "{peers:?}");
    ensure!(said(&peers).lines().count() == 2, "a head and a peer: {}", said(&peers));

    // A lease of a node that runs something else: its pods are not reached, and that is no reason to stop.
    let value = r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"wireguard","BackendData":{}}"#;
    let aside = scene.dir().join("aside");
    fs::write(&aside, value)?;
    fs::rename(&aside, scene.dir().join("store/subnets/10.5.77.0-24"))?;
    until("it is degraded", || Ok(exit(&ask(&file, &["status"])?)? == 3))?;
    let status = said(&ask(&file, &["status"])?);
    ensure!(status.starts_with("degraded: peers: 1 of "), "{status}");
    let peers = ask(&file, &["peers", "-o", "wide"])?;
    ensure!(exit(&peers)? == 3 && said(&peers).contains("wireguard"), "{peers:?}");
    fs::remove_file(scene.dir().join("store/subnets/10.5.77.0-24"))?;
    until("all is well again", || Ok(exit(&ask(&file, &["status"])?)? == 0))?;

    ours.stop()?;
    ensure!(!socket(&file).exists(), "the socket stays behind");
    for words in [["status"], ["peers"]] {
        let down = ask(&file, &words)?;
        ensure!(exit(&down)? == 1 && down.stdout.is_empty(), "{down:?}");
        let why = String::from_utf8_lossy(&down.stderr).into_owned();
        ensure!(why.contains("no flanneld answers") && why.contains("systemctl status flanneld"), "{why}");
    }
    ensure!(exit(&ask(&file, &["status", "--outputt"])?)? == 2);
    Ok(())
}

fn a_store_that_is_gone_degrades_and_stops_nothing(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start_with(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4), &FLAGS)?;
    let node = &ours.cluster.nodes()[0];
    let file = ours.daemons[0].subnet_file().to_owned();
    until("all is well", || Ok(exit(&ask(&file, &["status"])?)? == 0))?;
    fs::rename(scene.dir().join("store"), scene.dir().join("elsewhere"))?;
    until("it is degraded", || {
        Ok(said(&ask(&file, &["status"])?).starts_with("degraded: store: not heard for "))
    })?;
    let ready = get(node, "/readyz?verbose")?;
    ensure!(ready.status == 200 && ready.body.contains("[+]store degraded: "), "{ready:?}");
    ensure!(metrics(node)?["flannel_store_connected"] == 0.0);
    reach::transfer(reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?, 1_000_000)?;
    fs::rename(scene.dir().join("elsewhere"), scene.dir().join("store"))?;
    until("all is well again", || Ok(exit(&ask(&file, &["status"])?)? == 0))?;
    ours.stop().map(drop)
}

/// A hundred clients that begin a request and never end it, at the health server and at the local socket.
fn idle_connections_keep_nobody_out(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start_with(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4), &FLAGS)?;
    let node = &ours.cluster.nodes()[0];
    let file = ours.daemons[0].subnet_file().to_owned();
    until("readiness", || Ok(get(node, "/readyz")?.status == 200))?;
    let mut idle = Vec::new();
    let mut idle_locally = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(node)?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ")?;
        idle.push(stream);
        let mut stream = UnixStream::connect(socket(&file))?;
        stream.write_all(b"stat")?;
        idle_locally.push(stream);
    }
    for _ in 0..20 {
        ensure!(get(node, "/healthz")?.body == "flanneld is running");
        ensure!(get(node, "/readyz")?.status == 200);
        ensure!(exit(&ask(&file, &["status"])?)? == 0);
    }
    ours.all_reach_each_other()?;
    reach::transfer(reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?, 5_000_000)?;
    drop((idle, idle_locally));
    ours.stop().map(drop)
}

fn a_taken_port_is_said_and_had_when_it_is_free(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let taken = node.namespace().run("taker", || std::net::TcpListener::bind(("0.0.0.0", PORT)))??;
    let daemon = Daemon::spawn(node, scene.dir(), &FLAGS)?;
    daemon.ready()?;
    let said = daemon.wait_for_line("the health server cannot have its address")?;
    ensure!(said.contains("in use") && said.contains("--healthz-port"), "{said}");
    drop(taken);
    daemon.wait_for_line("health server answers")?;
    ensure!(get(node, "/healthz")?.status == 200);
    daemon.stop().map(drop)
}

fn a_second_daemon_is_told_who_the_first_is(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let first = Daemon::spawn(node, scene.dir(), &[NO_RULES, "-v=1"])?;
    first.ready()?;
    let log = Daemon::spawn(node, scene.dir(), &[])?.ends_with_an_error()?;
    let last = log.lines().last().unwrap_or_default();
    for part in [format!("process {} (", first.pid()), "-v=1".to_owned(), "-subnet-file=".to_owned()] {
        ensure!(last.contains(&part), "no {part:?} in: {last}");
    }
    // One that wants another file and the same device is refused as well, before it touches anything.
    let mut command = daemon::command(node.name(), scene.dir())?;
    let other_file = scene.dir().join("other/subnet.env");
    command.arg(format!("--subnet-file={}", other_file.display()));
    let log = Daemon::of(node.spawn(command)?, other_file).ends_with_an_error()?;
    ensure!(log.contains("another flanneld carries packets on flannel.1"), "{log}");
    ensure!(exit(&ask(first.subnet_file(), &["status"])?)? == 0, "the first is disturbed");
    // What a killed one leaves is no obstacle.
    let file = first.subnet_file().to_owned();
    first.kill()?;
    ensure!(socket(&file).exists(), "a killed process cleans nothing up");
    let again = Daemon::spawn(node, scene.dir(), &FLAGS)?;
    again.ready()?;
    until("the dead socket is replaced", || Ok(exit(&ask(&file, &["status"])?)? == 0))?;
    again.stop().map(drop)
}

fn two_networks_on_a_node_have_a_daemon_each(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    let mut daemons = Vec::new();
    for (name, network, vni) in [("one", "10.5.0.0/16", 1), ("two", "10.6.0.0/16", 2)] {
        let dir = scene.dir().join(name);
        let backend = format!(r#"{{"Type": "vxlan", "VNI": {vni}, "Port": {}}}"#, 8471 + vni);
        write_config(&dir, &format!(r#"{{"Network": "{network}", "Backend": {backend}}}"#))?;
        let daemon = Daemon::spawn(node, &dir, &[NO_RULES])?;
        daemon.ready()?;
        daemons.push(daemon);
    }
    for (daemon, device) in daemons.iter().zip(["flannel.1", "flannel.2"]) {
        until("its own device", || Ok(said(&ask(daemon.subnet_file(), &["status"])?).contains(device)))?;
    }
    daemons.into_iter().try_for_each(|daemon| daemon.stop().map(drop))
}

fn the_json_has_the_keys_that_scripts_know(scene: &Scene) -> anyhow::Result<()> {
    let ours = Ours::start_with(&v4_plan(2), scene.dir(), &net_conf("vxlan", Inner::V4), &FLAGS)?;
    let file = ours.daemons[0].subnet_file();
    until("all is well", || Ok(exit(&ask(file, &["status"])?)? == 0))?;
    let golden = include_str!("operator/keys.txt");
    let mut found = String::new();
    for verb in ["status", "peers"] {
        let value: Value = serde_json::from_slice(&ask(file, &[verb, "-o", "json"])?.stdout)?;
        let mut paths = Vec::new();
        keys(&value, "", &mut paths);
        for path in paths {
            found += &format!("{verb} {path}\n");
        }
    }
    ensure!(found == golden, "a key is new, or went away. Found:\n{found}");
    ours.stop().map(drop)
}

/// The password is planted where an operator might: in a flag, in a URL, in the environment.
fn secrets_are_nowhere(scene: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&v4_plan(1))?;
    let node = &cluster.nodes()[0];
    write_config(scene.dir(), &net_conf("vxlan", Inner::V4))?;
    let mut command = daemon::command(node.name(), scene.dir())?;
    command
        .args(["-v=5", HEALTH, "--etcd-username=somebody", "--etcd-password=correct-horse"])
        .arg("--etcd-endpoints=http://somebody:correct-horse@192.0.2.9:2379")
        .env("FLANNELD_KUBE_API_URL", "https://somebody:correct-horse@192.0.2.9");
    let daemon = Daemon::of(node.spawn(command)?, daemon::subnet_file(node.name(), scene.dir()));
    daemon.ready()?;
    let second = Daemon::spawn(node, scene.dir(), &[])?.ends_with_an_error()?;
    let mut outputs = vec![daemon.log(), second];
    for path in ["/metrics", "/readyz?verbose"] {
        outputs.push(get(node, path)?.body);
    }
    for words in [&["status"][..], &["status", "-o", "json"], &["peers", "-o", "json"]] {
        outputs.push(said(&ask(daemon.subnet_file(), words)?));
    }
    for entry in fs::read_dir(daemon.subnet_file().parent().context("a directory")?)? {
        let path = entry?.path();
        // The socket cannot be read as a file.
        outputs.extend(fs::read_to_string(path).ok());
    }
    ensure!(outputs.iter().any(|output| output.contains("--etcd-password=***")), "the options are not shown");
    for output in outputs {
        ensure!(!output.contains("correct-horse"), "{output}");
    }
    daemon.stop().map(drop)
}

/// Another user, no capability but one, and none to be had: what a hardened unit or pod gives.
fn net_admin_is_all_the_right_that_is_needed(_: &Scene) -> anyhow::Result<()> {
    let setpriv = Command::new("setpriv").arg("--version").output();
    if setpriv.is_err() {
        return Err(lab::skip("there is no setpriv (package util-linux)"));
    }
    let tun = fs::metadata("/dev/net/tun")?.permissions().mode();
    if tun & 0o006 != 0o006 {
        return Err(lab::skip(format!("/dev/net/tun is root's alone here (mode {:o})", tun & 0o777)));
    }
    let mut cluster = Cluster::build(&v4_plan(2))?;
    // The directory of the scene is root's, and so may the program be.
    let dir = tempfile::tempdir()?;
    write_config(dir.path(), &net_conf("vxlan", Inner::V4))?;
    let program = dir.path().join("flanneld");
    fs::copy(binary::flanneld()?, &program)?;
    for path in [dir.path().to_owned(), dir.path().join("store"), dir.path().join("store/config")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    let mut daemons = Vec::new();
    for node in cluster.nodes() {
        let words = daemon::command(node.name(), dir.path())?;
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
            .args(["--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin"])
            .arg("--ambient-caps=-all,+net_admin")
            .arg(&program)
            .args(words.get_args())
            .args([HEALTH, NO_RULES]);
        daemons.push(Daemon::of(node.spawn(command)?, daemon::subnet_file(node.name(), dir.path())));
    }
    for (at, daemon) in daemons.iter().enumerate() {
        let env = daemon.ready()?;
        cluster.nodes_mut()[at].add_pod(&pod_network(&env))?;
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
        // Bit 12 is CAP_NET_ADMIN.
        for line in ["CapEff:\t0000000000001000", "NoNewPrivs:\t1"] {
            ensure!(status.contains(line), "no {line} in {status}");
        }
    }
    let pods: Vec<_> = cluster.pods().collect();
    for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
        let path = reach::path(from, to, Family::V4)?;
        reach::ping(path)?;
        reach::transfer(path, 5_000_000)?;
    }
    for (node, daemon) in cluster.nodes().iter().zip(&daemons) {
        until("readiness", || Ok(get(node, "/readyz")?.status == 200))?;
        ensure!(exit(&ask(daemon.subnet_file(), &["status"])?)? == 0);
    }
    daemons.into_iter().try_for_each(|daemon| daemon.stop().map(drop))
}
