//! Many nodes, keys and values byte for byte, leases that end.

use super::*;
use crate::lease::{Subnet, overlap};

const NETWORK: &str = r#"{"Network": "10.5.0.0/16"}"#;

#[tokio::test]
async fn keys_and_values_are_flannels_byte_for_byte() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}"#);
    join(&h, &previous(1, "10.5.34.0-24&fd00:5:0:34::-64")).await;
    let found = h.by_hand(async |client| {
        let all = client.get(PREFIX, Some(etcd_client::GetOptions::new().with_prefix())).await.unwrap();
        let leases = client.leases().await.unwrap().leases().len();
        let mut found = Vec::new();
        for kv in all.kvs() {
            let left = match kv.lease() {
                0 => None,
                id => Some(client.lease_time_to_live(id, None).await.unwrap().granted_ttl()),
            };
            found.push((kv.key_str().unwrap().to_owned(), kv.value_str().unwrap().to_owned(), left));
        }
        (found, leases)
    });
    let (key, value, left) = &found.0[1];
    assert_eq!(key, "/coreos.com/network/subnets/10.5.34.0-24&fd00:5:0:34::-64");
    assert_eq!(value, r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    assert_eq!(*left, Some(86_400));
    assert_eq!((found.0.len(), found.1), (2, 1));
}

#[tokio::test]
async fn restarts_and_renewals_leave_one_etcd_lease_a_node() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    for _ in 0..3 {
        let own = join(&h, &request(1)).await;
        let store = h.store();
        store.renew(&store.network().await.unwrap(), &own).await.unwrap();
    }
    let leases = h.by_hand(async |client| client.leases().await.unwrap().leases().len());
    assert_eq!(leases, 1);
}

#[tokio::test]
async fn a_reservation_has_no_etcd_lease_after_three_restarts_and_renewals() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    h.reserve("10.5.77.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
    for _ in 0..3 {
        let own = join(&h, &request(1)).await;
        assert_eq!((own.subnet, own.expires), (subnet("10.5.77.0-24"), None));
        let store = h.store();
        store.renew(&store.network().await.unwrap(), &own).await.unwrap();
        let id = h.by_hand(async |client| {
            client.get(EtcdHarness::key("10.5.77.0-24"), None).await.unwrap().kvs()[0].lease()
        });
        assert_eq!(id, 0);
    }
    assert_eq!(h.by_hand(async |client| client.leases().await.unwrap().leases().len()), 0);
}

#[tokio::test]
async fn leases_of_a_neighbouring_prefix_are_not_ours() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(r#"{"Network": "10.5.0.0/22", "SubnetLen": 24, "SubnetMin": "10.5.3.0"}"#);
    let value = r#"{"PublicIP":"192.0.2.9"}"#;
    h.by_hand(async |client| {
        for key in ["/coreos.com/network/subnets2/10.5.3.0-24", "/coreos.com/network2/subnets/10.5.3.0-24"] {
            client.put(key, value, None).await.unwrap();
        }
    });
    let mut watch = h.store().watch().await.unwrap();
    assert_eq!(watch.next().await, LeaseUpdate::Snapshot(Vec::new()));
    let mine = join(&h, &request(1)).await;
    assert_eq!(mine.subnet, subnet("10.5.3.0-24"));
    h.by_hand(async |client| {
        client.put("/coreos.com/network/subnets2/10.5.4.0-24", value, None).await.unwrap();
    });
    h.delete("10.5.3.0-24");
    assert_eq!(watch.next().await, LeaseUpdate::Upsert(mine.clone()));
    assert_eq!(watch.next().await, LeaseUpdate::Remove(mine.subnet));
}

/// In etcd's own time: the harness's clock does not move.
#[tokio::test]
async fn a_lease_that_etcd_lets_end_is_told() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    let store = EtcdStore::with_clock(&h.settings(), SystemClock, Duration::from_secs(1)).unwrap();
    let network = store.network().await.unwrap();
    let mut watch = store.watch().await.unwrap();
    let mut known = Vec::new();
    let lease = store.acquire(&network, &request(1)).await.unwrap();
    until(&mut watch, &mut known, |known| known == [lease.clone()]).await;
    until(&mut watch, &mut known, <[Lease]>::is_empty).await;
    assert_eq!(store.held_by([192, 0, 2, 1].into()).await.unwrap(), None);
    let again = store.renew(&network, &lease).await.unwrap();
    assert_eq!(again.subnet, lease.subnet);
}

