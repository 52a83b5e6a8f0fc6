//! VXLAN devices as flannel makes and keeps them.
use std::net::IpAddr;

use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute};
use nix::errno::Errno;

use super::Kernel;
use crate::host::HostError;
use crate::state::{Link, Mac, VxlanInfo};

/// A VXLAN device as flannel makes it: unicast only, its peers set by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Its name: `flannel.1`, `flannel-v6.1`.
    pub name: String,
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port, and the one it listens on: flannel's is 8472, IANA's 4789.
    pub port: u16,
    /// Source address of the outer packets; its family is the family of the outer packets. `None`: IPv4, chosen by the
    /// route.
    pub local: Option<IpAddr>,
    /// The device that the outer packets leave by; `None`: chosen by the route.
    pub device: Option<String>,
    /// MTU to ask for; the kernel lowers it to what fits `device`. `None`: what fits.
    pub mtu: Option<u32>,
    /// The hardware address; `None`: a random one.
    pub mac: Option<Mac>,
    /// Learn MAC addresses from what arrives. flannel: off.
    pub learning: bool,
    /// Send UDP checksums over IPv4. The kernel's default and so flannel's: on.
    pub udp_checksum: bool,
    /// Send a zero UDP checksum over IPv6. Off, as RFC 8200 wants it.
    pub zero_checksum6_tx: bool,
    /// Accept a zero UDP checksum over IPv6. Off, as RFC 8200 wants it.
    pub zero_checksum6_rx: bool,
    /// The group policy extension, another header format. Off.
    pub gbp: bool,
}

impl Vxlan {
    /// A device with flannel's settings and nothing fixed but name, VNI and port.
    pub fn new(name: impl Into<String>, vni: u32, port: u16) -> Self {
        Self {
            name: name.into(),
            vni,
            port,
            local: None,
            device: None,
            mtu: None,
            mac: None,
            learning: false,
            udp_checksum: true,
            zero_checksum6_tx: false,
            zero_checksum6_rx: false,
            gbp: false,
        }
    }

    /// Why an existing device cannot stand for this one, if so; `device` is the index of the underlay device that is
    /// wanted. MAC, MTU and checksums are not compared, and what either side leaves open is no difference. (flannel does not
    /// compare learning either, so a kept device goes on with what the configuration once said.)
    pub fn differs_from(&self, link: &Link, device: Option<u32>) -> Option<String> {
        let Some(info) = &link.vxlan else {
            let kind = link.kind.as_deref().unwrap_or("hardware");
            return Some(format!("the one of that name is of the kind {kind}"));
        };
        let both = |name: &str, has: Option<String>, wanted: Option<String>| match (has, wanted) {
            (Some(has), Some(wanted)) if has != wanted => {
                Some(format!("its {name} is {has}, wanted {wanted}"))
            }
            _ => None,
        };
        let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string());
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let port = |port: u16| (port != 0).then(|| port.to_string());
        both("VNI", number(Some(info.vni)), number(Some(self.vni)))
            .or_else(|| both("underlay device's index", number(info.device), number(device)))
            .or_else(|| both("local address", text(info.local), text(self.local)))
            .or_else(|| both("port", port(info.port), port(self.port)))
            .or_else(|| info.l2miss.then(|| "it reports unknown MAC addresses (l2miss)".to_owned()))
            .or_else(|| {
                (info.learning != self.learning).then(|| "learning of MAC addresses differs".to_owned())
            })
            .or_else(|| (info.gbp != self.gbp).then(|| "the group policy extension (gbp) differs".to_owned()))
    }

    fn attributes(&self, device: Option<u32>) -> Vec<InfoVxlan> {
        let mut info = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Ttl(0),
            InfoVxlan::Tos(0),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::Proxy(false),
            InfoVxlan::Rsc(false),
            InfoVxlan::L2Miss(false),
            InfoVxlan::L3Miss(false),
            InfoVxlan::Port(self.port),
            InfoVxlan::UDPCsum(self.udp_checksum),
            InfoVxlan::UDPZeroCsumTX(self.zero_checksum6_tx),
            InfoVxlan::UDPZeroCsumRX(self.zero_checksum6_rx),
        ];
        info.extend(device.map(InfoVxlan::Link));
        info.extend(self.local.map(|local| match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        }));
        info.extend(self.gbp.then_some(InfoVxlan::Gbp));
        info
    }
}

/// What [`Kernel::ensure_vxlan`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// There was none of that name.
    Made,
    /// There was one that serves; it keeps its MAC address and its MTU.
    Kept,
    /// There was one that does not, for this reason; it was deleted, with all that was on it.
    Remade(String),
}

