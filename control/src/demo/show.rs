//! The demo's tables and words.

use std::fmt::Display;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use lab::daemons::Backend;
use lab::race::way::Role;
use lab::race::{Outcome, Report, Scenario};
use lab::{Cluster, LinkModel};

use super::up::{NodeRow, Rtt};

/// More columns than this do not fit a terminal; then only the extremes are shown.
const WIDEST_MATRIX: usize = 10;

/// The nodes and the round trips between their pods.
pub(super) fn cluster(nodes: &[NodeRow], round_trips: &[Rtt], backend: Backend) -> String {
    let mut table = plain_table(&["node", "underlay", "pod subnet", "device", "MTU", "pod"]);
    for row in nodes {
        let underlay = row.underlay.map(|address| address.to_string()).unwrap_or_default();
        let pod = format!("{} {}", row.pod, list(&row.pod_addresses));
        let mtu = row.mtu.to_string();
        table.add_row([&row.node, &underlay, &list(&row.subnets), &row.device, &mtu, &pod]);
    }
    let mut text = format!(
        "{} nodes, one flanneld on each, backend {} carried by the engine in user space:\n{table}\n\n",
        nodes.len(),
        backend.name()
    );
    let pods: Vec<&str> = nodes.iter().map(|row| row.pod.as_str()).collect();
    let times = round_trips.iter().map(|rtt| rtt.milliseconds);
    let (least, most) =
        times.fold((f64::INFINITY, 0.0_f64), |(low, high), time| (low.min(time), high.max(time)));
    text += &format!(
        "Every pod reaches every other: {} paths, round trips of {least:.2} to {most:.2} ms.\n",
        round_trips.len()
    );
    if pods.len() <= WIDEST_MATRIX {
        text += &format!("{}\n", matrix(&pods, round_trips));
    }
    text + "\n"
}

fn matrix(pods: &[&str], round_trips: &[Rtt]) -> Table {
    let mut head = vec!["from \\ to, ms"];
    head.extend(pods);
    let mut table = plain_table(&head);
    for from in pods {
        let mut row = vec![(*from).to_owned()];
        row.extend(pods.iter().map(|to| {
            let found = round_trips.iter().find(|rtt| (rtt.from.as_str(), rtt.to.as_str()) == (from, to));
            found.map_or_else(|| "-".to_owned(), |rtt| format!("{:.2}", rtt.milliseconds))
        }));
        table.add_row(row);
    }
    align_right(&mut table);
    table
}

/// The race as one table that stands for itself.
pub(super) fn race(report: &Report, link: LinkModel, terminal: bool) -> String {
    let mut table = plain_table(&[
        "way",
        "who carries the packets",
        "TCP\nGb/s",
        "times\nfloor",
        "of kernel\nVXLAN",
        "UDP 64 B\nkpps",
        "RTT\nus",
        "CPU s\nper Gb",
    ]);
    for way in report.ways() {
        let of = |scenario| report.outcome(link, scenario, way);
        let Some(tcp) = of(Scenario::Tcp1) else { continue };
        let share = tcp.to_kernel_vxlan.map(|share| format!("{:.0} %", share * 100.0));
        table.add_row([
            way.to_owned(),
            meaning(tcp.role).to_owned(),
            value(Some(tcp), 1),
            tcp.to_floor.map_or_else(dash, |times| format!("{times:.1}")),
            share.unwrap_or_else(dash),
            value(of(Scenario::Udp64), 0),
            value(of(Scenario::Rtt), 0),
            tcp.cpu_machine.map_or_else(dash, |cpu| format!("{:.2}", cpu.median)),
        ]);
    }
    align_right(&mut table);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    let on = match link {
        LinkModel::Nic => "with frames of 1500 bytes, as over a network card",
        LinkModel::On => "with all offloads, as between containers of one host",
    };
    let title = format!("The same traffic between two pods, over five ways, {on}:");
    format!("{}\n{table}\n{}", emphasis(&title, terminal), words(report, link))
}

