//! The status for people: one short block, a line a fact, the verdict first.

use std::fmt::Display;

use crate::status::{BackendStatus, DeviceStatus, NodeStatus, State, Traffic, age, bytes, span};

/// The block, as of `now`.
pub(super) fn text(node: &NodeStatus, now: u64) -> String {
    let mut block = Block(headline(node));
    for problem in node.problems.iter().skip(usize::from(node.state != State::Ready)) {
        block.line("problem", problem);
    }
    if let Some(backend) = &node.backend {
        block.line("backend", carried(backend));
        for reason in &backend.reasons {
            block.line("", reason);
        }
    }
    if let Some(lease) = &node.lease {
        let end = match lease.expires {
            None => "reserved, without an end".to_owned(),
            Some(end) if end <= now => format!("ended {} ago", age(end, now)),
            Some(end) => format!("ends in {} unless renewed", span(end - now)),
        };
        block.line("subnet", format!("{}, {end}", list(&lease.subnets)));
        block.line("public", list(&lease.public));
    }
    if let (Some(mtu), Some(underlay)) = (node.mtu, &node.underlay) {
        let over = format!("{} ({}, mtu {})", underlay.device, list(&underlay.addresses), underlay.mtu);
        block.line("mtu", format!("{mtu} over {over}"));
    }
    let heard = match node.store.last_heard {
        Some(last) => format!("heard {} ago", age(last, now)),
        None => "not heard yet".to_owned(),
    };
    block.line("store", format!("{}, {heard}", node.store.name));
    block.line("peers", peers(node));
    for device in node.backend.iter().flat_map(|backend| &backend.devices) {
        if let Some(traffic) = &device.traffic {
            block.line("traffic", moved(device, traffic));
            if let Some(drops) = dropped(traffic) {
                block.line("drops", drops);
            }
        }
    }
    if let Some(drops) = node.rules.guard_drops.filter(|drops| *drops > 0) {
        block.line("drops", format!("{drops} packets of nodes without a lease, by the guard"));
    }
    let repairs: Vec<String> = node
        .reconcile
        .repairs
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    if !repairs.is_empty() {
        block.line("repairs", format!("{} (changed by somebody else, put right)", repairs.join(", ")));
    }
    block.line(
        "uptime",
        format!("{}, process {}, version {}", age(node.started, now), node.pid, node.version),
    );
    block.0
}

struct Block(String);

impl Block {
    fn line(&mut self, name: &str, text: impl Display) {
        self.0 += &format!("  {name:<8} {text}\n");
    }
}

fn headline(node: &NodeStatus) -> String {
    let first = node.problems.first().map(|problem| format!(": {problem}")).unwrap_or_default();
    match node.state {
        State::Ready => "ready\n".to_owned(),
        State::Degraded => format!("degraded{first}\n"),
        State::NotReady => format!("not ready{first}\n"),
    }
}

fn carried(backend: &BackendStatus) -> String {
    let devices: Vec<String> = backend
        .devices
        .iter()
        .map(|device| {
            let state = if device.running { "" } else { " (not running)" };
            format!("{} by the {} on {}{state}", device.name, device.carrier, device.endpoint)
        })
        .collect();
    match devices.as_slice() {
        [] => format!("{}: without a device of its own", backend.kind),
        devices => format!("{}: {}", backend.kind, devices.join(", ")),
    }
}

fn peers(node: &NodeStatus) -> String {
    let mut text = node.peers.used.to_string();
    if node.peers.held_back > 0 {
        text += &format!(", {} of them held back", node.peers.held_back);
    }
    if node.peers.refused > 0 {
        text += &format!(", and {} refused: see flanneld peers", node.peers.refused);
    }
    text
}

fn moved(device: &DeviceStatus, traffic: &Traffic) -> String {
    format!(
        "{}: received {} packets ({}), sent {} ({})",
        device.name,
        traffic.received.passed,
        bytes(traffic.received.passed_bytes),
        traffic.sent.passed,
        bytes(traffic.sent.passed_bytes),
    )
}

/// The reasons that are not zero.
fn dropped(traffic: &Traffic) -> Option<String> {
    let mut all = Vec::new();
    for (way, flow) in [("received", &traffic.received), ("sent", &traffic.sent)] {
        let drops: Vec<String> = flow
            .drops
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        if !drops.is_empty() {
            all.push(format!("{way} {}", drops.join(", ")));
        }
    }
    for (what, count) in
        [("socket overflows", traffic.socket_overflows), ("ring overflows", traffic.ring_overflows)]
    {
        if count > 0 {
            all.push(format!("{what} {count}"));
        }
    }
    (!all.is_empty()).then(|| all.join("; "))
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::well;

    #[test]
    fn a_healthy_node_is_a_short_block() {
        let expected = "\
ready
  backend  vxlan: flannel.1 by the engine on 192.0.2.1:8472
  subnet   10.5.1.0/24, ends in 1d unless renewed
  public   192.0.2.1
  mtu      1450 over eth0 (192.0.2.1, mtu 1500)
  store    file, heard 12s ago
  peers    3
  traffic  flannel.1: received 0 packets (0 B), sent 0 (0 B)
  uptime   16m50s, process 7, version 0.1.0
";
        assert_eq!(text(&well(), 2_010), expected);
    }

    #[test]
    fn what_is_wrong_comes_first_and_zeros_are_left_out() {
        let mut node = well();
        node.store.stale_since = Some(1_900);
        node.rules.trouble = Some("nft is not installed".to_owned());
        node.peers.refused = 1;
        node.rules.guard_drops = Some(4);
        node.reconcile.repairs = [("route".into(), 2), ("link".into(), 0)].into();
        let backend = node.backend.as_mut().unwrap();
        backend.reasons = vec!["kernel: no VXLAN in this kernel".to_owned()];
        let traffic = backend.devices[0].traffic.as_mut().unwrap();
        traffic.received.drops.insert("unknown_peer".into(), 7);
        traffic.ring_overflows = 1;
        node.judge();
        let text = text(&node, 2_010);
        let first = text.lines().next().unwrap();
        assert_eq!(first, "degraded: store: not heard for 1m40s; what was known stays in use");
        for line in [
            "  problem  peers: 1 of the other nodes' leases cannot be used: see flanneld peers",
            "  problem  rules: nft is not installed",
            "           kernel: no VXLAN in this kernel",
            "  peers    3, and 1 refused: see flanneld peers",
            "  drops    received unknown_peer 7; ring overflows 1",
            "  drops    4 packets of nodes without a lease, by the guard",
            "  repairs  route 2 (changed by somebody else, put right)",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
    }
}
