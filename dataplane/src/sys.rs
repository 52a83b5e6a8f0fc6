//! The only unsafe code of the workspace: system calls that `tun-rs`, `nix` and `socket2` do not wrap safely, and
//! instructions that not every CPU has.
//!
//! Each unsafe block makes one call and says why it is sound. Five things live here:
//!
//! - [`checksum`]: sums in wide registers.
//! - [`tun`]: the three ioctls that put a TUN queue into virtio shape.
//! - [`mmsg`]: `sendmmsg` and `recvmmsg` with control messages of their own for every message. `nix` has both
//!   calls, but with one set of control messages for the whole batch, so it cannot give each message its own
//!   `UDP_SEGMENT`.
//! - [`pmtu`]: one socket option.
//! - [`drops`]: one socket option.
//! - [`heap`]: one request to the allocator.

pub(crate) mod checksum;
pub(crate) mod drops;
pub(crate) mod heap;
pub(crate) mod mmsg;
pub(crate) mod pmtu;
pub(crate) mod tun;
