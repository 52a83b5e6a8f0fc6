//! A pool: the subnets of one length that nodes may lease, between two bounds, in either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use dataplane_core::IpNet;

/// The subnets that may be leased from one network. At least one, all of one length, first and last included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    network: IpNet,
    first: IpNet,
    last: IpNet,
}

/// flannel's limits for a family, as prefix lengths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The smallest network that may be given without a subnet length.
    pub longest_network: u8,
    /// The smallest subnet.
    pub longest_subnet: u8,
    /// The subnet length where the network is big enough for it.
    pub usual_subnet: u8,
}

/// Which value is wrong and why, without its name: that differs by family.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PoolError {
    #[error("the network is too small, it must be /{longest} or larger")]
    NetworkTooSmall { longest: u8 },
    #[error("the subnet length must be less than /{limit}")]
    LengthTooLong { limit: u8 },
    #[error("the network must hold at least four subnets, so the subnet length must be {least} or more")]
    LengthTooShort { least: u8 },
    #[error("the first subnet is outside the network")]
    MinOutside,
    #[error("the last subnet is outside the network")]
    MaxOutside,
    #[error("it is not on a subnet boundary, the nearest below is {below}")]
    MinOffBoundary { below: IpAddr },
    #[error("it is not on a subnet boundary, the nearest below is {below}")]
    MaxOffBoundary { below: IpAddr },
    #[error("the last subnet comes before the first")]
    Reversed,
}

impl Pool {
    /// The network as one piece, where nobody allocates from it.
    pub(super) fn whole(network: IpNet) -> Self {
        let network = network.trunc();
        Self { network, first: network, last: network }
    }

    pub(super) fn new(
        network: IpNet,
        length: Option<u8>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
        limits: Limits,
    ) -> Result<Self, PoolError> {
        let network = network.trunc();
        let prefix = network.prefix_len();
        let length = match length {
            Some(length) if length > limits.longest_subnet => {
                return Err(PoolError::LengthTooLong { limit: limits.longest_subnet + 1 });
            }
            Some(length) if length < prefix.saturating_add(2) => {
                return Err(PoolError::LengthTooShort { least: prefix + 2 });
            }
            Some(length) => length,
            None if prefix > limits.longest_network => {
                return Err(PoolError::NetworkTooSmall { longest: limits.longest_network });
            }
            None => limits.usual_subnet.max(prefix + 2),
        };
        // flannel leaves out the first subnet: its base address is the network's own.
        let bounds = SubnetBits::of(&network, length);
        let first = match min {
            Some(min) if !network.contains(&min) => return Err(PoolError::MinOutside),
            Some(min) => bounds.at(min).map_err(|below| PoolError::MinOffBoundary { below })?,
            None => bounds.nth(bounds.base, 1),
        };
        let last = match max {
            Some(max) if !network.contains(&max) => return Err(PoolError::MaxOutside),
            Some(max) => bounds.at(max).map_err(|below| PoolError::MaxOffBoundary { below })?,
            None => bounds.nth(bounds.base, (1u128 << (length - prefix)) - 1),
        };
        if last.addr() < first.addr() {
            return Err(PoolError::Reversed);
        }
        Ok(Self { network, first, last })
    }

    /// The whole cluster's network.
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// The prefix length of each subnet.
    pub fn subnet_length(&self) -> u8 {
        self.first.prefix_len()
    }

    /// The first subnet that may be leased.
    pub fn first(&self) -> IpNet {
        self.first
    }

    /// The last subnet that may be leased.
    pub fn last(&self) -> IpNet {
        self.last
    }

    /// How many subnets there are.
    pub fn count(&self) -> u128 {
        let bits = SubnetBits::of(&self.network, self.subnet_length());
        ((to_bits(self.last.addr()) - to_bits(self.first.addr())) >> bits.shift) + 1
    }

    /// The subnet at `index`, counted from 0.
    pub fn nth(&self, index: u128) -> Option<IpNet> {
        let bits = SubnetBits::of(&self.network, self.subnet_length());
        (index < self.count()).then(|| bits.nth(to_bits(self.first.addr()), index))
    }

    /// Which subnets of the pool share an address with `net`, by index; `None` if none does.
    pub fn indices(&self, net: &IpNet) -> Option<RangeInclusive<u128>> {
        if net.addr().is_ipv4() != self.network.addr().is_ipv4() {
            return None;
        }
        let bits = SubnetBits::of(&self.network, self.subnet_length());
        let base = to_bits(self.first.addr());
        let low = to_bits(net.network()).max(base);
        let high = to_bits(net.broadcast()).min(to_bits(self.last.broadcast()));
        (low <= high).then(|| ((low - base) >> bits.shift)..=((high - base) >> bits.shift))
    }

    /// `subnet` is one of the pool: the right length, between the bounds, no host bits.
    pub fn holds(&self, subnet: &IpNet) -> bool {
        self.network.contains(subnet)
            && subnet.prefix_len() == self.subnet_length()
            && *subnet == subnet.trunc()
            && (self.first.addr()..=self.last.addr()).contains(&subnet.addr())
    }
}

/// Arithmetic on subnets of one length, the same for both families.
struct SubnetBits {
    base: u128,
    length: u8,
    shift: u32,
    v4: bool,
}

impl SubnetBits {
    fn of(network: &IpNet, length: u8) -> Self {
        let shift = u32::from(network.max_prefix_len() - length);
        Self { base: to_bits(network.addr()), length, shift, v4: network.addr().is_ipv4() }
    }

    fn nth(&self, from: u128, index: u128) -> IpNet {
        self.net(from + (index << self.shift))
    }

    /// The subnet that begins at `address`, or the boundary below it.
    fn at(&self, address: IpAddr) -> Result<IpNet, IpAddr> {
        let net = self.net(to_bits(address)).trunc();
        if net.addr() == address { Ok(net) } else { Err(net.addr()) }
    }

    fn net(&self, bits: u128) -> IpNet {
        let address = match u32::try_from(bits) {
            Ok(bits) if self.v4 => IpAddr::V4(Ipv4Addr::from(bits)),
            _ => IpAddr::V6(Ipv6Addr::from(bits)),
        };
        IpNet::new(address, self.length).expect("the length was checked against the family")
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
