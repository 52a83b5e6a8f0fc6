//! Promises about `bridge`, kept with the real programs and the real kernel in private namespaces. Where Debian's reference
//! plugins are installed they take part.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what went wrong by failing")]
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use hostnet::state::Link;
use lab::Scene;
use lab::cni::{Container, Runtime};
use lab::traffic::ping::Ping;
use serde_json::{Value, json};

/// Debian's reference plugins.
const THEIRS: &str = "/usr/lib/cni";

fn main() -> ExitCode {
    lab::harness(
        "cni-bridge",
        lab::cases![
            containers_reach_each_other_and_the_host,
            a_container_is_what_its_result_says,
            delete_succeeds_however_often_and_whatever_is_left,
            a_second_add_is_an_error_and_changes_nothing,
            an_add_that_fails_leaves_nothing,
            an_add_that_fails_touches_nothing_of_others,
            a_container_stays_connected_when_it_is_added_in_another_namespace,
            a_namespace_that_is_none_is_refused_by_add_and_gone_for_delete,
            a_bridge_of_somebody_else_keeps_its_address,
            check_finds_whatever_was_changed,
            a_bridge_that_cannot_be_is_refused_by_add_and_nothing_to_del,
            a_bridge_with_a_wrong_address_is_repaired_unless_it_is_used,
            containers_of_different_vlans_do_not_reach_each_other,
            isolated_containers_reach_the_host_only,
            a_container_with_another_hardware_address_reaches_nobody,
            gc_frees_what_no_container_has,
            a_thousand_containers_come_and_go_without_a_trace,
            our_bridge_works_with_their_ipam_and_theirs_with_ours,
            killed_anywhere_in_add_delete_leaves_nothing,
            killed_anywhere_in_add_gc_leaves_nothing,
            killed_anywhere_in_delete_a_second_one_leaves_nothing,
        ],
    )
}

fn ours() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bridge")).parent().unwrap()
}

/// One node with a network of two families.
struct Node {
    runtime: Runtime,
    data: PathBuf,
}

impl Node {
    fn new(scene: &Scene) -> Self {
        Self::with(scene, json!({}))
    }

    /// With further options of `bridge`.
    fn with(scene: &Scene, options: Value) -> Self {
        sh("ip link set lo up");
        let data = scene.dir().join("addresses");
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "bridge", "bridge": "cni0",
            "isDefaultGateway": true, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": data,
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]],
                "routes": [{"dst": "10.244.0.0/16"}],
            },
        });
        for (key, value) in options.as_object().unwrap() {
            config[key] = value.clone();
        }
        Self { runtime: Runtime::new(&[ours()], config), data }
    }

    /// What is left of containers: devices, addresses, rules.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> =
            links().into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect();
        let files = std::fs::read_dir(self.data.join("pods"));
        let names = files.into_iter().flatten().map(|file| file.unwrap().file_name().into_string().unwrap());
        left.extend(
            names.filter(|name| name.contains("10.244.") || name.contains("fd00:") || name.contains("tmp")),
        );
        left.extend(
            sh("iptables -t nat -S 2>/dev/null || true")
                .lines()
                .filter(|line| line.contains("pods"))
                .map(str::to_owned),
        );
        left
    }
}

