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
//! speaks netlink. [`netns`] runs code inside a network namespace, [`sysctl`] and [`subnet_env`] read and write the two
//! kinds of files that a node agent deals with, [`regular_file`] reads those that others may have made. [`filter`] speaks to
//! the programs of the packet filter.
#![forbid(unsafe_code)]

pub mod change;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod filter;
pub mod host;
pub mod kernel;
pub mod netns;
pub mod reconcile;
pub mod regular_file;
pub mod state;
pub mod subnet_env;
pub mod sysctl;

pub use host::{Host, HostError};
pub use nix::errno::Errno;
