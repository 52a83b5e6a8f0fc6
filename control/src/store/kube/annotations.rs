//! The annotations of a node: their keys, what a node should say, and the patch that makes it say so. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::lease::{BackendData, LeaseAttrs};

/// The annotations of a node, by key.
pub(super) type Annotations = BTreeMap<String, String>;

/// The keys under one prefix: `flannel.alpha.coreos.com/` and the names flannel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys {
    /// Ends in `/` or `-`.
    prefix: String,
}

/// A prefix that gives no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{prefix:?} {why}")]
pub(super) struct PrefixError {
    prefix: String,
    why: &'static str,
}

/// A name behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// `true` on nodes of flannel, and on no other.
    Managed,
    /// `BackendType`.
    BackendType,
    /// `BackendData`, or the text `null`.
    BackendData,
    /// `BackendV6Data`, or the text `null`.
    BackendV6Data,
    /// Where IPv4 datagrams go.
    PublicIp,
    /// Where IPv6 datagrams go.
    PublicIpv6,
    /// What an operator wants published in the place of the address.
    PublicIpOverwrite,
    /// The same for IPv6.
    PublicIpv6Overwrite,
    /// What an operator gives in the place of `--public-ip`.
    NodePublicIp,
    /// The same for `--public-ipv6`.
    NodePublicIpv6,
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Self::Managed => "kube-subnet-manager",
            Self::BackendType => "backend-type",
            Self::BackendData => "backend-data",
            Self::BackendV6Data => "backend-v6-data",
            Self::PublicIp => "public-ip",
            Self::PublicIpv6 => "public-ipv6",
            Self::PublicIpOverwrite => "public-ip-overwrite",
            Self::PublicIpv6Overwrite => "public-ipv6-overwrite",
            Self::NodePublicIp => "node-public-ip",
            Self::NodePublicIpv6 => "node-public-ipv6",
        }
    }
}

