//! Where in etcd a network is kept: flannel's keys, byte for byte.
//!
//! ```text
//! PREFIX/config                                     the network configuration
//! PREFIX/subnets/10.5.34.0-24                       one lease
//! PREFIX/subnets/10.12.13.0-24&fd00:12:13::-56      one lease of both families
//! ```

use dataplane_core::Ipv4Net;

use crate::lease::{Key, Subnet};

/// The keys under one `--etcd-prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Without a slash at its end.
    prefix: String,
}

impl Keys {
    /// Takes a prefix as a person writes it; `//`, `.` and `..` are resolved as flannel resolves them (Go's `path.Join`).
    pub(crate) fn new(prefix: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        let absolute = prefix.starts_with('/');
        for part in prefix.split('/').filter(|part| !part.is_empty() && *part != ".") {
            match part {
                ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
                // There is nothing above the root.
                ".." if absolute => {}
                _ => parts.push(part),
            }
        }
        let root = if absolute { "/" } else { "" };
        Self { prefix: format!("{root}{}", parts.join("/")) }
    }

    /// The key of the network configuration.
    pub(crate) fn config(&self) -> String {
        self.join("config")
    }

    /// What the key of every lease begins with. The slash at its end keeps `subnets2/` out.
    pub(crate) fn leases(&self) -> String {
        self.join("subnets/")
    }

    /// The key of a lease.
    pub(crate) fn lease(&self, subnet: &Subnet) -> String {
        format!("{}{}", self.leases(), subnet.key())
    }

    /// What the keys of all leases with this IPv4 subnet begin with, whatever their IPv6 subnet.
    pub(crate) fn leases_of(&self, net: Ipv4Net) -> String {
        self.lease(&Subnet::V4(net))
    }

    /// The subnet that a key stands for; `None` if it is not the key of a lease of this network.
    pub(crate) fn subnet(&self, key: &[u8]) -> Option<Subnet> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.leases())?;
        name.parse::<Key>().ok().map(|key| key.0)
    }

    fn join(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" | "/" => format!("{}{name}", self.prefix),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flannels() {
        let keys = Keys::new("/coreos.com/network");
        assert_eq!(keys.config(), "/coreos.com/network/config");
        for name in ["10.5.34.0-24", "10.12.13.0-24&fd00:12:13::-56"] {
            let subnet = name.parse::<Key>().unwrap().0;
            let key = format!("/coreos.com/network/subnets/{name}");
            assert_eq!(keys.lease(&subnet), key);
            assert_eq!(keys.subnet(key.as_bytes()), Some(subnet));
        }
    }

    #[test]
    fn a_prefix_is_joined_as_flannel_joins_it() {
        for (prefix, config) in [
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//coreos.com//network", "/coreos.com/network/config"),
            ("/coreos.com/./x/../network", "/coreos.com/network/config"),
            ("/../a", "/a/config"),
            ("../a/..", "../config"),
            ("network", "network/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(Keys::new(prefix).config(), config, "{prefix:?}");
        }
    }

    #[test]
    fn neighbours_of_the_prefix_are_not_its_leases() {
        let keys = Keys::new("/coreos.com/network");
        for key in [
            "/coreos.com/network/subnets2/10.5.34.0-24",
            "/coreos.com/network/subnets10.5.34.0-24",
            "/coreos.com/network2/subnets/10.5.34.0-24",
            "/coreos.com/network/subnets/other/10.5.34.0-24",
            "/coreos.com/network/subnets/",
            "/coreos.com/network/subnets",
            "10.5.34.0-24",
        ] {
            assert_eq!(keys.subnet(key.as_bytes()), None, "{key}");
        }
        assert_eq!(keys.subnet(b"/coreos.com/network/subnets/\xff"), None);
    }
}
