//! The lower half of flannel-rs: moves packets between a TUN device and a UDP socket.
//!
//! ```text
//!  Engine ── open ──► TUN queue, UDP port, Capabilities          (a probe each, printable, can be forced off)
//!     │ start
//!     ▼
//!  Worker ── turn ──► read TUN ─► Forwarder::outbound ─► TxBatch ─► sendmmsg + UDP_SEGMENT
//!     │               recvmmsg + UDP_GRO ─► Forwarder::inbound ─► Merger ─► writev with a virtio header
//!     ▼
//!  EngineHandle: publish(PeerTable), counters(), events(), stop()
//! ```
//!
//! All decisions are [`dataplane_core`]'s; here is the I/O around them. A worker is one thread that runs to completion:
//! no packet is handed from thread to thread, and in steady state nothing allocates, locks or logs.
//!
//! | module | what lives there |
//! |---|---|
//! | [`engine`] | the engine, its workers, what they share with the handle |
//! | [`io`] | TUN queues and UDP ports: the kernel's, and a network in memory |
//! | [`buffers`] | what a worker receives into |
//! | `probe`, `offload` | what the kernel offers, and what of it is on right now |
//! | `sys` | every unsafe block of the workspace |
#![deny(unsafe_code)]

pub mod buffers;
pub mod engine;
mod error;
mod event;
pub mod io;
mod offload;
mod probe;
#[allow(unsafe_code, reason = "the one place for it")]
mod sys;

pub use dataplane_core as core;
pub use engine::{Duplex, Engine, EngineConfig, EngineHandle, SourcePorts, Spin, Tuning};
pub use error::{EngineError, OpenError};
pub use event::{EngineEvent, Events};
pub use offload::{Demotion, Offload};
pub use probe::{Capabilities, Feature, Features, Finding, UnknownFeature, adder};
pub use sys::heap::give_back_memory;
