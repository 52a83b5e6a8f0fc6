//! CNI plugins for flannel's networks: `flannel` itself, and `bridge`, `host-local`, `static`, `portmap` and `loopback`, which
//! read the same configurations and keep the same files as the reference plugins.
//!
//! ```text
//!  kubelet ─► containerd ─► flannel ──► bridge ──► host-local
//!                             │ subnet.env  │ veth, cni0    │ /var/lib/cni/networks/NAME/10.244.1.5
//!                             └ scratch     └ masquerade    └ lock
//!                         ─► portmap
//! ```
//!
//! Each plugin is a [`plugin::Plugin`] and a program of three lines in `src/bin`. [`protocol`] is the specification,
//! [`delegate`] runs other plugins.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod delegate;
pub mod filter;
pub mod flannel;
pub mod fuzzing;
pub mod host_local;
pub mod loopback;
pub mod masquerade;
pub mod plugin;
pub mod portmap;
pub mod protocol;
pub mod sandbox;
pub mod static_ipam;