fn links() -> Vec<Link> {
    wait(async { Kernel::connect().await.unwrap().links().await.unwrap() })
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn sh(line: &str) -> String {
    let line = format!("PATH=$PATH:/usr/sbin:/sbin; {line}");
    let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn inside(container: &Container, line: &str) -> String {
    container.namespace.as_ref().unwrap().run("inside", || sh(line)).unwrap()
}

fn containers<const N: usize>() -> anyhow::Result<[Container; N]> {
    let made: anyhow::Result<Vec<Container>> =
        (0..N).map(|number| Container::new(format!("c{number}"))).collect();
    Ok(made?.try_into().unwrap())
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

fn reaches(from: &NetNs, to: &str) -> bool {
    let ping = Ping::new(to.parse().unwrap());
    ping.send_from(from).unwrap().microseconds().is_some()
}

fn containers_reach_each_other_and_the_host(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let [a, b] = containers()?;
    node.runtime.add(&a)?;
    let there = node.runtime.add(&b)?;
    for address in addresses(&there).iter().map(String::as_str).chain(["10.244.1.1", "fd00:0:0:1::1"]) {
        assert!(reaches(a.namespace.as_ref().unwrap(), address), "{address}");
    }
    Ok(())
}

fn a_container_is_what_its_result_says(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"hairpinMode": true, "runtimeConfig": {"mac": "0a:58:0a:f4:01:02"}}));
    let [a] = containers()?;
    let result = node.runtime.add(&a)?;
    assert_eq!(result["interfaces"][2]["mac"], "0a:58:0a:f4:01:02");
    assert_eq!(result["interfaces"][2]["mtu"], 1450);
    assert_eq!(result["interfaces"][2]["sandbox"].as_str(), a.path().as_ref().and_then(|path| path.to_str()));
    assert_eq!(addresses(&result), ["10.244.1.2", "fd00:0:0:1::2"]);
    let found = inside(&a, "ip -o link show eth0; ip -o addr show eth0; ip route; ip -6 route");
    for text in
        ["0a:58:0a:f4:01:02", "mtu 1450", "10.244.1.2/24", "fd00:0:0:1::2/64", "default via 10.244.1.1"]
    {
        assert!(found.contains(text), "{text} in {found}");
    }
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    assert!(sh(&format!("ip -d link show {port}")).contains("hairpin on"));
    assert!(node.runtime.ask_again("CHECK", &a, &result)?.success);
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        let mut runtime = node.runtime.clone();
        runtime.config["cniVersion"] = version.into();
        runtime.config["runtimeConfig"] = Value::Null;
        let other = Container::new(version.replace('.', "-"))?;
        assert_eq!(runtime.add(&other)?["cniVersion"], version);
        runtime.delete(&other)?;
    }
    Ok(())
}

fn delete_succeeds_however_often_and_whatever_is_left(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"ipMasq": true}));
    let [a, mut b, never] = containers()?;
    node.runtime.add(&a)?;
    for _ in 0..3 {
        node.runtime.delete(&a)?;
    }
    node.runtime.delete(&never)?;
    node.runtime.add(&b)?;
    b.namespace = None;
    node.runtime.delete(&b)?;
    node.runtime.delete(&b)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_second_add_is_an_error_and_changes_nothing(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let [a] = containers()?;
    let result = node.runtime.add(&a)?;
    let again = node.runtime.ask("ADD", &a)?;
    assert!(!again.success && again.json["msg"].as_str().unwrap().contains("eth0"), "{again:?}");
    assert!(node.runtime.ask_again("CHECK", &a, &result)?.success);
    assert!(reaches(a.namespace.as_ref().unwrap(), "10.244.1.1"));
    Ok(())
}

