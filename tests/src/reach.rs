//! Checks of what a path carries, each with an error that says what did not get through.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane_core::Family;
use lab::Pod;
use lab::traffic::ping::{Answer, Ping};
use lab::traffic::udp::Flood;
use lab::traffic::{Path, echo, tcp, udp};

/// The path from one pod to another's address of a family.
///
/// # Errors
///
/// When the pod has no such address.
pub fn path<'a>(from: &'a Pod, to: &'a Pod, family: Family) -> anyhow::Result<Path<'a>> {
    let address = match family {
        Family::V4 => to.v4(),
        Family::V6 => to.v6(),
    };
    let address = address.with_context(|| format!("{} has no {family:?} address", to.name()))?;
    Ok(Path { from: from.namespace(), to: to.namespace(), address })
}

/// Waits until the far end answers a ping, at most 10 seconds.
///
/// # Errors
///
/// The last answer.
pub fn ping(path: Path<'_>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = Ping::new(path.address).send_from(path.from)?;
        if answer.microseconds().is_some() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} does not answer a ping: {answer:?}", path.address);
        // A refused ping answers at once.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a ping of `len` bytes, IP header included, that must not be cut, and returns what came back.
///
/// # Errors
///
/// When no raw socket can be opened.
pub fn whole_ping(path: Path<'_>, len: usize) -> anyhow::Result<Answer> {
    Ok(Ping { timeout: Duration::from_secs(3), ..Ping::new(path.address).whole_packet_of(len) }
        .send_from(path.from)?)
}

/// Sends a datagram of every size there and back; all must return unchanged.
///
/// # Errors
///
/// The sizes that were lost or damaged.
pub fn every_udp_size(path: Path<'_>, sizes: impl IntoIterator<Item = usize> + Send) -> anyhow::Result<()> {
    let report = echo::udp_sizes(path, sizes)?;
    ensure!(report.all_returned(), "UDP to {}: {report:?}", path.address);
    Ok(())
}

/// Sends a block of every size there and back over TCP, each as a write of its own.
///
/// # Errors
///
/// The sizes that were damaged.
pub fn every_tcp_size(path: Path<'_>, sizes: impl IntoIterator<Item = usize>) -> anyhow::Result<()> {
    let report = echo::tcp_sizes(path, sizes)?;
    ensure!(report.all_returned(), "TCP to {}: {report:?}", path.address);
    Ok(())
}

/// Transfers `bytes` over one TCP connection; SHA-256 of both ends must be equal. Answers Gb/s.
///
/// # Errors
///
/// When the connection breaks or the content differs.
pub fn transfer(path: Path<'_>, bytes: u64) -> anyhow::Result<f64> {
    let report = tcp::transfer(path, &tcp::Transfer::bytes(bytes).checked())
        .with_context(|| format!("transfer {bytes} bytes to {}", path.address))?;
    let integrity = report.integrity.context("the transfer was not checked")?;
    ensure!(report.bytes == bytes && integrity.intact(), "to {}: {integrity:?}", path.address);
    Ok(report.gigabits_per_second)
}

/// Sends datagrams that the sending kernel gets as superpackets (`UDP_SEGMENT`), slowly enough that none need be lost.
///
/// A machine that is busy with something else may still lose some of one try, where a pod's socket is not read in time;
/// a path that breaks superpackets loses or changes some of every try.
///
/// # Errors
///
/// When one has another size, or some are lost in each of three tries.
pub fn segmented_datagrams(path: Path<'_>, payload: usize) -> anyhow::Result<()> {
    let plan = Flood {
        segments: Some(u16::try_from(60_000 / payload)?.min(64)),
        rate: Some(10_000.0),
        ..Flood::new(payload, Duration::from_millis(150))
    };
    let mut tries = Vec::new();
    for _ in 0..3 {
        let report = udp::flood(path, &plan)?;
        ensure!(report.wrong_size == 0, "of {payload} bytes to {}: {report:?}", path.address);
        if report.sent == report.received {
            return Ok(());
        }
        tries.push(report);
    }
    bail!("datagrams of {payload} bytes in superpackets to {}: {tries:?}", path.address)
}
