//! podman on a node of the lab: a container runtime that asks our CNI plugins, configured as flannel configures a node.
//!
//! Every node has `/run`, `/var/lib` and `/dev/shm` of its own, as machines have: podman and the plugins keep their files at
//! their usual places there, and the machine's own podman never meets them. No image is needed: the containers' root file
//! system is a directory with busybox.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, bail, ensure};
use lab::Node;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::{binary, host, manifests};

/// Where a node has files of its own.
const OWN: [&str; 3] = ["/run", "/var/lib", "/dev/shm"];
/// The network's name in the list that flannel installs.
const NETWORK: &str = "cbr0";
/// Answers a request of HTTP with the address of who asked.
const WHO: &str = "#!/bin/busybox sh\necho Content-Type: text/plain\necho\necho $REMOTE_ADDR\n";

/// podman on one node.
#[derive(Debug)]
pub struct Podman<'a> {
    node: &'a Node,
    /// The node's mount namespace.
    mounts: File,
    dir: PathBuf,
}

impl<'a> Podman<'a> {
    /// Sets podman up on a node. `dir` is what its `flanneld` has: `subnet.env` is in `dir/NODE`.
    ///
    /// # Errors
    ///
    /// The skip where the machine lacks something; any other when a step fails.
    pub fn on(node: &'a Node, dir: &Path) -> anyhow::Result<Self> {
        for (program, package) in
            [("podman", "podman"), ("crun", "crun"), ("conmon", "conmon"), ("busybox", "busybox-static")]
        {
            if find(program).is_none() {
                return Err(lab::skip(format!("no {program} here: apt-get install {package}")));
            }
        }
        let dir = dir.join(node.name());
        let plugins = binary::plugins()?;
        make_root(&dir.join("root"))?;
        configure(&dir, &plugins)?;
        let hidden = |place: &str| dir.starts_with(place) || plugins.starts_with(place);
        if let Some(place) = OWN.into_iter().find(|place| hidden(place)) {
            return Err(lab::skip(format!("the test's own files are below {place}, which it hides")));
        }
        // A mount namespace is a thread's own.
        let made = thread::scope(|scope| scope.spawn(|| own_mounts(&dir)).join());
        let mounts = made.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        let podman = Self { node, mounts, dir };
        podman.needs_static_busybox()?;
        podman.needs_cni()?;
        Ok(podman)
    }

    fn needs_static_busybox(&self) -> anyhow::Result<()> {
        let mut command = Command::new("chroot");
        command.arg(self.root()).args(["/bin/busybox", "true"]);
        self.output(command).map(drop).map_err(|error| {
            lab::skip(format!("busybox does not run by itself: apt-get install busybox-static ({error:#})"))
        })
    }

