//! MTUs: what the underlay carries, what a pod may send, and the overhead between them.
//!
//! The only place where header sizes are added up.

use crate::encap::Encap;
use crate::wire::Family;

/// UDP header, in bytes (RFC 768).
const UDP: u16 = 8;
/// VXLAN header (RFC 7348) and inner Ethernet header without FCS.
const VXLAN_AND_ETHERNET: u16 = 8 + 14;

/// The smallest overlay MTU that IPv4 allows a link to have (RFC 791).
pub const MIN_OVERLAY_MTU: u16 = 68;

/// The smallest MTU that IPv6 allows a link to have (RFC 8200, section 5).
pub const MIN_MTU_V6: u16 = 1280;

/// MTU of the underlay interface, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkMtu(pub u16);

impl LinkMtu {
    /// The widest usual MTU that a packet of `len` bytes, IP header included, does not fit: what to try where a path
    /// refused it and did not say how much it takes. RFC 1191, section 7.1, with what is usual on Ethernet and the least
    /// that IPv6 allows. `None` where there is nothing left to try.
    #[must_use]
    pub fn below(len: usize) -> Option<Self> {
        const USUAL: [u16; 14] =
            [65_535, 32_000, 17_914, 9000, 8166, 4352, 2002, 1500, 1492, 1400, 1280, 1006, 508, 296];
        USUAL.into_iter().find(|mtu| usize::from(*mtu) < len).map(Self)
    }
}

/// MTU of the overlay device and of the pods behind it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OverlayMtu(u16);

/// Bytes that encapsulation adds to an inner IP packet, outer IP header included.
///
/// Raw: 28 over IPv4, 48 over IPv6. VXLAN: 50 and 70.
#[must_use]
pub const fn overhead(encap: &Encap, underlay: Family) -> u16 {
    let ip = match underlay {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ip + UDP
        + match encap {
            Encap::Raw => 0,
            Encap::Vxlan { .. } => VXLAN_AND_ETHERNET,
        }
}

impl OverlayMtu {
    /// The overlay MTU over a link, or `None` if less than 68 bytes (RFC 791) would be left.
    #[must_use]
    pub const fn over(link: LinkMtu, encap: &Encap, underlay: Family) -> Option<Self> {
        match link.0.checked_sub(overhead(encap, underlay)) {
            Some(mtu) if mtu >= MIN_OVERLAY_MTU => Some(Self(mtu)),
            _ => None,
        }
    }

    /// An overlay MTU given as such, or `None` below 68 bytes.
    #[must_use]
    pub const fn new(mtu: u16) -> Option<Self> {
        if mtu >= MIN_OVERLAY_MTU { Some(Self(mtu)) } else { None }
    }

    /// In bytes.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encap::Vni;

    #[test]
    fn overheads_are_flannels() {
        let link = LinkMtu(1500);
        let vxlan = Encap::Vxlan { vni: Vni::new(1).unwrap() };
        let over = |encap, family| OverlayMtu::over(link, encap, family).map(OverlayMtu::get);
        assert_eq!(over(&Encap::Raw, Family::V4), Some(1472));
        assert_eq!(over(&Encap::Raw, Family::V6), Some(1452));
        assert_eq!(over(&vxlan, Family::V4), Some(1450));
        assert_eq!(over(&vxlan, Family::V6), Some(1430));
        assert_eq!(OverlayMtu::over(LinkMtu(100), &vxlan, Family::V4), None);
    }

    #[test]
    fn what_is_refused_at_some_width_is_tried_at_the_next_narrower_one() {
        let below = |len| LinkMtu::below(len).map(|mtu| mtu.0);
        assert_eq!(below(1500), Some(1492));
        assert_eq!(below(1492), Some(1400));
        assert_eq!(below(1450), Some(1400));
        assert_eq!(below(70_000), Some(65_535));
        assert_eq!(below(297), Some(296));
        assert_eq!(below(296), None);
    }
}
