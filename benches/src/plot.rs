//! The result of a race as an SVG: one panel a scenario and link model, one bar a way with its least and most.

use anyhow::anyhow;
use lab::LinkModel;
use lab::race::way::Role;
use lab::race::{Outcome, Report, Scenario};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::table::figure;

/// What is drawn: a picture of everything would be read by nobody.
const SHOWN: [Scenario; 6] =
    [Scenario::Tcp1, Scenario::Tcp8, Scenario::CpuAt1G, Scenario::Udp64, Scenario::UdpGso, Scenario::Rtt];
const PANEL: (u32, u32) = (460, 300);
const TITLE: u32 = 34;
const FONT: &str = "sans-serif";

/// The picture.
///
/// # Errors
///
/// When there is nothing to draw.
pub fn svg(report: &Report) -> anyhow::Result<String> {
    let models = report.models();
    let rows: Vec<Vec<Panel<'_>>> = SHOWN
        .into_iter()
        .map(|scenario| models.iter().map(|&model| Panel::new(report, scenario, model)).collect())
        .filter(|row: &Vec<Panel<'_>>| row.iter().any(|panel| !panel.bars.is_empty()))
        .collect();
    if rows.is_empty() {
        return Err(anyhow!("the result holds no figure to draw"));
    }
    let width = PANEL.0 * u32::try_from(models.len())?;
    let height = TITLE + PANEL.1 * u32::try_from(rows.len())?;
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        draw(report, &rows, &root)?;
        root.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// One scenario on one link, and the bars that it has there.
struct Panel<'a> {
    scenario: Scenario,
    model: LinkModel,
    bars: Vec<&'a Outcome>,
}

impl<'a> Panel<'a> {
    fn new(report: &'a Report, scenario: Scenario, model: LinkModel) -> Self {
        let is = |outcome: &&Outcome| {
            (outcome.scenario, outcome.model) == (scenario, model)
                && outcome.value.is_some()
                && outcome.role != Role::Ablation
        };
        Self { scenario, model, bars: report.outcomes.iter().filter(is).collect() }
    }
}

fn draw(report: &Report, rows: &[Vec<Panel<'_>>], root: &Area<'_>) -> anyhow::Result<()> {
    root.fill(&WHITE)?;
    let machine = &report.machine;
    let day = machine.started.split('T').next().unwrap_or_default();
    let title =
        format!("flannel-rs {}, Linux {}, {} CPUs, {day}", machine.version, machine.kernel, machine.cpus);
    let below = root.titled(&title, (FONT, 18))?;
    let columns = rows.first().map_or(1, Vec::len);
    let areas = below.split_evenly((rows.len(), columns));
    for (area, panel) in areas.iter().zip(rows.iter().flatten()).filter(|(_, panel)| !panel.bars.is_empty()) {
        draw_panel(area, panel)?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>) -> anyhow::Result<()> {
    let Panel { scenario, model, bars } = panel;
    let most =
        bars.iter().filter_map(|bar| bar.value).map(|value| value.max).fold(f64::MIN_POSITIVE, f64::max);
    let link = match *model {
        LinkModel::On => "all offloads",
        LinkModel::Nic => "like a network card",
    };
    // The axis grows upwards, and the first way belongs on top.
    let bars: Vec<&Outcome> = bars.iter().rev().copied().collect();
    let names: Vec<String> = bars.iter().map(|bar| bar.way.clone()).collect();
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{} [{}], {link}", scenario.title(), scenario.unit()), (FONT, 13))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(if names.iter().any(|name| name.len() > 14) { 210 } else { 90 })
        .build_cartesian_2d(0.0..most * 1.15, (0..bars.len()).into_segmented())?;
    let label = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => names.get(*index).cloned().unwrap_or_default(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(6)
        .y_labels(bars.len())
        .y_label_formatter(&label)
        .label_style((FONT, 12))
        .draw()?;
    let centred = TextStyle::from((FONT, 12).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
    for (index, bar) in bars.iter().enumerate() {
        let Some(value) = bar.value else { continue };
        let (low, high) = (SegmentValue::Exact(index), SegmentValue::Exact(index + 1));
        let mut body = Rectangle::new([(0.0, low), (value.median, high)], colour(bar.role).filled());
        body.set_margin(4, 4, 0, 0);
        chart.draw_series([body])?;
        let middle = SegmentValue::CenterOf(index);
        chart.draw_series([PathElement::new(
            [(value.min, middle.clone()), (value.max, middle.clone())],
            BLACK,
        )])?;
        let right = Text::new(figure(value.median), (value.max + most * 0.01, middle), centred.clone());
        chart.draw_series([right])?;
    }
    Ok(())
}

fn colour(role: Role) -> RGBColor {
    match role {
        Role::Engine => RGBColor(0xd9, 0x5f, 0x02),
        Role::KernelVxlan => RGBColor(0x75, 0x70, 0xb3),
        Role::HostRoutes => RGBColor(0x1b, 0x9e, 0x77),
        Role::Floor => RGBColor(0x99, 0x99, 0x99),
        Role::Ablation => RGBColor(0xe6, 0xab, 0x02),
        Role::Peer => RGBColor(0xb3, 0xb0, 0xd8),
        Role::Program => RGBColor(0xe7, 0x29, 0x8a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{outcome, report};

    #[test]
    fn every_way_has_a_bar_with_its_figure() {
        let ways = [("engine udp", 12.3), ("kernel vxlan (no checksums) to engine", 2.4), ("floor", 0.987)];
        let outcomes = ways.map(|(way, value)| outcome(way, Scenario::Tcp1, Some(value)));
        let picture = svg(&report(outcomes.to_vec())).unwrap();
        for text in ["engine udp", "kernel vxlan (no checksums) to engine", "floor", "12.3", "2.40", "0.987"]
        {
            assert!(picture.contains(&format!("\n{text}\n")), "no {text:?} in {picture}");
        }
    }

    #[test]
    fn parts_switched_off_are_no_bars() {
        let part = outcome("engine udp without mmsg", Scenario::Tcp1, Some(1.0));
        let part = Outcome { role: Role::Ablation, ..part };
        let picture = svg(&report(vec![part, outcome("floor", Scenario::Tcp1, Some(1.0))])).unwrap();
        assert!(picture.contains("\nfloor\n") && !picture.contains("without mmsg"), "{picture}");
    }

    #[test]
    fn a_result_without_figures_is_no_picture() {
        assert!(svg(&report(vec![outcome("floor", Scenario::Tcp1, None)])).is_err());
        assert!(svg(&report(Vec::new())).is_err());
    }
}
