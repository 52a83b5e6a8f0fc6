//! Where a plugin's work runs: here, and in a container's network namespace.

use std::future::Future;
use std::path::Path;

use hostnet::netns::NetNs;

use crate::protocol::{CniError, Code};

/// A container's namespace, by the path that the runtime gives.
///
/// # Errors
/// It is gone, or no namespace.
pub fn open(path: &str) -> Result<NetNs, CniError> {
    NetNs::open(Path::new(path)).map_err(|error| {
        CniError::new(Code::INVALID_NETNS, format!("failed to open netns {path:?}: {error}"))
            .with_details("the container's namespace is gone, or CNI_NETNS is not the path of one")
    })
}

/// Runs a plugin's work. On this thread: a plugin lives for some milliseconds, and starting more would take longer.
///
/// # Errors
/// The work's own.
pub fn run<T>(work: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::internal(format!("start: {error}")))?;
    runtime.block_on(work)
}

/// The same inside a namespace, on a thread of its own.
///
/// # Errors
/// The work's own, or the namespace cannot be entered.
pub fn enter<T: Send>(
    namespace: &NetNs,
    work: impl Future<Output = Result<T, CniError>> + Send,
) -> Result<T, CniError> {
    namespace.run("container", || run(work)).unwrap_or_else(|error| {
        Err(CniError::new(Code::INVALID_NETNS, format!("enter the container's network namespace: {error}")))
    })
}
