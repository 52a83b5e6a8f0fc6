//! What a TUN device's ring dropped before a worker could read it: a number that only the kernel has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one read: some hundred devices.
const PAGE: usize = 64 << 10;
/// Where `tx_dropped` stands behind the name: eight numbers of what was received, then bytes, packets, errors.
const TX_DROPPED: usize = 11;

/// The kernel's account of the ring of one device (`tx_dropped` in `/proc/net/dev`): a full ring drops without a word
/// to sender or reader (`tun_net_xmit`).
pub(crate) struct RingDrops {
    /// Shows the network namespace in which it was opened, whoever reads it; `None` where there is no `/proc`.
    devices: Option<File>,
    device: String,
    /// The last reading, which outlives the device.
    last: AtomicU64,
}

impl RingDrops {
    /// The account of `device` in the network namespace of the calling thread.
    pub(crate) fn of(device: &str) -> Self {
        // /proc/net is that of the process, not of the thread.
        let devices = File::open("/proc/thread-self/net/dev").ok();
        Self { devices, device: device.to_owned(), last: AtomicU64::new(0) }
    }

    /// Packets dropped so far, a superpacket counting once: as of now, or the last reading when the device is gone.
    pub(crate) fn read(&self) -> u64 {
        let found = self.devices.as_ref().and_then(|devices| whole(devices).ok());
        if let Some(count) = found.and_then(|text| tx_dropped(&text, &self.device)) {
            self.last.store(count, Ordering::Relaxed);
        }
        self.last.load(Ordering::Relaxed)
    }
}

/// The file from its beginning. The kernel makes the text anew for a read at 0, and goes on from line to line.
fn whole(file: &File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut page = vec![0; PAGE];
    loop {
        let len = file.read_at(&mut page, text.len() as u64)?;
        if len == 0 {
            return String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into());
        }
        text.extend_from_slice(&page[..len]);
    }
}

fn tx_dropped(text: &str, device: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().nth(TX_DROPPED)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 prints it.
    const TEXT: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
flannel.10: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
flannel.1: 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56
";

    #[test]
    fn the_right_number_of_the_right_device_is_read() {
        assert_eq!(tx_dropped(TEXT, "flannel.1"), Some(52));
        assert_eq!(tx_dropped(TEXT, "lo"), Some(12));
        assert_eq!(tx_dropped(TEXT, "flannel"), None);
        assert_eq!(tx_dropped("", "lo"), None);
    }

    #[test]
    fn a_device_that_is_gone_keeps_its_last_count() {
        let drops = RingDrops { last: AtomicU64::new(7), ..RingDrops::of("not-a-device-0") };
        assert_eq!(drops.read(), 7);
    }
}