/// How to read it, and what to know about these figures.
fn words(report: &Report, link: LinkModel) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "TCP and UDP: more is better. RTT (round trip of one packet) and CPU seconds per gigabit: less is better.\n\
         Everything shares the {} CPUs of this machine, so compare rows, not machines. Medians of {} rounds.\n",
        machine.cpus, report.settings.rounds
    );
    let engine = report.outcome(link, Scenario::Tcp1, "engine udp");
    if let Some(times) = engine.and_then(|engine| engine.to_floor) {
        text += &format!(
            "Moving packets in batches makes the engine {times:.1} times as fast as the floor, which is the same program \
             with one packet a system call.\n"
        );
    }
    for skipped in &report.skipped {
        text += &format!("Left out: {}: {}\n", skipped.way, skipped.reason);
    }
    for outcome in &report.outcomes {
        if let Some(failure) = outcome.failure() {
            text += &format!("Failed: {} in {}: {failure}\n", outcome.way, outcome.scenario.title());
        }
    }
    let (noisy, all) = report.thrown_away();
    if noisy > 0 {
        text += &format!(
            "Other programs were busy during {noisy} of {all} measurements, so figures and ratios are doubtful: \
             try again when the machine is quiet.\n"
        );
    }
    if !machine.optimised {
        text += "This is a build without optimisation: the engine's figures are worth nothing. Use `make demo`.\n";
    }
    text
}

fn meaning(role: Role) -> &'static str {
    match role {
        Role::Engine => "flanneld, in user space",
        Role::KernelVxlan => "the kernel's own tunnel",
        Role::HostRoutes => "no tunnel: the ceiling",
        Role::Floor => "flanneld, 1 packet a call",
        Role::Ablation => "flanneld, a part off",
        Role::Peer => "the kernel's tunnel at one end",
        Role::Program => "another program",
    }
}

/// What can be done in a cluster that stays.
pub(super) fn commands(program: &str, cluster: &Cluster) -> String {
    let target =
        cluster.pods().last().and_then(lab::Pod::v4).map(|address| address.to_string()).unwrap_or_default();
    let names: Vec<&str> =
        cluster.nodes().iter().map(lab::Node::name).chain(cluster.pods().map(lab::Pod::name)).collect();
    format!(
        "The cluster stays up until Ctrl-C. From another terminal:\n\n  \
         {program} demo enter node-a -- ip route\n  \
         {program} demo enter node-a -- ip -d link show type tun\n  \
         {program} demo enter pod-a -- ping -c 3 {target}\n  \
         {program} demo enter node-b -- bash\n\n\
         There are: {}",
        names.join(", ")
    )
}

fn plain_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head.iter().copied());
    table
}

fn align_right(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn value(outcome: Option<&Outcome>, digits: usize) -> String {
    let Some(outcome) = outcome else { return dash() };
    outcome.value.map_or_else(|| "failed".to_owned(), |value| format!("{:.digits$}", value.median))
}

fn dash() -> String {
    "-".to_owned()
}

fn list<T: Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Bold where that is wanted: on a terminal, unless `NO_COLOR` is set (no-color.org).
fn emphasis(text: &str, terminal: bool) -> String {
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if colour { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use lab::race::{Machine, Settings, Skipped};

    use super::*;

    #[test]
    fn what_was_left_out_is_said_with_its_reason() {
        let settings = Settings { rounds: 3, seconds: 1.0, foreign_limit: 0.03 };
        let skipped = Skipped {
            way: "kernel vxlan".to_owned(),
            model: LinkModel::Nic,
            reason: "the kernel was built without it".to_owned(),
        };
        let machine = Machine::look(String::new());
        let report =
            Report { machine, settings, skipped: vec![skipped], outcomes: Vec::new(), asides: Vec::new() };
        let text = race(&report, LinkModel::Nic, false);
        assert!(text.contains("Left out: kernel vxlan: the kernel was built without it"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours without a terminal: {text:?}");
    }
}
