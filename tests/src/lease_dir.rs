//! The lease directory that the daemons of a test share: `DIR/store`.

use std::fs;
use std::path::Path;

/// A lease of a kernel VXLAN node that is not there.
pub const GHOST: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;

/// Writes the network configuration.
///
/// # Errors
///
/// When it cannot be written.
pub fn write_config(dir: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(dir.join("store"))?;
    Ok(fs::write(dir.join("store/config"), text)?)
}

/// The value of the lease of the node with this address.
///
/// # Errors
///
/// When there is none, or it is no JSON.
pub fn lease(dir: &Path, owner: &str) -> anyhow::Result<(String, serde_json::Value)> {
    for entry in fs::read_dir(dir.join("store/subnets"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(entry.path())?)?;
        if value["PublicIP"] == owner {
            if let Some(members) = value.as_object_mut() {
                members.remove("Expiry");
            }
            return Ok((name, value));
        }
    }
    anyhow::bail!("{owner} has no lease")
}

/// Puts a lease into the store as another node would.
///
/// # Errors
///
/// When it cannot be written.
pub fn publish(dir: &Path, key: &str, value: &str) -> anyhow::Result<()> {
    let subnets = dir.join("store/subnets");
    fs::create_dir_all(&subnets)?;
    let aside = dir.join("aside");
    fs::write(&aside, value)?;
    Ok(fs::rename(aside, subnets.join(key))?)
}
