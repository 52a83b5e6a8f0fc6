//! A host as a daemon of ours leaves it, and what tests of backends do with daemons that may have no engine.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use lab::Node;

use crate::daemon::{Daemon, PATIENCE};
use crate::netlink;

/// Flags of a daemon whose packets the kernel carries, or nobody.
pub const KERNEL: &[&str] = &["--engine=never"];
/// Flags of a daemon whose packets the engine carries, as those of all tests by default.
pub const ENGINE: &[&str] = &[];

/// Skips aloud where the kernel has no VXLAN.
///
/// # Errors
///
/// That the case is skipped, with the reason.
pub fn needs_kernel_vxlan() -> anyhow::Result<()> {
    match netlink::inside(&NetNs::new()?, async |kernel: Kernel| Ok(kernel.probe_vxlan().await))? {
        Ok(()) => Ok(()),
        Err(error) => Err(lab::skip(format!("the kernel makes no VXLAN device: {error}"))),
    }
}

/// Looks again and again until it is so.
///
/// # Errors
///
/// When it never was, or cannot be looked at.
pub fn until(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ends a daemon that may have no engine, and so no books to close.
///
/// # Errors
///
/// When it does not end, or not well.
pub fn end(mut daemon: Daemon) -> anyhow::Result<()> {
    let status = daemon.process().terminate(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}:\n{}", daemon.log());
    Ok(())
}

/// Everything that this project may change on a host, as text.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn state(namespace: &NetNs) -> anyhow::Result<Vec<String>> {
    netlink::inside(namespace, async |kernel: Kernel| {
        let mut all = Vec::new();
        let links = kernel.links().await?;
        for link in &links {
            all.push(format!(
                "link {} {:?} mtu {} up {} mac {:?}",
                link.name, link.kind, link.mtu, link.up, link.mac
            ));
        }
        for address in kernel.addresses().await? {
            if !address.net.addr().to_string().starts_with("fe80") {
                all.push(format!("address {} {}", address.device, address.net));
            }
        }
        for route in kernel.all_routes().await? {
            if !route.dest.to_string().starts_with("fe80") {
                all.push(format!("route {route}"));
            }
        }
        for link in links.iter().filter(|link| link.vxlan.is_some()) {
            // A device that went since the list was made has none.
            let neighbours = kernel.neighbours(&link.name).await.unwrap_or_default();
            all.extend(neighbours.iter().map(|entry| format!("neigh {entry}")));
            let fdb = kernel.fdb(&link.name).await.unwrap_or_default();
            all.extend(fdb.iter().map(|entry| format!("fdb {entry}")));
        }
        all.sort();
        Ok(all)
    })
}

/// The kind of a node's device, if it is there.
///
/// # Errors
///
/// When the kernel does not answer.
pub fn kind(node: &Node, device: &str) -> anyhow::Result<Option<String>> {
    netlink::inside(node.namespace(), async |kernel: Kernel| {
        Ok(kernel.link(device).await?.and_then(|link| link.kind))
    })
}
