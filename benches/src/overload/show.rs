//! The result as tables for a terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::Overload;
use super::load::LoadRow;

/// One table for each kind of overload that was measured.
#[must_use]
pub fn tables(result: &Overload) -> String {
    let mut text = String::new();
    let mut add = |title: &str, table: Table, rows: usize| {
        if rows > 0 {
            text += &format!("\n{title}\n{table}\n");
        }
    };
    add("UDP at multiples of the capacity (engine udp, link model nic)", load(result), result.load.len());
    add("TCP, 1 stream, beside garbage (link model nic)", garbage(result), result.garbage.len());
    add("Nine peers beside a bad one (engine vxlan, link model nic)", peers(result), result.peers.len());
    add("Leases that come and go (engine vxlan, link model nic)", churn(result), result.churn.len());
    text
}

fn table(head: &[&str], words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(head.to_vec());
    for column in words..head.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn load(result: &Overload) -> Table {
    let mut table = table(
        &[
            "bytes",
            "asked",
            "offered kpps",
            "delivered kpps",
            "of best",
            "foreign",
            "unexplained",
            "lost where",
        ],
        0,
    );
    for row in &result.load {
        let alike = |other: &&LoadRow| other.payload == row.payload;
        let best = result.load.iter().filter(alike).map(|row| row.delivered).fold(0.0, f64::max);
        let lost: Vec<String> = row.lost.iter().map(|(place, count)| format!("{place} {count}")).collect();
        table.add_row([
            row.payload.to_string(),
            row.multiple.map_or_else(|| "all".to_owned(), |multiple| format!("{multiple:.1} x")),
            format!("{:.0}", row.offered),
            format!("{:.0}", row.delivered),
            format!("{:.0} %", 100.0 * row.delivered / best),
            format!("{:.0} %", 100.0 * row.foreign),
            row.unexplained.to_string(),
            lost.join(", "),
        ]);
    }
    table
}

fn garbage(result: &Overload) -> Table {
    let head = [
        "way",
        "garbage",
        "kpps of it",
        "quiet Gb/s",
        "beside Gb/s",
        "of quiet",
        "foreign",
        "RSS KiB before",
        "after",
    ];
    let mut table = table(&head, 2);
    for row in &result.garbage {
        let (before, after) = row
            .resident_kib
            .map_or_else(Default::default, |(before, after)| (before.to_string(), after.to_string()));
        table.add_row([
            row.carrier.to_owned(),
            row.garbage.clone(),
            format!("{:.0}", row.kilopackets_per_second),
            format!("{:.2}", row.quiet),
            format!("{:.2}", row.beside),
            format!("{:.0} %", 100.0 * row.beside / row.quiet),
            format!("{:.0} %", 100.0 * row.foreign),
            before,
            after,
        ]);
    }
    table
}

fn peers(result: &Overload) -> Table {
    let mut table = table(&["the tenth", "offered kpps", "the nine got", "least of them", "most"], 1);
    for row in &result.peers {
        table.add_row([
            format!("{:?}", row.trouble).to_lowercase(),
            format!("{:.1}", row.offered),
            format!("{:.1}", row.nine),
            format!("{:.2}", row.least_and_most.0),
            format!("{:.2}", row.least_and_most.1),
        ]);
    }
    table
}

fn churn(result: &Overload) -> Table {
    let mut table = table(&["changes a second", "sent", "lost", "p50 us", "p99 us", "unanswered"], 0);
    for row in &result.churn {
        table.add_row([
            format!("{:.0}", row.changes_per_second),
            row.sent.to_string(),
            row.lost.to_string(),
            format!("{:.0}", row.p50),
            format!("{:.0}", row.p99),
            row.unanswered.to_string(),
        ]);
    }
    table
}
