//! The value of a lease as text: flannel's JSON, and this project's expiry beside it where a store has no clock of its own.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dataplane_core::MacAddr;
use serde::Serialize;
use serde_json::Value;

use super::LeaseAttrs;
use crate::json::{Node, Object, Remark};

/// `BackendType` of a node without a tunnel.
const HOST_GW: &str = "host-gw";

/// What a node publishes for its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendData {
    /// flannel's `udp` publishes nothing, its type is the empty text.
    Udp,
    /// `vxlan`: one device a family, each with its own MAC.
    Vxlan {
        /// Of `flannel.<VNI>`.
        v4: Option<VxlanData>,
        /// Of `flannel-v6.<VNI>`.
        v6: Option<VxlanData>,
    },
    /// A backend of another node that this version cannot talk to; kept as it came.
    Other {
        /// `BackendType`.
        kind: String,
        /// `BackendData`.
        v4: Option<Value>,
        /// `BackendV6Data`.
        v6: Option<Value>,
    },
}

/// Data of one VXLAN device: `{"VNI":1,"VtepMAC":"5a:1c:00:00:00:01"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    /// Old writers leave it out, and readers ignore it.
    pub vni: Option<u32>,
    /// The MAC that peers send inner frames to.
    pub mac: MacAddr,
}

impl BackendData {
    /// What a host-gw node publishes: its type and no data.
    pub fn host_gw() -> Self {
        Self::Other { kind: HOST_GW.to_owned(), v4: None, v6: None }
    }

    /// The node is its subnet's gateway itself; whatever data it publishes says no more.
    pub fn is_host_gw(&self) -> bool {
        matches!(self, Self::Other { kind, .. } if kind == HOST_GW)
    }

    /// `BackendType`, which is empty for `udp`.
    pub fn kind(&self) -> &str {
        match self {
            Self::Udp => "",
            Self::Vxlan { .. } => "vxlan",
            Self::Other { kind, .. } => kind,
        }
    }

    /// From texts that stand apart, as annotations do: the type and one JSON value a family. `null` and nothing are
    /// the same. The error tells the place in the text that is wrong.
    pub fn from_texts(kind: &str, v4: Option<&str>, v6: Option<&str>) -> Result<Self, Remark> {
        let given = |text: Option<&str>| -> Result<Option<Value>, Remark> {
            let Some(text) = text else { return Ok(None) };
            let node = Node::parse(text.as_bytes())?;
            if node.is_null() {
                return Ok(None);
            }
            serde_json::from_str(node.text()).map(Some).map_err(|_| node.expected("JSON of a sane depth"))
        };
        let device = |text: Option<&str>| match text {
            Some(text) => Node::parse(text.as_bytes()).and_then(|node| vxlan_data(&node)),
            None => Ok(None),
        };
        match kind {
            "" => Ok(Self::Udp),
            "vxlan" => Ok(Self::Vxlan { v4: device(v4)?, v6: device(v6)? }),
            _ => Ok(Self::Other { kind: kind.to_owned(), v4: given(v4)?, v6: given(v6)? }),
        }
    }

    /// The data of each family as text, IPv4 first; `None` where a backend publishes none.
    pub fn texts(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Udp => (None, None),
            Self::Vxlan { v4, v6 } => {
                (v4.as_ref().map(backend_data_text), v6.as_ref().map(backend_data_text))
            }
            Self::Other { v4, v6, .. } => {
                (v4.as_ref().map(Value::to_string), v6.as_ref().map(Value::to_string))
            }
        }
    }
}

/// flannel's value of a lease, with `Expiry` in seconds since 1970 behind it if `expires` is given.
pub fn print_value(attrs: &LeaseAttrs, expires: Option<SystemTime>) -> String {
    #[derive(Serialize)]
    struct Text<'a> {
        #[serde(rename = "PublicIP")]
        public_ip: Ipv4Addr,
        #[serde(rename = "PublicIPv6")]
        public_ipv6: Option<Ipv6Addr>,
        #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
        kind: &'a str,
        #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
        v4: Option<Value>,
        #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
        v6: Option<Value>,
        #[serde(rename = "Expiry", skip_serializing_if = "Option::is_none")]
        expiry: Option<u64>,
    }
    let (v4, v6) = match &attrs.backend {
        BackendData::Udp => (None, None),
        BackendData::Vxlan { v4, v6 } => (v4.map(vxlan_value), v6.map(vxlan_value)),
        BackendData::Other { v4, v6, .. } => (v4.clone(), v6.clone()),
    };
    let text = Text {
        public_ip: attrs.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: attrs.public_ipv6,
        kind: attrs.backend.kind(),
        v4,
        v6,
        expiry: expires.map(|end| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
    };
    serde_json::to_string(&text).expect("addresses and JSON values always serialise")
}

