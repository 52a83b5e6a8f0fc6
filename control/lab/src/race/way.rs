//! Who takes part in the race.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::scenario::{Ground, Scenario};
use crate::cluster::LinkModel;
use crate::cluster::{Cluster, PodNetwork, Process};
use crate::daemons::Backend;

/// A way to carry packets from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// What carries them.
    pub carrier: Carrier,
}

/// What carries packets between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `flanneld` with its engine.
    Engine {
        /// The format on the wire.
        backend: Backend,
        /// Features forced off, as `--engine-off` takes them; empty for none.
        off: String,
        /// Other settings of the engine, name and value: `("spin", "off")` is `--engine-spin=off`.
        settings: Vec<(String, String)>,
    },
    /// The kernel's VXLAN device on both nodes.
    KernelVxlan {
        /// Whether its datagrams carry UDP checksums, as flannel's do.
        checksums: bool,
    },
    /// The kernel's VXLAN device on the first node, `flanneld` with its engine on the second.
    KernelToEngine {
        /// Whether the kernel's datagrams carry UDP checksums, as flannel's do.
        checksums: bool,
    },
    /// Plain routes.
    HostRoutes,
    /// Another program on each node.
    Program(Program),
}

/// A program that the lab does not know: whoever makes the race tells how it is started.
#[derive(Clone, Debug)]
pub struct Program(pub Arc<dyn Starter>);

/// Starts what carries packets between the two nodes of a pair.
pub trait Starter: fmt::Debug + Send + Sync {
    /// The name in tables and files; no other way has it.
    fn name(&self) -> String;

    /// What it stands for.
    fn role(&self) -> Role;

    /// Whether a scenario on pairs says something about it.
    fn takes(&self, scenario: Scenario) -> bool;

    /// How many leases of nodes that are not there it knows; if any, it is looked at standing still.
    fn crowd(&self) -> usize {
        0
    }

    /// Starts it on both nodes and answers what their pods are to be made from; `dir` is for its files. The pods ping each
    /// other afterwards for some seconds, until they are heard.
    ///
    /// # Errors
    ///
    /// When it cannot be started. The way is left out of the race then.
    fn start(&self, cluster: &Cluster, dir: &Path) -> anyhow::Result<Started>;
}

/// What a [`Starter`] started.
#[derive(Debug)]
pub struct Started {
    /// What the pods are made from, in the order of the nodes.
    pub networks: Vec<PodNetwork>,
    /// Processes whose CPU time is the tunnel's. Should one of them end, the measurement has failed.
    pub processes: Vec<Process>,
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for Program {}

/// What a row of the result stands for, in words for somebody who has read nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What this project is about.
    Engine,
    /// What everybody uses.
    KernelVxlan,
    /// The ceiling.
    HostRoutes,
    /// The slowest sensible program.
    Floor,
    /// The engine with a part switched off or another setting.
    Ablation,
    /// Kernel VXLAN at one end or both, to tell what its partner makes of it.
    Peer,
    /// Somebody else's program, or an engine without its daemon.
    Program,
}

impl Way {
    /// The engine with flannel's raw format.
    pub fn engine_udp() -> Self {
        Self::engine(Backend::Udp, "", &[])
    }

    /// The engine with VXLAN.
    pub fn engine_vxlan() -> Self {
        Self::engine(Backend::Vxlan, "", &[])
    }

    /// The kernel's VXLAN.
    pub fn kernel_vxlan() -> Self {
        Self { carrier: Carrier::KernelVxlan { checksums: true } }
    }

    /// Plain routes: the ceiling.
    pub fn host_routes() -> Self {
        Self { carrier: Carrier::HostRoutes }
    }

    /// The engine with everything off, as a plain TUN program works: one packet a system call, and a sleep when there is
    /// none.
    pub fn floor() -> Self {
        Self::engine(Backend::Udp, "all", &[("spin", "off")])
    }

    /// An engine with some features off, as `--engine-off` takes them; with all of them, the floor.
    pub fn engine_without(backend: Backend, off: &str) -> Self {
        if (backend, off) == (Backend::Udp, "all") { Self::floor() } else { Self::engine(backend, off, &[]) }
    }

    /// An engine with a setting of its own: `("spin", "off")` is `--engine-spin=off`.
    pub fn engine_with(backend: Backend, name: &str, value: &str) -> Self {
        Self::engine(backend, "", &[(name, value)])
    }

    /// A program that the lab does not know.
    pub fn program(starter: impl Starter + 'static) -> Self {
        Self { carrier: Carrier::Program(Program(Arc::new(starter))) }
    }

    fn engine(backend: Backend, off: &str, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { carrier: Carrier::Engine { backend, off: off.to_owned(), settings } }
    }

    /// The five of a plain race, in the order of its table.
    pub fn all() -> Vec<Self> {
        vec![
            Self::engine_udp(),
            Self::engine_vxlan(),
            Self::kernel_vxlan(),
            Self::host_routes(),
            Self::floor(),
        ]
    }

    /// Kernel VXLAN with our engine at the receiving end, and without checksums: what nodes of a mixed cluster get.
    pub fn mixed() -> Vec<Self> {
        let of = |carrier| Self { carrier };
        vec![
            of(Carrier::KernelToEngine { checksums: true }),
            of(Carrier::KernelVxlan { checksums: false }),
            of(Carrier::KernelToEngine { checksums: false }),
        ]
    }

