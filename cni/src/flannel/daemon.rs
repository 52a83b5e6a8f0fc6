//! What the daemon says of itself: one line to its status socket, one line of JSON back. The socket is beside `subnet.env`.
//!
//! flannel's own daemon has no such socket, and one of ours may run without it; then `subnet.env` is all there is to judge by.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::protocol::{CniError, Code};

/// A kubelet waits for STATUS; the daemon answers from memory.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longer than any answer about a node.
const LONGEST: u64 = 1 << 20;

/// The daemon of this node.
pub(super) struct Daemon {
    socket: PathBuf,
}

/// The part of its answer that is read here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    state: String,
    #[serde(default)]
    problems: Vec<String>,
    #[serde(default)]
    lease: Option<serde::de::IgnoredAny>,
}

impl Daemon {
    /// The one that writes this `subnet.env`.
    pub(super) fn beside(subnet_file: &Path) -> Self {
        Self { socket: subnet_file.with_file_name("flanneld.sock") }
    }

    /// Why there is no `subnet.env` that can be used.
    pub(super) fn reason(&self) -> String {
        match self.ask() {
            Ok(Some(status)) if status.problems.is_empty() => format!("flanneld says: {}", status.state),
            Ok(Some(status)) => format!("flanneld says: {}", status.problems.join("; ")),
            Ok(None) => {
                format!("no flanneld has a status socket at {}: is it running?", self.socket.display())
            }
            Err(error) => error.message,
        }
    }

    /// # Errors
    /// Packets cannot flow, as the daemon sees it: 50 before it ever could, or when it is dead; 51 when pods that are there
    /// have lost the overlay too.
    pub(super) fn judge(&self) -> Result<(), CniError> {
        let Some(status) = self.ask()? else { return Ok(()) };
        if status.state != "not-ready" {
            return Ok(());
        }
        let (code, text) = match status.lease {
            None => (Code::NOT_AVAILABLE, "flanneld is not ready"),
            Some(_) => (Code::LIMITED_CONNECTIVITY, "the overlay is down"),
        };
        Err(CniError::new(code, format!("{text}: {}", status.problems.join("; ")))
            .with_details("flanneld status on this node says more"))
    }

    /// `None` where there is no socket. A socket that nobody answers on is left by a daemon that died.
    fn ask(&self) -> Result<Option<Status>, CniError> {
        let talk = || -> io::Result<Vec<u8>> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(b"status\n")?;
            let mut answer = Vec::new();
            stream.take(LONGEST).read_to_end(&mut answer)?;
            Ok(answer)
        };
        let dead = |why: String| {
            CniError::new(Code::NOT_AVAILABLE, format!("flanneld does not answer at {}: {why}", self.socket.display()))
                .with_details("what the kernel carries goes on, what the daemon's engine carried does not; its log tells why it ended")
        };
        match talk() {
            Ok(answer) => serde_json::from_slice(&answer).map(Some).map_err(|error| dead(error.to_string())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(dead(format!("no answer within {} s", PATIENCE.as_secs())))
            }
            Err(error) => Err(dead(error.to_string())),
        }
    }
}
