//! Clusters of network namespaces that nobody else sees and that die with their process.

#![forbid(unsafe_code)]

pub mod isolation;

pub use isolation::{IsolateError, Isolation, Place, isolate, run_inside};
