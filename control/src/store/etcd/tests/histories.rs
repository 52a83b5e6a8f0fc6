//! Histories that are compacted, lost or replaced while a node cannot follow them.

use super::relay::Relay;
use super::*;

const NETWORK: &str = r#"{"Network": "10.5.0.0/16"}"#;

/// A watch over a wire that can be cut, with its first leases told.
async fn over_a_wire(h: &EtcdHarness) -> (Relay, Followed) {
    let relay = Relay::to(h.etcd.members()[0].url());
    let store = EtcdStore::with_clock(&settings(&[relay.url()]), h.clock.clone(), LEASE_TTL).unwrap();
    let watch = store.watch().await.unwrap();
    (relay, watch)
}

fn peer(host: u8) -> (String, String) {
    (format!("10.5.{host}.0-24"), format!(r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":null}}"#))
}

fn has(known: &[Lease], key: &str) -> bool {
    known.iter().any(|lease| lease.subnet == subnet(key))
}

#[tokio::test]
async fn a_compaction_past_what_was_seen_costs_nobody_twenty_times() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    let own = join(&h, &previous(1, "10.5.1.0-24")).await;
    let (relay, mut watch) = over_a_wire(&h).await;
    let mut known = Vec::new();
    until(&mut watch, &mut known, |known| known.len() == 1).await;
    for host in 100..120 {
        relay.cut();
        let (key, value) = peer(host);
        h.reserve(&key, &value);
        if host > 100 {
            h.delete(&peer(host - 1).0);
        }
        h.by_hand(async |client| {
            let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
            client.compact(revision, None).await.unwrap();
        });
        relay.mend();
        until(&mut watch, &mut known, |known| has(known, &key) && known.len() == 2).await;
        assert!(known.contains(&own), "nobody told us that our own lease went");
    }
}

#[tokio::test]
async fn what_happened_during_a_break_is_told_and_nothing_else() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    for host in [1, 2] {
        join(&h, &request(host)).await;
    }
    let (relay, mut watch) = over_a_wire(&h).await;
    let mut known = Vec::new();
    until(&mut watch, &mut known, |known| known.len() == 2).await;
    relay.cut();
    let three = join(&h, &request(3)).await;
    relay.mend();
    assert_eq!(watch.next().await, LeaseUpdate::Upsert(three), "followed, not listed again");
}

#[tokio::test]
async fn data_that_were_lost_and_written_anew_are_not_taken_for_the_old_history() {
    let Some(mut h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    let own = join(&h, &previous(1, "10.5.1.0-24")).await;
    let (relay, mut watch) = over_a_wire(&h).await;
    let mut known = Vec::new();
    until(&mut watch, &mut known, |known| known == [own.clone()]).await;
    relay.cut();
    h.etcd.members_mut()[0].wipe().unwrap();
    // As many revisions as before and more, so that a number alone tells no difference.
    h.configure(NETWORK);
    for host in 100..104 {
        let (key, value) = peer(host);
        h.reserve(&key, &value);
    }
    relay.mend();
    until(&mut watch, &mut known, |known| known.len() == 4 && !has(known, "10.5.1.0-24")).await;
    let store = h.store();
    let again = store.renew(&store.network().await.unwrap(), &own).await.unwrap();
    assert_eq!(again, own, "the same subnet, published again");
    until(&mut watch, &mut known, |known| known.len() == 5).await;
}

#[tokio::test]
async fn who_is_not_back_yet_after_a_loss_of_data_has_not_left() {
    let Some(mut h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    join(&h, &previous(1, "10.5.1.0-24")).await;
    join(&h, &previous(2, "10.5.2.0-24")).await;
    let (relay, mut watch) = over_a_wire(&h).await;
    let mut known = Vec::new();
    until(&mut watch, &mut known, |known| known.len() == 2).await;
    relay.cut();
    h.etcd.members_mut()[0].wipe().unwrap();
    // More revisions than before, by other people's keys.
    for _ in 0..12 {
        h.configure(NETWORK);
    }
    let (key, value) = peer(1);
    h.reserve(&key, &value);
    relay.mend();
    let LeaseUpdate::Rewound(all) = watch.next().await else { panic!("a store like any other") };
    assert_eq!(all.len(), 1);
    // Told once: from here on it is a store like any other.
    relay.cut();
    h.reserve(&peer(3).0, &peer(3).1);
    relay.mend();
    assert!(matches!(watch.next().await, LeaseUpdate::Upsert(_)));
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_tells_no_list_and_says_since_when() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    join(&h, &request(1)).await;
    let (relay, mut watch) = over_a_wire(&h).await;
    let mut known = Vec::new();
    until(&mut watch, &mut known, |known| known.len() == 1).await;
    assert_eq!(watch.contact().trouble, None);
    let met = watch.contact().last.unwrap();
    relay.cut();
    let trouble = async {
        loop {
            tokio::select! {
                update = watch.next() => panic!("{update:?}"),
                () = sleep(Duration::from_millis(5)) => {}
            }
            if let Some(trouble) = watch.contact().trouble {
                break trouble;
            }
        }
    };
    let trouble = tokio::time::timeout(Duration::from_secs(60), trouble).await.unwrap();
    assert!(trouble.contains(&relay.url()), "{trouble}");
    assert!(watch.contact().last.unwrap() >= met);
    let store = EtcdStore::open(&settings(&[relay.url()])).unwrap();
    let error = store.network().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    let Err(error) = store.held_by([192, 0, 2, 1].into()).await else { panic!("an error is not nobody") };
    assert!(error.to_string().contains(&relay.url()), "{error}");
    relay.mend();
    h.delete(&known[0].subnet.key().to_string());
    until(&mut watch, &mut known, <[Lease]>::is_empty).await;
    assert_eq!(watch.contact().trouble, None);
}
