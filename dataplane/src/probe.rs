//! What this kernel offers to the engine: every feature asked for once, with the answer in words.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::str::FromStr;

use dataplane_core::checksum::Adder;
use socket2::{Domain, Socket, Type};

use crate::sys;
use crate::sys::mmsg::{Outgoing, SendBatch};

pub(crate) mod ladder;

/// One way of moving many packets at once that a kernel may lack, or that an operator may switch off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Feature {
    /// `tun-vnet-hdr`: the TUN device puts a virtio header before every packet; the next two need it.
    TunVnetHdr,
    /// `tun-tso`: TCP superpackets from and to the TUN device.
    TunTso,
    /// `tun-uso`: UDP superpackets from and to the TUN device (Linux 6.2).
    TunUso,
    /// `udp-gso`: one send for many datagrams of one size (`UDP_SEGMENT`, Linux 4.18).
    UdpGso,
    /// `udp-gro`: one receive buffer for many datagrams of one sender (`UDP_GRO`, Linux 5.0).
    UdpGro,
    /// `mmsg`: many messages in one system call (`sendmmsg`, `recvmmsg`).
    Mmsg,
    /// `simd`: checksums in wide registers (AVX2, NEON). The CPU's to offer, not the kernel's.
    Simd,
}

impl Feature {
    /// All features, in the order in which they are printed.
    pub const ALL: [Self; 7] =
        [Self::TunVnetHdr, Self::TunTso, Self::TunUso, Self::UdpGso, Self::UdpGro, Self::Mmsg, Self::Simd];

    /// The name in flags, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TunVnetHdr => "tun-vnet-hdr",
            Self::TunTso => "tun-tso",
            Self::TunUso => "tun-uso",
            Self::UdpGso => "udp-gso",
            Self::UdpGro => "udp-gro",
            Self::Mmsg => "mmsg",
            Self::Simd => "simd",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`Feature`]s. Text form: names separated by commas; `all` and `none` stand for the whole and the empty set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    /// Every feature.
    pub const ALL: Self = Self((1 << Feature::ALL.len()) - 1);
    /// No feature.
    pub const NONE: Self = Self(0);

    /// True when the set holds `feature`.
    #[must_use]
    pub const fn contains(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    /// The set with `feature` added.
    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | (1 << feature as u8))
    }

    /// The set with `feature` taken out.
    #[must_use]
    pub const fn without(self, feature: Feature) -> Self {
        Self(self.0 & !(1 << feature as u8))
    }

    /// The features of the set in printing order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| self.contains(*feature))
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        features.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        for (at, feature) in self.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            f.write_str(feature.name())?;
        }
        Ok(())
    }
}

/// A name in a feature list that no feature has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no engine feature is called {name:?}; did you mean {nearest:?}? (features: {all}, or all, none)", all = Features::ALL)]
pub struct UnknownFeature {
    /// The name that was given.
    pub name: String,
    /// The known name that looks most like it.
    pub nearest: &'static str,
}

impl FromStr for Features {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        let mut set = Self::NONE;
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match (name, Feature::ALL.into_iter().find(|feature| feature.name() == name)) {
                (_, Some(feature)) => set = set.with(feature),
                ("all", None) => set = Self::ALL,
                ("none", None) => {}
                (name, None) => {
                    let nearest = Feature::ALL
                        .into_iter()
                        .min_by_key(|feature| strsim::damerau_levenshtein(feature.name(), name))
                        .unwrap_or(Feature::Mmsg);
                    return Err(UnknownFeature { name: name.to_owned(), nearest: nearest.name() });
                }
            }
        }
        Ok(set)
    }
}

/// The answer of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The feature can be used.
    pub on: bool,
    /// Why not, or a detail of how; may be empty when on.
    pub why: String,
}

impl Finding {
    /// Usable; `how` is a detail worth reading, or empty.
    pub(crate) fn on(how: impl Into<String>) -> Self {
        Self { on: true, why: how.into() }
    }

    /// Not usable, and why.
    pub(crate) fn off(why: impl Into<String>) -> Self {
        Self { on: false, why: why.into() }
    }

    /// Not usable because the operator said so.
    pub(crate) fn forced() -> Self {
        Self::off("forced by --engine-off")
    }
}

/// What every probe answered. Printed, it is one line a probe: `udp-gro: off (forced by --engine-off)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    findings: [Finding; Feature::ALL.len()],
    max_segments: usize,
    receive_buffer: usize,
    send_buffer: usize,
}

impl Capabilities {
    /// `findings` in the order of [`Feature::ALL`]; `buffers` = receive and send room of the socket in bytes.
    pub(crate) fn new(
        findings: [Finding; Feature::ALL.len()],
        max_segments: usize,
        buffers: (usize, usize),
    ) -> Self {
        Self { findings, max_segments, receive_buffer: buffers.0, send_buffer: buffers.1 }
    }

