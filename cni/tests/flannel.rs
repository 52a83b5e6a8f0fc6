//! Promises about `flannel`, kept with the real programs in private namespaces.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what went wrong by failing")]
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hostnet::kernel::Kernel;
use lab::Scene;
use lab::cni::{Container, Runtime};
use serde_json::{Value, json};

/// Debian's reference plugins.
const THEIRS: &str = "/usr/lib/cni";

fn main() -> ExitCode {
    lab::harness(
        "cni-flannel",
        lab::cases![
            a_container_gets_an_address_of_the_nodes_subnet,
            without_subnet_env_the_reason_of_the_daemon_is_told,
            delete_needs_neither_subnet_env_nor_scratch_file,
            a_delegate_that_fails_to_delete_is_asked_again,
            devices_of_one_container_come_and_go_by_themselves,
            status_tells_what_the_daemon_and_the_delegate_say,
            check_asks_the_delegate,
            gc_frees_containers_that_are_gone_with_old_delegates_too,
            reference_plugins_are_delegates_too,
            killed_anywhere_in_add_delete_leaves_nothing,
            killed_anywhere_in_add_gc_leaves_nothing,
        ],
    )
}

fn ours() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_flannel")).parent().unwrap()
}

/// One node whose daemon has written `subnet.env`.
struct Node {
    runtime: Runtime,
    dir: PathBuf,
}

impl Node {
    fn new(scene: &Scene) -> Self {
        sh("ip link set lo up");
        let dir = scene.dir().to_owned();
        let config = json!({
            "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
            "subnetFile": dir.join("subnet.env"), "dataDir": dir.join("scratch"),
            "ipam": {"dataDir": dir.join("addresses")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        });
        let node = Self { runtime: Runtime::new(&[ours()], config), dir };
        node.write_subnet_env();
        node
    }

    fn write_subnet_env(&self) {
        let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        std::fs::write(self.dir.join("subnet.env"), text).unwrap();
    }

    fn forget_subnet_env(&self) {
        std::fs::remove_file(self.dir.join("subnet.env")).unwrap();
    }

    /// What is left of containers: devices, addresses, scratch files, rules.
    fn left(&self) -> Vec<String> {
        let links = wait(async { Kernel::connect().await.unwrap().links().await.unwrap() });
        let mut left: Vec<String> =
            links.into_iter().map(|link| link.name).filter(|name| name.starts_with("veth")).collect();
        left.extend(names(&self.dir.join("scratch")));
        left.extend(
            names(&self.dir.join("addresses/cbr0")).into_iter().filter(|name| name.contains("10.244.")),
        );
        let rules = sh("iptables -t nat -S 2>/dev/null || true");
        left.extend(rules.lines().filter(|line| line.contains("cbr0")).map(str::to_owned));
        left
    }

    /// What the plugin refuses with.
    fn refusal(&self, word: &str, container: Option<&Container>) -> (u64, String) {
        let answer =
            Runtime::run(self.runtime.command(word, container).unwrap(), &self.runtime.config).unwrap();
        assert!(!answer.success, "{word}: {answer:?}");
        let text = |key: &str| answer.json[key].as_str().unwrap_or_default();
        (answer.json["code"].as_u64().unwrap(), format!("{} {}", text("msg"), text("details")))
    }

    fn status(&self) -> bool {
        Runtime::run(self.runtime.command("STATUS", None).unwrap(), &self.runtime.config).unwrap().success
    }

    /// A daemon that says this of itself, from here on.
    fn daemon_says(&self, status: Value) {
        let socket = self.dir.join("flanneld.sock");
        std::fs::remove_file(&socket).ok();
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = [0; 7];
                stream.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"status\n");
                writeln!(stream, "{status}").ok();
            }
        });
    }
}

