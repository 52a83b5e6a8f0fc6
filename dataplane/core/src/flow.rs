//! Which packets belong together: the key that merging compares, and its hash.

use core::net::IpAddr;

use crate::wire::{Fragment, Ip, TCP, UDP, get32};

/// The five-tuple of a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port in the upper, destination port in the lower 16 bits: the first word of both headers.
    pub ports: u32,
    /// IANA protocol number.
    pub protocol: u8,
}

impl FlowKey {
    /// The flow of a packet: without ports where there are none, or where not every packet of the flow has them.
    #[must_use]
    pub fn of(packet: &[u8], ip: &Ip) -> Self {
        let has_ports = ip.fragment == Fragment::Whole && matches!(ip.protocol, TCP | UDP);
        let ports = if has_ports { get32(packet, ip.l3_len).unwrap_or(0) } else { 0 };
        Self { source: ip.source, destination: ip.destination, ports, protocol: ip.protocol }
    }

    /// A hash that spreads flows over tables and queues; equal for equal keys, with no secret in it.
    #[must_use]
    pub fn hash(&self) -> u32 {
        let fold = |address: &IpAddr| match address {
            IpAddr::V4(v4) => u64::from(u32::from(*v4)),
            IpAddr::V6(v6) => {
                let bits = u128::from(*v6);
                (bits >> 64) as u64 ^ bits as u64
            }
        };
        // Odd constants of the golden ratio; a multiplication and a shift mix each part into the upper half.
        const K: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = fold(&self.source).wrapping_mul(K);
        hash = (hash ^ (hash >> 29) ^ fold(&self.destination)).wrapping_mul(K);
        hash =
            (hash ^ (hash >> 31) ^ u64::from(self.ports) ^ (u64::from(self.protocol) << 40)).wrapping_mul(K);
        (hash >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn neighbouring_flows_spread_over_a_table() {
        let key = |port: u32| FlowKey {
            source: "10.244.1.2".parse().unwrap(),
            destination: "10.244.2.2".parse().unwrap(),
            ports: (port << 16) | 5201,
            protocol: 6,
        };
        let slots: BTreeSet<u32> = (40_000..40_256).map(|port| key(port).hash() % 256).collect();
        // A perfect random spread of 256 balls over 256 bins fills about 162.
        assert!(slots.len() > 130, "only {} slots of 256 used", slots.len());
    }
}
