//! The other nodes as a table, in the manner of `kubectl get`.

use std::fmt::Display;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::status::{PeerStatus, PeersAnswer, span};

/// The table; wide with MACs and the ends of leases.
pub(super) fn text(answer: &PeersAnswer, wide: bool) -> String {
    if answer.peers.is_empty() {
        return "no other node has a lease\n".to_owned();
    }
    let mut head = vec!["SUBNET", "ADDRESS", "BACKEND", "VIA"];
    if wide {
        head.extend(["MAC", "LEASE ENDS"]);
    }
    head.push("STATE");
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head);
    for peer in answer.peers.iter() {
        table.add_row(row(peer, answer.at, wide));
    }
    // The table pads its last column.
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn row(peer: &PeerStatus, now: u64, wide: bool) -> Vec<String> {
    let mut row = vec![
        list(&peer.subnets),
        list(&peer.public),
        // Another node's word, which may be anything.
        peer.backend.escape_debug().to_string(),
        peer.via.as_deref().unwrap_or("-").to_owned(),
    ];
    if wide {
        row.push(list(&peer.macs));
        row.push(match peer.expires {
            Some(end) => format!("in {}", span(end.saturating_sub(now))),
            None => "never".to_owned(),
        });
    }
    row.push(match &peer.refused {
        Some(why) => format!("refused: {why}"),
        None => "used".to_owned(),
    });
    row
}

fn list(items: &[impl Display]) -> String {
    match items {
        [] => "-".to_owned(),
        items => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::API_VERSION;

    fn peer(third: u8) -> PeerStatus {
        PeerStatus {
            subnets: vec![format!("10.5.{third}.0/24").parse().unwrap()],
            public: vec![format!("192.0.2.{third}").parse().unwrap()],
            macs: vec![format!("02:00:00:00:00:{third:02x}")],
            backend: "vxlan".to_owned(),
            via: Some("engine".into()),
            refused: None,
            expires: Some(7_200),
        }
    }

    #[test]
    fn a_row_a_node_in_columns() {
        let mut refused = peer(200);
        refused.via = None;
        refused.macs = Vec::new();
        refused.expires = None;
        refused.refused = Some("it names no VtepMAC for IPv4".to_owned());
        let answer =
            PeersAnswer { api_version: API_VERSION.into(), at: 3_600, peers: vec![peer(2), refused] };
        let narrow = text(&answer, false);
        let lines: Vec<Vec<&str>> = narrow.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["SUBNET", "ADDRESS", "BACKEND", "VIA", "STATE"]);
        assert_eq!(lines[1], ["10.5.2.0/24", "192.0.2.2", "vxlan", "engine", "used"]);
        assert_eq!(lines[2][..5], ["10.5.200.0/24", "192.0.2.200", "vxlan", "-", "refused:"]);
        let columns: Vec<Option<usize>> =
            narrow.lines().map(|line| line.find("ADDRESS").or_else(|| line.find("192.0.2."))).collect();
        assert!(columns.iter().all(|column| *column == columns[0]), "{narrow}");
        let wide = text(&answer, true);
        assert!(
            wide.contains("02:00:00:00:00:02") && wide.contains("in 1h") && wide.contains("never"),
            "{wide}"
        );
    }

    #[test]
    fn nobody_is_a_sentence() {
        let answer = PeersAnswer { api_version: API_VERSION.into(), at: 0, peers: Vec::new() };
        assert_eq!(text(&answer, false), "no other node has a lease\n");
    }
}
