//! Which destinations take no trains: what the kernel refused, by peer, in fixed memory, with another try later.
//!
//! A kernel refuses a train for the sake of one path: the route to one peer is narrower than the device, or leads
//! through a device that cannot sum segments up (before Linux 6.11) or through IPsec. The other peers keep their trains.
//! Routes and devices change without a word, so every refusal is forgotten after a while.
//!
//! While nothing is refused, all that this costs is two comparisons a batch.

use std::net::{IpAddr, SocketAddr};

/// How long a refusal counts: a refused train costs one system call and loses nothing, so being wrong is cheap both ways.
const RETRY_NS: u64 = 600 * 1_000_000_000;
/// Destinations refused one after another, without a train in between that passed, after which the whole socket goes
/// without trains. Every peer behind one bad device is refused, and a cluster may have more of them than there are
/// places here; few enough to be quick, many enough that a handful of bad routes does not cost the good ones theirs.
const IN_A_ROW: u32 = 8;
/// Destinations whose hashes may fall together before one of them is forgotten.
const WAYS: usize = 4;
/// Sets of [`WAYS`] places: 128 places, 7 KiB.
const SETS: usize = 32;

/// What is known of one destination.
#[derive(Clone, Copy, Debug)]
struct Note {
    to: SocketAddr,
    /// Trains of datagrams from this length on are refused, in bytes; 0 for all.
    from_stride: usize,
    /// The kernel's reason.
    errno: i32,
    /// When the next train is tried.
    until_ns: u64,
    /// The refusal was said aloud, so its end will be.
    said: bool,
}

/// What a refusal changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// This destination goes without trains: say so.
    Destination,
    /// This destination goes without trains, and nothing is to be said: it was, or there are so many such destinations
    /// that they push each other out of memory.
    Quietly,
    /// The whole socket goes without trains.
    Socket,
}

/// Destinations that take no trains. Allocated once.
pub(super) struct Paths {
    /// `SETS` sets of `WAYS` places.
    places: Box<[Option<Note>]>,
    /// Places in use.
    held: usize,
    in_a_row: u32,
    /// When the socket gets its trains back, if it lost them.
    socket_until_ns: Option<u64>,
    /// When notes that nobody asks for are looked for.
    sweep_ns: u64,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            places: vec![None; SETS * WAYS].into(),
            held: 0,
            in_a_row: 0,
            socket_until_ns: None,
            sweep_ns: 0,
        }
    }
}

impl Paths {
    /// True while no refusal is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.held == 0 && self.socket_until_ns.is_none()
    }

    /// Whether a train of datagrams of `stride` bytes to `to` is worth a try.
    pub(super) fn take_train(&self, to: SocketAddr, stride: usize, now_ns: u64) -> bool {
        // What was built before the socket lost its trains goes without them too.
        self.socket_until_ns.is_none()
            && self
                .find(to)
                .and_then(|at| self.places[at])
                .is_none_or(|note| stride < note.from_stride || now_ns >= note.until_ns)
    }

    /// A train of datagrams of `stride` bytes to `to` was refused, and its datagrams pass one by one. `errno` is the
    /// kernel's reason; `EMSGSIZE` speaks of this length and says nothing about shorter ones.
    pub(super) fn refuse(&mut self, to: SocketAddr, stride: usize, errno: i32, now_ns: u64) -> Refused {
        let too_long = errno == libc::EMSGSIZE;
        let from_stride = if too_long { stride } else { 0 };
        let mut note = Note { to, from_stride, errno, until_ns: now_ns + RETRY_NS, said: true };
        if let Some(old) = self.find(to).and_then(|at| self.places[at].as_mut()) {
            // What is out of date says nothing about the lengths in between.
            if now_ns < old.until_ns {
                note.from_stride = note.from_stride.min(old.from_stride);
            }
            note.said = old.said;
            *old = note;
            return Refused::Quietly;
        }
        if self.held == 0 {
            self.sweep_ns = note.until_ns + RETRY_NS;
            // While nothing was held, trains passed that nobody told of here.
            self.in_a_row = 0;
        }
        let set = set_of(to);
        // A full set forgets what would be forgotten first.
        let places = self.places[set..set + WAYS].iter_mut();
        if let Some(place) = places.min_by_key(|place| place.map_or(0, |note| note.until_ns)) {
            note.said = place.is_none_or(|old| now_ns >= old.until_ns);
            self.held += usize::from(place.is_none());
            *place = Some(note);
        }
        if !too_long {
            self.in_a_row += 1;
        }
        if self.in_a_row >= IN_A_ROW {
            self.forget_all();
            self.socket_until_ns = Some(now_ns + RETRY_NS);
            return Refused::Socket;
        }
        if note.said { Refused::Destination } else { Refused::Quietly }
    }

    /// A train of datagrams of `stride` bytes to `to` has passed. The `errno` of the refusal that is over by that.
    pub(super) fn pass(&mut self, to: SocketAddr, stride: usize) -> Option<i32> {
        self.in_a_row = 0;
        let at = self.find(to)?;
        let note = self.places[at].take_if(|note| stride >= note.from_stride)?;
        self.held -= 1;
        note.said.then_some(note.errno)
    }

    /// Forgets what is out of date. True when the socket shall try trains again.
    pub(super) fn look_again(&mut self, now_ns: u64) -> bool {
        if self.held > 0 && now_ns >= self.sweep_ns {
            self.sweep_ns = now_ns + RETRY_NS;
            // Nobody has sent a train there since it might have been: the peer may be gone.
            for place in &mut self.places {
                place.take_if(|note| now_ns >= note.until_ns + RETRY_NS);
            }
            self.held = self.places.iter().flatten().count();
        }
        self.socket_until_ns.take_if(|until| now_ns >= *until).is_some()
    }

    fn forget_all(&mut self) {
        self.places.fill(None);
        self.held = 0;
        self.in_a_row = 0;
    }

    fn find(&self, to: SocketAddr) -> Option<usize> {
        if self.held == 0 {
            return None;
        }
        let set = set_of(to);
        (set..set + WAYS).find(|at| self.places[*at].is_some_and(|note| note.to == to))
    }
}

