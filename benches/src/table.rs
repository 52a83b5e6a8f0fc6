//! The result of a race as tables for a terminal: ratios first.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use lab::LinkModel;
use lab::race::{Outcome, Report, Scenario, Summary};

/// One table for each link model and scenario, then what was left out.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    for model in report.models() {
        for scenario in Scenario::ALL {
            let rows: Vec<&Outcome> = report
                .outcomes
                .iter()
                .filter(|outcome| (outcome.model, outcome.scenario) == (model, scenario))
                .collect();
            if !rows.is_empty() {
                text += &format!("\n{} [{}] on {}\n", scenario.title(), scenario.unit(), model_name(model));
                text += &format!("{}\n", one(&rows, scenario));
            }
        }
    }
    text + &standing_still(report) + &footnotes(report)
}

/// Memory, wake-ups and look-up, where they were measured.
fn standing_still(report: &Report) -> String {
    if report.asides.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["of", "leases of others", "what", "value", "", "how"]);
    for aside in &report.asides {
        table.add_row([
            aside.way.clone(),
            aside.leases.to_string(),
            aside.quantity.title().to_owned(),
            figure(aside.value),
            aside.quantity.unit().to_owned(),
            aside.how.clone(),
        ]);
    }
    for column in [1, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("\nStanding still\n{table}\n")
}

fn one(rows: &[&Outcome], scenario: Scenario) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut head = vec!["way", "x floor", "of kernel vxlan", "of host routes", "median", "min..max"];
    if scenario.is_round_trip() {
        head.extend(["p99", "p99 min..max"]);
    } else {
        head.extend(["cpu-s/Gb machine", "cpu-s/Gb processes"]);
    }
    if scenario.has_fairness() {
        head.push("Jain");
    }
    if scenario == Scenario::RttLoaded {
        head.push("load Gb/s");
    }
    head.push("runs");
    table.set_header(head);
    for outcome in rows {
        let mut row = vec![
            outcome.way.clone(),
            ratio(outcome.to_floor),
            ratio(outcome.to_kernel_vxlan),
            ratio(outcome.to_host_routes),
        ];
        match &outcome.value {
            Some(value) => {
                row.push(figure(value.median));
                row.push(format!("{}..{}", figure(value.min), figure(value.max)));
            }
            None => row.extend([outcome.failure().unwrap_or("no run").to_owned(), String::new()]),
        }
        if scenario.is_round_trip() {
            row.push(median(outcome.p99.as_ref()));
            let range = |p99: Summary| format!("{}..{}", figure(p99.min), figure(p99.max));
            row.push(outcome.p99.map(range).unwrap_or_default());
        } else {
            row.push(median(outcome.cpu_machine.as_ref()));
            row.push(median(outcome.cpu_processes.as_ref()));
        }
        if scenario.has_fairness() {
            row.push(median(outcome.fairness.as_ref()));
        }
        if scenario == Scenario::RttLoaded {
            row.push(median(outcome.gigabits_per_second.as_ref()));
        }
        row.push(runs(outcome));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// How many runs the figures are from, and whether they are to be trusted.
fn runs(outcome: &Outcome) -> String {
    let all = outcome.runs.len();
    let thrown = outcome.runs.iter().filter(|run| run.thrown_away).count();
    match (outcome.quiet, thrown) {
        (false, _) => format!("{all}, none quiet"),
        (true, 0) => all.to_string(),
        (true, thrown) => format!("{} of {all}", all - thrown),
    }
}

fn footnotes(report: &Report) -> String {
    let mut text = String::new();
    for skipped in &report.skipped {
        text +=
            &format!("\nleft out: {} on {}: {}\n", skipped.way, model_name(skipped.model), skipped.reason);
    }
    let failures = report.outcomes.iter().filter_map(|outcome| Some((outcome, outcome.failure()?)));
    for (outcome, failure) in failures {
        text += &format!("\nfailed: {} in {}: {failure}\n", outcome.way, outcome.scenario);
    }
    let (thrown, all) = report.thrown_away();
    if thrown > 0 {
        text += &format!(
            "\nOther programs used more than {:.0} % of the machine during {thrown} of {all} runs. Those do not count, except \
             where no run was quiet.\n",
            report.settings.foreign_limit * 100.0
        );
    }
    if !report.machine.optimised {
        text += "\nBuilt without optimisation: these figures are worth nothing. Use cargo run --release.\n";
    }
    text
}

/// The link in words.
pub fn model_name(model: LinkModel) -> &'static str {
    match model {
        LinkModel::On => "a link with all offloads (containers of one host)",
        LinkModel::Nic => "a link like a network card (1500-byte frames)",
    }
}

/// Three digits that mean something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A ratio, or a dash where there is nothing to compare with.
pub fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// A median, or a dash.
pub fn median(summary: Option<&Summary>) -> String {
    summary.map_or_else(|| "-".to_owned(), |summary| figure(summary.median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_as_many_cells_as_its_head() {
        for scenario in Scenario::ALL {
            for value in [Some(1.0), None] {
                let outcome = crate::sample::outcome("engine udp", scenario, value);
                let text = one(&[&outcome], scenario).to_string();
                let bars: Vec<usize> = text
                    .lines()
                    .map(|line| line.matches(['│', '┆']).count())
                    .filter(|&bars| bars > 0)
                    .collect();
                assert_eq!(bars.len(), 2, "{text}");
                assert_eq!(bars[0], bars[1], "{scenario}\n{text}");
            }
        }
    }

    #[test]
    fn shares_stand_beside_the_figure() {
        let fairness = Summary::of([0.8765]);
        let outcome = Outcome { fairness, ..crate::sample::outcome("floor", Scenario::Tcp64, Some(1.0)) };
        let text = one(&[&outcome], Scenario::Tcp64).to_string();
        assert!(text.contains("Jain") && text.contains("0.876"), "{text}");
    }

    #[test]
    fn figures_keep_three_digits() {
        let shown: Vec<String> = [431.2, 31.24, 8.259, 0.1549, 0.0].into_iter().map(figure).collect();
        assert_eq!(shown, ["431", "31.2", "8.26", "0.155", "0.000"]);
    }
}
