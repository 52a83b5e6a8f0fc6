//! The result of a race as Markdown, and its place in a README.

use std::fmt::Write as _;

use anyhow::bail;
use lab::race::way::Role;
use lab::race::{Outcome, Report, Run, Scenario};

use crate::table::{figure, median, model_name, ratio};

/// What a README's table begins after.
pub const BEGIN: &str = "<!-- bench:begin -->";
/// What it ends before.
pub const END: &str = "<!-- bench:end -->";

/// The columns of the short table, in order.
const SHOWN: [Scenario; 4] = [Scenario::Tcp1, Scenario::Tcp8, Scenario::Udp64, Scenario::Rtt];

/// What a newcomer wants compared: no engine with parts off, no kernel with an engine at its other end.
fn is_shown(role: Role) -> bool {
    match role {
        Role::Engine | Role::KernelVxlan | Role::HostRoutes | Role::Floor | Role::Program => true,
        Role::Ablation | Role::Peer => false,
    }
}

/// One table a link model: a row a way, ratios beside the figures.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    let is_shown =
        |way: &&str| report.outcomes.iter().any(|outcome| outcome.way == *way && is_shown(outcome.role));
    let ways: Vec<&str> = report.ways().into_iter().filter(is_shown).collect();
    for model in report.models() {
        let cell = |way: &str, scenario| report.outcome(model, scenario, way);
        let shown: Vec<Scenario> = SHOWN
            .into_iter()
            .filter(|&scenario| ways.iter().any(|way| cell(way, scenario).is_some()))
            .collect();
        let mut name = model_name(model).chars();
        let begin = name.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        text += &format!("{begin}{}:\n\n| way |", name.as_str());
        for scenario in &shown {
            text += &format!(" {} |", head(*scenario));
        }
        text += "\n|---|";
        text += &"--:|".repeat(shown.iter().map(|scenario| head(*scenario).matches('|').count() + 1).sum());
        text.push('\n');
        for &way in &ways {
            text += &format!("| {way} |");
            for &scenario in &shown {
                text += &format!(" {} |", cell(way, scenario).map_or_else(String::new, row));
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text + &origin(report)
}

/// Column heads of a scenario; several columns are parted by `|`.
fn head(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Tcp1 => "TCP 1 stream, Gb/s | x floor | of kernel VXLAN | CPU s per Gb",
        Scenario::Tcp8 => "8 streams, Gb/s",
        Scenario::Udp64 => "UDP 64 B, kpps | of kernel VXLAN",
        Scenario::Rtt => "RTT p50 / p99, us",
        other => other.title(),
    }
}

fn row(outcome: &Outcome) -> String {
    let value = outcome.value.as_ref().map_or_else(|| "failed".to_owned(), |value| figure(value.median));
    match outcome.scenario {
        Scenario::Tcp1 => format!(
            "{value} | {} | {} | {}",
            ratio(outcome.to_floor),
            ratio(outcome.to_kernel_vxlan),
            median(outcome.cpu_machine.as_ref())
        ),
        Scenario::Udp64 => format!("{value} | {}", ratio(outcome.to_kernel_vxlan)),
        Scenario::Rtt => format!("{value} / {}", median(outcome.p99.as_ref())),
        _ => value,
    }
}

fn origin(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "Measured {} on {} CPUs ({}), Linux {}, flannel-rs {}: medians of {} interleaved runs of {} s, sender and receiver on the same machine.",
        machine.started.split('T').next().unwrap_or_default(),
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.version,
        counted(report),
        report.settings.seconds,
    );
    let (thrown, all) = report.thrown_away();
    let shown = |outcome: &&Outcome| SHOWN.contains(&outcome.scenario) && is_shown(outcome.role);
    if report.outcomes.iter().filter(shown).any(|outcome| !outcome.quiet) {
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            " Other programs were busy during {thrown} of {all} runs; where no run was quiet all of them count, and figures and ratios are doubtful."
        );
    } else if thrown > 0 {
        let _infallible =
            write!(text, " {thrown} of {all} runs were thrown away because other programs were busy.");
    }
    text.push_str(" Repeat it with `make bench`.\n");
    text
}

