//! Promises about the kernel's network state, each kept in a private namespace that dies with its thread.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says what went wrong by failing, and why it was skipped aloud"
)]
use std::net::IpAddr;
use std::time::Duration;

use hostnet::Errno;
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::netns::NetNs;
use ipnet::IpNet;

mod converge;
mod link;
mod neighbour;
mod netns;
mod route;
mod watch;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) async fn up(kernel: &Kernel, device: &str) {
    kernel.set_link(device, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await.unwrap();
}

/// False, aloud, where the kernel has no VXLAN.
pub(crate) async fn made_vxlan(kernel: &Kernel, vxlan: &Vxlan) -> bool {
    match kernel.add_vxlan(vxlan).await {
        Err(error) if error.errno == Errno::EOPNOTSUPP => {
            eprintln!("skipped: {error}");
            false
        }
        made => {
            made.unwrap();
            true
        }
    }
}

/// `None`, aloud, where this user may not make namespaces.
pub(crate) fn private_namespace() -> Option<NetNs> {
    match NetNs::new() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: making a network namespace: {error}");
            None
        }
        made => Some(made.unwrap()),
    }
}

pub(crate) fn in_private_namespace(test: impl AsyncFnOnce(&NetNs, Kernel) + Send) {
    let Some(ns) = private_namespace() else { return };
    in_namespace(&ns, async |kernel| test(&ns, kernel).await);
}

pub(crate) fn in_namespace<T: Send>(ns: &NetNs, f: impl AsyncFnOnce(Kernel) -> T + Send) -> T {
    ns.run("test", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { f(Kernel::connect().await.unwrap()).await })
    })
    .unwrap()
}

/// Waits for something that the kernel does by itself, and fails when it takes too long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("waited ten seconds")
}
