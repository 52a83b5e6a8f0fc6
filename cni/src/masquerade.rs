//! Masquerade for one container: what it sends outside of its own network leaves under the host's address.
//!
//! Used by `bridge` where `ipMasq` is set. Names and forms are those of the reference plugins, so that a container that
//! they connected can be disconnected here and the other way round. Each change is one transaction of the one program of
//! its system; where it is made a second time nothing changes.

mod iptables;
mod nft;

use hostnet::filter::nft::is_installed;
use ipnet::IpNet;

use crate::filter::{Backend, failed, in_both, missing, not_as_made, told};
use crate::protocol::{Attachment, CniError};

/// The option of the configuration that chooses the system.
const OPTION: &str = "ipMasqBackend";

/// The rules of one attachment.
#[derive(Clone, Debug)]
pub struct Masquerade {
    /// The system; `None`: iptables where it works, else nftables.
    pub backend: Option<Backend>,
    /// The network's name.
    pub network: String,
    /// The container and the device in it.
    pub attachment: Attachment,
    /// The container's addresses with the prefix lengths of their networks.
    pub ips: Vec<IpNet>,
}

impl Masquerade {
    /// Makes the rules.
    ///
    /// # Errors
    /// There is no program for it, or it or the kernel refuses. Rules of one family may be there then; [`Self::remove`]
    /// finds them.
    pub async fn add(&self) -> Result<(), CniError> {
        let action = format!("masquerade container {}", self.attachment.container_id);
        let failed = |error| failed(&action, OPTION, &error);
        match self.backend {
            _ if self.ips.is_empty() => Ok(()),
            Some(Backend::Iptables) => iptables::add(self).await.map_err(failed),
            Some(Backend::Nftables) => nft::add(self).await.map_err(failed),
            None => match iptables::add(self).await {
                Ok(()) => Ok(()),
                // Rules of the one family that worked would be there twice.
                Err(error) if is_installed() => {
                    iptables::remove(self).await.ok();
                    nft::add(self).await.map_err(|second| {
                        CniError::internal(format!(
                            "{action}: neither system works: {}; {}",
                            told(&error),
                            told(&second)
                        ))
                    })
                }
                Err(error) => Err(failed(error)),
            },
        }
    }

    /// Takes the rules away, whichever system they are in. With `ips` empty, those of all addresses of the container in
    /// this network. What is not there is no error, nor is a program that is not installed.
    ///
    /// # Errors
    /// A program cannot be run, or it or the kernel refuses. What the other system has is gone even so.
    pub async fn remove(&self) -> Result<(), CniError> {
        let action = format!("end the masquerade of container {}", self.attachment.container_id);
        let (in_iptables, in_nft) = tokio::join!(iptables::remove(self), nft::remove(self));
        in_both(&action, in_iptables, in_nft)
    }

    /// Says whether the rules are there, in the system that was chosen; in either where none was.
    ///
    /// # Errors
    /// What is missing.
    pub async fn check(&self) -> Result<(), CniError> {
        let action = format!("look at the masquerade of container {}", self.attachment.container_id);
        let missing = missing(self.backend, iptables::missing(self), nft::missing(self));
        match missing.await.map_err(|error| failed(&action, OPTION, &error))? {
            None => Ok(()),
            Some(what) => Err(not_as_made(&format!(
                "container {} is not masqueraded as it should be: {what}",
                self.attachment.container_id
            ))),
        }
    }
}

/// Takes away the rules of a network that belong to none of the attachments, in both systems.
///
/// iptables rules name the container only: those of a container of which any device is still attached stay.
///
/// # Errors
/// As [`Masquerade::remove`].
pub async fn gc(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let action = format!("free what is masqueraded of network {network}");
    let (in_iptables, in_nft) = tokio::join!(iptables::gc(network, valid), nft::gc(network, valid));
    in_both(&action, in_iptables, in_nft)
}

#[cfg(test)]
mod tests;
