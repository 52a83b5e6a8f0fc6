//! Traffic between two namespaces and what it cost: ping, TCP, UDP, CPU seconds.
//!
//! No tool of the machine is needed: no `ping`, no `iperf3`. Every function takes the namespaces of both ends, opens its
//! sockets inside them (a socket stays in the namespace it was opened in) and runs both ends itself, so that the number
//! of bytes that arrived is counted where they arrive. Every result serializes.

pub mod cpu;
pub mod echo;
pub mod garbage;
pub mod ping;
pub mod scatter;
pub mod tcp;
pub mod udp;

pub(crate) mod end;
mod pattern;

use std::net::{IpAddr, SocketAddr};

use hostnet::netns::NetNs;

/// The two ends of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// The namespace that sends, or asks first.
    pub from: &'a NetNs,
    /// The namespace that receives, or answers.
    pub to: &'a NetNs,
    /// The address of the receiver inside `to`; every measurement takes a free port of its own on it.
    pub address: IpAddr,
}

impl Path<'_> {
    /// The receiver's address with port 0: any free one.
    fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.address, 0)
    }

    /// The unspecified address of the receiver's family, for the sender to bind.
    fn any_source(&self) -> SocketAddr {
        match self.address {
            IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
            IpAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
        }
    }
}

/// The value below which `percent` of the sorted samples lie (nearest rank); 0 for none.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_nearest_rank() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&samples, 50.0), 100.0);
        assert_eq!(percentile(&samples, 99.0), 198.0);
        assert_eq!(percentile(&samples, 100.0), 200.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
        assert_eq!(percentile(&[7.0], 1.0), 7.0);
    }
}
