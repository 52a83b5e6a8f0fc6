//! One key and value below `subnets/` as a lease, and when it ends.
//!
//! etcd tells with a key the id of its etcd lease, and tells the time that is left only when asked for each id by itself:
//! a thousand requests for a thousand nodes. The id is the client's to choose, so ours holds the end:
//!
//! ```text
//!  63 62                              24 23                    0
//! ┌──┬──────────────────────────────────┬───────────────────────┐
//! │0 │ the end, seconds since 1970      │ random                │
//! └──┴──────────────────────────────────┴───────────────────────┘
//! ```
//!
//! An id that flannel or an operator got from the server has a time far from the present there; such a lease ends a day
//! after it was first seen, at the latest.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::keys::Keys;
use crate::lease::{LEASE_TTL, Lease, Subnet, parse_value};

/// Random bits below the end: two nodes that are granted a lease in the same second must not choose one id.
const SALT_BITS: u32 = 24;

/// How far clocks of nodes may be apart for an end to be believed.
const SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// A key and value as etcd has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The whole key.
    pub(crate) key: Vec<u8>,
    /// The value.
    pub(crate) value: Vec<u8>,
    /// The id of the etcd lease; 0: none, the key stays until somebody deletes it.
    pub(crate) etcd_lease: i64,
    /// The revision of the last change.
    pub(crate) modified: i64,
}

/// A key that is the key of a lease, with a value that is none, or a key that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spoiled {
    /// The key, for people.
    pub(crate) key: String,
    /// The subnet that it stands for.
    pub(crate) subnet: Option<Subnet>,
    /// What is wrong.
    pub(crate) why: String,
}

/// Reads a lease. `Expiry` in the value means nothing here: etcd has a clock of its own.
pub(crate) fn read(keys: &Keys, pair: &Pair, now: SystemTime) -> Result<Lease, Spoiled> {
    let spoiled = |subnet, why| Spoiled {
        key: String::from_utf8_lossy(&pair.key).escape_debug().to_string(),
        subnet,
        why,
    };
    let Some(subnet) = keys.subnet(&pair.key) else {
        return Err(spoiled(None, "not the key of a lease".to_owned()));
    };
    match parse_value(&pair.value) {
        Ok((attrs, _)) => Ok(Lease { subnet, attrs, expires: end(pair.etcd_lease, now) }),
        Err(remark) => Err(spoiled(Some(subnet), remark.to_string())),
    }
}

/// The end of an entry with this etcd lease; for ids that do not tell it, the latest that it can be.
fn end(etcd_lease: i64, now: SystemTime) -> Option<SystemTime> {
    (etcd_lease != 0).then(|| end_in(etcd_lease, now).unwrap_or_else(|| crate::store::lease_end(now)))
}

/// The end that one of our ids holds.
pub(crate) fn end_in(etcd_lease: i64, now: SystemTime) -> Option<SystemTime> {
    let seconds = u64::try_from(etcd_lease).ok()? >> SALT_BITS;
    let end = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    let earliest = now.checked_sub(SKEW)?;
    (earliest..=now + LEASE_TTL + SKEW).contains(&end).then_some(end)
}

/// An id for an etcd lease that ends then.
pub(crate) fn id_for(end: SystemTime, random: &mut fastrand::Rng) -> i64 {
    let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let salt = random.u64(1..1 << SALT_BITS);
    // Of a clock that is beyond the year 19000 the upper bits go; the id stays positive and the end unknown.
    ((seconds << SALT_BITS | salt) & i64::MAX.unsigned_abs()).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_id_of_a_server_tells_no_end() {
        let now = at(1_800_000_000);
        // As etcd 3.4 gives them: member, milliseconds, counter.
        for id in [7_587_877_247_064_573_954, 0x694d_9bd6_4c5a_5a0e, 1, i64::MAX, -1, i64::MIN] {
            assert_eq!(end_in(id, now), None, "{id}");
        }
    }

    #[test]
    fn an_entry_without_an_etcd_lease_never_ends_and_a_strange_one_within_a_day() {
        let now = at(1_800_000_000);
        assert_eq!(end(0, now), None);
        assert_eq!(end(1, now), Some(now + LEASE_TTL));
    }

    proptest! {
        #[test]
        fn an_id_tells_its_end(seconds in 0u64..1 << 38, left in 0u64..86_400, seed in any::<u64>()) {
            let now = at(seconds + 86_400);
            let id = id_for(now + Duration::from_secs(left), &mut fastrand::Rng::with_seed(seed));
            prop_assert!(id > 0);
            prop_assert_eq!(end_in(id, now), Some(now + Duration::from_secs(left)));
        }
    }
}
