//! What is asked next, and when.

use super::*;
use crate::store::kube::testing::{families, keys, node};

fn follow() -> Follow {
    Follow::new(Table::new(keys(), families()), fastrand::Rng::with_seed(1))
}

fn status(code: u16) -> Failure {
    Failure::Status { code, message: String::new(), retry_after: None, version_unknown: false }
}

fn watching() -> Follow {
    let mut follow = follow();
    let page = Page { nodes: vec![node("a", 1, 3).build()], version: "7".to_owned(), ..Page::default() };
    assert!(matches!(follow.listed(page), Some(LeaseUpdate::Snapshot(all)) if all.len() == 1));
    follow
}

fn from(follow: &mut Follow) -> Option<String> {
    match follow.ask().1 {
        Ask::Watch { from, .. } => Some(from),
        Ask::List { .. } => None,
    }
}

#[test]
fn a_small_cluster_is_listed_at_once_and_watched_from_there() {
    let mut follow = follow();
    assert_eq!(follow.ask(), (Duration::ZERO, Ask::List { after: None, limit: 500 }));
    let mut follow = watching();
    let (pause, ask) = follow.ask();
    let Ask::Watch { from, seconds } = ask else { panic!("{ask:?}") };
    assert_eq!((pause, from.as_str()), (Duration::ZERO, "7"));
    assert!((45..=60).contains(&seconds));
}

#[test]
fn pages_are_one_snapshot_and_a_large_cluster_spreads_them() {
    let mut longest = Duration::ZERO;
    for seed in 0..50 {
        let mut follow = Follow::new(Table::new(keys(), families()), fastrand::Rng::with_seed(seed));
        let nodes = |range: std::ops::Range<u8>| {
            range
                .map(|n| node(&format!("n{n}"), 1, 1).cidr(&format!("10.244.{n}.0/24")).build())
                .collect::<Vec<_>>()
        };
        let first = Page {
            nodes: nodes(0..50),
            version: "7".to_owned(),
            next: Some("more".to_owned()),
            remaining: Some(4950),
        };
        assert_eq!(follow.listed(first), None);
        let (pause, ask) = follow.ask();
        assert_eq!(ask, Ask::List { after: Some("more".to_owned()), limit: 500 });
        assert!(pause <= Duration::from_secs(30));
        longest = longest.max(pause);
        let last = Page { nodes: nodes(50..60), version: "7".to_owned(), ..Page::default() };
        let Some(LeaseUpdate::Snapshot(all)) = follow.listed(last) else { panic!() };
        assert_eq!(all.len(), 60);
    }
    assert!(longest > Duration::from_secs(25), "{longest:?}");
}

#[test]
fn a_page_token_that_expired_begins_the_list_again() {
    let mut follow = follow();
    follow.listed(Page {
        nodes: vec![node("gone", 1, 1).build()],
        next: Some("t".to_owned()),
        ..Page::default()
    });
    follow.failed(&Failure::Silent("reset".to_owned()));
    assert!(matches!(follow.ask().1, Ask::List { after: Some(_), .. }), "the token is still good");
    follow.failed(&status(410));
    assert!(matches!(follow.ask().1, Ask::List { after: None, .. }));
    let Some(LeaseUpdate::Snapshot(all)) = follow.listed(Page::default()) else { panic!() };
    assert!(all.is_empty(), "what the first try told is not kept");
}

#[test]
fn both_kinds_of_410_list_again_and_what_was_known_stays_until_then() {
    for as_event in [true, false] {
        let mut follow = watching();
        match as_event {
            true => assert!(follow.event(Event::Error(status(410))).is_empty()),
            false => follow.failed(&status(410)),
        }
        assert_eq!(follow.table().len(), 1);
        let (pause, ask) = follow.ask();
        assert_eq!(ask, Ask::List { after: None, limit: 500 });
        assert!(pause <= SPREAD_PER_NODE, "{pause:?}");
    }
}

#[test]
fn a_server_that_says_410_to_every_watch_is_asked_ever_more_slowly() {
    let mut follow = watching();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        follow.failed(&status(410));
        pauses.push(follow.ask().0);
        follow.listed(Page { version: "7".to_owned(), ..Page::default() });
    }
    assert!(pauses[7] >= Duration::from_secs(15), "{pauses:?}");
}

