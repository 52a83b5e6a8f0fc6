//! Clusters of network namespaces that nobody else sees and that die with their process.
//!
//! ```text
//! isolation   this process, or a copy of it as pid 1, moves into namespaces of its own
//! cluster     nodes on an underlay, pods behind them, processes on them
//! daemons     real flanneld processes on the nodes of a cluster
//! books       what an engine of theirs counted from its start to its end
//! counts      the kernel's own counters of a namespace
//! leases      lease files of nodes that are not there
//! traffic     ping, TCP, UDP and CPU seconds between any two of them
//! race        the same traffic over every way to carry packets, side by side
//! cni         what a container runtime asks CNI plugins
//! etcd        real etcd servers
//! enter       into a running lab from another process
//! scratch     a directory that goes with the run
//! scene       tests that run in a private network each
//! leftovers   proof that nothing of it stays
//! ```
//!
//! The demo, the tests and the benchmark stand on this. It needs no tool of the machine (`ip`, `ping`, `iperf3`,
//! `ethtool`), and no root where the machine lets users make user namespaces.

#![forbid(unsafe_code)]

pub mod books;
pub mod cluster;
pub mod cni;
pub mod counts;
pub mod daemons;
pub mod enter;
pub mod etcd;
pub mod isolation;
pub mod leases;
pub mod leftovers;
pub mod race;
pub mod scene;
pub mod scratch;
pub mod traffic;

pub use cluster::{Cluster, LinkModel, Node, Plan, Pod, PodNetwork, Process, Underlay, Wiring};
pub use enter::enter;
pub use isolation::{IsolateError, Isolation, Place, isolate, run_inside};
pub use race::Race;
pub use scene::{Case, Scene, harness, skip, test};
pub use scratch::{scratch, scratch_of};