    /// The features that can be used.
    #[must_use]
    pub fn usable(&self) -> Features {
        Feature::ALL.into_iter().filter(|feature| self.finding(*feature).on).collect()
    }

    /// What the probe of `feature` answered.
    #[must_use]
    pub fn finding(&self, feature: Feature) -> &Finding {
        &self.findings[feature as usize]
    }

    /// Most datagrams that one send may carry: 64 or 128, and 1 without `udp-gso`.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.max_segments
    }

    /// Room for received data in the socket, in bytes as the kernel counts them.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for feature in Feature::ALL {
            let finding = self.finding(feature);
            write!(f, "{feature}: {}", if finding.on { "on" } else { "off" })?;
            if finding.why.is_empty() { writeln!(f)? } else { writeln!(f, " ({})", finding.why)? }
        }
        write!(
            f,
            "socket-buffers: receive {} KiB, send {} KiB",
            self.receive_buffer >> 10,
            self.send_buffer >> 10
        )
    }
}

/// How to sum payloads on this CPU, and what [`Feature::Simd`] answers to that; `off` may hold it.
#[must_use]
pub fn adder(off: Features) -> (Adder, Finding) {
    match sys::checksum::wide_adder() {
        _ if off.contains(Feature::Simd) => (Adder::SCALAR, Finding::forced()),
        Some(adder) => (adder, Finding::on(adder.name())),
        None => (Adder::SCALAR, Finding::off("this CPU has neither AVX2 nor NEON")),
    }
}

/// The version of the running kernel, as far as the probes need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelVersion(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl KernelVersion {
    /// What `uname` says, or `None` when it is not of the form `6.18.44-anything`.
    pub(crate) fn running() -> Option<Self> {
        let name = nix::sys::utsname::uname().ok()?;
        Self::parse(name.release().to_str()?)
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Some(Self(major, minor, patch))
    }

    /// Kernels whose UDP GSO can damage a batch of datagrams that are all of one length (broken by b10b446,
    /// repaired by 78effd8 in 7.1.5). Nothing in a probe shows it.
    pub(crate) fn damages_equal_trains(self) -> bool {
        (Self(7, 0, 0)..Self(7, 1, 5)).contains(&self)
    }

    /// Kernels that damage UDP superpackets when they are routed on into another tunnel.
    pub(crate) fn damages_tunnelled_uso(self) -> bool {
        self < Self(6, 9, 0)
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}.{}.{}", self.0, self.1, self.2)
    }
}

/// Most segments that the kernel takes in one UDP GSO send, 64 or 128: Linux 6.9 raised the limit.
///
/// Asked by sending 65 one-byte datagrams between two sockets of our own on 127.0.0.1.
///
/// # Errors
/// When that cannot work, as where loopback is down.
pub(crate) fn max_segments() -> io::Result<usize> {
    let receiver = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    receiver.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let to = receiver.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let sender = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let message = Outgoing { to, tos: 0, lane: 0, bytes: &[0; 65], stride: 1 };
    match SendBatch::new(1).send(sender.as_fd(), std::iter::once(message)) {
        Ok(_) => Ok(128),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(64),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_lists_survive_their_text() {
        for bits in 0..=Features::ALL.0 {
            let set = Features(bits);
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        assert_eq!("all".parse(), Ok(Features::ALL));
        assert_eq!(" udp-gso , tun-tso,".parse::<Features>().unwrap().to_string(), "tun-tso,udp-gso");
    }

    #[test]
    fn an_unknown_feature_names_the_nearest() {
        let error = "udp-gso,tun-tos".parse::<Features>().unwrap_err();
        assert_eq!(error.nearest, "tun-tso");
        assert!(error.to_string().contains("did you mean \"tun-tso\"?"), "{error}");
    }

    #[test]
    fn kernel_versions_are_read_from_release_names() {
        assert_eq!(KernelVersion::parse("6.18.44-fc-v669"), Some(KernelVersion(6, 18, 44)));
        assert_eq!(KernelVersion::parse("7.0-rc1"), Some(KernelVersion(7, 0, 0)));
        assert_eq!(KernelVersion::parse("strange"), None);
        assert!(KernelVersion(7, 1, 4).damages_equal_trains());
        assert!(!KernelVersion(7, 1, 5).damages_equal_trains());
        assert!(!KernelVersion(6, 18, 44).damages_equal_trains());
    }

    #[test]
    fn capabilities_print_one_line_a_probe() {
        let mut findings = Feature::ALL.map(|_| Finding::on(""));
        findings[Feature::UdpGro as usize] = Finding::forced();
        let capabilities = Capabilities::new(findings, 128, (8 << 20, 4 << 20));
        let text = capabilities.to_string();
        assert_eq!(text.lines().count(), Feature::ALL.len() + 1);
        assert!(text.contains("udp-gro: off (forced by --engine-off)\n"), "{text}");
        assert_eq!(capabilities.usable(), Features::ALL.without(Feature::UdpGro));
    }
}
