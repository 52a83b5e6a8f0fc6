//! Names by which what ADD made is found again, whoever looks for it: they are made of what identifies the attachment.

use sha2::{Digest, Sha256};

use crate::protocol::Attachment;

/// The pair's end on the host: `veth` and eight digits, as the reference plugin's, but the same at every try. `salt` counts
/// the names that were taken by others.
pub(super) fn host_end(network: &str, attachment: &Attachment, salt: u8) -> String {
    let mut hash = Sha256::new();
    for part in [network, &attachment.container_id, &attachment.ifname] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update([salt]);
    let [a, b, c, d] = first_four(&hash.finalize());
    format!("veth{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// The group of a network's devices on the host: never 0, which is everybody's, and never negative for those who read it
/// as a signed number.
pub(super) fn group(network: &str) -> u32 {
    let hash = u32::from_be_bytes(first_four(&Sha256::digest(network.as_bytes())));
    (hash >> 1) | 0x4000_0000
}

fn first_four(hash: &[u8]) -> [u8; 4] {
    hash.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_devices_names_and_differ() {
        let at =
            |id: &str, ifname: &str| Attachment { container_id: id.to_owned(), ifname: ifname.to_owned() };
        let one = host_end("n", &at("c", "eth0"), 0);
        assert_eq!(one, host_end("n", &at("c", "eth0"), 0));
        assert!(one.len() == 12 && one.starts_with("veth"), "{one}");
        for other in [
            host_end("m", &at("c", "eth0"), 0),
            host_end("n", &at("c", "eth1"), 0),
            host_end("n", &at("ce", "th0"), 0),
            host_end("n", &at("c", "eth0"), 1),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(group("n"), group("m"));
        assert!(group("n") > 0 && group("n") <= 0x7fff_ffff);
    }
}
