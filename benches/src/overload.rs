//! More than a node can carry: what is lost and where, what a stranger's garbage costs, whether one bad peer hurts the
//! others, and what a churn of leases does to those who stay. `overload` runs it.
//!
//! Real `flanneld` processes in namespaces, as in the race. Books are closed by a daemon that ends, so every row of the
//! load has a pair of its own.

pub mod cast;
pub mod churn;
pub mod garbage;
pub mod load;
pub mod peers;
pub mod show;

use lab::race::Machine;
use serde::Serialize;

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overload {
    /// What it ran on.
    pub machine: Machine,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Goodput and loss by offered load.
    pub load: Vec<load::LoadRow>,
    /// TCP beside a flood of garbage.
    pub garbage: Vec<garbage::GarbageRow>,
    /// Nine good peers and one bad one.
    pub peers: Vec<peers::PeersRow>,
    /// Forwarding while leases come and go.
    pub churn: Vec<churn::ChurnRow>,
}