impl Kernel {
    /// Makes a VXLAN device, down. `EEXIST`: the name is taken, or another device has the same VNI and port;
    /// `EOPNOTSUPP`: the kernel has no VXLAN.
    pub async fn add_vxlan(&self, vxlan: &Vxlan) -> Result<(), HostError> {
        let action = || format!("add vxlan {} id {} dstport {}", vxlan.name, vxlan.vni, vxlan.port);
        let device = match &vxlan.device {
            Some(name) => Some(self.device_index(name, || format!("{} dev {name}", action())).await?),
            None => None,
        };
        let mut attributes = vec![LinkAttribute::TxQueueLen(0)];
        attributes.extend(vxlan.mtu.map(LinkAttribute::Mtu));
        attributes.extend(vxlan.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let data = InfoData::Vxlan(vxlan.attributes(device));
        self.add_link(&vxlan.name, InfoKind::Vxlan, data, attributes, action).await
    }

    /// Makes the device unless one of its name is there that serves, by flannel's rule: a device that another run left
    /// is kept, with its MAC address, unless [`Vxlan::differs_from`] finds a reason against it. Returns the device as it
    /// is now.
    ///
    /// # Errors
    /// `EEXIST` if the name belongs to a device of another kind: it is somebody's, so it is not deleted.
    pub async fn ensure_vxlan(&self, vxlan: &Vxlan) -> Result<(Link, Ensured), HostError> {
        let device = match &vxlan.device {
            Some(name) => self.link(name).await?.map(|link| link.index),
            None => None,
        };
        let ensured = match self.link(&vxlan.name).await? {
            None => Ensured::Made,
            Some(link) => match vxlan.differs_from(&link, device) {
                None => return Ok((link, Ensured::Kept)),
                Some(reason) if link.vxlan.is_none() => {
                    let action = format!("make the VXLAN device {}", vxlan.name);
                    return Err(HostError { detail: Some(reason), ..HostError::new(action, Errno::EEXIST) });
                }
                Some(reason) => {
                    self.delete_link(&vxlan.name).await?;
                    Ensured::Remade(reason)
                }
            },
        };
        if let Err(error) = self.add_vxlan(vxlan).await {
            let twin = match error.errno {
                Errno::EEXIST => self.twin_of(vxlan).await?,
                _ => None,
            };
            let detail = twin.map(|link| {
                format!("the device {} has VNI {} and port {}", link.name, vxlan.vni, vxlan.port)
            });
            return Err(HostError { detail: detail.or(error.detail), ..error });
        }
        let made = self.link(&vxlan.name).await?;
        let made = made.ok_or_else(|| {
            HostError::new(format!("find the device {} after making it", vxlan.name), Errno::ENODEV)
        })?;
        Ok((made, ensured))
    }
}

impl Kernel {
    /// The device of another name that receives what this one should.
    pub async fn twin_of(&self, vxlan: &Vxlan) -> Result<Option<Link>, HostError> {
        let is_v6 = |ip: Option<IpAddr>| ip.is_some_and(|ip| ip.is_ipv6());
        let is_twin = |link: &Link| {
            let same = |info: &VxlanInfo| {
                (info.vni, info.port) == (vxlan.vni, vxlan.port)
                    && is_v6(info.local.or(info.group)) == is_v6(vxlan.local)
            };
            link.name != vxlan.name && link.vxlan.as_ref().is_some_and(same)
        };
        Ok(self.links().await?.into_iter().find(is_twin))
    }
}

/// The device that [`Kernel::probe_vxlan`] makes for a moment.
pub const PROBE: &str = "flannel-probe";

impl Kernel {
    /// Finds out whether the kernel makes VXLAN devices here, by making one, down and with a VNI and a port that nobody
    /// uses, and deleting it. `EOPNOTSUPP`: it has no VXLAN; `EPERM`: this process may not.
    pub async fn probe_vxlan(&self) -> Result<(), HostError> {
        let probe = Vxlan::new(PROBE, 0xff_fffe, 65_535);
        match self.add_vxlan(&probe).await {
            // One whose process was killed between the two steps.
            Err(error) if error.errno == Errno::EEXIST => {
                self.delete_link(PROBE).await?;
                self.add_vxlan(&probe).await?;
            }
            made => made?,
        }
        self.delete_link(PROBE).await
    }
}

pub(super) fn info_of(attributes: Vec<InfoVxlan>) -> VxlanInfo {
    let mut vxlan = VxlanInfo::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(ip) => vxlan.local = Some(ip.into()),
            InfoVxlan::Local6(ip) => vxlan.local = Some(ip.into()),
            InfoVxlan::Group(ip) => vxlan.group = Some(ip.into()),
            InfoVxlan::Group6(ip) => vxlan.group = Some(ip.into()),
            InfoVxlan::Link(index) => vxlan.device = Some(index).filter(|index| *index != 0),
            InfoVxlan::Learning(on) => vxlan.learning = on,
            InfoVxlan::L2Miss(on) => vxlan.l2miss = on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::UDPCsum(on) => vxlan.udp_checksum = on,
            InfoVxlan::UDPZeroCsumTX(on) => vxlan.zero_checksum6_tx = on,
            InfoVxlan::UDPZeroCsumRX(on) => vxlan.zero_checksum6_rx = on,
            _ => {}
        }
    }
    vxlan
}
