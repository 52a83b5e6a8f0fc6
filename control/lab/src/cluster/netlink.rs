//! Netlink requests from synchronous code: one short-lived connection on a thread inside the namespace.

use anyhow::Context;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::{Errno, sysctl};

/// Runs `work` on a thread inside the namespace with a connection to its network state.
pub(super) fn in_namespace<T: Send>(
    namespace: &NetNs,
    work: impl AsyncFnOnce(Kernel) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    namespace.run("lab-netlink", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(Kernel::connect().await?).await })
    })?
}

/// First steps in every namespace: settings that make it the same on every machine, and the loopback.
///
/// Sysctls of IPv4 are copied from the machine when a namespace is made, so what matters is written out.
pub(super) fn settle(namespace: &NetNs, sysctls: &[(&str, &str)]) -> anyhow::Result<()> {
    const EVERYWHERE: [(&str, &str); 4] = [
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        // Addresses are usable at once. Duplicate detection takes a second or more, and nobody else is on these links.
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
    ];
    namespace.run("lab-sysctl", || {
        EVERYWHERE.iter().chain(sysctls).try_for_each(|(name, value)| match sysctl::set(name, value) {
            // A kernel without IPv6 has no such setting; what needs IPv6 fails with a better message.
            Err(error) if error.errno == Errno::ENOENT => Ok(()),
            outcome => outcome,
        })
    })??;
    in_namespace(namespace, async |kernel: Kernel| {
        Ok(kernel.set_link("lo", &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?)
    })
    .context("bring the loopback up")
}
