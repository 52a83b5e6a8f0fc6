//! What a run could leave behind on the machine, before and after: links, routes, rules, namespaces, named ones too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hostnet::kernel::Kernel;
use serde::{Deserialize, Serialize};

/// The state of the namespace that the calling thread is in, and of the processes that it can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Devices: name, kind, MTU, up or down.
    pub links: BTreeSet<String>,
    /// Addresses that were set by somebody, not those that come and go with a network.
    pub addresses: BTreeSet<String>,
    /// Routes of the main table.
    pub routes: BTreeSet<String>,
    /// What `/proc/net` says of packet filters: tables of iptables in use, v4 and v6, and what holds the nftables module.
    pub filters: BTreeSet<String>,
    /// Sysctls that a forwarding node changes.
    pub forwarding: BTreeSet<String>,
    /// Names in `/run/netns`.
    pub named_namespaces: BTreeSet<String>,
    /// Network namespaces that a visible process is in, by inode.
    pub namespaces: BTreeSet<u64>,
    /// Mounts of `nsfs`, tmpfs on `/run/netns`: what keeps a namespace alive without a process.
    pub namespace_mounts: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine. Takes only reading rights; what another user's process hides is not seen.
    ///
    /// # Errors
    ///
    /// When netlink cannot be asked or `/proc` cannot be read.
    pub fn take() -> anyhow::Result<Self> {
        let mut snapshot = Self {
            filters: filters(),
            forwarding: forwarding(),
            named_namespaces: list(Path::new("/run/netns")),
            namespaces: namespaces().context("list the namespaces in /proc")?,
            namespace_mounts: namespace_mounts().context("read /proc/self/mountinfo")?,
            ..Self::default()
        };
        // On a thread of its own: the caller may be inside an async runtime, and a new thread inherits its namespace.
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| snapshot.ask_kernel());
            asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(snapshot)
    }

    fn ask_kernel(&mut self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let kernel = Kernel::connect().await?;
            for link in kernel.links().await? {
                let kind = link.kind.as_deref().unwrap_or("device");
                let state = if link.up { "up" } else { "down" };
                self.links.insert(format!("{} {kind} mtu {} {state}", link.name, link.mtu));
            }
            let addresses = kernel.addresses().await?;
            let set = addresses.into_iter().filter(|address| address.permanent);
            self.addresses = set.map(|address| format!("{} dev {}", address.net, address.device)).collect();
            self.routes = kernel.routes().await?.iter().map(ToString::to_string).collect();
            Ok(())
        })
    }

    /// What is in `later` and not in this, and the reverse, a line each. Namespaces that are gone are not named: others'
    /// processes end when they like.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let pairs = [
            ("link", &self.links, &later.links),
            ("address", &self.addresses, &later.addresses),
            ("route", &self.routes, &later.routes),
            ("packet filter", &self.filters, &later.filters),
            ("forwarding", &self.forwarding, &later.forwarding),
            ("named namespace", &self.named_namespaces, &later.named_namespaces),
            ("namespace mount", &self.namespace_mounts, &later.namespace_mounts),
        ];
        for (what, before, after) in pairs {
            lines.extend(after.difference(before).map(|item| format!("new {what}: {item}")));
            lines.extend(before.difference(after).map(|item| format!("lost {what}: {item}")));
        }
        for namespace in later.namespaces.difference(&self.namespaces) {
            let holders = holders(*namespace).join(", ");
            lines.push(format!("new network namespace: net:[{namespace}], held by {holders}"));
        }
        lines
    }
}

fn list(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn filters() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        let names = fs::read_to_string(file).unwrap_or_default();
        found.extend(names.lines().map(|name| format!("{file}: {name}")));
    }
    // Each table of nftables holds the module once; the count is the second number of the line.
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    found.extend(modules.lines().filter(|line| line.starts_with("nf_tables ")).map(|line| {
        let mut fields = line.split(' ');
        format!("module {} used {} times", fields.next().unwrap_or(""), fields.nth(1).unwrap_or("?"))
    }));
    found
}

fn forwarding() -> BTreeSet<String> {
    let files = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"];
    let read = |name: &&str| {
        let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        Some(format!("{name} = {}", value.trim()))
    };
    files.iter().filter_map(read).collect()
}

fn tasks() -> io::Result<Vec<PathBuf>> {
    let is_process = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).filter(is_process);
    // A process that has just ended has no tasks any more.
    Ok(processes
        .filter_map(|process| fs::read_dir(process.join("task")).ok())
        .flatten()
        .flatten()
        .map(|task| task.path())
        .collect())
}

fn namespace_of(task: &Path) -> Option<u64> {
    let link = fs::read_link(task.join("ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn namespaces() -> io::Result<BTreeSet<u64>> {
    Ok(tasks()?.iter().filter_map(|task| namespace_of(task)).collect())
}

/// Ids and names of the threads in a namespace.
fn holders(namespace: u64) -> Vec<String> {
    let tasks = tasks().unwrap_or_default();
    let inside = tasks.iter().filter(|task| namespace_of(task) == Some(namespace));
    let describe = |task: &PathBuf| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        format!("{} ({})", task.display(), name.trim())
    };
    inside.map(describe).collect()
}

fn namespace_mounts() -> io::Result<BTreeSet<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Fields: id parent device root mount-point options ...; behind " - " the type of the file system.
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let holds = |line: &&str| {
        line.contains(" - nsfs ") || point(line).is_some_and(|point| point.starts_with("/run/netns"))
    };
    Ok(mounts.lines().filter(holds).filter_map(point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_object_is_named_and_a_namespace_that_went_is_not() {
        let before = Snapshot { namespaces: BTreeSet::from([1, 2]), ..Snapshot::default() };
        let after = Snapshot {
            links: BTreeSet::from(["flannel.1 vxlan mtu 1450 up".to_owned()]),
            namespaces: BTreeSet::from([2]),
            ..Snapshot::default()
        };
        assert_eq!(before.differences(&after), ["new link: flannel.1 vxlan mtu 1450 up"]);
        assert_eq!(after.differences(&after), Vec::<String>::new());
    }
}
