//! Every permutation of the engine's offloads that makes sense, and what each feature is worth.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use dataplane::{Feature, Features};
use lab::LinkModel;
use lab::daemons::Backend;
use lab::race::way::Role;
use lab::race::{Outcome, Report, Scenario, Way};

use crate::table::{figure, model_name, ratio};

/// What each permutation is raced in.
pub const SCENARIOS: [Scenario; 2] = [Scenario::Tcp1, Scenario::Udp64];

/// The sets of features that are forced off, one a way. Without a virtio header there are no superpackets on the TUN, so of
/// the 64 sets of offloads those that keep `tun-tso` or `tun-uso` without `tun-vnet-hdr` are left out: they are another set
/// by another name. `simd` is no offload and changes nothing about them: it is off alone, and with all others.
pub fn sets_off() -> Vec<Features> {
    let offloads: Vec<Feature> =
        Feature::ALL.into_iter().filter(|&feature| feature != Feature::Simd).collect();
    let set = |bits: u32| -> Features {
        let off = offloads.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
        off.map(|(_, feature)| *feature).collect()
    };
    let makes_sense = |off: &Features| {
        !off.contains(Feature::TunVnetHdr) || (off.contains(Feature::TunTso) && off.contains(Feature::TunUso))
    };
    let permutations = (0..1_u32 << offloads.len()).map(set).filter(makes_sense);
    permutations.chain([Features::NONE.with(Feature::Simd), Features::ALL]).collect()
}

/// The engine with each of the sets forced off; all of them off is the floor.
pub fn ways(backend: Backend) -> Vec<Way> {
    let off = |set: Features| match set {
        Features::NONE => String::new(),
        Features::ALL => "all".to_owned(),
        set => set.to_string(),
    };
    sets_off().into_iter().map(|set| Way::engine_without(backend, &off(set))).collect()
}

/// The engine with other settings than its own choice.
pub fn settings(backend: Backend) -> Vec<Way> {
    [
        ("spin", "off"),
        ("spin", "50"),
        ("workers", "1"),
        ("workers", "2"),
        ("duplex", "half"),
        ("duplex", "full"),
    ]
    .map(|(name, value)| Way::engine_with(backend, name, value))
    .into()
}

/// A row: which features were on, and the figure in each scenario.
struct Row<'a> {
    off: Features,
    figures: Vec<Option<&'a Outcome>>,
}

impl Row<'_> {
    fn median(&self, scenario: usize) -> Option<f64> {
        Some(self.figures.get(scenario)?.as_ref()?.value?.median)
    }
}

/// For each link a table with a mark for each feature that was on, the fastest first, and one of what each is worth. Empty
/// where the result is of no ablation.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    for model in report.models() {
        let rows = rows(report, model);
        if rows.len() > 3 {
            let link = model_name(model);
            text +=
                &format!("\nEvery permutation of the offloads on {link}, fastest first\n{}\n", marks(&rows));
            text += &format!(
                "\nWhat each is worth on {link}: with it, in multiples of without\n{}\n",
                worth(&rows)
            );
        }
    }
    text
}

fn rows(report: &Report, model: LinkModel) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for way in report.ways() {
        let of = |scenario| report.outcome(model, scenario, way);
        let figures: Vec<Option<&Outcome>> = SCENARIOS.iter().map(|&scenario| of(scenario)).collect();
        let Some(outcome) = figures.iter().flatten().next() else { continue };
        let whole_or_part = match outcome.role {
            Role::Engine | Role::Floor => true,
            // Settings are no permutation of features.
            Role::Ablation => !outcome.off.is_empty(),
            _ => false,
        };
        if let (true, Ok(off)) = (whole_or_part, outcome.off.join(",").parse::<Features>()) {
            rows.push(Row { off, figures });
        }
    }
    rows.sort_by(|a, b| b.median(0).unwrap_or_default().total_cmp(&a.median(0).unwrap_or_default()));
    rows
}