impl Keys {
    /// flannel's rule: at most one slash, which is added behind where there is none; a hyphen is added behind unless the
    /// prefix ends in either. What comes out is a name of two labels or more, a slash, and perhaps a word and a hyphen.
    pub(super) fn new(prefix: &str) -> Result<Self, PrefixError> {
        let refuse = |why| PrefixError { prefix: prefix.to_owned(), why };
        let mut whole = prefix.to_owned();
        match whole.matches('/').count() {
            0 => whole.push('/'),
            1 => {}
            _ => return Err(refuse("has more than one slash")),
        }
        if !whole.ends_with(['/', '-']) {
            whole.push('-');
        }
        let (domain, word) = whole.split_once('/').unwrap_or((&whole, ""));
        let plain = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
        };
        if domain.split('.').count() < 2 || !domain.split('.').all(plain) {
            return Err(refuse(
                "does not begin with a name of lower-case letters and at least one dot, like flannel.alpha.coreos.com",
            ));
        }
        // A lone hyphen would be a word of no letter before the hyphen that ends it.
        if !word.is_empty() && (word.len() < 2 || !plain(word)) {
            return Err(refuse(
                "has something else than lower-case letters, digits, _ and - behind the slash",
            ));
        }
        Ok(Self { prefix: whole })
    }

    /// The whole key.
    pub(super) fn of(&self, name: Name) -> String {
        format!("{}{}", self.prefix, name.text())
    }

    /// The value of a key.
    pub(super) fn read<'a>(&self, annotations: &'a Annotations, name: Name) -> Option<&'a str> {
        annotations.get(&self.of(name)).map(String::as_str)
    }

    /// What a node with these attributes publishes, in flannel's texts. What an operator wrote to the overwrite keys is in
    /// `present`, and takes the place of the address. Keys that this node has nothing for are left alone.
    pub(super) fn desired(&self, attrs: &LeaseAttrs, present: &Annotations) -> Vec<(String, String)> {
        const NULL: &str = "null";
        let kind = attrs.backend.kind();
        let (v4, v6) = attrs.backend.texts();
        let overwritten = |name, address: String| match self.read(present, name) {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => address,
        };
        let mut desired = vec![(self.of(Name::BackendType), kind.to_owned())];
        let vxlan = matches!(attrs.backend, BackendData::Vxlan { .. });
        // A VXLAN node without a device for IPv4 has nothing to say about IPv4; other backends always say `null`.
        if !vxlan || v4.is_some() {
            let ip = attrs.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string();
            desired.push((self.of(Name::BackendData), v4.unwrap_or_else(|| NULL.to_owned())));
            desired.push((self.of(Name::PublicIp), overwritten(Name::PublicIpOverwrite, ip)));
        }
        if let Some(ip) = attrs.public_ipv6
            && (!matches!(kind, "vxlan" | "wireguard") || v6.is_some())
        {
            desired.push((self.of(Name::BackendV6Data), v6.unwrap_or_else(|| NULL.to_owned())));
            desired.push((self.of(Name::PublicIpv6), overwritten(Name::PublicIpv6Overwrite, ip.to_string())));
        }
        desired.push((self.of(Name::Managed), "true".to_owned()));
        desired
    }

    /// The strategic merge patch that brings `present` to what [`desired`](Self::desired) says: the keys that differ and
    /// nothing else. `None` if none does.
    pub(super) fn patch(&self, attrs: &LeaseAttrs, present: &Annotations) -> Option<Value> {
        let differing: serde_json::Map<String, Value> = self
            .desired(attrs, present)
            .into_iter()
            .filter(|(key, value)| present.get(key) != Some(value))
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        (!differing.is_empty()).then(|| json!({"metadata": {"annotations": differing}}))
    }

    /// Addresses that an operator wrote for this node, `Err` with the key and the text of one that is none.
    pub(super) fn node_addresses(
        &self,
        annotations: &Annotations,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), (String, String)> {
        Ok((self.address(annotations, Name::NodePublicIp)?, self.address(annotations, Name::NodePublicIpv6)?))
    }

    /// Key and text of an overwrite that is no address: published, it would hide the node from every peer.
    pub(super) fn bad_overwrite(&self, annotations: &Annotations) -> Option<(String, String)> {
        let v4 = self.address::<Ipv4Addr>(annotations, Name::PublicIpOverwrite).err();
        v4.or_else(|| self.address::<Ipv6Addr>(annotations, Name::PublicIpv6Overwrite).err())
    }

    fn address<T: FromStr>(
        &self,
        annotations: &Annotations,
        name: Name,
    ) -> Result<Option<T>, (String, String)> {
        let text = self.read(annotations, name).filter(|text| !text.is_empty());
        let shown = |text: &str| (self.of(name), text.chars().take(60).collect());
        text.map(|text| text.parse().map_err(|_| shown(text))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::VxlanData;
    use dataplane_core::MacAddr;

    fn keys() -> Keys {
        Keys::new("flannel.alpha.coreos.com").unwrap()
    }

    fn vxlan(v4: bool, v6: bool) -> LeaseAttrs {
        let data = |last| VxlanData { vni: Some(1), mac: MacAddr([0x12, 0xc6, 0x65, 0x89, 0xb4, last]) };
        LeaseAttrs {
            public_ip: v4.then(|| "192.0.2.1".parse().unwrap()),
            public_ipv6: v6.then(|| "2001:db8::1".parse().unwrap()),
            backend: BackendData::Vxlan { v4: v4.then(|| data(0xe3)), v6: v6.then(|| data(0xe6)) },
        }
    }

    fn udp() -> LeaseAttrs {
        LeaseAttrs {
            public_ip: Some("192.0.2.1".parse().unwrap()),
            public_ipv6: None,
            backend: BackendData::Udp,
        }
    }

    fn said(attrs: &LeaseAttrs, present: &[(&str, &str)]) -> Vec<(String, String)> {
        let present =
            present.iter().map(|(key, value)| (format!("p.q/{key}"), (*value).to_owned())).collect();
        let keys = Keys::new("p.q").unwrap();
        let strip = |key: String| key.strip_prefix("p.q/").unwrap().to_owned();
        keys.desired(attrs, &present).into_iter().map(|(key, value)| (strip(key), value)).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn prefixes_are_flannels() {
        for (prefix, key) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org9.com", "org9.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
        ] {
            assert_eq!(Keys::new(prefix).unwrap().of(Name::BackendType), key);
        }
        for bad in
            ["", "/", "org", "org/", "org/prefix", "org.COM", "org.com/PREFIX", "a.b/c/d", "a.b/-", "a..b"]
        {
            let error = Keys::new(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{bad:?} ")), "{error}");
        }
    }

    #[test]
    fn annotations_are_flannels_byte_for_byte() {
        assert_eq!(
            said(&vxlan(true, false), &[]),
            pairs(&[
                ("backend-type", "vxlan"),
                ("backend-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
                ("public-ip", "192.0.2.1"),
                ("kube-subnet-manager", "true"),
            ])
        );
        assert_eq!(
            said(&udp(), &[]),
            pairs(&[
                ("backend-type", ""),
                ("backend-data", "null"),
                ("public-ip", "192.0.2.1"),
                ("kube-subnet-manager", "true"),
            ])
        );
        let host_gw = LeaseAttrs {
            public_ipv6: Some("2001:db8::1".parse().unwrap()),
            backend: BackendData::from_texts("host-gw", None, None).unwrap(),
            ..udp()
        };
        assert_eq!(
            said(&host_gw, &[]),
            pairs(&[
                ("backend-type", "host-gw"),
                ("backend-data", "null"),
                ("public-ip", "192.0.2.1"),
                ("backend-v6-data", "null"),
                ("public-ipv6", "2001:db8::1"),
                ("kube-subnet-manager", "true"),
            ])
        );
        assert_eq!(
            said(&vxlan(false, true), &[]),
            pairs(&[
                ("backend-type", "vxlan"),
                ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e6"}"#),
                ("public-ipv6", "2001:db8::1"),
                ("kube-subnet-manager", "true"),
            ])
        );
        let nobody = LeaseAttrs { public_ip: None, ..udp() };
        assert!(said(&nobody, &[]).contains(&("public-ip".to_owned(), "0.0.0.0".to_owned())));
    }

    #[test]
    fn an_operator_overwrites_the_address_that_is_published() {
        let present = [("public-ip-overwrite", "203.0.113.7"), ("public-ipv6-overwrite", "2001:db8::7")];
        let said = said(&vxlan(true, true), &present);
        assert!(said.contains(&("public-ip".to_owned(), "203.0.113.7".to_owned())), "{said:?}");
        assert!(said.contains(&("public-ipv6".to_owned(), "2001:db8::7".to_owned())), "{said:?}");
    }

    #[test]
    fn only_what_differs_is_patched() {
        let mut present = Annotations::new();
        let whole = keys().patch(&vxlan(true, false), &present).unwrap();
        let annotations = whole["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations.len(), 4, "{whole}");
        for (key, value) in annotations {
            present.insert(key.clone(), value.as_str().unwrap().to_owned());
        }
        present.insert("somebody.else/key".to_owned(), "stays".to_owned());
        assert_eq!(keys().patch(&vxlan(true, false), &present), None);
        present.insert("flannel.alpha.coreos.com/public-ip".to_owned(), "192.0.2.9".to_owned());
        assert_eq!(
            keys().patch(&vxlan(true, false), &present).unwrap().to_string(),
            r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.1"}}}"#
        );
    }

    #[test]
    fn an_address_that_is_none_is_told_with_its_key() {
        let of = |text: &str| {
            let annotations = [(keys().of(Name::NodePublicIp), text.to_owned())].into();
            keys().node_addresses(&annotations)
        };
        assert_eq!(of("198.51.100.4"), Ok((Some("198.51.100.4".parse().unwrap()), None)));
        assert_eq!(of(""), Ok((None, None)));
        let (key, text) = of("here").unwrap_err();
        assert_eq!((key.as_str(), text.as_str()), ("flannel.alpha.coreos.com/node-public-ip", "here"));
    }
}
