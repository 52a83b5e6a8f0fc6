//! The configuration of `bridge`, checked.

use serde::Deserialize;

use hostnet::kernel::Vlans;
use hostnet::state::Mac;

use crate::filter::Backend;
use crate::masquerade::Masquerade;
use crate::protocol::{AddResult, CniError, Code, Dns, Request, no_device_name};

/// The largest VLAN.
const LAST_VLAN: u16 = 4094;

/// What the plugin is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// The bridge's name.
    pub(super) bridge: String,
    /// The bridge has the gateways' addresses.
    pub(super) is_gateway: bool,
    /// The container's default route is by the bridge.
    pub(super) is_default_gateway: bool,
    /// A wrong address on the bridge is replaced.
    pub(super) force_address: bool,
    /// What leaves the container's network is masqueraded.
    pub(super) ip_masq: bool,
    /// By which system: `iptables`, `nftables`, or whichever is there.
    pub(super) ip_masq_backend: Option<Backend>,
    /// Of the bridge and the pair, in bytes; `None`: the kernel's.
    pub(super) mtu: Option<u32>,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) isolated: bool,
    /// The container's VLAN; `None`: none.
    pub(super) vlan: Option<u16>,
    /// VLANs that reach the container with their tags.
    pub(super) trunk: Vec<Vlans>,
    /// The port stays in VLAN 1.
    pub(super) preserve_default_vlan: bool,
    /// Frames from another hardware address are dropped.
    pub(super) mac_spoof_check: bool,
    /// Duplicate address detection in the container.
    pub(super) duplicate_detection: bool,
    /// The container's end stays down.
    pub(super) disable_container_interface: bool,
    /// The container's hardware address, if it is given.
    pub(super) mac: Option<Mac>,
    /// The IPAM plugin; `None`: a network without addresses.
    pub(super) ipam: Option<String>,
    /// Goes before what IPAM says.
    pub(super) dns: Dns,
}

/// As it is written.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<RawTrunk>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    ipam: Option<RawIpam>,
    dns: Option<Dns>,
    args: Option<RawArgs>,
    runtime_config: Option<RawMac>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawTrunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIpam {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: Option<RawMac>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMac {
    mac: Option<String>,
}

impl Config {
    /// # Errors
    /// Which option makes no sense, and why.
    pub(super) fn of(request: &Request) -> Result<Self, CniError> {
        let raw: Raw = request.config()?;
        let [mac_argument] = request.args.known(["MAC"])?;
        let ipam = raw.ipam.map(|ipam| ipam.kind).filter(|kind| !kind.is_empty());
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(CniError::config("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        if raw.disable_container_interface && ipam.is_some() {
            return Err(CniError::config(
                "cannot use IPAM when disableContainerInterface is set: a device that is down has no use for addresses",
            ));
        }
        let vlan = match raw.vlan {
            0 => None,
            given => Some(vlan_of(given, "vlan")?),
        };
        let mac = raw
            .runtime_config
            .and_then(|from| from.mac)
            .or_else(|| raw.args.and_then(|args| args.cni).and_then(|from| from.mac))
            .or_else(|| mac_argument.map(str::to_owned))
            .filter(|mac| !mac.is_empty());
        Ok(Self {
            bridge: match raw.bridge {
                name if name.is_empty() => "cni0".to_owned(),
                name => name,
            },
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            ip_masq: raw.ip_masq,
            ip_masq_backend: Backend::from_option("ipMasqBackend", raw.ip_masq_backend.as_deref())?,
            mtu: Some(raw.mtu).filter(|mtu| *mtu > 0),
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            isolated: raw.port_isolation,
            vlan,
            trunk: raw
                .vlan_trunk
                .unwrap_or_default()
                .iter()
                .map(RawTrunk::vlans)
                .collect::<Result<_, _>>()?,
            preserve_default_vlan: raw.preserve_default_vlan,
            mac_spoof_check: raw.macspoofchk,
            duplicate_detection: raw.enabledad,
            disable_container_interface: raw.disable_container_interface,
            mac: mac.as_deref().map(mac_of).transpose()?,
            ipam,
            dns: raw.dns.unwrap_or_default(),
        })
    }

    /// The rules that masquerade what the container sends.
    pub(super) fn masquerade(&self, request: &Request, result: &AddResult) -> Masquerade {
        Masquerade {
            backend: self.ip_masq_backend,
            network: request.network.clone(),
            attachment: request.attachment.clone(),
            ips: result.ips.iter().map(|ip| ip.address).collect(),
        }
    }

    /// The bridge tells VLANs apart.
    pub(super) fn has_vlans(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }

    /// The bridge can be made. Not asked by DEL and GC, which free what is there whatever the name.
    ///
    /// # Errors
    /// Its name is none that the kernel gives a device.
    pub(super) fn check_name(&self) -> Result<(), CniError> {
        match no_device_name(&self.bridge) {
            None => Ok(()),
            Some(_) => Err(CniError::config(format!("bridge: {:?} is no name of a device", self.bridge))
                .with_details("it has 1 to 15 characters, without spaces, slashes and colons")),
        }
    }

    /// The device that has the gateways' addresses.
    pub(super) fn gateway_device(&self) -> String {
        match self.vlan {
            Some(vlan) => format!("{}.{vlan}", self.bridge),
            None => self.bridge.clone(),
        }
    }
}

impl RawTrunk {
    fn vlans(&self) -> Result<Vlans, CniError> {
        let (first, last) = match (self.id, self.min_id, self.max_id) {
            (Some(id), None, None) => (id, id),
            (None, Some(min), Some(max)) => (min, max),
            _ => return Err(CniError::config("vlanTrunk: each entry has an id, or a minID and a maxID")),
        };
        let vlans =
            Vlans { first: vlan_of(first, "vlanTrunk")?, last: vlan_of(last, "vlanTrunk")?, untagged: false };
        match vlans.first <= vlans.last {
            true => Ok(vlans),
            false => Err(CniError::config(format!("vlanTrunk: minID {first} is above maxID {last}"))),
        }
    }
}

fn vlan_of(id: i64, what: &str) -> Result<u16, CniError> {
    u16::try_from(id).ok().filter(|id| (1..=LAST_VLAN).contains(id)).ok_or_else(|| {
        CniError::config(format!("{what}: invalid VLAN ID {id} (must be between 1 and {LAST_VLAN})"))
    })
}

fn mac_of(text: &str) -> Result<Mac, CniError> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        let text = format!("{text:?} is no hardware address, expected one like 0a:58:0a:f4:01:05");
        CniError::new(Code::INVALID_CONFIG, text)
    })
}
