//! The lower half of flannel-rs: moves packets between a TUN device and a UDP socket.
#![deny(unsafe_code)]

pub mod buffers;
mod error;
pub mod io;
mod offload;
mod probe;
#[allow(unsafe_code, reason = "the one place for it")]
mod sys;

pub use error::OpenError;
pub use offload::{Demotion, Offload};
pub use probe::{Capabilities, Feature, Features, Finding, UnknownFeature};
