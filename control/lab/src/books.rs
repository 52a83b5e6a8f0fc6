//! The line that an engine of a real `flanneld` leaves behind: packets in, packets on, and the difference by reason.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Serialize;

/// What an engine counted from its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// The TUN device.
    pub device: String,
    /// From the wire to the device.
    pub rx: Page,
    /// From the device to the wire.
    pub tx: Page,
    /// Messages that the kernel lost because the socket's buffer was full; they never came to the engine. Datagrams that
    /// the kernel had joined count once.
    pub overflows: u64,
    /// Packets that the kernel lost because the device's ring was full; they never came to the engine.
    pub ring: u64,
}

/// One direction of [`Books`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Page {
    /// Packets taken in.
    pub packets: u64,
    /// Packets passed on.
    pub passed: u64,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl Page {
    /// Every packet has one fate.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.packets == self.passed + self.drops.values().sum::<u64>()
    }

    /// Packets dropped under `reason`.
    #[must_use]
    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or(0)
    }
}

impl Books {
    /// The books in the log of a daemon that has ended, written with `--log-format json`: one for each engine.
    ///
    /// # Errors
    ///
    /// When a line cannot be read.
    pub fn in_log(lines: &[String]) -> anyhow::Result<Vec<Self>> {
        lines.iter().filter(|line| line.contains("\"stopped: rx ")).map(|line| Self::read(line)).collect()
    }

    /// `stopped: rx 10 packets, delivered 7 (700 bytes), unknown_peer 3; tx 2 packets, sent 2 (200 bytes)`
    fn read(line: &str) -> anyhow::Result<Self> {
        let event: serde_json::Value = serde_json::from_str(line)?;
        let text = |key: &str| event.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        let wrong = || format!("no books: {line}");
        let mut parts = text("message").strip_prefix("stopped: ").with_context(wrong)?.split("; ");
        let mut page = || read_page(parts.next().unwrap_or_default()).with_context(wrong);
        let (rx, tx) = (page()?, page()?);
        let mut books = Self { device: text("device").to_owned(), rx, tx, ..Self::default() };
        for lost in parts {
            let (count, what) = lost.split_once(' ').with_context(wrong)?;
            let place = if what.contains("ring") { &mut books.ring } else { &mut books.overflows };
            *place = count.parse().with_context(wrong)?;
        }
        Ok(books)
    }
}

fn read_page(text: &str) -> anyhow::Result<Page> {
    let mut page = Page::default();
    for (place, part) in text.split(", ").enumerate() {
        match (place, part.split(' ').collect::<Vec<_>>().as_slice()) {
            (0, [_direction, count, "packets"]) => page.packets = count.parse()?,
            (1, ["delivered" | "sent", count, ..]) => page.passed = count.parse()?,
            (_, [reason, count]) => {
                page.drops.insert((*reason).to_owned(), count.parse()?);
            }
            _ => bail!("{part:?}"),
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_read_as_they_are_written() {
        let line = r#"{"level":"INFO","message":"stopped: rx 10 packets, delivered 7 (700 bytes), unknown_peer 2, bad_mac 1; tx 2 packets, sent 2 (200 bytes); 5 messages found the socket's buffer full or were a flood; 6 packets found the device's ring full","device":"flannel.1"}"#;
        let quiet = r#"{"level":"INFO","message":"stopped: rx 0 packets, delivered 0 (0 bytes); tx 0 packets, sent 0 (0 bytes)","device":"flannel.1"}"#;
        let lines = ["something else".to_owned(), line.to_owned(), quiet.to_owned()];
        let [books, quiet] = <[Books; 2]>::try_from(Books::in_log(&lines).unwrap()).unwrap();
        assert_eq!(books.device, "flannel.1");
        assert!(books.rx.balances() && books.tx.balances());
        assert_eq!(
            (books.rx.packets, books.rx.dropped("unknown_peer"), books.rx.dropped("bad_mac")),
            (10, 2, 1)
        );
        assert_eq!((books.tx.packets, books.tx.passed, books.overflows, books.ring), (2, 2, 5, 6));
        assert_eq!(quiet, Books { device: "flannel.1".to_owned(), ..Books::default() });
        assert!(!Page { packets: 3, ..Page::default() }.balances());
        assert!(Books::in_log(&[line.replace("packets, delivered", "pockets, delivered")]).is_err());
    }
}
