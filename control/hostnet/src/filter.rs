//! Packet filter rules: the two systems of Linux, each spoken to through its own program.
//!
//! [`nft`] knows tables of nftables, [`iptables`] chains inside the shared tables of iptables. Both are used the same way:
//! what should be there is a value, what is there is read back as text, and the difference goes to the kernel as one
//! transaction. The programs are used and not netlink because their text is the interface that has stayed: iptables has
//! no other, and `iptables-nft` writes what only its own program reads.
use std::fmt;

pub mod conntrack;
pub mod iptables;
pub mod nft;
mod program;

pub use program::ProgramError;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4: `ip` in nftables, `iptables`.
    V4,
    /// IPv6: `ip6` in nftables, `ip6tables`.
    V6,
}

impl IpVersion {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for IpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
