//! The upper half of flannel-rs: it decides, and the dataplane moves packets.
//!
//! ```text
//!  flags ─► settings ─┐
//!                     ├─► daemon ── the only loop ──────────────────────────────────────────┐
//!  store ─► LeaseSet ─┘    │  want = backend.plan(own lease, all leases)      (pure)        │
//!     network.rs           │  engine.publish(want.peers)                                    │
//!     lease.rs             └─ hostnet::converge(want.host)  want − have, add before delete ─┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`flags`], [`settings`] | what was typed; what it means, checked once |
//! | [`json`], [`network`] | JSON with positions; `net-conf.json`, typed for each backend |
//! | [`lease`], [`store`] | subnets, leases and their text forms; where leases are kept |
//! | [`underlay`] | which interface and addresses carry the overlay |
//! | [`choose`] | what carries a backend's packets here, and why |
//! | [`backend`], [`plan`] | the whole difference between backends: pure functions from leases to wanted state |
//! | [`masquerade`] | flannel's packet filter rules, as values and in both texts |
//! | [`guard`] | who gets packets in where the kernel carries VXLAN |
//! | [`daemon`] | start, the loop, stop |
//! | [`docker_opts`], [`install_conf`] | flannel's two helpers: Docker's options, a CNI configuration put in place |
//! | [`status`], [`operator`] | what a node says of itself; `flanneld status` and `flanneld peers` |
//! | [`demo`] | a cluster of daemons on this machine, and a race |
//! | [`fuzzing`] | the bodies of the fuzz targets, as plain functions |
#![forbid(unsafe_code)]

pub mod backend;
pub mod choose;
pub mod daemon;
pub mod demo;
pub mod docker_opts;
pub mod flags;
pub mod fuzzing;
pub mod guard;
pub mod install_conf;
pub mod json;
pub mod lease;
pub mod masquerade;
pub mod network;
pub mod operator;
pub mod plan;
pub mod settings;
pub mod status;
pub mod store;
pub mod underlay;
