//! Control messages (cmsg(3)): written before a send, read after a receive.

use std::ptr;

/// Bytes of control data a message can carry: a receive has at most the UDP_GRO stride, the TOS and the overflow
/// counter, 24 bytes each.
pub(super) const ROOM: usize = 128;

/// Control data of one message, aligned as `struct cmsghdr` wants.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ControlRoom(pub(super) [u8; ROOM]);

impl ControlRoom {
    pub(super) const EMPTY: Self = Self([0; ROOM]);

    /// Appends one control message after `used` bytes and returns the bytes used with it.
    ///
    /// # Panics
    /// If it does not fit: the callers write at most two messages of at most four bytes.
    pub(super) fn append(&mut self, used: usize, level: i32, kind: i32, value: &[u8]) -> usize {
        let header = size_of::<libc::cmsghdr>();
        let end = used + space(value.len());
        assert!(end <= ROOM, "a control message of {} bytes fits", value.len());
        // SAFETY: cmsghdr is plain numbers, for which all-zero is a valid value; it has a private padding field with
        // musl's headers, so it cannot be written field by field.
        let mut cmsg: libc::cmsghdr = unsafe { std::mem::zeroed() };
        cmsg.cmsg_level = level;
        cmsg.cmsg_type = kind;
        cmsg.cmsg_len = (header + value.len()) as _;
        let (head, data) = self.0[used..end].split_at_mut(header);
        // SAFETY: `head` has the size of a cmsghdr, and the write needs no alignment.
        unsafe { ptr::write_unaligned(head.as_mut_ptr().cast::<libc::cmsghdr>(), cmsg) };
        data[..value.len()].copy_from_slice(value);
        end
    }

    /// The control messages in the first `len` bytes: level, type and data.
    ///
    /// Stops at the first header whose length lies.
    pub(super) fn iter(&self, len: usize) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let header = size_of::<libc::cmsghdr>();
        let mut rest = &self.0[..len.min(ROOM)];
        std::iter::from_fn(move || {
            if rest.len() < header {
                return None;
            }
            // SAFETY: `rest` holds at least a whole header, any bit pattern is a valid cmsghdr, and the read
            // needs no alignment.
            let cmsg = unsafe { ptr::read_unaligned(rest.as_ptr().cast::<libc::cmsghdr>()) };
            #[allow(clippy::unnecessary_cast, reason = "cmsg_len is u32 with musl's headers")]
            let whole = cmsg.cmsg_len as usize;
            let data = rest.get(header..whole)?;
            rest = &rest[space(whole - header).min(rest.len())..];
            Some((cmsg.cmsg_level, cmsg.cmsg_type, data))
        })
    }
}

/// Bytes that a control message with `len` bytes of data takes with its header and padding: `CMSG_SPACE`.
const fn space(len: usize) -> usize {
    let word = size_of::<usize>();
    size_of::<libc::cmsghdr>() + len.div_ceil(word) * word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_read_back() {
        let mut room = ControlRoom::EMPTY;
        let used = room.append(0, libc::SOL_UDP, libc::UDP_SEGMENT, &1472u16.to_ne_bytes());
        let used = room.append(used, libc::IPPROTO_IP, libc::IP_TOS, &3i32.to_ne_bytes());
        let read: Vec<_> = room.iter(used).collect();
        assert_eq!(
            read,
            [
                (libc::SOL_UDP, libc::UDP_SEGMENT, &1472u16.to_ne_bytes()[..]),
                (libc::IPPROTO_IP, libc::IP_TOS, &3i32.to_ne_bytes()[..]),
            ]
        );
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        let mut room = ControlRoom::EMPTY;
        let used = room.append(0, 1, 2, &7u32.to_ne_bytes());
        room.0[0] = 0xff;
        assert_eq!(room.iter(used).count(), 0);
        room.0[0] = 3;
        assert_eq!(room.iter(used).count(), 0);
    }
}
