//! The figures to reach, and whether a result reaches them.
//!
//! Each is a bound on a figure of the engine, most of them in multiples of another way's figure in the same race.

use lab::LinkModel;
use lab::race::{CROWD, LARGEST_CROWD, Outcome, Quantity, Report, Scenario};

use crate::table::figure;

/// Subjects that speak for the engine: both formats have to reach a figure.
const ENGINES: &[&str] = &["engine udp", "engine vxlan"];
const FLOOR: &str = "floor";
const KERNEL: &str = "kernel vxlan";
const BOTH: &[LinkModel] = &[LinkModel::On, LinkModel::Nic];
const ON: &[LinkModel] = &[LinkModel::On];
const NIC: &[LinkModel] = &[LinkModel::Nic];

/// One line of the table of figures to reach.
struct Target {
    row: &'static str,
    models: &'static [LinkModel],
    scenario: Scenario,
    part: Part,
    subjects: &'static [&'static str],
    against: Against,
    bound: Bound,
}

/// Which figure of a measurement.
#[derive(Clone, Copy)]
enum Part {
    Median,
    P99,
    Fairness,
}

/// What the figure is divided by.
#[derive(Clone, Copy)]
enum Against {
    /// Nothing.
    Itself,
    /// The same figure of another way.
    Way(&'static str),
    /// The way's own figure in another scenario.
    Own(Scenario),
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
        }
    }
}

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    Missed,
    /// A way that should have a figure has none.
    Unknown,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Reached => "yes",
            Self::Missed => "**no**",
            Self::Unknown => "not measured",
        }
    }
}

/// A line of the printed table.
struct Line {
    row: String,
    bound: String,
    measured: String,
    verdict: Verdict,
}

const fn engine(
    row: &'static str,
    models: &'static [LinkModel],
    scenario: Scenario,
    against: Against,
    bound: Bound,
) -> Target {
    Target { row, models, scenario, part: Part::Median, subjects: ENGINES, against, bound }
}

const fn with(part: Part, target: Target) -> Target {
    Target { part, ..target }
}

const fn of(subjects: &'static [&'static str], target: Target) -> Target {
    Target { subjects, ..target }
}

/// The targets that traffic decides, in the order of the table.
const TARGETS: &[Target] = {
    use Against::{Itself, Own, Way};
    use Bound::{AtLeast, AtMost};
    use Scenario as S;
    &[
        engine("TCP 1 stream", ON, S::Tcp1, Way(FLOOR), AtLeast(10.0)),
        engine("TCP 1 stream", ON, S::Tcp1, Way(KERNEL), AtLeast(0.6)),
        engine("TCP 1 stream", NIC, S::Tcp1, Way(FLOOR), AtLeast(6.0)),
        engine("TCP 1 stream", NIC, S::Tcp1, Way(KERNEL), AtLeast(0.9)),
        engine("TCP 8 streams", NIC, S::Tcp8, Way(KERNEL), AtLeast(0.95)),
        with(Part::Fairness, engine("TCP 8 streams, Jain", NIC, S::Tcp8, Itself, AtLeast(0.95))),
        engine("TCP 64 streams", NIC, S::Tcp64, Way(KERNEL), AtLeast(0.95)),
        with(Part::Fairness, engine("TCP 64 streams, Jain", NIC, S::Tcp64, Itself, AtLeast(0.95))),
        engine("both directions at once, sum", BOTH, S::TcpBoth, Own(S::Tcp1), AtLeast(1.2)),
        engine("UDP 64 B, 1 flow", BOTH, S::Udp64, Way(KERNEL), AtLeast(2.2)),
        engine("UDP 64 B, 1 flow", BOTH, S::Udp64, Way(FLOOR), AtLeast(3.0)),
        engine("UDP 64 B, 16 flows", BOTH, S::Udp64Flows, Way(KERNEL), AtLeast(2.2)),
        engine("UDP 64 B, 16 flows", BOTH, S::Udp64Flows, Way(FLOOR), AtLeast(3.0)),
        engine("inner UDP with GSO (QUIC)", BOTH, S::UdpGso, Way(KERNEL), AtLeast(0.6)),
        engine("RTT p50, from idle", BOTH, S::Rtt, Way(FLOOR), AtMost(1.0)),
        with(Part::P99, engine("RTT p99, from idle", BOTH, S::Rtt, Way(FLOOR), AtMost(1.0))),
        engine("RTT p50, from idle", BOTH, S::Rtt, Way(KERNEL), AtMost(1.3)),
        engine("RTT p50, back to back", BOTH, S::RttBackToBack, Way(FLOOR), AtMost(1.0)),
        with(Part::P99, engine("RTT p99, back to back", BOTH, S::RttBackToBack, Way(FLOOR), AtMost(1.0))),
        engine("RTT p50, back to back", BOTH, S::RttBackToBack, Way(KERNEL), AtMost(1.3)),
        with(Part::P99, engine("RTT p99 under bulk load, us", BOTH, S::RttLoaded, Itself, AtMost(2000.0))),
        engine("CPU-s per Gbit at 1 Gb/s", ON, S::CpuAt1G, Way(KERNEL), AtMost(2.0)),
        engine("CPU-s per Gbit at 1 Gb/s", NIC, S::CpuAt1G, Way(KERNEL), AtMost(1.5)),
        of(
            &["kernel vxlan to engine"],
            engine("from a kernel VXLAN peer", NIC, S::Tcp1, Way(KERNEL), AtLeast(0.85)),
        ),
        of(
            &["kernel vxlan (no checksums) to engine"],
            engine("from one with zero checksums", NIC, S::Tcp1, Way("kernel vxlan to engine"), AtLeast(0.5)),
        ),
        of(
            &["bare engine (100000 leases)"],
            engine(
                "throughput at 100 000 leases",
                BOTH,
                S::Tcp1,
                Way("bare engine (1 lease)"),
                AtLeast(0.97),
            ),
        ),
        engine("1000 lease changes/s, datagrams lost", BOTH, S::LeaseChurn, Itself, AtMost(0.0)),
    ]
};

