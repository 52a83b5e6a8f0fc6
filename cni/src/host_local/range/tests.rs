//! Ranges: what they allow, and in which order addresses are tried.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn set(raw: serde_json::Value) -> Result<RangeSet, String> {
    let raw: Vec<RawRange> = serde_json::from_value(raw).map_err(|error| error.to_string())?;
    RangeSet::new(&raw)
}

fn addresses(set: &RangeSet, last: Option<&str>) -> Vec<String> {
    set.after(last.map(|ip| ip.parse().unwrap())).map(|(ip, _)| ip.to_string()).collect()
}

#[test]
fn what_is_not_said_is_filled_in() {
    for (subnet, shown, gateway, size) in [
        ("10.1.2.0/24", "10.1.2.1-10.1.2.254", "10.1.2.1", 254),
        ("10.1.2.4/30", "10.1.2.5-10.1.2.6", "10.1.2.5", 2),
        ("fd00::/126", "fd00::1-fd00::3", "fd00::1", 3),
        ("fd00::/64", "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1", u128::from(u64::MAX)),
        ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1", u128::MAX),
    ] {
        let set = set(json!([{"subnet": subnet}])).unwrap();
        assert_eq!(set.to_string(), shown);
        assert_eq!(set.ranges()[0].gateway().to_string(), gateway);
        assert_eq!(set.size(), size);
    }
}

#[test]
fn a_wrong_range_says_why() {
    for (raw, text) in [
        (json!([]), "empty range set"),
        (json!([{"rangeStart": "10.1.0.1"}]), "a range has no subnet"),
        (json!([{"subnet": "10.1.0.0/31"}]), "Network 10.1.0.0/31 too small to allocate from"),
        (json!([{"subnet": "10.1.0.0/32"}]), "Network 10.1.0.0/32 too small to allocate from"),
        (json!([{"subnet": "fd00::/127"}]), "Network fd00::/127 too small to allocate from"),
        (
            json!([{"subnet": "10.1.0.5/24"}]),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.0.0",
        ),
        (json!([{"subnet": "::ffff:10.1.0.0/120"}]), "write an IPv4 network in the form of IPv4"),
        (
            json!([{"subnet": "10.1.0.0/24", "rangeStart": "10.1.1.0"}]),
            "RangeStart 10.1.1.0 not in network 10.1.0.0/24",
        ),
        (
            json!([{"subnet": "10.1.0.0/24", "rangeEnd": "fd00::1"}]),
            "RangeEnd fd00::1 not in network 10.1.0.0/24",
        ),
        (
            json!([{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}]),
            "RangeStart 10.1.0.9 is after RangeEnd 10.1.0.8",
        ),
        (json!([{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]), "mixed address families"),
        (
            json!([{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]),
            "subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.126 overlap",
        ),
        (json!([{"subnet": "10.1.0.0"}]), "\"10.1.0.0\": invalid IP address syntax"),
        (json!([{"subnet": "10.1.0.0/24", "gateway": "x"}]), "\"x\": invalid IP address syntax"),
    ] {
        let error = set(raw).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn an_empty_text_counts_as_not_said_and_a_gateway_may_be_elsewhere() {
    let raw = json!([{"subnet": "10.1.0.0/24", "rangeStart": "", "rangeEnd": null, "gateway": "10.9.0.1"}]);
    let set = set(raw).unwrap();
    assert_eq!(set.to_string(), "10.1.0.1-10.1.0.254");
    assert_eq!(set.ranges()[0].gateway().to_string(), "10.9.0.1");
}

#[test]
fn the_walk_goes_round_from_the_address_after_the_last() {
    let set = set(json!([
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.7"},
        {"subnet": "10.0.0.0/30"},
    ]))
    .unwrap();
    let from_start = ["10.1.0.5", "10.1.0.6", "10.1.0.7", "10.0.0.1", "10.0.0.2"];
    assert_eq!(addresses(&set, None), from_start);
    assert_eq!(addresses(&set, Some("10.9.9.9")), from_start, "the range has changed since");
    assert_eq!(addresses(&set, Some("fd00::1")), from_start);
    assert_eq!(
        addresses(&set, Some("10.1.0.5")),
        ["10.1.0.6", "10.1.0.7", "10.0.0.1", "10.0.0.2", "10.1.0.5"]
    );
    assert_eq!(
        addresses(&set, Some("10.1.0.7")),
        ["10.0.0.1", "10.0.0.2", "10.1.0.5", "10.1.0.6", "10.1.0.7"]
    );
    assert_eq!(addresses(&set, Some("10.0.0.2")), from_start);
}

#[test]
fn the_ends_of_the_address_space_are_walked_over() {
    let raw = json!([{"subnet": "255.255.255.252/30", "rangeEnd": "255.255.255.255"}]);
    let v4 = set(raw).unwrap();
    assert_eq!(
        addresses(&v4, Some("255.255.255.255")),
        ["255.255.255.253", "255.255.255.254", "255.255.255.255"]
    );
    let end = "ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let v6 = set(json!([{"subnet": format!("{end}:fffc/126")}])).unwrap();
    assert_eq!(
        addresses(&v6, Some(&format!("{end}:ffff"))),
        [format!("{end}:fffd"), format!("{end}:fffe"), format!("{end}:ffff")]
    );
}

proptest! {
    #[test]
    fn the_walk_has_each_address_once_wherever_it_begins(
        ends in proptest::collection::vec((0_u8..=255, 0_u8..=255), 1..4),
        last in proptest::option::of((0_u8..4, 0_u8..=255)),
    ) {
        let ranges: Vec<_> = ends.iter().enumerate().map(|(index, (one, other))| json!({
            "subnet": format!("10.0.{index}.0/24"),
            "rangeStart": format!("10.0.{index}.{}", one.min(other)),
            "rangeEnd": format!("10.0.{index}.{}", one.max(other)),
        })).collect();
        let set = set(json!(ranges)).unwrap();
        let last = last.map(|(index, host)| IpAddr::from([10, 0, index, host]));
        let walked: Vec<IpAddr> = set.after(last).map(|(ip, _)| ip).collect();
        let distinct: BTreeSet<IpAddr> = walked.iter().copied().collect();
        prop_assert_eq!(walked.len() as u128, set.size());
        prop_assert_eq!(distinct.len(), walked.len());
        prop_assert!(set.after(last).all(|(ip, range)| range.contains(ip)));
        if let Some(last) = last.filter(|ip| set.range_of(*ip).is_some()) {
            prop_assert_eq!(walked.last(), Some(&last));
        }
    }
}
