//! What a host can be asked to do, [`Host`], and how it refuses, [`HostError`].
use std::fmt;
use std::future::Future;

use nix::errno::Errno;

use crate::change::Change;
use crate::state::{HostState, Scope};

/// A host whose network state can be read and changed: the kernel's, or one in memory.
pub trait Host: Sync {
    /// Everything that is there and that `scope` covers.
    fn read(&self, scope: &Scope) -> impl Future<Output = Result<HostState, HostError>> + Send;

    /// Makes one change. What is already so is no error: neither adding what is there nor deleting what is not.
    fn apply(&self, change: &Change) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes changes in their order, each as [`Host::apply`] does whatever became of the others, and answers one by one.
    fn apply_all(&self, changes: &[Change]) -> impl Future<Output = Vec<Result<(), HostError>>> + Send {
        async move {
            let mut results = Vec::with_capacity(changes.len());
            for change in changes {
                results.push(self.apply(change).await);
            }
            results
        }
    }
}

/// The kernel refused something. Says what was attempted, why it was refused and what can be done.
///
/// ```
/// use hostnet::{Errno, HostError};
/// let refused = HostError::new("add route 10.1.2.0/24 dev flannel.1", Errno::EPERM);
/// assert_eq!(
///     refused.to_string(),
///     "add route 10.1.2.0/24 dev flannel.1: EPERM: Operation not permitted; \
///      needs CAP_NET_ADMIN in this network namespace (run as root, or give the container NET_ADMIN)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was attempted, as a verb phrase with the object: `add route 10.1.2.0/24 dev flannel.1`.
    pub action: String,
    /// The kernel's answer.
    pub errno: Errno,
    /// The kernel's own sentence about the refusal, where it gave one (netlink extended acknowledgement, Linux 4.12).
    pub detail: Option<String>,
}

impl HostError {
    /// A refusal without a sentence of the kernel's own.
    pub fn new(action: impl Into<String>, errno: Errno) -> Self {
        Self { action: action.into(), errno, detail: None }
    }

    /// A failed call of the standard library; an error that carries no errno becomes `EIO` with its text as detail.
    pub(crate) fn from_io(action: impl Into<String>, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Self::new(action, Errno::from_raw(code)),
            None => Self { action: action.into(), errno: Errno::EIO, detail: Some(error.to_string()) },
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.errno)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        let of_ipv6 = self.errno == Errno::EACCES
            && self.detail.as_deref().is_some_and(|why| why.contains("IPv6 is disabled"));
        if of_ipv6 {
            return f.write_str("; set net.ipv6.conf.DEVICE.disable_ipv6 to 0, and see who sets it to 1");
        }
        match remedy(self.errno) {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for HostError {}

/// What a person can do about it, for the refusals that have one answer whatever was attempted.
fn remedy(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::EPERM => {
            "needs CAP_NET_ADMIN in this network namespace (run as root, or give the container NET_ADMIN)"
        }
        Errno::EACCES => "not allowed for this user (run as root)",
        Errno::EEXIST => "something of that name or address is there already: remove it, or choose another",
        Errno::ENODEV => "there is no such device (any more): see `ip link`",
        Errno::ENETUNREACH => "the gateway cannot be reached by any address of this host: see `ip address`",
        Errno::EOPNOTSUPP => "this kernel cannot do it: its module may be missing (see `lsmod`, `modprobe`)",
        Errno::EROFS => {
            "it is mounted read-only: a container needs it writable, or the setting made on the host"
        }
        Errno::ENOBUFS | Errno::ENOMEM => "the kernel is out of memory for it",
        _ => return None,
    })
}
