//! Requests to a namespace's kernel from synchronous test code.

use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;

/// Runs `work` on a thread inside the namespace, with a connection to its network state.
///
/// # Errors
///
/// What `work` answers, or that there is no thread or runtime for it.
pub fn inside<T: Send>(
    namespace: &NetNs,
    work: impl AsyncFnOnce(Kernel) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    namespace.run("netlink", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(Kernel::connect().await?).await })
    })?
}
