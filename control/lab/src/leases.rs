//! Leases of nodes that are not there, written as files into the store that daemons share.
//!
//! ```text
//! DIR/subnets/10.128.0.64-26    {"PublicIP":"198.18.0.2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:..."}}
//! ```
//!
//! That is flannel's value of a lease; without an expiry it is a reservation, which stays. The nodes' addresses are of
//! 198.18.0.0/15, which is set aside for measurements (RFC 2544).

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};

use crate::cluster::vxlan::VxlanEnd;
use crate::daemons::Backend;

/// The pods' network of a crowd, and how long a node's part of it is.
pub const CROWD_NETWORK: (Ipv4Net, u8) = (Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8), 26);
/// Where a crowd's nodes have their addresses.
pub const CROWD_UNDERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// Most nodes of a crowd: its underlay has no room for more.
pub const MOST: usize = 131_000;

/// The first subnet of a crowd.
const FIRST_SUBNET: u32 = 0x0a80_0000;

/// The n-th of a crowd of nodes, from 0.
///
/// # Errors
///
/// When the crowd has no such node.
pub fn of_crowd(number: usize) -> anyhow::Result<VxlanEnd> {
    ensure!(number < MOST, "a crowd has at most {MOST} nodes");
    let number = u32::try_from(number)?;
    let (_, length) = CROWD_NETWORK;
    let base = Ipv4Addr::from(FIRST_SUBNET + (number << (32 - length)));
    Ok(VxlanEnd {
        subnet: Ipv4Net::new(base, length)?.into(),
        mac: mac(number),
        public: IpAddr::V4(public(number)),
    })
}

fn public(number: u32) -> Ipv4Addr {
    // The first address names the network.
    Ipv4Addr::from(u32::from(CROWD_UNDERLAY.network()) + 1 + number)
}

/// Locally administered; the second byte tells it from the MACs that the lab gives to real nodes.
fn mac(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0x01, a, b, c, d]
}

/// Writes the lease of a node, whole: a daemon that looks meanwhile sees the old one or the new one.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write(store: &Path, backend: Backend, end: &VxlanEnd) -> anyhow::Result<()> {
    let path = file(store, &end.subnet);
    let text = value(backend, end)?.to_string();
    // Hidden, with the name's form that the store knows for a file that is not whole yet.
    let name = path.file_name().unwrap_or_default().display().to_string();
    let aside = path.with_file_name(format!(".{name}.bench0"));
    fs::create_dir_all(store.join("subnets"))
        .and_then(|()| fs::write(&aside, text))
        .and_then(|()| fs::rename(&aside, &path))
        .with_context(|| format!("write the lease {}", path.display()))
}

fn file(store: &Path, subnet: &IpNet) -> PathBuf {
    store.join("subnets").join(format!("{}-{}", subnet.network(), subnet.prefix_len()))
}

fn value(backend: Backend, end: &VxlanEnd) -> anyhow::Result<Value> {
    let IpAddr::V4(public) = end.public else { bail!("{} is no IPv4 address", end.public) };
    Ok(match backend {
        Backend::Udp => json!({"PublicIP": public}),
        Backend::Vxlan => json!({
            "PublicIP": public,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": mac_text(end.mac)},
        }),
    })
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The MAC that a node's lease publishes.
///
/// # Errors
///
/// When there is no such lease, or it names none.
pub fn mac_of(store: &Path, subnet: &IpNet) -> anyhow::Result<[u8; 6]> {
    let path = file(store, subnet);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let written = value.pointer("/BackendData/VtepMAC").and_then(Value::as_str);
    written.and_then(parse_mac).with_context(|| format!("{} names no VtepMAC", path.display()))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Leases of a small cluster that come, change and go; dropped, they are taken out of the store.
#[derive(Debug)]
pub struct Leases {
    store: PathBuf,
    backend: Backend,
    subnets: Vec<IpNet>,
}

impl Leases {
    /// So many subnets of 10.5.0.0/16 that nobody in the store has.
    ///
    /// # Errors
    ///
    /// When the network has not so many left.
    pub fn spare(store: &Path, backend: Backend, count: usize) -> anyhow::Result<Self> {
        let all = (1..=254_u8).rev().map(|third| IpNet::new_assert(IpAddr::from([10, 5, third, 0]), 24));
        let subnets: Vec<IpNet> = all.filter(|subnet| !file(store, subnet).exists()).take(count).collect();
        ensure!(subnets.len() == count, "10.5.0.0/16 has not {count} subnets left");
        Ok(Self { store: store.to_owned(), backend, subnets })
    }

    /// Makes the n-th change: a lease comes, moves to another node, goes, and comes again.
    ///
    /// # Errors
    ///
    /// When a file cannot be written or deleted.
    pub fn change(&mut self, number: usize) -> anyhow::Result<()> {
        let index = number % self.subnets.len();
        let Some(subnet) = self.subnets.get(index).copied() else { bail!("no lease to change") };
        let node = u32::try_from(index)? * 2;
        match number / self.subnets.len() % 3 {
            2 => {
                let path = file(&self.store, &subnet);
                fs::remove_file(&path).with_context(|| format!("delete the lease {}", path.display()))
            }
            moved => {
                let node = node + u32::from(moved == 1);
                let end = VxlanEnd { subnet, mac: mac(node), public: IpAddr::V4(public(node)) };
                write(&self.store, self.backend, &end)
            }
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        for subnet in &self.subnets {
            // Most of them are there; those that are not need not go.
            fs::remove_file(file(&self.store, subnet)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_addresses_and_subnets_of_its_own() {
        let (network, _) = CROWD_NETWORK;
        let last = of_crowd(MOST - 1).unwrap();
        let first = of_crowd(0).unwrap();
        assert_eq!(
            (first.subnet.to_string(), first.public.to_string()),
            ("10.128.0.0/26".into(), "198.18.0.1".into())
        );
        for end in [first, last] {
            assert!(IpNet::from(network).contains(&end.subnet), "{end:?}");
            assert!(IpNet::from(CROWD_UNDERLAY).contains(&end.public), "{end:?}");
        }
        assert!(!last.subnet.contains(&of_crowd(MOST - 2).unwrap().subnet.addr()));
        assert!(of_crowd(MOST).is_err());
    }

    #[test]
    fn a_lease_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let end = of_crowd(258).unwrap();
        write(dir.path(), Backend::Vxlan, &end).unwrap();
        assert_eq!(mac_of(dir.path(), &end.subnet).unwrap(), end.mac);
        assert!(mac_of(dir.path(), &of_crowd(1).unwrap().subnet).is_err());
    }

    #[test]
    fn changes_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let files = fs::read_dir(dir.path().join("subnets")).unwrap();
            files.map(|file| file.unwrap().file_name()).collect::<Vec<_>>()
        };
        let own = VxlanEnd { subnet: "10.5.254.0/24".parse().unwrap(), ..of_crowd(0).unwrap() };
        write(dir.path(), Backend::Udp, &own).unwrap();
        let mut leases = Leases::spare(dir.path(), Backend::Udp, 10).unwrap();
        let counts = [0..10, 10..20, 20..30, 30..35].map(|numbers| {
            numbers.for_each(|number| leases.change(number).unwrap());
            names().len()
        });
        assert_eq!(counts, [11, 11, 1, 6]);
        drop(leases);
        assert_eq!(names(), ["10.5.254.0-24"]);
    }
}