fn an_add_that_fails_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    let mut node = Node::new(scene);
    let [a] = containers()?;
    // A gateway that is nobody's neighbour: the kernel refuses the route, when all else is done.
    node.runtime.config["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.99"}]);
    let refused = node.runtime.ask("ADD", &a)?;
    assert!(!refused.success && refused.json["msg"].as_str().unwrap().contains("10.9.0.0/16"), "{refused:?}");
    assert_eq!(node.left(), [""; 0]);
    assert!(!inside(&a, "ip -o link").contains("eth0"));
    node.runtime.config["ipam"]["type"] = "no-such-plugin".into();
    assert!(!node.runtime.ask("ADD", &a)?.success);
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn an_add_that_fails_touches_nothing_of_others(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let [a] = containers()?;
    inside(&a, "ip link add eth0 type veth peer name other; ip addr add 192.0.2.9/24 dev eth0");
    let refused = node.runtime.ask("ADD", &a)?;
    assert!(!refused.success && refused.json["msg"].as_str().unwrap().contains("eth0"), "{refused:?}");
    assert!(inside(&a, "ip -o addr show eth0").contains("192.0.2.9"));
    let mut config = node.runtime.config.clone();
    let ipam = config["ipam"].take();
    let subnet_file = scene.dir().join("subnet.env");
    std::fs::write(
        &subnet_file,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let flannel = Runtime::new(
        &[ours()],
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "flannel", "subnetFile": subnet_file,
            "dataDir": scene.dir().join("scratch"), "ipam": {"dataDir": ipam["dataDir"]},
        }),
    );
    assert!(!flannel.ask("ADD", &a)?.success);
    assert!(inside(&a, "ip -o addr show eth0").contains("192.0.2.9"));
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_container_stays_connected_when_it_is_added_in_another_namespace(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let [a] = containers()?;
    let result = node.runtime.add(&a)?;
    let elsewhere = Container::new(a.id.clone())?;
    let refused = node.runtime.ask("ADD", &elsewhere)?;
    assert!(
        !refused.success && refused.json["msg"].as_str().unwrap().contains("duplicate allocation"),
        "{refused:?}"
    );
    assert!(node.runtime.ask_again("CHECK", &a, &result)?.success);
    assert!(!inside(&elsewhere, "ip -o link").contains("eth0"));
    node.runtime.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_namespace_that_is_none_is_refused_by_add_and_gone_for_delete(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let file = scene.dir().join("file");
    std::fs::write(&file, "")?;
    let pipe = scene.dir().join("pipe");
    sh(&format!("mkfifo {}", pipe.display()));
    for path in [file, pipe, scene.dir().join("absent")] {
        let [a] = containers()?;
        node.runtime.add(&a)?;
        let gone = Container { namespace: None, ..a };
        let mut runtime = node.runtime.clone();
        runtime.environment.push(("CNI_NETNS".to_owned(), path.display().to_string()));
        let refused = runtime.ask("ADD", &gone)?;
        assert!(!refused.success && refused.json["code"] == 8, "{}: {refused:?}", path.display());
        runtime.delete(&gone)?;
        runtime.delete(&gone)?;
        assert_eq!(node.left(), [""; 0], "{}", path.display());
    }
    Ok(())
}

fn a_bridge_of_somebody_else_keeps_its_address(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"bridge": "br-admin"}));
    sh("ip link add br-admin type bridge; ip addr add 192.0.2.1/24 dev br-admin; ip link set br-admin up");
    let [a] = containers()?;
    let refused = node.runtime.ask("ADD", &a)?;
    let said = refused.json["msg"].as_str().unwrap();
    assert_eq!(said, "\"br-admin\" already has an IP address different from 10.244.1.1/24");
    assert!(sh("ip -o -4 addr show br-admin").contains("192.0.2.1/24"));
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn check_finds_whatever_was_changed(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    for (number, change) in [
        "ip addr del 10.244.1.0/24 dev eth0 2>/dev/null || ip addr flush dev eth0 scope global",
        "ip route del default",
        "ip link set eth0 down",
        "ip link del eth0",
    ]
    .into_iter()
    .enumerate()
    {
        let container = Container::new(format!("x{number}"))?;
        let result = node.runtime.add(&container)?;
        assert!(node.runtime.ask_again("CHECK", &container, &result)?.success);
        inside(&container, change);
        let answer = node.runtime.ask_again("CHECK", &container, &result)?;
        assert!(!answer.success && answer.json["code"] == 100, "{change}: {answer:?}");
        node.runtime.delete(&container)?;
    }
    let [a] = containers()?;
    let result = node.runtime.add(&a)?;
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    sh(&format!("ip link set {port} nomaster"));
    assert!(!node.runtime.ask_again("CHECK", &a, &result)?.success);
    let gone = Container { namespace: None, ..a };
    let mut runtime = node.runtime;
    runtime.environment.push(("CNI_NETNS".to_owned(), "/run/netns/nobody".to_owned()));
    assert!(!runtime.ask_again("CHECK", &gone, &result)?.success);
    Ok(())
}

fn a_bridge_that_cannot_be_is_refused_by_add_and_nothing_to_del(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"bridge": "a-bridge-of-18-chars"}));
    let [a] = containers()?;
    let refused = node.runtime.ask("ADD", &a)?;
    assert!(!refused.success);
    assert!(refused.json["msg"].as_str().unwrap().contains("a-bridge-of-18-chars"), "{}", refused.json);
    node.runtime.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_bridge_with_a_wrong_address_is_repaired_unless_it_is_used(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    sh("ip link add cni0 type bridge; ip addr add 10.244.7.1/24 dev cni0; ip link set cni0 up");
    let [a, b] = containers()?;
    // Of two, one is somebody's.
    sh("ip addr add 172.31.0.1/16 dev cni0");
    let refused = node.runtime.ask("ADD", &a)?;
    assert!(!refused.success && sh("ip -o -4 addr show cni0").matches("inet ").count() == 2);
    sh("ip addr del 172.31.0.1/16 dev cni0");
    node.runtime.add(&a)?;
    let found = sh("ip -o -4 addr show cni0");
    assert!(found.contains("10.244.1.1/24") && !found.contains("10.244.7.1"), "{found}");
    let mut moved = node.runtime;
    moved.config["ipam"]["ranges"] = json!([[{"subnet": "10.244.8.0/24"}]]);
    let refused = moved.ask("ADD", &b)?;
    let said = refused.json["msg"].as_str().unwrap();
    assert_eq!(said, "\"cni0\" already has an IP address different from 10.244.8.1/24");
    assert!(reaches(a.namespace.as_ref().unwrap(), "10.244.1.1"), "who uses the bridge keeps the gateway");
    moved.config["forceAddress"] = true.into();
    moved.add(&b)?;
    assert!(sh("ip -o -4 addr show cni0").contains("10.244.8.1/24"));
    Ok(())
}

