//! The local socket: one line asks, one line of JSON answers. For `flanneld status` and `flanneld peers`, read-only.
//!
//! Whoever may open the socket may ask: it belongs to its owner and group (0660). A socket that somebody answers on is
//! never taken away from them; one that a dead process left is.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::board::Shown;
use super::guests::Guests;
use crate::status::{API_VERSION, PeersAnswer};

/// The longest line that asks, its end included.
const LONGEST_REQUEST: usize = 1024;
/// Connections at once.
const MOST: usize = 16;
/// How long one may last: asking, answering, reading the answer.
const STAY: Duration = Duration::from_secs(5);
/// How often a socket that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Answers for ever.
pub(super) async fn serve(path: PathBuf, shown: Shown) {
    let mut said = None;
    let mut guests = Guests::new(MOST, STAY);
    loop {
        match Socket::bind(&path).await {
            Ok(socket) => {
                said = None;
                tracing::debug!(path = %path.display(), "the status socket answers");
                socket.accept(&shown, &mut guests).await;
            }
            Err(error) => {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::warn!(
                        path = %path.display(),
                        "flanneld status and peers will get no answer, trying again: {error}"
                    );
                    said = Some(error);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A socket of ours, which goes when this does.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Its file, to tell it from one that took its place.
    inode: u64,
}

impl Socket {
    async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        }
        make_room(path).await?;
        // Nobody finds it under its name before it has its mode.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
        remove(&aside)?;
        let listener = UnixListener::bind(&aside)?;
        let ready = fs::set_permissions(&aside, Permissions::from_mode(0o660))
            .and_then(|()| fs::metadata(&aside))
            .and_then(|found| fs::rename(&aside, path).map(|()| found.ino()));
        match ready {
            Ok(inode) => Ok(Self { listener, path: path.to_owned(), inode }),
            Err(error) => {
                remove(&aside).ok();
                Err(error)
            }
        }
    }

    /// Ends when the socket does not take connections any more, or when its file is gone.
    async fn accept(&self, shown: &Shown, guests: &mut Guests) {
        loop {
            match tokio::time::timeout(AGAIN, self.listener.accept()).await {
                Ok(Ok((stream, _))) => {
                    let shown = shown.clone();
                    guests.admit(async move {
                        // Whoever asked is gone when it fails.
                        answer(stream, &shown).await.ok();
                    });
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the status socket takes no connection, making it again");
                    return;
                }
                Err(_nobody_came) if self.is_there() => {}
                Err(_nobody_came) => return,
            }
        }
    }

    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_there() {
            // The next start makes room for itself if this fails.
            remove(&self.path).ok();
        }
    }
}

/// Errors when something lives at `path`, or when it is something else than a socket. A dead socket is replaced later,
/// in one step.
async fn make_room(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let why =
            "there is a file of that name that is no socket; remove it, or name another with --status-socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, why));
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            let why = "another process answers there; name another with --status-socket";
            Err(io::Error::new(ErrorKind::AddrInUse, why))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn answer(mut stream: UnixStream, shown: &Shown) -> io::Result<()> {
    let answer = match read_line(&mut stream).await? {
        Some(line) => respond(&line, shown),
        None => refusal("a request is one line of at most 1024 bytes"),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// The line without its end; `None` when it is too long or does not end.
async fn read_line(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut line = [0; LONGEST_REQUEST];
    let mut length = 0;
    while let Some(room) = line.get_mut(length..).filter(|room| !room.is_empty()) {
        let read = stream.read(room).await?;
        if read == 0 {
            return Ok(None);
        }
        length += read;
        let text = line.get(..length).unwrap_or_default();
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            return Ok(Some(String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned()));
        }
    }
    Ok(None)
}

fn respond(request: &str, shown: &Shown) -> String {
    let reading = shown.borrow().clone();
    match request.trim() {
        "status" => json(&reading.node),
        "peers" => json(&PeersAnswer {
            api_version: API_VERSION.into(),
            at: reading.node.at,
            peers: reading.peers.to_vec(),
        }),
        _ => refusal("the requests are: status, peers"),
    }
}

fn refusal(why: &str) -> String {
    json(&serde_json::json!({ "apiVersion": API_VERSION, "error": why }))
}

fn json(value: &impl Serialize) -> String {
    // Plain values with text keys: there is nothing that JSON could not say.
    let mut text = serde_json::to_string(value).unwrap_or_else(|error| format!(r#"{{"error":"{error}"}}"#));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
