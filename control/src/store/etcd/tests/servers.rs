//! Servers that are dead, frozen, without a leader, or that want to know who asks.

use super::*;

const NETWORK: &str = r#"{"Network": "10.5.0.0/16"}"#;

fn three() -> Option<EtcdHarness> {
    EtcdHarness::of(&Setup { members: 3, ..Setup::default() })
}

/// Which server leads the others.
fn leader(h: &EtcdHarness) -> usize {
    let leads = |url: String| {
        by_hand(&[url], async |client| {
            let status = client.status().await.unwrap();
            status.leader() == status.header().unwrap().member_id()
        })
    };
    h.etcd.urls().into_iter().position(leads).unwrap()
}

#[tokio::test]
async fn a_dead_first_endpoint_costs_nothing_but_a_moment() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = [vec![format!("http://{dead}")], h.etcd.urls()].concat();
    let store = EtcdStore::open(&settings(&urls)).unwrap();
    let network = store.network().await.unwrap();
    let mut watch = store.watch().await.unwrap();
    let lease = store.acquire(&network, &request(1)).await.unwrap();
    until(&mut watch, &mut Vec::new(), |known| known == [lease.clone()]).await;
}

#[tokio::test]
async fn nodes_go_on_when_the_leader_of_three_is_killed_or_frozen() {
    for kill in [true, false] {
        let Some(mut h) = three() else { return };
        h.configure(NETWORK);
        let first = leader(&h);
        // The leader is the one that is asked first.
        let mut urls = h.etcd.urls();
        urls.rotate_left(first);
        let store = EtcdStore::with_clock(&settings(&urls), h.clock.clone(), LEASE_TTL).unwrap();
        let network = store.network().await.unwrap();
        let mut watch = store.watch().await.unwrap();
        let mut known = Vec::new();
        let own = store.acquire(&network, &request(1)).await.unwrap();
        until(&mut watch, &mut known, |known| known.len() == 1).await;
        let member = &mut h.etcd.members_mut()[first];
        if kill { member.kill() } else { member.freeze() }.unwrap();
        let begin = std::time::Instant::now();
        let renewed = loop {
            // While the other two choose a leader, there is none to write to.
            match store.renew(&network, &own).await {
                Ok(lease) => break lease,
                Err(StoreError::Unreachable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(begin.elapsed() < Duration::from_secs(60));
        };
        assert_eq!(renewed.subnet, own.subnet);
        let other = store.acquire(&network, &request(2)).await.unwrap();
        until(&mut watch, &mut known, |known| known.contains(&other)).await;
    }
}

#[tokio::test]
async fn a_user_is_let_in_by_password_and_nobody_else_and_no_message_tells_it() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    h.by_hand(async |client| {
        client.user_add("root", "top", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.user_add("flannel", "hunter2", None).await.unwrap();
        client.role_add("flannel").await.unwrap();
        let all = etcd_client::Permission::read_write(PREFIX).with_prefix();
        client.role_grant_permission("flannel", all).await.unwrap();
        client.user_grant_role("flannel", "flannel").await.unwrap();
        client.user_add("guest", "hunter3", None).await.unwrap();
        client.auth_enable().await.unwrap();
    });
    let store_of = |user: Option<(&str, &str)>, prefix: &str| {
        let user = user.map(|(name, password)| (name.to_owned(), password.to_owned()));
        EtcdStore::open(&EtcdSettings { user, prefix: prefix.to_owned(), ..h.settings() }).unwrap()
    };
    let store = store_of(Some(("flannel", "hunter2")), PREFIX);
    let network = store.network().await.unwrap();
    let mut watch = store.watch().await.unwrap();
    let own = store.acquire(&network, &request(1)).await.unwrap();
    until(&mut watch, &mut Vec::new(), |known| known == [own.clone()]).await;
    assert!(store.renew(&network, &own).await.is_ok());
    for (user, prefix, why) in [
        (Some(("flannel", "hunter4")), PREFIX, "--etcd-password"),
        (Some(("nobody", "hunter2")), PREFIX, "--etcd-username"),
        (Some(("guest", "hunter3")), PREFIX, "permission denied"),
        (Some(("flannel", "hunter2")), "/elsewhere", "--etcd-prefix"),
        (None, PREFIX, "give --etcd-username"),
    ] {
        let error = store_of(user, prefix).network().await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(matches!(error, StoreError::Refused { .. }), "{user:?}: {text}");
        assert!(text.contains(why), "{user:?}: {text}");
        assert!(!text.contains("hunter"), "{text}");
        assert!(!error.to_string().contains('\n'), "{text}");
    }
}

#[tokio::test]
async fn a_user_that_is_not_needed_does_no_harm() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    let user = Some(("flannel".to_owned(), "hunter2".to_owned()));
    let store = EtcdStore::open(&EtcdSettings { user, ..h.settings() }).unwrap();
    assert!(store.network().await.is_ok());
}
