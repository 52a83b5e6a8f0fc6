//! A store that forgets, in virtual time, against a model.

use proptest::prelude::*;

use super::*;
use crate::lease::testing::lease;
use crate::lease::{Key, LeaseSet};

const HOLD: Duration = Duration::from_secs(300);

fn nodes(thirds: impl IntoIterator<Item = u8>) -> Vec<Lease> {
    thirds.into_iter().map(|third| lease(third, third)).collect()
}

fn snapshot(thirds: impl IntoIterator<Item = u8>) -> LeaseUpdate {
    LeaseUpdate::Snapshot(nodes(thirds))
}

/// A node with the leases of 10.5.1.0 to 10.5.N.0; its own is 10.5.200.0.
fn node(count: u8) -> HoldBack {
    HoldBack::new(lease(200, 200).subnet, HOLD, nodes(1..=count))
}

fn in_force(hold: &HoldBack) -> Vec<Lease> {
    let mut leases = hold.in_force();
    leases.sort_by_key(|lease| lease.subnet);
    leases
}

#[test]
fn a_list_that_is_suddenly_empty_costs_no_route_for_a_while() {
    let begin = Instant::now();
    for count in 1..=9 {
        let mut hold = node(count);
        let taken = hold.take(snapshot([]), begin);
        let known = usize::from(count);
        assert_eq!(taken.loss, Some(Loss { missing: known, known }));
        assert_eq!(in_force(&hold), nodes(1..=count));
        assert!(hold.release(begin + HOLD - Duration::from_secs(1)).is_empty());
        assert_eq!(hold.release(begin + HOLD).len(), known);
        assert!(hold.in_force().is_empty());
    }
}

#[test]
fn the_only_other_node_may_leave() {
    let mut hold = node(1);
    let taken = hold.take(snapshot([200]), Instant::now());
    assert_eq!((taken.loss, hold.held()), (None, 0));
    assert_eq!(taken.updates, [snapshot([])]);
}

#[test]
fn nobody_leaves_by_a_store_that_went_back() {
    for (count, left) in [(1, 0), (2, 1), (8, 6)] {
        let mut hold = node(count);
        let taken = hold.take(LeaseUpdate::Rewound(nodes(1..=left)), Instant::now());
        let missing = usize::from(count - left);
        assert_eq!((taken.loss, hold.held()), (Some(Loss { missing, known: count.into() }), missing));
        assert_eq!(taken.updates, [snapshot(1..=count)]);
        let taken = hold.take(snapshot(1..=count), Instant::now());
        assert_eq!((taken.back, hold.held()), (missing, 0));
    }
}

#[test]
fn more_than_half_is_held_and_half_is_not() {
    for (count, left, held) in
        [(4, 2, 0), (4, 1, 3), (5, 3, 0), (5, 2, 3), (3, 1, 0), (100, 50, 0), (100, 49, 51)]
    {
        let mut hold = node(count);
        hold.take(snapshot(1..=left), Instant::now());
        assert_eq!(hold.held(), held, "{count} to {left}");
    }
}

#[test]
fn what_is_new_or_changed_does_not_wait() {
    let mut hold = node(8);
    let newcomer = lease(50, 50);
    let moved = lease(1, 99);
    let taken = hold.take(LeaseUpdate::Snapshot(vec![moved.clone(), newcomer.clone()]), Instant::now());
    assert_eq!(taken.loss, Some(Loss { missing: 7, known: 9 }));
    let LeaseUpdate::Snapshot(told) = &taken.updates[0] else { panic!("{taken:?}") };
    assert!(told.contains(&moved) && told.contains(&newcomer) && told.len() == 9, "{told:?}");
}

#[test]
fn a_list_that_comes_back_costs_nothing() {
    let begin = Instant::now();
    let mut hold = node(8);
    hold.take(snapshot([]), begin);
    let taken = hold.take(snapshot(1..=8), begin + Duration::from_secs(5));
    assert_eq!((taken.back, hold.held()), (8, 0));
    assert_eq!(taken.updates, [snapshot(1..=8)]);
    assert!(hold.release(begin + HOLD).is_empty());
}

#[test]
fn a_store_wiped_entry_by_entry_is_one_loss() {
    let begin = Instant::now();
    let mut hold = node(10);
    let mut set = LeaseSet::new(lease(200, 200).subnet);
    set.apply(snapshot(1..=10));
    let mut losses = Vec::new();
    for third in 1..=10 {
        let at = begin + Duration::from_millis(200) * third.into();
        let taken = hold.take(LeaseUpdate::Remove(lease(third, third).subnet), at);
        losses.extend(taken.loss);
        taken.updates.into_iter().for_each(|update| drop(set.apply(update)));
    }
    assert_eq!(losses, [Loss { missing: 6, known: 10 }], "said once, at the sixth");
    assert_eq!(set.len(), 10, "the first five are back");
    let mut slowly = node(10);
    for third in 1..=10 {
        slowly.take(LeaseUpdate::Remove(lease(third, third).subnet), begin + WINDOW * third.into());
    }
    assert_eq!(slowly.in_force(), [], "nodes that leave one after the other");
}