    /// The name in tables and files.
    pub fn name(&self) -> String {
        match &self.carrier {
            Carrier::Engine { .. } if *self == Self::floor() => "floor".to_owned(),
            Carrier::Engine { backend, off, settings } => {
                let mut name = format!("engine {}", backend.name());
                if !off.is_empty() {
                    name += &format!(" without {off}");
                }
                for (setting, value) in settings {
                    name += &format!(" {setting} {value}");
                }
                name
            }
            Carrier::KernelVxlan { checksums: true } => "kernel vxlan".to_owned(),
            Carrier::KernelVxlan { checksums: false } => "kernel vxlan (no checksums)".to_owned(),
            Carrier::KernelToEngine { checksums: true } => "kernel vxlan to engine".to_owned(),
            Carrier::KernelToEngine { checksums: false } => {
                "kernel vxlan (no checksums) to engine".to_owned()
            }
            Carrier::HostRoutes => "host routes".to_owned(),
            Carrier::Program(program) => program.0.name(),
        }
    }

    /// Whether this is its name; only letters and digits count, whatever their case.
    pub fn is_called(&self, name: &str) -> bool {
        let plain = |name: &str| -> String {
            name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect()
        };
        plain(&self.name()) == plain(name)
    }

    /// What it stands for.
    pub fn role(&self) -> Role {
        match &self.carrier {
            Carrier::Engine { .. } if *self == Self::floor() => Role::Floor,
            Carrier::Engine { off, settings, .. } if off.is_empty() && settings.is_empty() => Role::Engine,
            Carrier::Engine { .. } => Role::Ablation,
            Carrier::KernelVxlan { checksums: true } => Role::KernelVxlan,
            Carrier::KernelVxlan { checksums: false } | Carrier::KernelToEngine { .. } => Role::Peer,
            Carrier::HostRoutes => Role::HostRoutes,
            Carrier::Program(program) => program.0.role(),
        }
    }

    /// Features that are forced off, one by one; empty where that is no question.
    pub fn off(&self) -> Vec<String> {
        match &self.carrier {
            Carrier::Engine { off, .. } => {
                off.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a scenario says something about it: a race with every pairing of the two would take a day.
    pub fn takes(&self, scenario: Scenario) -> bool {
        use Scenario::{LeaseChurn, Rtt, RttBackToBack, Tcp1, Tcp8, Udp64, Udp64Flows};
        match &self.carrier {
            Carrier::Engine { .. } if self.role() == Role::Floor => scenario != LeaseChurn,
            Carrier::Engine { off, settings, .. } if !settings.is_empty() => {
                off.is_empty() && matches!(scenario, Tcp1 | Tcp8 | Udp64 | Udp64Flows | Rtt | RttBackToBack)
            }
            Carrier::Engine { off, .. } if off.is_empty() => true,
            Carrier::Engine { .. } => matches!(scenario, Tcp1 | Udp64),
            Carrier::KernelVxlan { checksums: true } => scenario != LeaseChurn,
            Carrier::KernelVxlan { checksums: false } | Carrier::KernelToEngine { .. } => {
                matches!(scenario, Tcp1 | Udp64)
            }
            Carrier::HostRoutes => scenario != LeaseChurn && scenario.ground() == Ground::Pair,
            Carrier::Program(program) => scenario.ground() == Ground::Pair && program.0.takes(scenario),
        }
    }

    /// Whether checksums may be left to the links' imagined hardware.
    ///
    /// Over veth they then arrive unfinished, with the mark that the kernel encapsulated the frame itself, and such frames
    /// are never coalesced for a UDP socket (`udp_gro_receive`, since Linux 6.9). No frame from a network card has that
    /// mark, so where a kernel VXLAN device sends to an engine as over one, the sender finishes its checksums.
    pub(super) fn leaves_checksums(&self, model: LinkModel) -> bool {
        model != LinkModel::Nic || !matches!(self.carrier, Carrier::KernelToEngine { .. })
    }

    /// Whether a machine may lack it without anything being wrong.
    pub(super) fn may_be_missing(&self) -> bool {
        matches!(self.carrier, Carrier::KernelVxlan { .. } | Carrier::KernelToEngine { .. })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_called_by_its_name_however_it_is_written() {
        for way in Way::all().into_iter().chain(Way::mixed()) {
            assert!(way.is_called(&way.name()));
            assert!(way.is_called(&way.name().to_uppercase().replace([' ', '(', ')'], "-")));
            assert!(!way.is_called("carrier pigeon"));
        }
    }

    #[test]
    fn names_tell_ways_apart() {
        let mut ways = Way::all();
        ways.extend(Way::mixed());
        ways.push(Way::engine_without(Backend::Udp, "udp-gso"));
        ways.push(Way::engine_without(Backend::Vxlan, "udp-gso"));
        ways.push(Way::engine_without(Backend::Vxlan, "all"));
        ways.push(Way::engine_with(Backend::Vxlan, "spin", "off"));
        ways.push(Way::engine_with(Backend::Vxlan, "workers", "2"));
        let names: std::collections::BTreeSet<String> = ways.iter().map(Way::name).collect();
        assert_eq!(names.len(), ways.len());
    }

    #[test]
    fn every_scenario_has_an_engine_and_something_to_compare_it_with() {
        for scenario in Scenario::ALL {
            let takes = |way: Way| way.takes(scenario);
            assert!(takes(Way::engine_udp()) && takes(Way::engine_vxlan()), "{scenario}");
            assert!(takes(Way::kernel_vxlan()) || scenario == Scenario::LeaseChurn, "{scenario}");
        }
    }
}
