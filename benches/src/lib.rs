//! What `overlay`, the side-by-side race, shows of its result: tables and plots.
//!
//! The criterion benches of the core are in `benches/core.rs`.
#![forbid(unsafe_code)]

pub mod markdown;
pub mod plot;
pub mod table;
