//! The pure half of the engine: what to do with a packet, decided without touching anything.
//!
//! ```text
//!  outbound  TUN read ─► vnet header ─► IP header ─► owner of the destination ─► split ─► encap ─► TxBatch
//!                            │               │                 │                   (a Train of equal datagrams)
//!                            └───────────────┴─────────────────┴──► a DropReason, maybe an ICMP reply
//!
//!  inbound   receive buffer ─► sender known? ─► Train of datagrams ─► decap ─► IP header ─► owner of source
//!                                                                     and destination ─► Merger ─► TUN writes
//! ```
//!
//! Nothing here does I/O, reads a clock, allocates for a packet, or can panic on what a packet says.
//! Every packet ends passed on, or counted under exactly one [`DropReason`].
//!
//! | module | what lives there |
//! |---|---|
//! | [`wire`] | checked views of headers, edits in place, the virtio-net header |
//! | [`checksum`] | ones-complement sums |
//! | [`mtu`] | the only place where header sizes are added up |
//! | [`encap`] | flannel's raw format and VXLAN |
//! | [`train`] | equal segments and a shorter tail: the shape of TSO, UDP GSO and UDP GRO |
//! | [`split`], [`merge`] | superpacket to segments, datagrams to superpackets |
//! | [`batch`] | datagrams waiting for one `sendmmsg` |
//! | [`flow`], [`prefix`], [`peers`] | flow hash, longest-prefix match, who owns which subnet |
//! | [`icmp`] | the replies a tunnel owes |
//! | [`forward`] | the decisions |
//! | [`counters`] | the closed list of reasons, and the sums |
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod batch;
pub mod checksum;
pub mod counters;
pub mod encap;
pub mod flow;
pub mod forward;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
pub mod icmp;
pub mod merge;
pub mod mtu;
pub mod peers;
pub mod prefix;
pub mod split;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod train;
pub mod wire;

pub use batch::{TxBatch, TxLimits, TxMessage};
pub use counters::{Counters, Direction, DropReason};
pub use encap::{Encap, Vni};
pub use forward::{Forwarder, ForwarderConfig, Received, SourceCheck, Unsent, Verdict};
pub use icmp::ReplyQueue;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use merge::{MergeConfig, Merger, Piece, TunWrite};
pub use mtu::{LinkMtu, OverlayMtu};
pub use peers::{Local, Owner, Peer, PeerTable, PeerTableError, Vtep};
pub use train::Train;
pub use wire::vnet::{VNET_HDR_LEN, VnetHdr};
pub use wire::{Family, MacAddr};

/// The longest IP packet, and with it the longest superpacket, in bytes (RFC 791: 16-bit total length).
pub const MAX_PACKET: usize = 65_535;
