//! `SocketAddr` in the kernel's shape and back.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for an IPv4 or an IPv6 socket address as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    /// Bytes of room, for the kernel's `msg_namelen`.
    pub(super) const ROOM: libc::socklen_t = size_of::<Self>() as libc::socklen_t;

    /// An address of no family: all zero.
    pub(super) const EMPTY: Self = Self {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// Writes `address` and says how many bytes of it the kernel shall read.
    pub(super) fn set(&mut self, address: SocketAddr) -> libc::socklen_t {
        match address {
            SocketAddr::V4(address) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo().to_be(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }

    /// The address that the kernel wrote, or `None` for a family that is no IP.
    ///
    /// The flow label and the scope are left out: peers are compared by address and port, and a link-local
    /// underlay is not supported.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: every variant begins with the family field, and EMPTY or a writer has initialised all bytes.
        let family = unsafe { self.family };
        match libc::c_int::from(family) {
            libc::AF_INET => {
                // SAFETY: any bit pattern is a valid sockaddr_in, and all bytes are initialised.
                let v4 = unsafe { self.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: any bit pattern is a valid sockaddr_in6, and all bytes are initialised.
                let v6 = unsafe { self.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, 0)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_shape() {
        for text in ["10.1.2.3:8285", "255.255.255.255:65535", "[fd00::1]:8472", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut raw = RawAddress::EMPTY;
            raw.set(address);
            assert_eq!(raw.get(), Some(address));
        }
        assert_eq!(RawAddress::EMPTY.get(), None);
    }
}
