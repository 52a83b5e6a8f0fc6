//! Clusters of network namespaces that nobody else sees and that die with their process.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod isolation;
pub mod traffic;

pub use isolation::{Isolation, IsolateError, Place, isolate, run_inside};
