//! The host's network state: read it, say what it should be, apply the difference.
//!
//! ```text
//!   want: HostState ──┐
//!                     ├─► HostState::changes_to ─► [Change] ─► Host::apply ─► kernel
//!   have: HostState ──┘                                            │
//!        ▲                                                         │
//!        └────────────────── Host::read(&Scope) ◄──────────────────┘
//! ```
//!
//! [`state`] and [`change`] are pure: sorted sets and their ordered difference. [`kernel`] is the only module that
//! speaks netlink. [`netns`] runs code inside a network namespace.
#![forbid(unsafe_code)]

pub mod host;
pub mod kernel;
pub mod netns;
pub mod state;

pub use host::HostError;
pub use nix::errno::Errno;