/// The targets of a node at rest: quantity, leases, most.
const AT_REST: &[(&str, Quantity, usize, f64)] = &[
    ("look-up at 100 000 leases, ns", Quantity::LookUp, LARGEST_CROWD, 5.0),
    ("memory with 1 000 peers, MiB", Quantity::ResidentMemory, CROWD, 8.0),
    ("memory with 100 000 leases, MiB", Quantity::ResidentMemory, LARGEST_CROWD, 16.0),
    ("engine's wake-ups/s with 1 000 peers", Quantity::EngineWakeUps, CROWD, 0.0),
    ("daemon's wake-ups/s with 1 000 peers", Quantity::DaemonWakeUps, CROWD, 0.0),
];

/// The table, straight from a result: row, target, measured, reached or not.
pub fn table(report: &Report) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for target in TARGETS {
        lines.extend(target.models.iter().map(|&model| by_traffic(report, target, model)));
    }
    lines.extend(AT_REST.iter().map(|target| at_rest(report, target)));
    let mut text = "| scenario | to reach | measured | reached |\n|---|---|---|---|\n".to_owned();
    for line in &lines {
        text += &format!("| {} | {} | {} | {} |\n", line.row, line.bound, line.measured, line.verdict.text());
    }
    let count = |verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    text += &format!(
        "\n{} of {} reached, {} not measured. Race of {}, commit {}.\n",
        count(Verdict::Reached),
        lines.len(),
        count(Verdict::Unknown),
        report.machine.started,
        if report.machine.commit.is_empty() { "unknown" } else { &report.machine.commit },
    );
    text
}

fn by_traffic(report: &Report, target: &Target, model: LinkModel) -> Line {
    let (mut measured, mut verdict, mut noisy) = (Vec::new(), Verdict::Reached, false);
    for &way in target.subjects {
        let subject = report.outcome(model, target.scenario, way);
        noisy |= subject.is_some_and(|outcome| !outcome.quiet);
        let value = subject.and_then(|subject| compare(report, target, model, subject));
        let short = way.strip_prefix("engine ").filter(|_| target.subjects.len() > 1);
        let name = short.map(|short| format!("{short} ")).unwrap_or_default();
        measured.push(format!("{name}{}", value.map_or_else(|| "-".to_owned(), figure)));
        verdict = match (verdict, value.map(|value| target.bound.holds(value))) {
            (Verdict::Missed, _) | (_, Some(false)) => Verdict::Missed,
            (_, None) => Verdict::Unknown,
            (before, Some(true)) => before,
        };
    }
    if noisy {
        measured.push("beside other programs".to_owned());
    }
    let link = if model == LinkModel::On { "on" } else { "nic" };
    let against = match target.against {
        Against::Itself => String::new(),
        Against::Way(way) => format!(" x {way}"),
        Against::Own(scenario) => format!(" x its {scenario}"),
    };
    Line {
        row: format!("{}, `{link}`", target.row),
        bound: format!("{}{against}", target.bound.text()),
        measured: measured.join(", "),
        verdict,
    }
}

fn compare(report: &Report, target: &Target, model: LinkModel, subject: &Outcome) -> Option<f64> {
    let value = part(subject, target.part)?;
    let other = match target.against {
        Against::Itself => return Some(value),
        Against::Way(way) => report.outcome(model, target.scenario, way)?,
        Against::Own(scenario) => report.outcome(model, scenario, &subject.way)?,
    };
    Some(value / part(other, target.part)?).filter(|ratio| ratio.is_finite())
}

