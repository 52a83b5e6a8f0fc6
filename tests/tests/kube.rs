//! `flanneld` in a Kubernetes cluster: real daemons that find each other through a real kube-apiserver, with the rights
//! that flannel's manifest grants.

use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dataplane_core::Family;
use lab::{Cluster, Node, Plan, Scene, Underlay};
use promises::apiserver::ApiServer;
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{Daemon, PATIENCE, pod_network, subnet_file};
use promises::{binary, harness, reach};
use serde_json::{Value, json};

const PREFIX: &str = "flannel.alpha.coreos.com/";

fn main() -> ExitCode {
    harness::of_kubernetes(
        "promise-kube",
        lab::cases![
            nodes_join_by_the_api_with_flannels_annotations,
            a_pod_cidr_is_waited_for_and_the_node_found_by_its_pod,
            an_api_server_that_is_gone_costs_no_packet_and_one_that_returns_is_followed,
            a_node_of_a_dual_stack_cluster_changes_one_family_and_is_reached,
        ],
    )
}

/// Nodes with daemons, and behind them one that holds the API server.
struct Kubernetes {
    ours: Ours,
    server: ApiServer,
}

impl Kubernetes {
    /// Builds `nodes` nodes and the server's, registers each with the podCIDRs of its number, and starts the daemons.
    fn start(scene: &Scene, nodes: u8, backend: &str, inner: Inner) -> anyhow::Result<Self> {
        let (cluster, server) = bare(scene, nodes, backend, inner)?;
        let last = &cluster.nodes()[usize::from(nodes)];
        let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
        for (number, name) in (1..=nodes).zip(&names) {
            server.register(
                last,
                name,
                &cidrs(inner, number).iter().map(String::as_str).collect::<Vec<_>>(),
            )?;
        }
        let mut ours = Ours { daemons: Vec::new(), envs: Vec::new(), cluster };
        for (node, name) in ours.cluster.nodes().iter().zip(&names).take(nodes.into()) {
            let daemon = spawn(scene, &server, node, &[("NODE_NAME", name)])?;
            ours.daemons.push(daemon);
        }
        ours.envs = ours.daemons.iter().map(Daemon::ready).collect::<anyhow::Result<_>>()?;
        for (node, env) in ours.cluster.nodes_mut().iter_mut().zip(&ours.envs) {
            node.add_pod(&pod_network(env))?;
        }
        Ok(Self { ours, server })
    }

    /// The node that holds the API server.
    fn last(&self) -> anyhow::Result<&Node> {
        self.ours.cluster.nodes().last().context("a node")
    }

    fn node(&self, name: &str) -> anyhow::Result<Value> {
        self.server.node(self.last()?, name)
    }

    fn with_logs<T>(&self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        outcome.with_context(|| self.ours.daemons.iter().map(Daemon::log).collect::<Vec<_>>().join("\n--\n"))
    }
}

fn cidrs(inner: Inner, number: u8) -> Vec<String> {
    let (v4, v6) = (format!("10.5.{number}.0/24"), format!("fd00:5:0:{number}::/64"));
    match inner {
        Inner::V4 => vec![v4],
        Inner::V6 => vec![v6],
        Inner::Dual => vec![v4, v6],
    }
}

fn bare(scene: &Scene, nodes: u8, backend: &str, inner: Inner) -> anyhow::Result<(Cluster, ApiServer)> {
    std::fs::write(scene.dir().join("net-conf.json"), net_conf(backend, inner))?;
    let underlay = if inner == Inner::V4 { Underlay::V4 } else { Underlay::Dual };
    let cluster = Cluster::build(&Plan { underlay, ..Plan::nodes(usize::from(nodes) + 1) })?;
    let server = ApiServer::start(&cluster.nodes()[usize::from(nodes)], &scene.dir().join("api"))?;
    Ok((cluster, server))
}

fn spawn(
    scene: &Scene,
    server: &ApiServer,
    node: &Node,
    environment: &[(&str, &str)],
) -> anyhow::Result<Daemon> {
    let file = subnet_file(node.name(), scene.dir());
    let mut command = Command::new(binary::flanneld()?);
    command
        .args(["--kube-subnet-mgr", "--log-format=json", "--iface=eth0", "--v=1", "--engine=always"])
        .arg(format!("--kubeconfig-file={}", server.flannels_kubeconfig().display()))
        .arg(format!("--net-config-path={}", scene.dir().join("net-conf.json").display()))
        .arg(format!("--status-socket={}", scene.dir().join(node.name()).join("status.sock").display()))
        .arg(format!("--subnet-file={}", file.display()));
    for name in ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    Ok(Daemon::of(node.spawn(command)?, file))
}