/// The text of one device's data, as annotations and values hold it: `{"VNI":1,"VtepMAC":"5a:…"}`.
pub fn backend_data_text(data: &VxlanData) -> String {
    vxlan_value(*data).to_string()
}

fn vxlan_value(data: VxlanData) -> Value {
    let mut members = serde_json::Map::new();
    if let Some(vni) = data.vni {
        members.insert("VNI".to_owned(), vni.into());
    }
    members.insert("VtepMAC".to_owned(), data.mac.to_string().into());
    Value::Object(members)
}

/// Reads a value with or without `Expiry`; the first error is told with its place.
pub fn parse_value(bytes: &[u8]) -> Result<(LeaseAttrs, Option<SystemTime>), Remark> {
    let object =
        Node::parse(bytes)?.object("a lease like {\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":null}")?;
    let public_ip = match object.get("PublicIP") {
        Some(node) => Some(node.parsed::<Ipv4Addr>("an IPv4 address")?).filter(|ip| !ip.is_unspecified()),
        None => None,
    };
    let public_ipv6 = match object.get("PublicIPv6") {
        Some(node) => {
            Some(node.parsed::<Ipv6Addr>("an IPv6 address or null")?).filter(|ip| !ip.is_unspecified())
        }
        None => None,
    };
    if public_ip.is_none() && public_ipv6.is_none() {
        let text = "the lease names no node: PublicIP and PublicIPv6 are missing or zero".to_owned();
        return Err(Remark { at: object.position(), text });
    }
    let kind = match object.get("BackendType") {
        Some(node) => node.string()?,
        None => String::new(),
    };
    let backend = match kind.as_str() {
        "" => BackendData::Udp,
        "vxlan" => {
            BackendData::Vxlan { v4: vxlan(&object, "BackendData")?, v6: vxlan(&object, "BackendV6Data")? }
        }
        _ => BackendData::Other {
            v4: other(&object, "BackendData")?,
            v6: other(&object, "BackendV6Data")?,
            kind,
        },
    };
    let expires = match object.get("Expiry") {
        Some(node) => {
            let refuse = || node.expected("a time in seconds since 1970");
            let seconds: u64 = node.text().parse().map_err(|_| refuse())?;
            // The year 3000: later than any honest lease, early enough for every clock's arithmetic.
            Some(seconds)
                .filter(|&seconds| seconds < 32_503_680_000)
                .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
                .map(Some)
                .ok_or_else(refuse)?
        }
        None => None,
    };
    Ok((LeaseAttrs { public_ip, public_ipv6, backend }, expires))
}

fn vxlan(lease: &Object<'_>, key: &str) -> Result<Option<VxlanData>, Remark> {
    lease.get(key).map_or(Ok(None), |node| vxlan_data(&node))
}

fn vxlan_data(node: &Node<'_>) -> Result<Option<VxlanData>, Remark> {
    const EXPECTED: &str = "data like {\"VNI\":1,\"VtepMAC\":\"5a:1c:00:00:00:01\"}";
    if node.is_null() {
        return Ok(None);
    }
    let object = node.object(EXPECTED)?;
    let vni = object.get("VNI").map(|vni| vni.integer(0, 0xff_ffff)).transpose()?;
    let mac = object.get("VtepMAC").ok_or_else(|| node.expected(EXPECTED))?;
    let mac: MacAddr = mac.parsed("a MAC address like \"5a:1c:00:00:00:01\"")?;
    Ok(Some(VxlanData { vni, mac }))
}

