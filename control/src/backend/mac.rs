//! The VtepMAC of this node: made once, then the same for as long as anything remembers it, because peers hold it in
//! permanent neighbour entries and a change costs them packets.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dataplane_core::MacAddr;
use hostnet::regular_file::{self, Links};

/// A MAC has 17 characters; what is much longer is something else.
const LONGEST: u64 = 64;

/// Where a MAC was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacSource {
    /// This node's lease in the store.
    Lease,
    /// The file beside subnet.env.
    File,
    /// Nowhere: it is new.
    New,
}

impl fmt::Display for MacSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "of this node's lease",
            Self::File => "of an earlier run",
            Self::New => "new",
        })
    }
}

/// The file that remembers the MAC of `device`, beside subnet.env: `/run/flannel/flannel.1.mac`.
pub fn path(subnet_file: &Path, device: &str) -> PathBuf {
    subnet_file.with_file_name(format!("{device}.mac"))
}

/// The MAC of the lease, else the file's, else a new one: locally administered, unicast, random. `taken` are those of
/// other leases: two daemons that share a subnet.env share the file too, and peers keep one entry a MAC.
pub fn settle(
    lease: Option<MacAddr>,
    file: &Path,
    taken: &[MacAddr],
    random: &mut fastrand::Rng,
) -> (MacAddr, MacSource) {
    let usable = |mac: &MacAddr| mac.0[0] & 1 == 0 && *mac != MacAddr::default();
    if let Some(mac) = lease.filter(usable) {
        return (mac, MacSource::Lease);
    }
    let remembered = regular_file::read(file, LONGEST, Links::Follow)
        .ok()
        .and_then(|bytes| String::from_utf8_lossy(&bytes).trim().parse().ok());
    if let Some(mac) = remembered.filter(|mac| usable(mac) && !taken.contains(mac)) {
        return (mac, MacSource::File);
    }
    let mut bytes = random.u64(..).to_be_bytes();
    bytes[2] = (bytes[2] & 0xfe) | 0x02;
    let [_, _, mac @ ..] = bytes;
    (MacAddr(mac), MacSource::New)
}

/// Writes the MAC to the file, whole or not at all.
pub fn remember(mac: MacAddr, file: &Path) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut out = atomic_write_file::AtomicWriteFile::open(file)?;
    writeln!(out, "{mac}")?;
    out.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_the_leases_then_the_files_then_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(&dir.path().join("flannel/subnet.env"), "flannel.1");
        assert_eq!(file, dir.path().join("flannel/flannel.1.mac"));
        let random = &mut fastrand::Rng::with_seed(7);
        let (new, source) = settle(None, &file, &[], random);
        assert_eq!(source, MacSource::New);
        remember(new, &file).unwrap();
        assert_eq!(settle(None, &file, &[], random), (new, MacSource::File));
        assert_eq!(settle(None, &file, &[new], random).1, MacSource::New, "another node has the file's");
        let leased = MacAddr([2, 0, 0, 0, 0, 9]);
        assert_eq!(settle(Some(leased), &file, &[leased], random), (leased, MacSource::Lease));
        assert_eq!(settle(Some(MacAddr([1, 0, 0, 0, 0, 9])), &file, &[], random), (new, MacSource::File));
        fs::write(&file, "nonsense").unwrap();
        assert_eq!(settle(Some(MacAddr::default()), &file, &[], random).1, MacSource::New);
    }

    #[test]
    fn a_new_mac_is_local_and_unicast() {
        for seed in 0..500 {
            let (mac, _) =
                settle(None, Path::new("/nonexistent/x"), &[], &mut fastrand::Rng::with_seed(seed));
            assert_eq!(mac.0[0] & 0x03, 0x02, "{mac}");
        }
    }
}
