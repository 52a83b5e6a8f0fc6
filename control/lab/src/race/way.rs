//! Who takes part in the race.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    },
    /// The kernel's VXLAN device.
    KernelVxlan,
    /// Plain routes.
    HostRoutes,
}

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
    /// The engine with a part switched off.
    Ablation,
}

impl Way {
    /// The engine with flannel's raw format.
    pub fn engine_udp() -> Self {
        Self { carrier: Carrier::Engine { backend: Backend::Udp, off: String::new() } }
    }

    /// The engine with VXLAN.
    pub fn engine_vxlan() -> Self {
        Self { carrier: Carrier::Engine { backend: Backend::Vxlan, off: String::new() } }
    }

    /// The kernel's VXLAN.
    pub fn kernel_vxlan() -> Self {
        Self { carrier: Carrier::KernelVxlan }
    }

    /// Plain routes: the ceiling.
    pub fn host_routes() -> Self {
        Self { carrier: Carrier::HostRoutes }
    }

    /// The engine with everything off: one packet a system call.
    pub fn floor() -> Self {
        Self { carrier: Carrier::Engine { backend: Backend::Udp, off: "all".to_owned() } }
    }

    /// An engine with some features off, as `--engine-off` takes them.
    pub fn engine_without(backend: Backend, off: &str) -> Self {
        Self { carrier: Carrier::Engine { backend, off: off.to_owned() } }
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

    /// The name in tables and files; [`Way::by_name`] reads it.
    pub fn name(&self) -> String {
        match &self.carrier {
            Carrier::Engine { backend: Backend::Udp, off } if off == "all" => "floor".to_owned(),
            Carrier::Engine { backend, off } if off.is_empty() => format!("engine {}", backend.name()),
            Carrier::Engine { backend, off } => format!("engine {} without {off}", backend.name()),
            Carrier::KernelVxlan => "kernel vxlan".to_owned(),
            Carrier::HostRoutes => "host routes".to_owned(),
        }
    }

    /// The way of a plain race that has this name; blanks, dashes and case do not matter.
    pub fn by_name(name: &str) -> Option<Self> {
        let plain = |name: &str| name.to_lowercase().replace(['-', '_'], " ").trim().to_owned();
        Self::all().into_iter().find(|way| plain(&way.name()) == plain(name))
    }

    /// What it stands for.
    pub fn role(&self) -> Role {
        match &self.carrier {
            Carrier::Engine { backend: Backend::Udp, off } if off == "all" => Role::Floor,
            Carrier::Engine { off, .. } if off.is_empty() => Role::Engine,
            Carrier::Engine { .. } => Role::Ablation,
            Carrier::KernelVxlan => Role::KernelVxlan,
            Carrier::HostRoutes => Role::HostRoutes,
        }
    }

    /// Whether a machine may lack it without anything being wrong.
    pub(super) fn may_be_missing(&self) -> bool {
        self.carrier == Carrier::KernelVxlan
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
    fn every_way_is_found_by_its_name() {
        for way in Way::all() {
            assert_eq!(Way::by_name(&way.name()), Some(way.clone()));
            assert_eq!(Way::by_name(&way.name().to_uppercase().replace(' ', "-")), Some(way));
        }
        assert_eq!(Way::by_name("carrier pigeon"), None);
    }

    #[test]
    fn names_tell_ways_apart() {
        let mut ways = Way::all();
        ways.push(Way::engine_without(Backend::Udp, "udp-gso"));
        ways.push(Way::engine_without(Backend::Vxlan, "udp-gso"));
        ways.push(Way::engine_without(Backend::Vxlan, "all"));
        let names: std::collections::BTreeSet<String> = ways.iter().map(Way::name).collect();
        assert_eq!(names.len(), ways.len());
    }
}
