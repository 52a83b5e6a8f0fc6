//! The books: every packet that an engine took in was passed on or dropped under a reason.

use anyhow::ensure;
use dataplane_core::{Counters, DropReason};

/// Checks that both directions balance.
///
/// # Errors
///
/// The counters, when a packet has no fate or more than one.
pub fn balanced(counters: &Counters) -> anyhow::Result<()> {
    ensure!(counters.rx.is_balanced(), "rx does not balance: {counters:?}");
    ensure!(counters.tx.is_balanced(), "tx does not balance: {counters:?}");
    Ok(())
}

/// Checks that nothing was dropped, in either direction, for another reason than those allowed.
///
/// What the device's ring and the socket's buffer lost is not judged: TCP fills whatever queue there is and learns from its
/// losses, the sooner the slower the machine. Floods have books of their own in `tests/overload.rs`.
///
/// # Errors
///
/// The reasons and counts that were not expected.
pub fn only_dropped(counters: &Counters, allowed: &[DropReason]) -> anyhow::Result<()> {
    balanced(counters)?;
    let drops = counters.rx.drops().chain(counters.tx.drops());
    let unexpected: Vec<String> = drops
        .filter(|(reason, _)| !allowed.contains(reason))
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    ensure!(unexpected.is_empty(), "dropped: {}", unexpected.join(", "));
    Ok(())
}