#[test]
fn a_silent_server_costs_no_list_and_is_asked_at_most_every_half_minute() {
    let mut follow = watching();
    let mut longest = Duration::ZERO;
    for n in 0..100 {
        follow.failed(&Failure::Silent("connection refused".to_owned()));
        let (pause, ask) = follow.ask();
        assert_eq!(ask, Ask::List { after: None, limit: 1 }, "one node, for the version");
        assert!(pause <= Duration::from_secs(30));
        assert!(n < 6 || pause >= Duration::from_secs(15), "{n}: {pause:?}");
        longest = longest.max(pause);
    }
    assert!(longest > Duration::from_secs(25));
    assert_eq!(follow.listed(probe("7")), None);
    assert_eq!(from(&mut follow).as_deref(), Some("7"), "the watch goes on where it was");
    follow.event(Event::Bookmark("9".to_owned()));
    follow.failed(&Failure::Silent("reset".to_owned()));
    assert!(follow.ask().0 <= FIRST_PAUSE, "what worked since starts the count again");
}

/// The answer to a question for the version.
fn probe(version: &str) -> Page {
    Page { nodes: vec![node("b", 1, 2).build()], version: version.to_owned(), ..Page::default() }
}

#[test]
fn a_store_that_was_restored_from_a_backup_is_listed_again() {
    for outage in [true, false] {
        let mut follow = watching();
        match outage {
            true => follow.failed(&Failure::Silent("connection refused".to_owned())),
            // The server answers a watch from the future with silence.
            false => follow.ended(Duration::from_secs(60)),
        }
        assert_eq!(follow.ask().1, Ask::List { after: None, limit: 1 });
        assert_eq!(follow.listed(probe("6")), None);
        assert_eq!(follow.ask().1, Ask::List { after: None, limit: 500 });
        assert_eq!(follow.table().len(), 1, "what was known stays until then");
    }
}

#[test]
fn a_quiet_watch_goes_on_once_the_version_is_seen_to_be_no_older() {
    for version in ["7", "99"] {
        let mut follow = watching();
        follow.ended(Duration::from_secs(60));
        assert_eq!(follow.ask(), (Duration::ZERO, Ask::List { after: None, limit: 1 }));
        assert_eq!(follow.listed(probe(version)), None);
        assert_eq!(from(&mut follow).as_deref(), Some("7"), "what happened between is still to be told");
    }
}

#[test]
fn a_version_that_the_server_does_not_know_lists_again() {
    let mut follow = watching();
    let unknown =
        Failure::Status { code: 504, message: String::new(), retry_after: None, version_unknown: true };
    follow.failed(&unknown);
    assert_eq!(from(&mut follow), None);
}

#[test]
fn a_server_that_answers_and_refuses_is_listed_after_three_times() {
    for (code, lists) in [(500, true), (400, true), (401, false), (403, false), (429, false)] {
        let mut follow = watching();
        for _ in 0..3 {
            follow.failed(&status(code));
        }
        assert_eq!(from(&mut follow).is_none(), lists, "{code}");
    }
}

#[test]
fn retry_after_is_kept() {
    for (asked, least, most) in [(7, 7, 7), (3600, 30, 30)] {
        let mut follow = watching();
        follow.failed(&Failure::Status {
            code: 429,
            message: String::new(),
            retry_after: Some(Duration::from_secs(asked)),
            version_unknown: false,
        });
        let (pause, _) = follow.ask();
        assert!(pause >= Duration::from_secs(least) && pause <= Duration::from_secs(most), "{pause:?}");
    }
}

#[test]
fn a_page_that_is_too_long_is_asked_for_in_smaller_pieces() {
    let mut follow = follow();
    for limit in [125, 31, 10, 10] {
        follow.failed(&Failure::TooLong { limit: 1 });
        assert_eq!(follow.ask().1, Ask::List { after: None, limit });
    }
}

#[test]
fn a_watch_that_ends_in_time_goes_on_where_it_was_and_one_that_ends_at_once_waits() {
    let mut follow = watching();
    follow.event(Event::Put(node("a", 1, 11).address("192.0.2.7").build()));
    follow.event(Event::Bookmark("15".to_owned()));
    follow.event(Event::Bookmark("12".to_owned()));
    follow.ended(Duration::from_secs(10));
    assert_eq!(follow.ask().0, Duration::ZERO);
    assert_eq!(from(&mut follow).as_deref(), Some("15"));
    follow.ended(Duration::from_millis(1));
    assert!(follow.ask().0 >= FIRST_PAUSE / 2);
}