/// Where the places of `to` begin.
fn set_of(to: SocketAddr) -> usize {
    let ip = match to.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64 ^ u128::from(ip) as u64,
    };
    let hash = (ip ^ (u64::from(to.port()) << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 59) as usize * WAYS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const FULL: usize = 1450;

    fn peer(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, (n >> 8) as u8, n as u8], 8472))
    }

    #[test]
    fn a_refusal_concerns_one_destination_until_a_train_passes_again() {
        let mut paths = Paths::default();
        assert!(paths.is_quiet());
        assert_eq!(paths.refuse(peer(1), FULL, libc::EIO, 5), Refused::Destination);
        assert!(!paths.is_quiet());
        assert!(!paths.take_train(peer(1), FULL, 5 + RETRY_NS - 1));
        assert!(!paths.take_train(peer(1), 1, 5), "whatever the length");
        assert!(paths.take_train(peer(2), FULL, 5));
        assert!(paths.take_train(peer(1), FULL, 5 + RETRY_NS), "another try");
        assert_eq!(paths.refuse(peer(1), FULL, libc::EINVAL, 5 + RETRY_NS), Refused::Quietly);
        assert!(!paths.take_train(peer(1), FULL, 5 + RETRY_NS));
        assert_eq!(paths.pass(peer(2), FULL), None);
        assert_eq!(paths.pass(peer(1), FULL), Some(libc::EINVAL));
        assert!(paths.is_quiet());
    }

    #[test]
    fn a_narrow_path_keeps_the_trains_that_fit_it() {
        let mut paths = Paths::default();
        assert_eq!(paths.refuse(peer(1), 1450, libc::EMSGSIZE, 0), Refused::Destination);
        assert!(paths.take_train(peer(1), 1449, 0));
        assert_eq!(paths.pass(peer(1), 1300), None, "that one was never refused");
        assert!(!paths.take_train(peer(1), 1450, 0));
        assert_eq!(paths.refuse(peer(1), 1400, libc::EMSGSIZE, 0), Refused::Quietly);
        assert!(!paths.take_train(peer(1), 1400, 0));
        assert!(paths.take_train(peer(1), 1399, 0));
        assert_eq!(paths.refuse(peer(1), 1450, libc::EMSGSIZE, RETRY_NS), Refused::Quietly);
        assert!(paths.take_train(peer(1), 1449, RETRY_NS), "the path may have become wider");
        assert_eq!(paths.pass(peer(1), 1450), Some(libc::EMSGSIZE));
    }

    #[test]
    fn many_destinations_in_a_row_are_the_sockets_own_fault() {
        let mut paths = Paths::default();
        for n in 1..8 {
            assert_eq!(paths.refuse(peer(n), FULL, libc::EIO, 0), Refused::Destination);
        }
        assert_eq!(paths.pass(peer(100), FULL), None, "one that works: the socket does");
        for n in 11..18 {
            assert_eq!(paths.refuse(peer(n), FULL, libc::EIO, 0), Refused::Destination);
        }
        assert!(!paths.look_again(RETRY_NS - 1));
        assert_eq!(paths.refuse(peer(18), FULL, libc::EIO, 9), Refused::Socket);
        assert!(!paths.take_train(peer(100), FULL, 10), "the socket stands for all of them");
        assert!(!paths.look_again(RETRY_NS + 8));
        assert!(paths.look_again(RETRY_NS + 9));
        assert!(!paths.look_again(RETRY_NS + 10), "once");
        assert!(paths.is_quiet());
    }

    #[test]
    fn narrow_paths_say_nothing_about_the_socket() {
        let mut paths = Paths::default();
        let mut said = 0;
        for n in 0..1000 {
            let refused = paths.refuse(peer(n), FULL, libc::EMSGSIZE, n.into());
            assert_ne!(refused, Refused::Socket);
            said += usize::from(refused == Refused::Destination);
            assert!(!paths.take_train(peer(n), FULL, n.into()), "the newest is known");
        }
        let known = (0..1000).filter(|n| !paths.take_train(peer(*n), FULL, 1000)).count();
        assert!((64..=SETS * WAYS).contains(&known), "{known} of 1000 in fixed memory");
        assert_eq!(paths.held, known);
        assert_eq!(said, known, "those that are pushed out and come back are not said again and again");
    }

    #[test]
    fn a_peer_that_is_gone_is_forgotten() {
        let mut paths = Paths::default();
        paths.refuse(peer(1), FULL, libc::EIO, 0);
        paths.refuse(peer(2), FULL, libc::EIO, RETRY_NS);
        assert!(!paths.look_again(2 * RETRY_NS));
        assert_eq!(paths.held, 1);
        assert!(!paths.look_again(3 * RETRY_NS));
        assert!(paths.is_quiet());
    }

    #[test]
    fn refusals_of_another_time_are_not_in_a_row_with_todays() {
        let mut paths = Paths::default();
        for n in 1..8 {
            assert_eq!(paths.refuse(peer(n), FULL, libc::EIO, 0), Refused::Destination);
        }
        paths.look_again(3 * RETRY_NS);
        assert!(paths.is_quiet());
        assert_eq!(paths.refuse(peer(8), FULL, libc::EIO, 4 * RETRY_NS), Refused::Destination);
    }

    proptest! {
        /// Against a memory without bounds: what is not known there is never held back here, what was refused last is,
        /// and no more is ever held than there is room for.
        #[test]
        fn a_train_is_held_back_only_where_one_was_refused(
            steps in proptest::collection::vec(
                (0u16..300, prop_oneof![Just(0usize), Just(1), Just(2)], 1usize..1500, 0u64..RETRY_NS),
                1..400,
            ),
        ) {
            let (mut paths, mut now_ns) = (Paths::default(), 0);
            let mut refused: HashMap<u16, (usize, u64)> = HashMap::new();
            for (n, step, stride, later) in steps {
                now_ns += later / 64;
                match step {
                    0 => {
                        paths.refuse(peer(n), stride, libc::EMSGSIZE, now_ns);
                        let old = refused.get(&n).filter(|(_, until)| now_ns < *until);
                        let from = old.map_or(stride, |(from, _)| stride.min(*from));
                        refused.insert(n, (from, now_ns + RETRY_NS));
                        prop_assert!(!paths.take_train(peer(n), stride, now_ns));
                    }
                    1 => {
                        paths.pass(peer(n), stride);
                        if refused.get(&n).is_some_and(|(from, _)| stride >= *from) {
                            refused.remove(&n);
                        }
                        prop_assert!(paths.take_train(peer(n), stride, now_ns) || refused.contains_key(&n));
                    }
                    _ => prop_assert!(!paths.look_again(now_ns)),
                }
                let known = refused.get(&n).is_some_and(|(from, until)| stride >= *from && now_ns < *until);
                prop_assert!(known || paths.take_train(peer(n), stride, now_ns));
                prop_assert_eq!(paths.held, paths.places.iter().flatten().count());
                prop_assert!(paths.held <= SETS * WAYS);
            }
        }
    }
}