fn containers_of_different_vlans_do_not_reach_each_other(scene: &Scene) -> anyhow::Result<()> {
    if !sh("ip link add probe type bridge vlan_filtering 1 2>&1 && ip link del probe || echo no").is_empty() {
        return Err(lab::skip("this kernel's bridges do not know VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"));
    }
    let node = Node::with(scene, json!({"vlan": 100}));
    let mut other = node.runtime.clone();
    other.config["vlan"] = 200.into();
    other.config["isDefaultGateway"] = false.into();
    let [a, b, c] = containers()?;
    node.runtime.add(&a)?;
    let same = node.runtime.add(&b)?;
    let apart = other.add(&c)?;
    let from = a.namespace.as_ref().unwrap();
    assert!(reaches(from, &addresses(&same)[0]) && reaches(from, "10.244.1.1"));
    assert!(!reaches(from, &addresses(&apart)[0]));
    Ok(())
}

fn isolated_containers_reach_the_host_only(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"portIsolation": true}));
    let [a, b] = containers()?;
    node.runtime.add(&a)?;
    let there = node.runtime.add(&b)?;
    let from = a.namespace.as_ref().unwrap();
    assert!(reaches(from, "10.244.1.1") && !reaches(from, &addresses(&there)[0]));
    Ok(())
}

fn a_container_with_another_hardware_address_reaches_nobody(scene: &Scene) -> anyhow::Result<()> {
    if !sh("nft add table bridge probe 2>&1 && nft delete table bridge probe || echo no").is_empty() {
        return Err(lab::skip("no nft, or a kernel without its bridge family (CONFIG_NF_TABLES_BRIDGE)"));
    }
    let node = Node::with(scene, json!({"macspoofchk": true}));
    let [a, b] = containers()?;
    let result = node.runtime.add(&a)?;
    node.runtime.add(&b)?;
    let from = a.namespace.as_ref().unwrap();
    assert!(reaches(from, "10.244.1.1"));
    assert!(node.runtime.ask_again("CHECK", &a, &result)?.success);
    inside(&a, "ip link set eth0 address 0a:58:00:00:00:01");
    assert!(!reaches(from, "10.244.1.1"));
    node.runtime.delete(&a)?;
    assert!(sh("nft list tables").matches("cni_spoof").count() == 1, "b's");
    node.runtime.collect(&[])?;
    assert_eq!(sh("nft list tables"), "");
    Ok(())
}