#[tokio::test]
async fn the_end_of_a_lease_that_flannel_wrote_is_asked_of_etcd() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(NETWORK);
    h.by_hand(async |client| {
        let id = client.lease_grant(1000, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(id);
        let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;
        client.put(EtcdHarness::key("10.5.9.0-24"), value, Some(options)).await.unwrap();
    });
    let store = h.store();
    let held = store.held_by([192, 0, 2, 1].into()).await.unwrap().unwrap();
    let left = held.expires.unwrap().duration_since(h.clock.now()).unwrap().as_secs();
    assert!((900..=1000).contains(&left), "{left}");
    let own = join(&h, &request(1)).await;
    assert_eq!((own.subnet, own.expires), (held.subnet, Some(h.clock.now() + LEASE_TTL)));
}

#[tokio::test]
async fn a_thousand_leases_are_one_request() {
    let Some(h) = EtcdHarness::new() else { return };
    h.configure(r#"{"Network": "10.4.0.0/14"}"#);
    h.by_hand(async |client| {
        for index in 0..1000_u32 {
            let id = client.lease_grant(86_400, None).await.unwrap().id();
            let (key, value) = (
                EtcdHarness::key(&format!("10.{}.{}.0-24", 4 + index / 256, index % 256)),
                format!(r#"{{"PublicIP":"198.51.{}.{}","PublicIPv6":null}}"#, index / 256, index % 256),
            );
            client.put(key, value, Some(PutOptions::new().with_lease(id))).await.unwrap();
        }
    });
    let asked = || requests(h.etcd.members()[0].url());
    let before = asked();
    let mut watch = h.store().watch().await.unwrap();
    let LeaseUpdate::Snapshot(all) = watch.next().await else { panic!() };
    assert_eq!(all.len(), 1000);
    assert!(all.iter().all(|lease| lease.expires.is_some()));
    assert_eq!(asked() - before, 1, "unary requests");
}

/// How many requests that are no streams the server has begun, as its metrics say.
fn requests(url: &str) -> u64 {
    use std::io::{Read, Write};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let unary = text
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total") && line.contains("grpc_type=\"unary\""));
    unary.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Fifty nodes, each with a connection of its own, a hundred times from an empty store.
#[test]
fn fifty_nodes_that_start_together_a_hundred_times_never_share_a_subnet() {
    let Some(h) = EtcdHarness::new() else { return };
    // 63 subnets for 50 nodes: every draw is among few.
    race(&h, 100, r#"{"Network": "10.5.0.0/18"}"#);
}

/// The key of a lease of both families differs from another's when only one half does.
#[test]
fn fifty_nodes_with_two_families_share_neither_half() {
    let Some(h) = EtcdHarness::new() else { return };
    race(
        &h,
        10,
        r#"{"Network": "10.5.0.0/18", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "IPv6SubnetLen": 54}"#,
    );
}

fn race(h: &EtcdHarness, rounds: usize, config: &str) {
    h.configure(config);
    let stores: Vec<_> = (0..50).map(|_| h.store()).collect();
    let start = std::sync::Barrier::new(stores.len());
    let subnets: Vec<Vec<Subnet>> = std::thread::scope(|scope| {
        let (start, h) = (&start, h);
        let nodes: Vec<_> = stores
            .into_iter()
            .zip(1..)
            .map(|(store, host)| {
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let network = store.network().await.unwrap();
                        let mut got = Vec::new();
                        for _ in 0..rounds {
                            start.wait();
                            got.push(store.acquire(&network, &request(host)).await.unwrap().subnet);
                            if start.wait().is_leader() {
                                let leases = EtcdHarness::key("");
                                let all = etcd_client::DeleteOptions::new().with_prefix();
                                h.by_hand(async move |client| {
                                    client.delete(leases, Some(all)).await.map(drop)
                                })
                                .unwrap();
                            }
                        }
                        got
                    })
                })
            })
            .collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    for round in 0..rounds {
        let nets: Vec<_> = subnets.iter().flat_map(|node| node[round].nets()).collect();
        for (index, net) in nets.iter().enumerate() {
            let again = nets[index + 1..].iter().find(|other| overlap(net, other));
            assert_eq!(again, None, "{net} was given twice in round {round}");
        }
    }
}
