//! ICMP echo over IPv4 and IPv6, with the errors that routers send back told apart (RFC 792, RFC 4443).
//!
//! A raw socket, so it takes `CAP_NET_RAW` in the namespace, which the owner of a lab has.

mod message;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hostnet::netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use message::{Echo, Incoming};

/// One echo request and what may come back.
#[derive(Clone, Debug, PartialEq)]
pub struct Ping {
    /// Whom to ask.
    pub to: IpAddr,
    /// The source address; chosen by the route if `None`.
    pub from: Option<IpAddr>,
    /// Payload bytes behind the 8 of the ICMP header.
    pub payload: usize,
    /// Forbid fragments: IPv4 with the DF bit, IPv6 with `IPV6_DONTFRAG`.
    pub dont_fragment: bool,
    /// TTL or hop limit; the system's default if `None`.
    pub ttl: Option<u8>,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// The echo, with the payload that was sent.
    Echo {
        /// Round-trip time in microseconds.
        microseconds: f64,
    },
    /// The echo, with another payload than was sent.
    Damaged,
    /// A router or host says that it cannot be delivered.
    Unreachable {
        /// Who says it.
        from: IpAddr,
        /// The ICMP code: 0 network (IPv6: no route), 1 host, 3 port (IPv6: address), 13 forbidden (IPv6: 1).
        code: u8,
    },
    /// A router would have had to cut the packet and may not.
    TooBig {
        /// Who says it; this host itself where it knows the path.
        from: IpAddr,
        /// The largest packet that would pass, in bytes.
        mtu: u32,
    },
    /// The packet's time ran out on the way.
    TimeExceeded {
        /// Who says it.
        from: IpAddr,
    },
    /// This host refused to send it: no route, larger than the device may, source not ours.
    Refused {
        /// The system's word for it.
        error: String,
        /// The error number (`EMSGSIZE` is 90, `ENETUNREACH` 101, `EHOSTUNREACH` 113).
        errno: i32,
    },
    /// Nothing came back in time.
    Nothing,
}

impl Answer {
    /// The round-trip time of an unchanged echo, in microseconds.
    pub fn microseconds(&self) -> Option<f64> {
        match self {
            Self::Echo { microseconds } => Some(*microseconds),
            _ => None,
        }
    }
}

impl Ping {
    /// 56 bytes, one second: what `ping` does.
    pub fn new(to: IpAddr) -> Self {
        Self { to, from: None, payload: 56, dont_fragment: false, ttl: None, timeout: Duration::from_secs(1) }
    }

    /// The same without fragments, so that the packet has exactly `length` bytes with its IP header (without options).
    #[must_use]
    pub fn whole_packet_of(self, length: usize) -> Self {
        let headers = if self.to.is_ipv4() { 28 } else { 48 };
        Self { payload: length.saturating_sub(headers), dont_fragment: true, ..self }
    }

    /// Sends the request from the namespace and waits for what comes back.
    ///
    /// # Errors
    ///
    /// When no raw socket can be opened there. Everything that the network answers is an [`Answer`].
    pub fn send_from(&self, namespace: &NetNs) -> io::Result<Answer> {
        namespace.run("ping", || self.send())?
    }

    /// The same from the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// As [`Ping::send_from`].
    pub fn send(&self) -> io::Result<Answer> {
        let socket = self.open()?;
        let echo = Echo::new(self.payload);
        let packet = match self.to {
            IpAddr::V4(to) if self.dont_fragment => {
                let from = match self.from {
                    Some(IpAddr::V4(from)) => from,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                message::behind_ipv4_header(&echo.request(self.to), from, to, self.ttl.unwrap_or(64))
            }
            _ => echo.request(self.to),
        };
        let started = Instant::now();
        match socket.send_to(&packet, &SocketAddr::new(self.to, 0).into()) {
            Ok(_) => self.wait(&socket, &echo, started),
            Err(error) => match error.raw_os_error() {
                Some(errno) => Ok(Answer::Refused { error: error.to_string(), errno }),
                None => Err(error),
            },
        }
    }

    fn open(&self) -> io::Result<Socket> {
        let (domain, protocol) = match self.to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        match self.to {
            // With the header included the kernel neither cuts the packet nor clears its DF bit.
            IpAddr::V4(_) if self.dont_fragment => socket.set_header_included_v4(true)?,
            IpAddr::V6(_) if self.dont_fragment => setsockopt(&socket, sockopt::Ipv6DontFrag, &true)?,
            _ => {}
        }
        match (self.to, self.ttl) {
            (IpAddr::V4(_), Some(ttl)) => socket.set_ttl_v4(u32::from(ttl))?,
            (IpAddr::V6(_), Some(limit)) => socket.set_unicast_hops_v6(u32::from(limit))?,
            (_, None) => {}
        }
        if let Some(from) = self.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        Ok(socket)
    }

    fn wait(&self, socket: &Socket, echo: &Echo, started: Instant) -> io::Result<Answer> {
        let mut buffer = vec![0_u8; 65_536];
        loop {
            let left = self.timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(Answer::Nothing);
            }
            socket.set_read_timeout(Some(left))?;
            let (length, sender) = match recv_from(socket, &mut buffer) {
                Ok(read) => read,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                // An error that the kernel noted on the socket, such as a neighbour that does not answer.
                Err(errno) => {
                    return Ok(Answer::Refused { error: errno.desc().to_owned(), errno: errno as i32 });
                }
            };
            let from = sender.unwrap_or(self.to);
            let microseconds = started.elapsed().as_secs_f64() * 1e6;
            let message = buffer.get(..length).unwrap_or_default();
            return Ok(match echo.recognise(message, self.to) {
                None => continue,
                Some(Incoming::Reply { unchanged: true }) => Answer::Echo { microseconds },
                Some(Incoming::Reply { unchanged: false }) => Answer::Damaged,
                Some(Incoming::Unreachable { code }) => Answer::Unreachable { from, code },
                Some(Incoming::TooBig { mtu }) => Answer::TooBig { from, mtu },
                Some(Incoming::TimeExceeded) => Answer::TimeExceeded { from },
            });
        }
    }
}

/// `Socket::recv_from` of socket2 wants uninitialised memory; nix reads into plain bytes.
fn recv_from(socket: &Socket, buffer: &mut [u8]) -> Result<(usize, Option<IpAddr>), Errno> {
    use nix::sys::socket::{SockaddrStorage, recvfrom};
    use std::os::fd::AsRawFd;

    let (length, sender) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
    let address = sender.and_then(|sender| {
        let v4 = sender.as_sockaddr_in().map(|sender| IpAddr::V4(sender.ip()));
        v4.or_else(|| sender.as_sockaddr_in6().map(|sender| IpAddr::V6(sender.ip())))
    });
    Ok((length, address))
}
