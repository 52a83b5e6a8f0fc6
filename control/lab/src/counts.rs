//! The kernel's own counters of a namespace: `/proc/net/snmp`, `/proc/net/snmp6`, `/proc/net/dev`.

use std::fs;

use anyhow::Context;
use hostnet::netns::NetNs;

/// The file as the namespace shows it. `/proc/net` follows the process, `/proc/thread-self/net` the thread.
fn read(namespace: &NetNs, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = namespace.run("counts", || fs::read_to_string(&path))?;
    text.with_context(|| format!("read {path}"))
}

/// A counter of IPv4 and its transports, such as `Udp` `RcvbufErrors`.
///
/// # Errors
///
/// When the kernel has no such counter.
pub fn snmp(namespace: &NetNs, protocol: &str, name: &str) -> anyhow::Result<u64> {
    let text = read(namespace, "snmp")?;
    let prefix = format!("{protocol}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no {protocol} in snmp"))?;
    let place = names.split(' ').position(|known| known == name);
    let value = place.and_then(|place| values.split(' ').nth(place));
    Ok(value.with_context(|| format!("no {protocol} {name} in snmp"))?.parse()?)
}

/// A counter of IPv6 and its transports, such as `Udp6RcvbufErrors`.
///
/// # Errors
///
/// When the kernel has no such counter.
pub fn snmp6(namespace: &NetNs, name: &str) -> anyhow::Result<u64> {
    let text = read(namespace, "snmp6")?;
    let mut fields = text.lines().map(|line| line.split_whitespace());
    let value = fields.find_map(|mut line| (line.next() == Some(name)).then(|| line.next()).flatten());
    Ok(value.with_context(|| format!("no {name} in snmp6"))?.parse()?)
}

/// Packets that a device has dropped so far, in either direction (`/proc/net/dev`).
///
/// # Errors
///
/// When there is no such device.
pub fn device_drops(namespace: &NetNs, device: &str) -> anyhow::Result<u64> {
    let text = read(namespace, "dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{device}:")));
    // bytes packets errs drop fifo frame compressed multicast, then the same for transmit.
    let fields: Vec<&str> = line.with_context(|| format!("no {device}"))?.split_whitespace().collect();
    let [_, _, _, received, _, _, _, _, _, _, _, sent, ..] = fields[..] else {
        anyhow::bail!("the line of {device} has {} fields", fields.len());
    };
    Ok(received.parse::<u64>()? + sent.parse::<u64>()?)
}
