//! Certificates for etcd: what the flags name, read and looked at before the client gets them.
//!
//! flannel speaks clear text to an `https` endpoint unless a client certificate is given. Here `https` is TLS: with
//! `--etcd-cafile` against those certificates and no others, else against the machine's.

use std::path::Path;

use etcd_client::{Certificate, Identity, TlsOptions};
use hostnet::regular_file::{self, Links};

use super::fault::Fault;
use crate::settings::EtcdSettings;

/// A bundle of all the world's authorities has a quarter of this.
const LONGEST: u64 = 1024 * 1024;

/// What the client needs to know about certificates.
pub(super) fn options(settings: &EtcdSettings) -> Result<TlsOptions, Fault> {
    let mut options = TlsOptions::new();
    options = match &settings.ca {
        Some(path) => {
            options.ca_certificate(Certificate::from_pem(pem(path, "--etcd-cafile", "CERTIFICATE")?))
        }
        None => options.with_native_roots(),
    };
    if let Some((certificate, key)) = &settings.identity {
        let certificate = pem(certificate, "--etcd-certfile", "CERTIFICATE")?;
        let key = pem(key, "--etcd-keyfile", "PRIVATE KEY")?;
        options = options.identity(Identity::from_pem(certificate, key));
    }
    Ok(options)
}

/// The file's text, in which there is at least one block of the kind.
fn pem(path: &Path, flag: &str, kind: &str) -> Result<Vec<u8>, Fault> {
    let remedy = || format!("check {flag}");
    // Kubernetes mounts secrets as links.
    let bytes = regular_file::read(path, LONGEST, Links::Follow).map_err(|error| Fault::Refused {
        why: format!("cannot read {}: {error}", path.display()),
        remedy: remedy(),
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let has = text
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{kind}-----")));
    if !has {
        let why = format!("{} holds no PEM block of a {}", path.display(), kind.to_lowercase());
        return Err(Fault::Refused { why, remedy: remedy() });
    }
    Ok(bytes)
}
