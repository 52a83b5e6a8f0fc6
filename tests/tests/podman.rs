//! podman, a real client of CNI, connects its containers by our plugins, with the list of plugins that flannel installs.

use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{Cluster, Plan, Scene};
use promises::cluster::{Inner, net_conf};
use promises::daemon::{Daemon, PATIENCE};
use promises::lease_dir::write_config;
use promises::podman::Podman;
use promises::{harness, rules};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-podman",
        lab::cases![
            containers_on_two_nodes_talk_through_the_engine,
            a_port_of_a_node_leads_to_its_container,
            removed_containers_leave_nothing,
        ],
    )
}

/// A busybox that serves its whole root, and who asks at `/cgi-bin/who`.
const SERVE: &[&str] = &["httpd", "-f", "-p", "80", "-h", "/"];
/// A container to ask from.
const WAIT: &[&str] = &["sleep", "3600"];

/// Two nodes with their daemons; masquerading is the daemon's, as in the manifest.
fn two_nodes(scene: &Scene) -> anyhow::Result<(Cluster, Vec<Daemon>)> {
    rules::need("nft")?;
    rules::need("iptables")?;
    let cluster = Cluster::build(&Plan::nodes(2))?;
    write_config(scene.dir(), &net_conf("vxlan", Inner::Dual))?;
    let start = |node| Daemon::spawn(node, scene.dir(), &["--ip-masq"]);
    let daemons = cluster.nodes().iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    for daemon in &daemons {
        daemon.ready()?;
    }
    Ok((cluster, daemons))
}

fn url(host: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}/{path}", std::net::SocketAddr::new(host, port))
}

/// Asks until there is an answer: servers start, routes come.
fn eventually(mut ask: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}

/// Words of busybox that ask who asks. (Its own `-T` is a crash in Debian's static wget.)
fn who(host: IpAddr, port: u16) -> Vec<String> {
    let url = url(host, port, "cgi-bin/who");
    ["busybox", "timeout", "2", "busybox", "wget", "-qO-", &url].map(str::to_owned).to_vec()
}

/// Whom the server behind `host` takes for the asking one, asked from a container.
fn asked_in(podman: &Podman<'_>, name: &str, host: IpAddr, port: u16) -> anyhow::Result<IpAddr> {
    let words = who(host, port);
    let words: Vec<&str> = ["exec", name].into_iter().chain(words.iter().map(String::as_str)).collect();
    seen(&eventually(|| podman.ask(&words))?)
}

/// The same asked from the node itself.
fn asked_on(podman: &Podman<'_>, host: IpAddr, port: u16) -> anyhow::Result<IpAddr> {
    let words = who(host, port);
    let answer = eventually(|| {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        podman.output(command)
    })?;
    seen(&answer)
}

fn seen(answer: &str) -> anyhow::Result<IpAddr> {
    let text = answer.trim().trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = text.parse().with_context(|| format!("the server answered {answer:?}"))?;
    Ok(address.to_canonical())
}

fn containers_on_two_nodes_talk_through_the_engine(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, daemons) = two_nodes(scene)?;
    let [a, b] = cluster.nodes() else { anyhow::bail!("two nodes") };
    let (a, b) = (Podman::on(a, scene.dir())?, Podman::on(b, scene.dir())?);
    let servers = a.start("web", &[], SERVE)?;
    let clients = b.start("client", &[], WAIT)?;
    ensure!(servers.len() == 2 && clients.len() == 2, "of both families: {servers:?} {clients:?}");
    for (server, client) in servers.iter().zip(&clients) {
        let seen = asked_in(&b, "client", *server, 80)?;
        ensure!(seen == *client, "{server} saw {seen}, not {client}");
        // Two megabytes: the server's own program, compared with the client's copy.
        let url = url(*server, 80, "bin/busybox");
        let compare = format!("busybox timeout 10 busybox wget -qO- {url} | busybox cmp - /bin/busybox");
        b.ask(&["exec", "client", "/bin/busybox", "sh", "-c", &compare])?;
    }
    for daemon in daemons {
        for book in daemon.stop()? {
            ensure!(book.rx.passed >= 30 && book.tx.passed >= 10, "not through the engine: {book:?}");
        }
    }
    Ok(())
}

fn a_port_of_a_node_leads_to_its_container(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, _daemons) = two_nodes(scene)?;
    let [node_a, node_b] = cluster.nodes() else { anyhow::bail!("two nodes") };
    let (a, b) = (Podman::on(node_a, scene.dir())?, Podman::on(node_b, scene.dir())?);
    a.start("web", &["--publish", "8080:80"], SERVE)?;
    b.start("client", &[], WAIT)?;
    for (host, other) in node_a.addresses().zip(node_b.addresses()) {
        for seen in [asked_in(&b, "client", host, 8080)?, asked_on(&b, host, 8080)?] {
            ensure!(seen == other, "{host} saw {seen}, not the other node's {other}");
        }
        asked_on(&a, host, 8080).context("from the node itself")?;
    }
    asked_on(&a, [127, 0, 0, 1].into(), 8080).context("from the node itself")?;
    Ok(())
}

fn removed_containers_leave_nothing(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, _daemons) = two_nodes(scene)?;
    let podman = Podman::on(&cluster.nodes()[0], scene.dir())?;
    let come = |name: &str, ports: &str| podman.start(name, &["--publish", ports], SERVE);
    let go = |name: &str| podman.ask(&["rm", "--force", "--time", "0", name]);
    // The first one brings what stays: the bridge, the chains that all containers share, the files of the allocator.
    come("first", "8079:80")?;
    go("first")?;
    let before = podman.state()?;
    for round in 0..2 {
        come("web", "8080:80")?;
        come("other", "8081:80")?;
        let during = podman.state()?;
        for kind in ["veth", "8080", "/cni/flannel/", "/cni/networks/cbr0/10.5.", "/run/netns/"] {
            let new = during.iter().any(|line| line.contains(kind) && !before.contains(line));
            ensure!(new, "nothing of {kind} is seen: {during:#?}");
        }
        go("web")?;
        // One whose process has ended by itself.
        podman.ask(&["kill", "other"])?;
        go("other")?;
        let after = podman.state()?;
        let differs: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        ensure!(after == before, "round {round} leaves {differs:#?}");
    }
    Ok(())
}