/// Looks again and again until it is so.
fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + 3 * PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn nodes_join_by_the_api_with_flannels_annotations(scene: &Scene) -> anyhow::Result<()> {
    let kubernetes = Kubernetes::start(scene, 3, "vxlan", Inner::V4)?;
    kubernetes.with_logs(kubernetes.ours.all_reach_each_other())?;
    for (number, name) in (1..=3).zip(["node-a", "node-b", "node-c"]) {
        let node = kubernetes.node(name)?;
        let annotation = |key: &str| node["metadata"]["annotations"][format!("{PREFIX}{key}")].as_str();
        ensure!(annotation("kube-subnet-manager") == Some("true"), "{node}");
        ensure!(annotation("backend-type") == Some("vxlan"), "{node}");
        ensure!(annotation("public-ip") == Some(format!("192.0.2.{number}").as_str()), "{node}");
        let data = annotation("backend-data").context("backend-data")?;
        let mac = data.strip_prefix(r#"{"VNI":1,"VtepMAC":""#).and_then(|rest| rest.strip_suffix(r#""}"#));
        ensure!(mac.is_some_and(|mac| mac.len() == 17), "{data}");
        let written = node["metadata"]["annotations"].as_object().context("annotations")?.len();
        ensure!(written == 4, "nothing else is written: {node}");
        until("the condition", || {
            let node = kubernetes.node(name)?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().any(|condition| {
                condition["type"] == "NetworkUnavailable"
                    && condition["status"] == "False"
                    && condition["reason"] == "FlannelIsUp"
                    && condition["message"] == "Flannel is running on this node"
            }))
        })?;
    }
    for env in &kubernetes.ours.envs {
        ensure!(env.mtu == 1450, "{env:?}");
    }
    kubernetes.ours.stop().map(drop)
}

fn a_pod_cidr_is_waited_for_and_the_node_found_by_its_pod(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, server) = bare(scene, 1, "udp", Inner::V4)?;
    let (node, last) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    server.register(last, node.name(), &[])?;
    server.flannel_pod(last, "kube-flannel-ds-x", node.name())?;
    let pod = [("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel")];
    let daemon = spawn(scene, &server, node, &pod)?;
    let line = daemon.wait_for_line("waiting for node \\\"node-a\\\" to get an IPv4 podCIDR")?;
    ensure!(line.contains("--allocate-node-cidrs"), "{line}");
    server.assign(last, node.name(), &["10.5.9.0/24"])?;
    let env = daemon.ready()?;
    ensure!(env.subnets == ["10.5.9.0/24".parse()?], "{env:?}");
    let object = server.node(last, node.name())?;
    let annotations = &object["metadata"]["annotations"];
    ensure!(annotations[format!("{PREFIX}backend-type")] == "", "{annotations}");
    ensure!(annotations[format!("{PREFIX}backend-data")] == "null", "{annotations}");
    daemon.stop().map(drop)
}

fn an_api_server_that_is_gone_costs_no_packet_and_one_that_returns_is_followed(
    scene: &Scene,
) -> anyhow::Result<()> {
    let mut kubernetes = Kubernetes::start(scene, 2, "vxlan", Inner::V4)?;
    kubernetes.with_logs(kubernetes.ours.all_reach_each_other())?;
    kubernetes.server.stop()?;
    for daemon in &kubernetes.ours.daemons {
        daemon.wait_for_line("does not tell about nodes; keeping those that are known")?;
    }
    let path = reach::path(kubernetes.ours.pod(0)?, kubernetes.ours.pod(1)?, Family::V4)?;
    reach::every_udp_size(path, (1..=1400).step_by(7))?;
    reach::transfer(path, 20_000_000)?;
    let last = kubernetes.ours.cluster.nodes().last().context("a node")?;
    kubernetes.server.again(last)?;
    // A node that joins now is learnt by those that were there before.
    kubernetes.server.register(last, "elsewhere", &["10.5.77.0/24"])?;
    let lease = json!({
        format!("{PREFIX}kube-subnet-manager"): "true",
        format!("{PREFIX}backend-type"): "vxlan",
        format!("{PREFIX}backend-data"): r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
        format!("{PREFIX}public-ip"): "192.0.2.77",
    });
    kubernetes.server.annotate(last, "elsewhere", &lease)?;
    let joined = |daemon: &Daemon| {
        until("the new node is learnt", || {
            Ok(daemon
                .log()
                .lines()
                .any(|line| line.contains("a node joined") && line.contains("10.5.77.0/24")))
        })
    };
    let learnt = kubernetes.ours.daemons.iter().try_for_each(joined);
    kubernetes.with_logs(learnt)?;
    kubernetes.server.delete(last, "elsewhere")?;
    let left =
        kubernetes.ours.daemons.iter().try_for_each(|daemon| daemon.wait_for_line("a node left").map(drop));
    kubernetes.with_logs(left)?;
    reach::transfer(path, 1_000_000)?;
    kubernetes.ours.stop().map(drop)
}

fn a_node_of_a_dual_stack_cluster_changes_one_family_and_is_reached(scene: &Scene) -> anyhow::Result<()> {
    let kubernetes = Kubernetes::start(scene, 2, "vxlan", Inner::Dual)?;
    kubernetes.with_logs(kubernetes.ours.all_reach_each_other())?;
    let node = kubernetes.node("node-b")?;
    let annotations = &node["metadata"]["annotations"];
    ensure!(annotations[format!("{PREFIX}public-ipv6")] == "2001:db8::2", "{annotations}");
    // Somebody overwrites the IPv4 half; the node writes what it was, and both halves work on.
    let last = kubernetes.last()?;
    let wrong = json!({ format!("{PREFIX}public-ip"): "192.0.2.99" });
    kubernetes.server.annotate(last, "node-b", &wrong)?;
    let mended = until("node-b publishes its address again", || {
        let node = kubernetes.node("node-b")?;
        Ok(node["metadata"]["annotations"][format!("{PREFIX}public-ip")] == "192.0.2.2")
    });
    kubernetes.with_logs(mended)?;
    kubernetes.with_logs(kubernetes.ours.all_reach_each_other())?;
    kubernetes.ours.stop().map(drop)
}
