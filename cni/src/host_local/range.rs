//! Ranges of addresses, and sets of them: a container gets one address of each set.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// A range as it is written in a configuration. An empty text counts as nothing, as in the reference plugin.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RawRange {
    #[serde(deserialize_with = "text_or_nothing")]
    pub(super) subnet: Option<IpNet>,
    #[serde(deserialize_with = "text_or_nothing")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "text_or_nothing")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "text_or_nothing")]
    gateway: Option<IpAddr>,
}

fn text_or_nothing<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text: Option<String> = Deserialize::deserialize(deserializer)?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => {
            text.parse().map(Some).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
        }
    }
}

/// Consecutive addresses of one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl Range {
    /// Fills in what is not said: the gateway and the start are the subnet's first address, the end is its last one but
    /// for an IPv4 broadcast address.
    fn new(raw: &RawRange) -> Result<Self, String> {
        let subnet = raw.subnet.ok_or("a range has no subnet")?;
        let network = subnet.network();
        if subnet.prefix_len() > subnet.max_prefix_len() - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.addr() != network {
            let length = subnet.prefix_len();
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {length} the network address is {network}"
            ));
        }
        if network.to_canonical() != network {
            return Err(format!("{subnet}: write an IPv4 network in the form of IPv4"));
        }
        let first = address(bits(network) + 1, network);
        let last = match subnet {
            IpNet::V4(_) => address(bits(subnet.broadcast()) - 1, network),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let inside =
            |name: &str, given: Option<IpAddr>, default: IpAddr| match given.map(|ip| ip.to_canonical()) {
                None => Ok(default),
                Some(ip) if subnet.contains(&ip) => Ok(ip),
                Some(ip) => Err(format!("{name} {ip} not in network {subnet}")),
            };
        let start = inside("RangeStart", raw.range_start, first)?;
        let end = inside("RangeEnd", raw.range_end, last)?;
        if start > end {
            return Err(format!("RangeStart {start} is after RangeEnd {end}"));
        }
        let gateway = raw.gateway.map_or(first, |ip| ip.to_canonical());
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether an address is one of these.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && self.start <= ip && ip <= self.end
    }

    /// The router of the subnet. It need not be an address of the range, nor of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Length of the subnet's prefix.
    pub fn prefix_len(&self) -> u8 {
        self.subnet.prefix_len()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start.is_ipv4() == other.start.is_ipv4() && self.start <= other.end && other.start <= self.end
    }

    fn steps(&self, from: u128, to: u128) -> impl Iterator<Item = (IpAddr, &Self)> {
        (from..=to).map(move |step| (address(step, self.start), self))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family, in the order in which they are used up; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// From a configuration.
    pub(super) fn new(raw: &[RawRange]) -> Result<Self, String> {
        let ranges = raw.iter().map(Range::new).collect::<Result<Vec<_>, _>>()?;
        let first = ranges.first().ok_or("empty range set")?;
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err("mixed address families".to_owned());
        }
        for (index, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(index + 1).find(|other| one.overlaps(other)) {
                return Err(format!("subnets {one} and {other} overlap"));
            }
        }
        Ok(Self(ranges))
    }

    /// Its ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Whether it is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.0.iter().all(|range| range.start.is_ipv4())
    }

    /// The range that has an address.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether an address is in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|one| other.0.iter().any(|two| one.overlaps(two)))
    }

    /// All addresses, each once, round the set from the one after `last`; from the start if `last` is none of them.
    /// Going on from the last address keeps one that was just given back out of use for as long as possible: somebody
    /// may still send to it.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let found =
            last.and_then(|ip| self.0.iter().position(|range| range.contains(ip)).zip(Some(bits(ip))));
        let (at, step) = found.unwrap_or((0, 0));
        let (before, from) = self.0.split_at(at);
        let whole = |range: &Range| (bits(range.start), bits(range.end));
        let (here, later) = from.split_at(usize::from(found.is_some()));
        // The rest of the range that `last` is in comes first, the part up to it comes at the end.
        let rest = here
            .iter()
            .filter(move |range| step < bits(range.end))
            .flat_map(move |range| range.steps(step + 1, bits(range.end)));
        let part = here.iter().flat_map(move |range| range.steps(bits(range.start), step));
        let others = later.iter().chain(before).flat_map(move |range| {
            let (start, end) = whole(range);
            range.steps(start, end)
        });
        rest.chain(others).chain(part)
    }

    /// How many addresses it has, those of gateways too.
    pub fn size(&self) -> u128 {
        let sizes = self.0.iter().map(|range| (bits(range.end) - bits(range.start)).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of the family of `like`.
fn address(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests;
