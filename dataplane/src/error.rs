//! What can go wrong when the engine opens and stops, in words for the operator.

use std::io;
use std::net::SocketAddr;

/// Why the engine did not open. Every message says what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no `/dev/net/tun`, or no driver behind it.
    #[error(
        "cannot make the TUN device {device}: /dev/net/tun is missing or has no driver behind it ({source}). \
         Load the module (modprobe tun); in a container, pass the device in (--device /dev/net/tun)"
    )]
    NoTunDevice {
        /// The device that was wanted.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process lacks a right.
    #[error(
        "not permitted to {what}: {source}. Run as root, or give the process CAP_NET_ADMIN in this network namespace"
    )]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A link of this name is there already, and it is not ours.
    #[error(
        "a link named {device} exists already. It belongs to another process or is left over from another backend: \
         stop that process, or remove the link (ip link delete {device})"
    )]
    DeviceNameTaken {
        /// The name that is taken.
        device: String,
    },
    /// The kernel does not allow this name for a link.
    #[error(
        "{device:?} cannot be the name of a network device: it needs 1 to 15 bytes without spaces, '/', ':' and '%'"
    )]
    DeviceNameInvalid {
        /// The name that was given.
        device: String,
    },
    /// The TUN device could not be made for another reason.
    #[error("cannot make the TUN device {device}: {source}. The kernel log may say more (dmesg)")]
    Tun {
        /// The device that was wanted.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another socket is bound to the address and port.
    #[error(
        "UDP {addr} is taken by another socket. Another flanneld or a kernel VXLAN device of the same port may be \
         running (ss -ulnp shows sockets, ip -d link show type vxlan shows devices): stop it, or set another Port"
    )]
    PortTaken {
        /// The address and port that were wanted.
        addr: SocketAddr,
    },
    /// The address does not exist on this machine.
    #[error(
        "cannot bind UDP {addr}: no interface here has this address. Wait until the interface is configured, or name \
         the right one with --iface or --public-ip"
    )]
    AddressNotAvailable {
        /// The address and port that were wanted.
        addr: SocketAddr,
    },
    /// The UDP socket could not be opened for another reason.
    #[error("cannot open UDP {addr}: {source}. Check that the machine has this address family enabled")]
    Udp {
        /// The address and port that were wanted.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The worker thread could not be made.
    #[error(
        "cannot start the engine's worker: {source}. Check the limits on open files and threads (ulimit -a)"
    )]
    Worker {
        /// What the kernel said.
        source: io::Error,
    },
}

impl OpenError {
    /// The error of making the TUN device `device`.
    pub(crate) fn tun(device: &str, source: io::Error) -> Self {
        let device = device.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::NoTunDevice { device, source },
            Some(libc::EPERM | libc::EACCES) => {
                Self::NotPermitted { what: format!("make the TUN device {device}"), source }
            }
            Some(libc::EBUSY | libc::EEXIST) => Self::DeviceNameTaken { device },
            _ => Self::Tun { device, source },
        }
    }

    /// The error of opening a UDP socket at `addr`.
    pub(crate) fn udp(addr: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::PortTaken { addr },
            Some(libc::EADDRNOTAVAIL) => Self::AddressNotAvailable { addr },
            Some(libc::EPERM | libc::EACCES) => {
                Self::NotPermitted { what: format!("bind UDP {addr}"), source }
            }
            _ => Self::Udp { addr, source },
        }
    }
}

/// Why the engine was not running any more when it was stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The device or the socket vanished; an [`EngineEvent`](crate::EngineEvent) said which.
    #[error(
        "the engine on {device} had ended by itself: its device or socket was removed by someone else. \
         Start it again, and find out who removes it (ip monitor link)"
    )]
    Ended {
        /// The TUN device.
        device: String,
    },
    /// The worker failed outside a turn.
    #[error("the engine's worker failed; the log has the panic message. Please report it")]
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let addr: SocketAddr = "192.0.2.1:8472".parse().unwrap();
        let tun = |errno| OpenError::tun("flannel.1", io::Error::from_raw_os_error(errno)).to_string();
        let udp = |errno| OpenError::udp(addr, io::Error::from_raw_os_error(errno)).to_string();
        for (text, what, remedy) in [
            (tun(libc::ENOENT), "/dev/net/tun is missing", "modprobe tun"),
            (tun(libc::ENODEV), "/dev/net/tun is missing", "--device /dev/net/tun"),
            (tun(libc::EPERM), "not permitted to make the TUN device flannel.1", "CAP_NET_ADMIN"),
            (tun(libc::EACCES), "not permitted to make the TUN device flannel.1", "Run as root"),
            (tun(libc::EBUSY), "a link named flannel.1 exists already", "ip link delete flannel.1"),
            (tun(libc::ENOMEM), "cannot make the TUN device flannel.1", "dmesg"),
            (udp(libc::EADDRINUSE), "UDP 192.0.2.1:8472 is taken", "ss -ulnp"),
            (udp(libc::EADDRNOTAVAIL), "no interface here has this address", "--iface"),
            (udp(libc::EACCES), "not permitted to bind UDP 192.0.2.1:8472", "Run as root"),
            (udp(libc::EAFNOSUPPORT), "cannot open UDP 192.0.2.1:8472", "address family"),
        ] {
            assert!(text.contains(what) && text.contains(remedy), "{text}");
        }
    }
}