fn other(lease: &Object<'_>, key: &str) -> Result<Option<Value>, Remark> {
    let Some(node) = lease.get(key) else { return Ok(None) };
    serde_json::from_str(node.text()).map(Some).map_err(|_| node.expected("JSON of a sane depth"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([0x5a, 0x1c, 0, 0, 0, 1]);

    fn vxlan_lease(vni: Option<u32>) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: Some("172.17.4.1".parse().unwrap()),
            public_ipv6: None,
            backend: BackendData::Vxlan { v4: Some(VxlanData { vni, mac: MAC }), v6: None },
        }
    }

    #[test]
    fn the_texts_are_flannels() {
        let udp = LeaseAttrs {
            public_ip: Some("1.2.3.4".parse().unwrap()),
            public_ipv6: None,
            backend: BackendData::Udp,
        };
        assert_eq!(print_value(&udp, None), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);
        assert_eq!(
            print_value(&vxlan_lease(Some(1)), None),
            r#"{"PublicIP":"172.17.4.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5a:1c:00:00:00:01"}}"#
        );
        assert_eq!(
            backend_data_text(&VxlanData { vni: Some(1), mac: MAC }),
            r#"{"VNI":1,"VtepMAC":"5a:1c:00:00:00:01"}"#
        );
    }

    #[test]
    fn old_writers_are_read() {
        let text = br#"{"PublicIP":"172.17.4.1","BackendType":"vxlan","BackendData":{"VtepMAC":"5a:1c:00:00:00:01"}}"#;
        assert_eq!(parse_value(text), Ok((vxlan_lease(None), None)));
    }

    #[test]
    fn a_foreign_backend_is_kept_as_it_is() {
        let text = r#"{"PublicIP":"172.17.4.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"k","Port":51820}}"#;
        let (attrs, _) = parse_value(text.as_bytes()).unwrap();
        assert_eq!(attrs.backend.kind(), "wireguard");
        assert_eq!(print_value(&attrs, None), text);
    }

    #[test]
    fn hostile_values_are_refused_with_the_place() {
        for (text, expected) in [
            ("", "1:1: not JSON"),
            ("{\"PublicIP\":\"172.17.4", "not JSON"),
            ("[]", "expected a lease like"),
            ("{}", "names no node"),
            (r#"{"PublicIP":"0.0.0.0"}"#, "names no node"),
            (r#"{"PublicIP":"1.2.3"}"#, "1:13: expected an IPv4 address"),
            (r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1}}"#, "expected data like"),
            (
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}"#,
                "expected a MAC address",
            ),
            (r#"{"PublicIP":"1.2.3.4","Expiry":18446744073709551615}"#, "expected a time"),
            (r#"{"PublicIP":"1.2.3.4","Expiry":-1}"#, "expected a time"),
            (r#"{"PublicIP":"1.2.3.4","BackendType":7}"#, "expected a string"),
        ] {
            let error = parse_value(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    fn any_attrs() -> impl Strategy<Value = LeaseAttrs> {
        let data = || {
            proptest::option::of((proptest::option::of(0u32..1 << 24), any::<[u8; 6]>()))
                .prop_map(|data| data.map(|(vni, mac)| VxlanData { vni, mac: MacAddr(mac) }))
        };
        let other = proptest::option::of(prop_oneof![
            "[a-z\"\\\\\u{0}-\u{20}]{0,8}".prop_map(Value::from),
            any::<u32>().prop_map(|n| serde_json::json!({"Port": n})),
        ]);
        let backend = prop_oneof![
            Just(BackendData::Udp),
            (data(), data()).prop_map(|(v4, v6)| BackendData::Vxlan { v4, v6 }),
            ("[a-z-]{1,12}", other)
                .prop_filter("not ours", |(kind, _)| kind != "vxlan")
                .prop_map(|(kind, v4)| BackendData::Other { kind, v4, v6: None }),
        ];
        (1u32.., proptest::option::of(1u128..), backend).prop_map(|(v4, v6, backend)| LeaseAttrs {
            public_ip: Some(v4.into()),
            public_ipv6: v6.map(Into::into),
            backend,
        })
    }

    #[test]
    fn texts_apart_say_what_a_value_says() {
        let data = r#"{"VNI":1,"VtepMAC":"5a:1c:00:00:00:01"}"#;
        let vxlan = BackendData::from_texts("vxlan", Some(data), Some("null")).unwrap();
        assert_eq!(vxlan, vxlan_lease(Some(1)).backend);
        assert_eq!(vxlan.texts(), (Some(data.to_owned()), None));
        let wireguard = r#"{"PublicKey":"x","Port":51820}"#;
        let other = BackendData::from_texts("wireguard", Some(wireguard), None).unwrap();
        assert_eq!(other.texts(), (Some(wireguard.to_owned()), None));
        assert_eq!(BackendData::from_texts("", Some("null"), None), Ok(BackendData::Udp));
        for bad in ["", "{", "7", r#"{"VtepMAC":"x"}"#, r#"{"VNI":1}"#, r#"{"VNI":1}{"VNI":1}"#] {
            assert!(BackendData::from_texts("vxlan", Some(bad), None).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn values_round_trip(attrs in any_attrs(), expiry in proptest::option::of(0u64..32_503_680_000)) {
            let expires = expiry.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
            let text = print_value(&attrs, expires);
            prop_assert_eq!(parse_value(text.as_bytes()), Ok((attrs, expires)), "{}", text);
        }

        #[test]
        fn a_torn_value_is_never_a_lease(attrs in any_attrs(), cut in any::<proptest::sample::Index>()) {
            let text = print_value(&attrs, None);
            prop_assert!(parse_value(&text.as_bytes()[..cut.index(text.len())]).is_err());
        }
    }
}