/// How many runs the figures are from: `5`, or `3 to 5` where cells differ.
fn counted(report: &Report) -> String {
    let runs = |outcome: &Outcome| {
        let counts = |run: &&Run| run.value.is_some() && (!run.thrown_away || !outcome.quiet);
        outcome.runs.iter().filter(counts).count()
    };
    let shown = || {
        report.outcomes.iter().filter(|outcome| SHOWN.contains(&outcome.scenario) && is_shown(outcome.role))
    };
    let (least, most) = (shown().map(runs).min(), shown().map(runs).max());
    match (least.unwrap_or(0), most.unwrap_or(0)) {
        (least, most) if least == most => most.to_string(),
        (least, most) => format!("{least} to {most}"),
    }
}

/// `readme` with what is between the two markers replaced.
///
/// # Errors
///
/// When a marker is missing, or they are in the wrong order.
pub fn replace_between_markers(readme: &str, tables: &str) -> anyhow::Result<String> {
    let (Some(begin), Some(end)) = (readme.find(BEGIN), readme.find(END)) else {
        bail!("it needs a line {BEGIN} and below it a line {END}; the table goes between them");
    };
    let Some(before) = readme.get(..begin + BEGIN.len()).filter(|before| before.len() <= end) else {
        bail!("{END} stands before {BEGIN}");
    };
    let after = readme.get(end..).unwrap_or_default();
    Ok(format!("{before}\n{}\n{after}", tables.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{outcome, report};

    #[test]
    fn a_result_becomes_one_table_with_a_row_for_each_way() {
        let outcomes = ["engine udp", "floor"].map(|way| outcome(way, Scenario::Tcp1, Some(2.5)));
        let text = tables(&report(outcomes.to_vec()));
        assert!(
            text.contains("\n| engine udp | 2.50 | - | - | - |\n| floor | 2.50 | - | - | - |\n"),
            "{text}"
        );
    }

    #[test]
    fn only_what_a_newcomer_needs_is_in_the_table() {
        let of = |way, role| Outcome { role, ..outcome(way, Scenario::Tcp1, Some(2.5)) };
        let outcomes = vec![of("engine udp", Role::Engine), of("engine udp spin off", Role::Ablation)];
        let text = tables(&report(outcomes));
        assert!(text.contains("| engine udp |") && !text.contains("spin off"), "{text}");
    }

    #[test]
    fn the_number_of_runs_is_that_of_the_runs_that_count() {
        let run = |thrown_away| Run { value: Some(1.0), thrown_away, ..Run::default() };
        let cell = |quiet, runs| Outcome { quiet, runs, ..outcome("floor", Scenario::Tcp1, Some(1.0)) };
        let noisy = cell(false, vec![run(true); 5]);
        let mixed = cell(true, vec![run(true), run(false), run(false)]);
        assert_eq!(counted(&report(vec![noisy.clone()])), "5");
        assert_eq!(counted(&report(vec![noisy, mixed])), "2 to 5");
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let readme = format!("# A\n{BEGIN}\nold\n{END}\nrest\n");
        let changed = replace_between_markers(&readme, "| new |\n").unwrap();
        assert_eq!(changed, format!("# A\n{BEGIN}\n| new |\n{END}\nrest\n"));
        assert_eq!(replace_between_markers(&changed, "| new |\n").unwrap(), changed);
    }

    #[test]
    fn missing_or_swapped_markers_are_an_error() {
        assert!(replace_between_markers("nothing", "x").is_err());
        assert!(replace_between_markers(&format!("{END}{BEGIN}"), "x").is_err());
    }

    #[test]
    fn every_row_has_as_many_columns_as_its_head() {
        for scenario in SHOWN {
            let outcome = outcome("engine udp", scenario, None);
            assert_eq!(row(&outcome).matches('|').count(), head(scenario).matches('|').count());
        }
    }
}
