//! One question to the daemon's socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::status::API_VERSION;

/// How long the daemon may take: its loop answers between two steps of work.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer: a peer is some 300 bytes.
const LONGEST: u64 = 256 << 20;

/// The answer to `word`; an error says what to check.
pub(super) fn ask(socket: &Path, word: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).map_err(|error| {
        let path = socket.display();
        match error.kind() {
            ErrorKind::PermissionDenied => anyhow::anyhow!(
                "{path} may be opened by its owner and group only. Run: sudo flanneld {word}"
            ),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
                "no flanneld answers at {path} ({error}). Is it running? See: systemctl status flanneld, or kubectl -n \
                 kube-flannel get pods -o wide, and run this inside the pod. A daemon with another --status-socket is \
                 asked with --status-socket PATH"
            ),
            _ => anyhow::Error::new(error).context(format!("open {path}")),
        }
    })?;
    let talk = || -> std::io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{word}\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = match { talk }() {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => bail!(
            "the flanneld behind {} has not answered within {} s: its log says what it is doing",
            socket.display(),
            PATIENCE.as_secs()
        ),
        answer => answer.with_context(|| format!("ask {}", socket.display()))?,
    };
    if answer.is_empty() {
        bail!("the flanneld behind {} ended the connection: ask again", socket.display());
    }
    Ok(answer)
}

/// Reads an answer. A daemon of another version says which it is.
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(answer).map_err(|error| {
        let said: Value = serde_json::from_slice(answer).unwrap_or_default();
        if let Some(refusal) = said.get("error").and_then(Value::as_str) {
            return anyhow::anyhow!("the daemon refuses: {refusal}");
        }
        let text = |key| said.get(key).and_then(Value::as_str).unwrap_or("unknown");
        anyhow::anyhow!(
            "the daemon's answer is not what this program reads: {error}. The daemon is version {} ({}), this is {} ({}): \
             use the program that the daemon was started from",
            text("version"),
            text("apiVersion"),
            env!("CARGO_PKG_VERSION"),
            API_VERSION
        )
    })
}
