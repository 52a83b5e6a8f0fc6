//! What systemd is told, where it listens: sd_notify(3).

use sd_notify::NotifyState;

/// The node carries pods' packets.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The process is about to end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "NOTIFY_SOCKET is set, and nobody listens there");
    }
}