#[test]
fn a_subnet_with_another_node_and_a_node_with_another_subnet_are_not_missing() {
    let begin = Instant::now();
    let mut hold = node(8);
    hold.take(snapshot([]), begin);
    let half = Lease { subnet: "10.5.1.0-25".parse::<Key>().unwrap().0, ..lease(1, 77) };
    let taken = hold.take(LeaseUpdate::Upsert(half.clone()), begin);
    assert_eq!(taken.updates, [LeaseUpdate::Upsert(half), LeaseUpdate::Remove(lease(1, 1).subnet)]);
    let elsewhere = lease(60, 2);
    let taken = hold.take(LeaseUpdate::Upsert(elsewhere.clone()), begin);
    assert_eq!(taken.updates, [LeaseUpdate::Upsert(elsewhere), LeaseUpdate::Remove(lease(2, 2).subnet)]);
    assert_eq!((hold.held(), taken.back), (6, 0));
}

#[test]
fn our_own_lease_is_not_counted() {
    let mut hold = HoldBack::new(lease(1, 1).subnet, HOLD, nodes(1..=2));
    assert_eq!(hold.take(snapshot([1]), Instant::now()).loss, None);
    assert_eq!(hold.take(LeaseUpdate::Remove(lease(1, 1).subnet), Instant::now()), Taken::default());
}

#[test]
fn without_a_time_nothing_is_held() {
    let mut hold = HoldBack::new(lease(200, 200).subnet, Duration::ZERO, nodes(1..=8));
    let taken = hold.take(snapshot([]), Instant::now());
    assert_eq!((taken.loss, hold.held(), taken.updates), (None, 0, vec![snapshot([])]));
}

#[expect(clippy::large_enum_variant, reason = "few live at a time")]
#[derive(Debug, Clone)]
enum Step {
    Told(LeaseUpdate),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let any_lease = || (1u8..12, 1u8..12).prop_map(|(third, host)| lease(third, host));
    prop_oneof![
        2 => proptest::collection::vec(any_lease(), 0..12).prop_map(|all| Step::Told(LeaseUpdate::Snapshot(all))),
        3 => any_lease().prop_map(|lease| Step::Told(LeaseUpdate::Upsert(lease))),
        4 => any_lease().prop_map(|lease| Step::Told(LeaseUpdate::Remove(lease.subnet))),
        2 => (0u64..400).prop_map(Step::Wait),
    ]
}

proptest! {
    /// What the node is told folds to what is in force; the store's word is always in force; what is held had a place in
    /// it; and after the time nothing but the store's word is left.
    #[test]
    fn the_node_sees_the_stores_word_and_what_is_held(steps in proptest::collection::vec(any_step(), 0..60)) {
        let own = lease(11, 11).subnet;
        let mut now = Instant::now();
        let mut hold = HoldBack::new(own, HOLD, []);
        let mut real = LeaseSet::new(own);
        let mut node = LeaseSet::new(own);
        let mut ever: HashSet<Subnet> = HashSet::new();
        for step in steps {
            let told = match step {
                Step::Told(update) => {
                    real.apply(update.clone());
                    hold.take(update, now).updates
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    hold.release(now)
                }
            };
            for update in told {
                node.apply(update);
            }
            ever.extend(real.peers().map(|lease| lease.subnet));
            let in_force: Vec<Lease> = in_force(&hold);
            prop_assert_eq!(node.peers().cloned().collect::<Vec<_>>(), in_force);
            for lease in real.peers() {
                prop_assert!(node.peers().any(|seen| seen == lease), "{} is not in force", lease.subnet);
            }
            prop_assert_eq!(node.len(), real.len() + hold.held());
            prop_assert!(node.peers().all(|lease| ever.contains(&lease.subnet)));
        }
        hold.release(now + HOLD);
        prop_assert_eq!(hold.in_force().len(), real.len());
    }

    /// However a list shrinks at once and comes back before the time, no route is lost in between.
    #[test]
    fn a_loss_that_is_made_good_in_time_is_no_loss(count in 4u8..40, left in 0u8..40, pause in 0u64..300) {
        let begin = Instant::now();
        let mut hold = node(count);
        let left = left.min(count);
        prop_assume!(usize::from(count - left) * 2 > count.into());
        hold.take(snapshot(1..=left), begin);
        prop_assert_eq!(in_force(&hold), nodes(1..=count));
        hold.release(begin + Duration::from_secs(pause));
        prop_assert_eq!(in_force(&hold), nodes(1..=count));
        hold.take(snapshot(1..=count), begin + Duration::from_secs(pause));
        prop_assert_eq!(hold.held(), 0);
        hold.release(begin + HOLD * 2);
        prop_assert_eq!(in_force(&hold), nodes(1..=count));
    }
}