fn gc_frees_what_no_container_has(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::with(scene, json!({"ipMasq": true}));
    let [a, b] = containers()?;
    let kept = node.runtime.add(&a)?;
    node.runtime.add(&b)?;
    sh("ip link add veth-mine type veth peer name veth-mine2");
    node.runtime.collect(&[&a])?;
    assert!(!inside(&b, "ip -o link").contains("eth0"), "b is not in the list");
    assert!(node.runtime.ask_again("CHECK", &a, &kept)?.success);
    assert!(links().iter().any(|link| link.name == "veth-mine"), "somebody else's");
    sh("ip link del veth-mine");
    node.runtime.collect(&[])?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_thousand_containers_come_and_go_without_a_trace(scene: &Scene) -> anyhow::Result<()> {
    const WORKERS: usize = 8;
    let each: usize =
        std::env::var("CNI_CHURN").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000) / WORKERS;
    let node = Node::with(scene, json!({"ipMasq": true}));
    let here = NetNs::current()?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (node, here) = (&node, &here);
                scope.spawn(move || -> anyhow::Result<()> {
                    here.enter()?;
                    for round in 0..each {
                        let container = Container::new(format!("w{worker}r{round}"))?;
                        node.runtime.add(&container)?;
                        node.runtime.delete(&container)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap())
    })?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn our_bridge_works_with_their_ipam_and_theirs_with_ours(scene: &Scene) -> anyhow::Result<()> {
    let theirs = Path::new(THEIRS);
    if !theirs.join("host-local").exists() {
        return Err(lab::skip("there are no reference plugins: install containernetworking-plugins"));
    }
    let mut node = Node::with(scene, json!({"cniVersion": "1.0.0", "ipMasq": true}));
    let mut made = Vec::new();
    for (number, (main, ipam)) in
        [(ours(), theirs), (theirs, ours()), (ours(), ours()), (theirs, theirs)].into_iter().enumerate()
    {
        let bin = scene.dir().join(format!("bin{number}"));
        std::fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(main.join("bridge"), bin.join("bridge"))?;
        std::os::unix::fs::symlink(ipam.join("host-local"), bin.join("host-local"))?;
        node.runtime.path = vec![bin];
        let container = Container::new(format!("m{number}"))?;
        let result = node.runtime.add(&container)?;
        // Theirs (1.1.1) does not find a route whose gateway its own result leaves out.
        if main == ours() {
            let answer = node.runtime.ask_again("CHECK", &container, &result)?;
            assert!(answer.success, "{}: {answer:?}", ipam.display());
        }
        made.push((container, result));
    }
    // They are on one bridge and share one directory of addresses.
    let mut all: Vec<String> = made.iter().flat_map(|(_, result)| addresses(result)).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 8);
    for (container, _) in &made {
        for (_, other) in made.iter().filter(|(other, _)| other.id != container.id) {
            assert!(reaches(container.namespace.as_ref().unwrap(), &addresses(other)[0]));
        }
    }
    // Each is disconnected by the other's plugins.
    for (number, (container, result)) in made.iter().enumerate() {
        let main = if number % 2 == 0 { theirs } else { ours() };
        node.runtime.path = vec![main.to_owned()];
        let answer = node.runtime.ask_again("DEL", container, result)?;
        assert!(answer.success, "{answer:?}");
    }
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

/// The system calls at which a plugin is killed: those that change something or wait for somebody.
const CALLS: &str =
    "sendto,write,openat,link,linkat,unlink,rename,mkdir,flock,clone3,wait4,waitid,execve,setns,recvfrom";

/// Runs a command under strace, which kills it (and, with `children`, what it starts) at its call number `at`. Answers
/// whether the command came to its end.
fn killed(node: &Node, word: &str, container: &Container, at: usize, children: bool) -> anyhow::Result<bool> {
    let plain = node.runtime.command(word, Some(container))?;
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")]);
    command.args(["-e", &format!("inject={CALLS}:signal=KILL:when={at}")]);
    if children {
        command.arg("-f");
    }
    command.arg(plain.get_program());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let answer = Runtime::run(command, &node.runtime.config);
    Ok(answer.is_ok_and(|answer| answer.success))
}

fn sweep(
    scene: &Scene,
    word: &str,
    after: impl Fn(&Node, &Container) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        return Err(lab::skip("there is no strace: install it"));
    }
    let node = Node::with(scene, json!({"ipMasq": true}));
    for children in [false, true] {
        for at in 1.. {
            let container = Container::new(format!("k{}{at}", u8::from(children)))?;
            if word == "DEL" {
                node.runtime.add(&container)?;
            }
            let finished = killed(&node, word, &container, at, children)?;
            after(&node, &container)?;
            assert_eq!(node.left(), [""; 0], "killed at call {at} of {word}, children {children}");
            if finished {
                assert!(at > 20, "strace did not kill anything");
                break;
            }
        }
    }
    Ok(())
}

fn killed_anywhere_in_add_delete_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    sweep(scene, "ADD", |node, container| node.runtime.delete(container))
}

fn killed_anywhere_in_add_gc_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    sweep(scene, "ADD", |node, _container| node.runtime.collect(&[]))
}

fn killed_anywhere_in_delete_a_second_one_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    sweep(scene, "DEL", |node, container| node.runtime.delete(container))
}