fn marks(rows: &[Row<'_>]) -> Table {
    let mut head: Vec<String> = Feature::ALL.map(|feature| feature.name().replace('-', "\n")).into();
    for scenario in SCENARIOS {
        head.extend([format!("{scenario}\n{}", scenario.unit()), "min..max".to_owned()]);
        head.push("x floor".to_owned());
    }
    let mut table = table(head);
    for row in rows {
        let mark = |feature| if row.off.contains(feature) { "" } else { "x" }.to_owned();
        let mut cells: Vec<String> = Feature::ALL.map(mark).into();
        for outcome in &row.figures {
            match outcome.and_then(|outcome| Some((outcome, outcome.value?))) {
                Some((outcome, value)) => cells.extend([
                    figure(value.median),
                    format!("{}..{}", figure(value.min), figure(value.max)),
                    ratio(outcome.to_floor),
                ]),
                None => cells.extend(["failed".to_owned(), String::new(), String::new()]),
            }
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The ratios of all pairs of rows that differ in one feature only.
fn ratios(rows: &[Row<'_>], feature: Feature, scenario: usize) -> Vec<f64> {
    let without = rows.iter().filter(|row| row.off.contains(feature));
    let ratio = |row: &Row<'_>| {
        let with = rows.iter().find(|other| other.off == row.off.without(feature))?;
        Some(with.median(scenario)? / row.median(scenario)?)
    };
    without.filter_map(ratio).filter(|ratio| ratio.is_finite()).collect()
}

fn worth(rows: &[Row<'_>]) -> Table {
    let mut head = vec!["feature".to_owned(), "pairs".to_owned()];
    for scenario in SCENARIOS {
        head.extend([format!("{scenario}: mean"), "least..most".to_owned()]);
    }
    let mut table = table(head);
    for feature in Feature::ALL {
        let pairs = ratios(rows, feature, 0).len();
        let mut cells = vec![feature.name().to_owned(), pairs.to_string()];
        for scenario in 0..SCENARIOS.len() {
            let ratios = ratios(rows, feature, scenario);
            // Ratios multiply, so their mean is the geometric one.
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            match ratios.is_empty() {
                true => cells.extend(["-".to_owned(), String::new()]),
                false => cells.extend([format!("{mean:.2}"), format!("{least:.2}..{most:.2}")]),
            }
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn table(head: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head);
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sample::{outcome, report};

    #[test]
    fn every_permutation_that_makes_sense_is_there_once() {
        let sets: BTreeSet<String> = sets_off().iter().map(ToString::to_string).collect();
        // Three independent features, and of the TUN's three: all four with a header, one without.
        assert_eq!((sets.len(), sets_off().len()), (8 * 5 + 2, 8 * 5 + 2));
        assert!(sets.contains("none") && sets.contains("udp-gso,mmsg"), "{sets:?}");
        assert!(!sets.contains("tun-vnet-hdr") && sets.contains("tun-vnet-hdr,tun-tso,tun-uso"), "{sets:?}");
    }

    #[test]
    fn the_ends_of_the_ladder_are_the_engine_and_the_floor() {
        let ways = ways(Backend::Udp);
        assert_eq!(ways.iter().filter(|way| **way == Way::engine_udp()).count(), 1);
        assert_eq!(ways.iter().filter(|way| **way == Way::floor()).count(), 1);
    }

    fn of(off: &[&str], value: f64) -> Outcome {
        let way = format!("engine udp without {}", off.join(","));
        let off: Vec<String> = off.iter().map(|&name| name.to_owned()).collect();
        let role = if off.is_empty() { Role::Engine } else { Role::Ablation };
        Outcome { off, role, ..outcome(&way, Scenario::Tcp1, Some(value)) }
    }

    #[test]
    fn the_fastest_permutation_is_on_top_and_marks_show_what_was_on() {
        let slow = of(&["udp-gso"], 2.0);
        let report = report(vec![slow, of(&["mmsg"], 7.0), of(&[], 8.0), of(&["mmsg", "udp-gso"], 1.0)]);
        let rows = rows(&report, LinkModel::On);
        assert_eq!(rows.iter().map(|row| row.median(0).unwrap()).collect::<Vec<_>>(), [8.0, 7.0, 2.0, 1.0]);
        let text = marks(&rows).to_string();
        let marks: Vec<usize> =
            text.lines().map(|line| line.matches(" x ┆").count()).filter(|&marks| marks > 0).collect();
        assert_eq!(marks, [7, 6, 6, 5], "{text}");
    }

    #[test]
    fn worth_is_the_mean_of_the_pairs_that_differ_in_one_feature() {
        let report = report(vec![
            of(&["udp-gso"], 2.0),
            of(&["mmsg"], 9.0),
            of(&[], 8.0),
            of(&["mmsg", "udp-gso"], 1.0),
        ]);
        let rows = rows(&report, LinkModel::On);
        assert_eq!(ratios(&rows, Feature::UdpGso, 0), [4.0, 9.0]);
        let text = worth(&rows).to_string();
        assert!(text.contains("6.00") && text.contains("4.00..9.00"), "{text}");
        assert!(tables(&report).contains("What each is worth"));
    }
}