    fn needs_cni(&self) -> anyhow::Result<()> {
        match self.ask(&["info", "--format", "{{.Host.NetworkBackend}}"]) {
            Ok(backend) if backend.trim() == "cni" => Ok(()),
            Ok(backend) => Err(lab::skip(format!("podman uses {} in place of CNI", backend.trim()))),
            // Newer ones are built without.
            Err(error) if format!("{error:#}").contains("network backend") => {
                Err(lab::skip("this podman knows no CNI"))
            }
            Err(error) => Err(error),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Runs a command on the node, with the node's files; answers what it printed.
    ///
    /// # Errors
    ///
    /// When it fails, with what it said.
    pub fn output(&self, mut command: Command) -> anyhow::Result<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let output = self.node.namespace().run("podman", || {
            // The thread gives up what it shares with the others, or the kernel would not let it in.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
            anyhow::Ok(command.output()?)
        })??;
        let said = String::from_utf8_lossy(&output.stderr);
        let (node, status) = (self.node.name(), output.status);
        ensure!(status.success(), "{command:?} on {node}: {status}: {}", said.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Asks podman; answers what it printed.
    ///
    /// # Errors
    ///
    /// When it refuses.
    pub fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("podman");
        // What the machine's own storage.conf would decide.
        command.args(["--root", "/var/lib/containers/storage", "--runroot", "/run/containers/storage"]);
        command.args(["--storage-driver", "vfs", "--runtime", "crun"]).args(words);
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        self.output(command)
    }

    /// Starts a container that runs busybox with these words; `options` are podman's. Answers its addresses.
    ///
    /// # Errors
    ///
    /// When it does not start, or has no address.
    pub fn start(&self, name: &str, options: &[&str], words: &[&str]) -> anyhow::Result<Vec<IpAddr>> {
        let root = self.root();
        let root = root.to_str().context("the directory's name is UTF-8")?;
        let first = ["run", "--detach", "--name", name, "--network", NETWORK];
        self.ask(&[&first, options, &["--rootfs", root, "/bin/busybox"], words].concat())?;
        let inspected: Value = serde_json::from_str(&self.ask(&["inspect", name])?)?;
        let network = &inspected[0]["NetworkSettings"]["Networks"][NETWORK];
        let texts = ["IPAddress", "GlobalIPv6Address"].iter().filter_map(|family| network[family].as_str());
        let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        ensure!(!addresses.is_empty(), "{name} has no address: {network}");
        Ok(addresses)
    }

    /// Everything of the node that containers change: links, addresses, routes, rules, the plugins' files, namespaces.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at.
    pub fn state(&self) -> anyhow::Result<Vec<String>> {
        let mut all = host::state(self.node.namespace())?;
        let mut others = Command::new("sh");
        others.args(["-ec", "find /var/lib/cni /run/netns | sort; nft --stateless list ruleset"]);
        all.extend(self.output(others)?.lines().map(str::to_owned));
        for program in ["iptables-save", "ip6tables-save"] {
            let saved = self.output(Command::new(program))?;
            // Without comments, which hold the time, and counters.
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            all.extend(lines.filter_map(|line| line.split(" [").next()).map(str::to_owned));
        }
        Ok(all)
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.exists())
}

fn make_root(root: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("cgi-bin"))?;
    fs::copy(find("busybox").context("it was there")?, root.join("bin/busybox"))?;
    let who = root.join("cgi-bin/who");
    fs::write(&who, WHO)?;
    Ok(fs::set_permissions(who, fs::Permissions::from_mode(0o755))?)
}

/// podman's configuration, and the list of plugins that the manifest installs on a node.
fn configure(dir: &Path, plugins: &Path) -> anyhow::Result<()> {
    let objects = manifests::read(&manifests::deploy().join("kube-flannel.yml"))?;
    let ours = manifests::find(&objects, "ConfigMap", "kube-flannel-cfg")?;
    let list = ours["data"]["cni-conf.json"].as_str().context("a list of plugins")?;
    fs::create_dir_all(dir.join("net.d"))?;
    fs::write(dir.join("net.d/10-flannel.conflist"), list)?;
    // No control group and no limit that this machine may refuse, nothing for the machine's journal.
    let text = format!(
        "[containers]\ncgroups = \"disabled\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
         log_driver = \"k8s-file\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
         [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{plugins:?}]\nnetwork_config_dir = {:?}\n",
        dir.join("net.d")
    );
    Ok(fs::write(dir.join("containers.conf"), text)?)
}

/// Moves this thread to a mount namespace of a node's own, where `subnet.env` is at its usual place.
fn own_mounts(dir: &Path) -> anyhow::Result<File> {
    let refused = |place: &str, errno: Errno| lab::skip(format!("cannot mount over {place}: {errno}"));
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    for place in OWN {
        mount(Some("lab"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .map_err(|errno| refused(place, errno))?;
    }
    // podman takes the place of a unified hierarchy only, though its containers have no group here.
    let groups = "/sys/fs/cgroup";
    mount(Some("lab"), groups, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| refused(groups, errno))?;
    symlink(dir, "/run/flannel")?;
    match File::open("/proc/thread-self/ns/mnt") {
        Ok(mounts) => Ok(mounts),
        Err(error) => bail!("open this thread's mount namespace: {error}"),
    }
}
