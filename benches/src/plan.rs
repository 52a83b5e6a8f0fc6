//! What a race is made of: names on the command line become ways and scenarios.

use anyhow::bail;
use lab::daemons::Backend;
use lab::race::{LARGEST_CROWD, Scenario, Way};

use crate::ablation;
use crate::bare::BareEngine;
use crate::flannel::FlannelUdp;

/// The name of what is measured without traffic.
const STANDING: &str = "standing";

/// Who races in what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Who takes part.
    pub ways: Vec<Way>,
    /// In what.
    pub scenarios: Vec<Scenario>,
    /// Whether idle daemons are looked at, and look-ups timed.
    pub standing: bool,
    /// What the names of result files have behind the kernel's, so that a part of a race replaces no whole one.
    pub suffix: &'static str,
}

/// All ways that have a name of their own on the command line.
fn known() -> Vec<Way> {
    let backends = [Backend::Udp, Backend::Vxlan];
    let settings = backends.into_iter().flat_map(ablation::settings);
    every_day().into_iter().chain(settings).collect()
}

/// The ways of a race that nobody chose anything for.
fn every_day() -> Vec<Way> {
    let bare = [0, LARGEST_CROWD].map(|crowd| Way::program(BareEngine { crowd }));
    let flannel = [Way::program(FlannelUdp)];
    Way::all().into_iter().chain(flannel).chain(Way::mixed()).chain(bare).collect()
}

impl Selection {
    /// `only`: names of ways and scenarios, and `standing`; of what is not named at all everything is chosen.
    ///
    /// # Errors
    ///
    /// When nobody has a name, or none of the ways can be measured in any of the scenarios. Says which names there are.
    pub fn of(only: &[String], ablation: bool) -> anyhow::Result<Self> {
        let (mut ways, mut scenarios, mut standing) = (Vec::new(), Vec::new(), false);
        let known = known();
        for name in only {
            let way = known.iter().find(|way| way.is_called(name));
            match (way, Scenario::by_name(name)) {
                _ if name == STANDING => standing = true,
                (Some(way), _) => ways.push(way.clone()),
                (None, Some(scenario)) => scenarios.push(scenario),
                (None, None) => bail!("--only {name}: {}", names(&known)),
            }
        }
        let everything = only.is_empty();
        if scenarios.is_empty() && !(standing && ways.is_empty()) {
            scenarios = if ablation { ablation_scenarios() } else { Scenario::ALL.to_vec() };
        }
        if ways.is_empty() {
            ways = if ablation { ablation_ways() } else { every_day() };
        }
        let takes = |way: &Way| scenarios.iter().any(|&scenario| way.takes(scenario));
        if !scenarios.is_empty() && !ways.iter().any(takes) {
            bail!("none of these ways is measured in any of these scenarios; {}", names(&known));
        }
        let suffix = match (everything, ablation) {
            (true, false) => "",
            (true, true) => "-ablation",
            (false, _) => "-part",
        };
        Ok(Self { ways, scenarios, standing: standing || (everything && !ablation), suffix })
    }
}

/// Every permutation of the offloads and the other settings, beside what they are compared with.
fn ablation_ways() -> Vec<Way> {
    let engine = ablation::ways(Backend::Udp);
    engine.into_iter().chain(ablation::settings(Backend::Udp)).chain([Way::kernel_vxlan()]).collect()
}

/// The offloads' own scenarios, and those in which waiting and workers matter.
fn ablation_scenarios() -> Vec<Scenario> {
    let more = [Scenario::Tcp8, Scenario::Udp64Flows, Scenario::Rtt, Scenario::RttBackToBack];
    ablation::SCENARIOS.into_iter().chain(more).collect()
}

fn names(known: &[Way]) -> String {
    let dashed = |way: &Way| {
        let words = way.name().replace(['(', ')'], "");
        words.replace(' ', "-")
    };
    let ways: Vec<String> = known.iter().map(dashed).collect();
    let scenarios = Scenario::ALL.map(Scenario::name);
    format!("the ways are {}; the scenarios are {}, {STANDING}", ways.join(", "), scenarios.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &str) -> anyhow::Result<Selection> {
        let only: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Selection::of(&only, false)
    }

    #[test]
    fn a_race_without_wishes_is_all_of_it() {
        let all = of("").unwrap();
        assert_eq!((all.scenarios.len(), all.standing, all.suffix), (Scenario::ALL.len(), true, ""));
        assert!(all.ways.contains(&Way::floor()) && all.ways.len() > Way::all().len());
    }

    #[test]
    fn names_choose_and_what_is_not_named_is_everything() {
        let some = of("tcp1,engine-udp,floor").unwrap();
        assert_eq!(
            (some.ways, some.scenarios),
            (vec![Way::engine_udp(), Way::floor()], vec![Scenario::Tcp1])
        );
        assert_eq!((some.standing, some.suffix), (false, "-part"));
        assert_eq!(of("floor").unwrap().scenarios, Scenario::ALL);
        let still = of("standing").unwrap();
        assert!(still.standing && still.scenarios.is_empty(), "{still:?}");
    }

    #[test]
    fn every_name_that_is_offered_is_understood() {
        let error = of("carrier-pigeon").unwrap_err().to_string();
        let offered = error.split_once("the ways are ").unwrap().1.replace("; the scenarios are ", ", ");
        for name in offered.split(", ") {
            assert!(of(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_measured_together_is_an_error() {
        assert!(of("host-routes,lease-churn").is_err());
    }

    #[test]
    fn an_ablation_has_every_permutation_and_every_setting() {
        let ablation = Selection::of(&[], true).unwrap();
        assert_eq!(ablation.ways.len(), 42 + 6 + 1);
        assert_eq!((ablation.standing, ablation.suffix), (false, "-ablation"));
    }
}
