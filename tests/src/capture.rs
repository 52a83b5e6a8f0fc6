//! Packets as a namespace's devices see them: `AF_PACKET`, without the link header.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dataplane_core::checksum::Adder;
use dataplane_core::wire::edit::l4_is_valid;
use dataplane_core::wire::{Ip, Length, UDP, get16};
use hostnet::netns::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// `ETH_P_ALL` in network byte order: packets in both directions.
const EVERYTHING: i32 = 0x0300;

/// A listening capture of every device of a namespace.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
}

/// A packet and its header as it was read.
#[derive(Clone, Debug)]
pub struct Captured {
    /// All bytes, IP header first.
    pub bytes: Vec<u8>,
    /// Its IP header.
    pub ip: Ip,
}

impl Captured {
    /// `bytes` as an IP packet; `None` if they are none.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let ip = Ip::parse(bytes, Length::Claimed).ok()?;
        Some(Self { bytes: bytes.get(..ip.len)?.to_vec(), ip })
    }

    /// Source and destination port of a UDP packet.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        let at = self.ip.l3_len;
        (self.ip.protocol == UDP).then(|| get16(&self.bytes, at).zip(get16(&self.bytes, at + 2)))?
    }

    /// The source address and port of a UDP packet.
    #[must_use]
    pub fn from(&self) -> Option<SocketAddr> {
        self.ports().map(|(from, _)| SocketAddr::new(self.ip.source, from))
    }

    /// What follows the UDP header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.ip.l3_len + 8..).unwrap_or_default()
    }

    /// The UDP checksum as it is written.
    #[must_use]
    pub fn udp_checksum(&self) -> Option<u16> {
        get16(&self.bytes, self.ip.l3_len + 6)
    }

    /// Whether the transport checksum adds up.
    #[must_use]
    pub fn checksum_is_right(&self) -> bool {
        l4_is_valid(&self.bytes, &self.ip, Adder::SCALAR)
    }
}

impl Capture {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// When there is no right for it (`CAP_NET_RAW`).
    pub fn start(namespace: &NetNs) -> anyhow::Result<Self> {
        let open = || Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERYTHING)));
        let socket = namespace.run("capture", open)?.context("open a packet socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket })
    }

    /// The first packet from here on that `wanted` takes.
    ///
    /// # Errors
    ///
    /// When none comes within five seconds.
    pub fn wait_for(&self, wanted: impl Fn(&Captured) -> bool) -> anyhow::Result<Captured> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(packet) = self.next()?.filter(&wanted) {
                return Ok(packet);
            }
        }
        bail!("no such packet was captured")
    }

    /// Every packet that is there or comes within `quiet` after another.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub fn drain(&self, quiet: Duration) -> anyhow::Result<Vec<Captured>> {
        let (mut packets, mut last) = (Vec::new(), Instant::now());
        while last.elapsed() < quiet {
            if let Some(packet) = self.next()? {
                packets.push(packet);
                last = Instant::now();
            }
        }
        Ok(packets)
    }

    /// The next IP packet, or `None` if there was none for a moment, or something else.
    fn next(&self) -> anyhow::Result<Option<Captured>> {
        let mut reader = &self.socket;
        let mut bytes = vec![0; 65_536];
        match reader.read(&mut bytes) {
            Ok(len) => Ok(bytes.get(..len).and_then(Captured::read)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).context("read a captured packet"),
        }
    }
}

/// Whether a captured packet goes from one address to another.
#[must_use]
pub fn goes(packet: &Captured, from: IpAddr, to: IpAddr) -> bool {
    packet.ip.source == from && packet.ip.destination == to
}
