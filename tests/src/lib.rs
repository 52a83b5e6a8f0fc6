//! What the promises share: nodes with an engine, and checks that more than one of them makes.
//!
//! The promises themselves are the files of `tests/`. Each is a program that moves into private namespaces before it does
//! anything, so they need no root where the machine lets users make namespaces, and leave nothing behind.

#![forbid(unsafe_code)]

pub mod account;
pub mod apiserver;
pub mod bad;
pub mod binary;
pub mod capture;
pub mod cluster;
pub mod daemon;
pub mod engine;
pub mod etcd;
pub mod flannel;
pub mod harness;
pub mod host;
pub mod lease_dir;
pub mod manifests;
pub mod netlink;
pub mod operator;
pub mod pinger;
pub mod podman;
pub mod processes;
pub mod reach;
pub mod rules;

pub use lab::counts;

/// The cluster's networks in every test: the lab gives node n 10.5.n.0/24 and fd00:5:0:n::/64.
pub const NETWORKS: [&str; 2] = ["10.5.0.0/16", "fd00:5::/48"];