fn part(outcome: &Outcome, part: Part) -> Option<f64> {
    let summary = match part {
        Part::Median => outcome.value,
        Part::P99 => outcome.p99,
        Part::Fairness => outcome.fairness,
    };
    Some(summary?.median)
}

fn at_rest(report: &Report, &(row, quantity, leases, most): &(&str, Quantity, usize, f64)) -> Line {
    let of = report.asides.iter().filter(|aside| (aside.quantity, aside.leases) == (quantity, leases));
    // Of several daemons the one that takes the most.
    let value = of.map(|aside| aside.value).reduce(f64::max);
    let bound = Bound::AtMost(most);
    let verdict = match value.map(|value| bound.holds(value)) {
        Some(true) => Verdict::Reached,
        Some(false) => Verdict::Missed,
        None => Verdict::Unknown,
    };
    Line {
        row: row.to_owned(),
        bound: bound.text(),
        measured: value.map_or_else(|| "-".to_owned(), figure),
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use lab::race::{Aside, Summary, Way};

    use super::*;
    use crate::ablation;
    use crate::bare::BareEngine;
    use crate::sample::{outcome, report};

    fn line(report: &Report, row: &str, bound: &str) -> String {
        let text = table(report);
        let begin = format!("| {row} | {bound} |");
        text.lines()
            .find(|line| line.starts_with(&begin))
            .unwrap_or_else(|| panic!("no {begin} in {text}"))
            .to_owned()
    }

    #[test]
    fn both_formats_have_to_reach_a_figure() {
        let of = |udp, vxlan| {
            let ways = [("engine udp", udp), ("engine vxlan", vxlan), (FLOOR, 1.0)];
            report(ways.map(|(way, value)| outcome(way, Scenario::Tcp1, Some(value))).to_vec())
        };
        let line = |report| line(&report, "TCP 1 stream, `on`", "≥ 10 x floor");
        assert!(line(of(12.0, 10.0)).ends_with("| udp 12.0, vxlan 10.0 | yes |"));
        assert!(line(of(12.0, 9.0)).ends_with("| udp 12.0, vxlan 9.00 | **no** |"));
    }

    #[test]
    fn what_has_nothing_to_be_compared_with_is_not_measured() {
        let report = report(vec![outcome("engine udp", Scenario::Tcp1, Some(99.0))]);
        assert!(
            line(&report, "TCP 1 stream, `on`", "≥ 10 x floor")
                .ends_with("| udp -, vxlan - | not measured |")
        );
        let text = table(&report);
        assert!(text.contains("0 of ") && !text.contains("| yes |"), "{text}");
    }

    #[test]
    fn fairness_tails_and_rest_are_read_where_they_stand() {
        let one = |value| Summary::of([value]);
        let fair = ["engine udp", "engine vxlan"].map(|way| {
            let fair = outcome(way, Scenario::Tcp8, Some(1.0));
            Outcome { fairness: one(0.97), model: LinkModel::Nic, ..fair }
        });
        let late = ["engine udp", "engine vxlan"]
            .map(|way| Outcome { p99: one(2500.0), ..outcome(way, Scenario::RttLoaded, Some(90.0)) });
        let mut report = report(fair.into_iter().chain(late).collect());
        let memory = |way: &str, value| Aside {
            quantity: Quantity::ResidentMemory,
            way: way.to_owned(),
            leases: CROWD,
            value,
            how: String::new(),
        };
        report.asides = vec![memory("engine udp", 5.0), memory("engine vxlan", 9.5)];
        assert!(line(&report, "TCP 8 streams, Jain, `nic`", "≥ 0.95").ends_with("| yes |"));
        assert!(line(&report, "RTT p99 under bulk load, us, `on`", "≤ 2000").ends_with("| **no** |"));
        assert!(line(&report, "memory with 1 000 peers, MiB", "≤ 8").ends_with("| 9.50 | **no** |"));
    }

    #[test]
    fn every_way_that_a_target_names_can_race_in_its_scenario() {
        let mut ways = Way::all();
        ways.extend(Way::mixed());
        ways.extend([0, LARGEST_CROWD].map(|crowd| Way::program(BareEngine { crowd })));
        let takes = |name: &str, scenario| ways.iter().any(|way| way.name() == name && way.takes(scenario));
        for target in TARGETS {
            for &subject in target.subjects {
                assert!(takes(subject, target.scenario), "{}: {subject}", target.row);
                match target.against {
                    Against::Way(way) => assert!(takes(way, target.scenario), "{}: {way}", target.row),
                    Against::Own(scenario) => assert!(takes(subject, scenario), "{}: {scenario}", target.row),
                    Against::Itself => {}
                }
            }
        }
        assert!(ablation::SCENARIOS.iter().all(|&scenario| takes(FLOOR, scenario)));
    }
}