fn names(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(directory).into_iter().flatten();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
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

fn a_container_gets_an_address_of_the_nodes_subnet(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let a = Container::new("a")?;
    let result = node.runtime.add(&a)?;
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    let routes = inside(&a, "ip route");
    assert!(
        routes.contains("default via 10.244.1.1") && routes.contains("10.244.0.0/16 via 10.244.1.1"),
        "{routes}"
    );
    node.runtime.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn without_subnet_env_the_reason_of_the_daemon_is_told(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    node.forget_subnet_env();
    let a = Container::new("a")?;
    let (code, text) = node.refusal("ADD", Some(&a));
    assert_eq!(code, 11);
    assert!(
        text.contains("subnet.env: no such file or directory") && text.contains("is it running?"),
        "{text}"
    );
    node.daemon_says(
        json!({"state": "not-ready", "problems": ["starting: waits for a podCIDR"], "lease": null}),
    );
    let (_, text) = node.refusal("ADD", Some(&a));
    assert!(text.contains("flanneld says: starting: waits for a podCIDR"), "{text}");
    std::fs::write(node.dir.join("subnet.env"), "FLANNEL_NETWORK\n")?;
    assert_eq!(node.refusal("ADD", Some(&a)).0, 11);
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn delete_needs_neither_subnet_env_nor_scratch_file(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let [a, b, c] = ["a", "b", "c"].map(|id| Container::new(id).unwrap());
    for container in [&a, &b, &c] {
        node.runtime.add(container)?;
    }
    // Torn, as flannel's plugin leaves it when it is killed.
    for name in ["b", "b@eth0"] {
        std::fs::write(node.dir.join("scratch").join(name), "{\"na")?;
    }
    for name in ["c", "c@eth0"] {
        std::fs::remove_file(node.dir.join("scratch").join(name))?;
    }
    node.runtime.delete(&b)?;
    node.runtime.delete(&c)?;
    node.forget_subnet_env();
    node.runtime.delete(&a)?;
    node.runtime.delete(&a)?;
    node.runtime.delete(&Container::new("never")?)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn a_delegate_that_fails_to_delete_is_asked_again(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let a = Container::new("a")?;
    node.runtime.add(&a)?;
    let mut broken = node.runtime.clone();
    let without = scene.dir().join("bin");
    std::fs::create_dir(&without)?;
    for name in ["flannel", "bridge"] {
        std::os::unix::fs::symlink(ours().join(name), without.join(name))?;
    }
    // There is no host-local, so that the address cannot be freed.
    broken.path = vec![without];
    assert!(!broken.ask("DEL", &a)?.success);
    assert!(!names(&node.dir.join("scratch")).is_empty());
    node.runtime.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn devices_of_one_container_come_and_go_by_themselves(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let a = Container::new("a")?;
    node.runtime.add(&a)?;
    let mut second = node.runtime.clone();
    second.ifname = "net1".to_owned();
    second.config["delegate"]["mtu"] = 1300.into();
    second.config["delegate"]["isDefaultGateway"] = false.into();
    second.config["delegate"]["isGateway"] = true.into();
    let result = second.add(&a)?;
    assert_eq!(result["ips"][0]["address"], "10.244.1.3/24");
    node.runtime.delete(&a)?;
    let left = inside(&a, "ip -o link");
    assert!(left.contains("net1") && left.contains("mtu 1300") && !left.contains("eth0"), "{left}");
    second.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

fn status_tells_what_the_daemon_and_the_delegate_say(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    assert!(node.status(), "a daemon without a socket has written subnet.env");
    node.daemon_says(json!({"state": "degraded", "problems": ["one peer is refused"], "lease": {}}));
    assert!(node.status());
    node.daemon_says(json!({"state": "not-ready", "problems": ["eth0 is gone"], "lease": {"subnets": []}}));
    let (code, text) = node.refusal("STATUS", None);
    assert!(code == 51 && text.contains("the overlay is down: eth0 is gone"), "{text}");
    node.daemon_says(json!({"state": "not-ready", "problems": ["no podCIDR"], "lease": null}));
    assert_eq!(node.refusal("STATUS", None).0, 50);
    // What a daemon leaves that was killed.
    std::fs::remove_file(node.dir.join("flanneld.sock"))?;
    drop(UnixListener::bind(node.dir.join("flanneld.sock"))?);
    assert_eq!(node.refusal("STATUS", None).0, 50);
    std::fs::remove_file(node.dir.join("flanneld.sock"))?;
    node.forget_subnet_env();
    assert_eq!(node.refusal("STATUS", None).0, 50);
    // A subnet that has no address left.
    node.write_subnet_env();
    let text =
        std::fs::read_to_string(node.dir.join("subnet.env"))?.replace("10.244.1.1/24", "10.244.1.1/30");
    std::fs::write(node.dir.join("subnet.env"), text)?;
    assert!(node.status());
    node.runtime.add(&Container::new("a")?)?;
    let (code, text) = node.refusal("STATUS", None);
    assert_eq!(code, 50, "{text}");
    Ok(())
}

fn check_asks_the_delegate(scene: &Scene) -> anyhow::Result<()> {
    let node = Node::new(scene);
    let a = Container::new("a")?;
    let result = node.runtime.add(&a)?;
    let answer = node.runtime.ask_again("CHECK", &a, &result)?;
    assert!(answer.success, "{answer:?}");
    inside(&a, "ip route del default");
    assert!(!node.runtime.ask_again("CHECK", &a, &result)?.success);
    assert_eq!(node.refusal("CHECK", Some(&Container::new("never")?)).0, 3);
    Ok(())
}

fn gc_frees_containers_that_are_gone_with_old_delegates_too(scene: &Scene) -> anyhow::Result<()> {
    let mut node = Node::new(scene);
    for theirs in [false, true] {
        if theirs && !Path::new(THEIRS).join("bridge").exists() {
            return Err(lab::skip("there are no reference plugins: install containernetworking-plugins"));
        }
        let delegates = if theirs { Path::new(THEIRS) } else { ours() };
        let [a, b] = ["a", "b"].map(|id| Container::new(id).unwrap());
        node.runtime.path = vec![ours().to_owned()];
        if theirs {
            // Theirs (1.1.1) know neither CNI 1.1.0 nor GC.
            let bin = scene.dir().join("bin");
            std::fs::create_dir(&bin)?;
            std::os::unix::fs::symlink(ours().join("flannel"), bin.join("flannel"))?;
            node.runtime.path = vec![bin, delegates.to_owned()];
            node.runtime.config["cniVersion"] = "1.0.0".into();
        }
        for container in [&a, &b] {
            node.runtime.add(container)?;
        }
        node.runtime.config["cniVersion"] = "1.1.0".into();
        node.runtime.collect(&[&a])?;
        assert!(inside(&a, "ip -o link").contains("eth0"));
        node.runtime.config["cniVersion"] = if theirs { "1.0.0" } else { "1.1.0" }.into();
        drop(b);
        node.runtime.delete(&a)?;
        // A device that a delegate without GC made goes with its namespace, a moment later; and a DEL without a namespace
        // is not enough for its masquerade.
        let is_their_lot = |what: &String| what.starts_with("veth") || what.contains("CNI-");
        let left: Vec<String> =
            node.left().into_iter().filter(|what| !(theirs && is_their_lot(what))).collect();
        assert_eq!(left, [""; 0]);
    }
    Ok(())
}

fn reference_plugins_are_delegates_too(scene: &Scene) -> anyhow::Result<()> {
    let theirs = Path::new(THEIRS);
    if !theirs.join("bridge").exists() {
        return Err(lab::skip("there are no reference plugins: install containernetworking-plugins"));
    }
    let mut node = Node::new(scene);
    let bin = scene.dir().join("bin");
    std::fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(ours().join("flannel"), bin.join("flannel"))?;
    node.runtime.path = vec![bin, theirs.to_owned()];
    node.runtime.config["cniVersion"] = "0.3.1".into();
    let a = Container::new("a")?;
    let result = node.runtime.add(&a)?;
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    assert!(inside(&a, "ip route").contains("default via 10.244.1.1"));
    node.runtime.delete(&a)?;
    assert_eq!(node.left(), [""; 0]);
    Ok(())
}

/// The system calls at which a plugin is killed: those that change something or wait for somebody.
const CALLS: &str = "sendto,write,openat,link,linkat,unlink,rename,mkdir,flock,clone3,wait4,waitid,execve,setns,recvfrom,connect";

fn sweep(scene: &Scene, after: impl Fn(&Node, &Container) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        return Err(lab::skip("there is no strace: install it"));
    }
    let node = Node::new(scene);
    for at in 1.. {
        let container = Container::new(format!("k{at}"))?;
        let plain = node.runtime.command("ADD", Some(&container))?;
        let mut command = Command::new("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")]);
        command.args(["-e", &format!("inject={CALLS}:signal=KILL:when={at}")]);
        command.arg(plain.get_program());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let finished = Runtime::run(command, &node.runtime.config).is_ok_and(|answer| answer.success);
        after(&node, &container)?;
        assert_eq!(node.left(), [""; 0], "killed at call {at}");
        if finished {
            assert!(at > 10, "strace did not kill anything");
            return Ok(());
        }
    }
    Ok(())
}

fn killed_anywhere_in_add_delete_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    sweep(scene, |node, container| node.runtime.delete(container))
}

fn killed_anywhere_in_add_gc_leaves_nothing(scene: &Scene) -> anyhow::Result<()> {
    sweep(scene, |node, _container| node.runtime.collect(&[]))
}
