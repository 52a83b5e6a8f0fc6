//! The store against a server that misbehaves on command. Time is virtual, and goes on in small steps, each after a moment
//! of real time: what one side wrote into a socket must be there before the other side's clock moves.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::fake::{Fake, Fault, Kind, Then};
use super::testing::node;
use super::*;
use crate::lease::{BackendData, LeaseUpdate, VxlanData};
use crate::store::LeaseWatch;
use dataplane_core::MacAddr;

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A server, a configuration, and a client of them.
struct Lab {
    fake: Fake,
    dir: TempDir,
    settings: KubeSettings,
}

impl Lab {
    async fn new() -> Self {
        tokio::spawn(run_the_clock());
        let fake = Fake::start().await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("net-conf.json"),
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
        )
        .unwrap();
        let settings = KubeSettings {
            api_url: Some(fake.url()),
            kubeconfig: None,
            annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            node_name: Some("own".to_owned()),
            pod: None,
            set_network_unavailable: true,
        };
        Self { fake, dir, settings }
    }

    fn net_conf(&self) -> PathBuf {
        self.dir.path().join("net-conf.json")
    }

    fn store(&self) -> KubeStore {
        KubeStore::open(&self.settings, &self.net_conf()).unwrap()
    }

    /// Our node as the kubelet registers it.
    fn register(&self, cidr: Option<&str>) {
        self.fake.put(bare(cidr));
    }

    async fn acquire(&self) -> Result<Lease, StoreError> {
        let store = self.store();
        let network = store.network().await?;
        store.acquire(&network, &request()).await
    }
}

/// tokio moves a paused clock as soon as no task is ready. That is too soon: a kernel that delivers loopback packets a
/// little later lets whole minutes pass between an answer and its reading. A blocking task keeps tokio from doing so.
async fn run_the_clock() {
    loop {
        let moment = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_micros(100)));
        moment.await.unwrap();
        tokio::time::advance(Duration::from_millis(25)).await;
    }
}

fn bare(cidr: Option<&str>) -> Value {
    let mut node = json!({
        "metadata": {"name": "own", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {},
    });
    if let Some(cidr) = cidr {
        node["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    }
    node
}

fn request() -> LeaseRequest {
    let attrs = LeaseAttrs {
        public_ip: Some("192.0.2.1".parse().unwrap()),
        public_ipv6: None,
        backend: BackendData::Vxlan {
            v4: Some(VxlanData { vni: Some(1), mac: MacAddr([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]) }),
            v6: None,
        },
    };
    LeaseRequest { attrs, previous: None }
}

fn subnets(update: LeaseUpdate) -> Vec<String> {
    match update {
        LeaseUpdate::Snapshot(all) => all.iter().map(|lease| format!("= {}", lease.subnet)).collect(),
        LeaseUpdate::Rewound(_) => panic!("no server of Kubernetes does that"),
        LeaseUpdate::Upsert(lease) => vec![format!("+ {}", lease.subnet)],
        LeaseUpdate::Remove(subnet) => vec![format!("- {subnet}")],
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_any_annotation_joins_with_one_patch_of_its_status() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    let lease = lab.acquire().await.unwrap();
    assert_eq!((lease.subnet.to_string().as_str(), lease.expires), ("10.244.7.0/24", None));
    assert_eq!(lease.attrs, request().attrs);
    let patches = lab.fake.seen(Kind::Patch);
    assert_eq!(patches.len(), 1);
    assert_eq!(patches[0].content_type, "application/strategic-merge-patch+json");
    assert!(patches[0].target.starts_with("/api/v1/nodes/own/status"), "{}", patches[0].target);
    let expected = json!({"metadata": {"annotations": {
        format!("{PREFIX}backend-type"): "vxlan",
        format!("{PREFIX}backend-data"): r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
        format!("{PREFIX}public-ip"): "192.0.2.1",
        format!("{PREFIX}kube-subnet-manager"): "true",
    }}});
    assert_eq!(serde_json::from_str::<Value>(&patches[0].body).unwrap(), expected);
    let again = lab.acquire().await.unwrap();
    assert_eq!(again, lease);
    assert_eq!(lab.fake.seen(Kind::Patch).len(), 1, "nothing differs, so nothing is written");
    assert_eq!(lab.store().held_by("192.0.2.99".parse().unwrap()).await.unwrap(), Some(lease));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_overwrote_is_published_again_and_nothing_else() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    let lease = lab.acquire().await.unwrap();
    lab.fake.edit("own", |node| {
        node["metadata"]["annotations"][format!("{PREFIX}public-ip")] = "192.0.2.66".into()
    });
    let store = lab.store();
    let network = store.network().await.unwrap();
    assert_eq!(store.renew(&network, &lease).await.unwrap(), lease);
    let last = lab.fake.seen(Kind::Patch).pop().unwrap();
    assert_eq!(last.body, format!(r#"{{"metadata":{{"annotations":{{"{PREFIX}public-ip":"192.0.2.1"}}}}}}"#));
}

#[tokio::test(start_paused = true)]
async fn a_missing_pod_cidr_is_not_there_yet_and_no_error_of_ours() {
    let lab = Lab::new().await;
    for cidr in [None, Some("fd00:1::/64")] {
        lab.register(cidr);
        let error = lab.acquire().await.unwrap_err();
        assert!(matches!(error, StoreError::NotYet(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("waiting for node \"own\" to get an IPv4 podCIDR: "), "{text}");
    }
    lab.register(Some("10.244.7.0/24"));
    assert_eq!(lab.acquire().await.unwrap().subnet.to_string(), "10.244.7.0/24");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_exist_is_named() {
    let lab = Lab::new().await;
    let error = lab.acquire().await.unwrap_err().to_string();
    assert!(error.contains("there is no Node \"own\" in the Kubernetes API at http://127.0.0.1"), "{error}");
    assert!(error.contains("NODE_NAME names the wrong one"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_cidr_outside_the_network_is_refused_with_both() {
    let lab = Lab::new().await;
    lab.register(Some("10.42.0.0/24"));
    let error = lab.acquire().await.unwrap_err().to_string();
    assert!(
        error.contains("the podCIDR 10.42.0.0/24 of node \"own\" is not in the network 10.244.0.0/16"),
        "{error}"
    );
    assert!(error.contains("--cluster-cidr"), "{error}");
    assert!(lab.fake.seen(Kind::Patch).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_cidr_that_changed_is_an_error_with_the_remedy() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    let lease = lab.acquire().await.unwrap();
    lab.register(Some("10.244.8.0/24"));
    let store = lab.store();
    let network = store.network().await.unwrap();
    let error = store.renew(&network, &lease).await.unwrap_err().to_string();
    assert!(error.contains("was 10.244.7.0/24 and is 10.244.8.0/24; restart flanneld"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_overwritten_address_is_what_peers_and_we_see() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    lab.fake.edit("own", |node| {
        node["metadata"]["annotations"] = json!({
            format!("{PREFIX}public-ip-overwrite"): "203.0.113.9", format!("{PREFIX}node-public-ip"): "198.51.100.2",
        });
    });
    let lease = lab.acquire().await.unwrap();
    assert_eq!(lease.attrs.public_ip, Some("203.0.113.9".parse().unwrap()));
    let public = lab.store().public_addresses().await.unwrap();
    assert_eq!((public.v4, public.v6), (Some("198.51.100.2".parse().unwrap()), None));
    let mut watch = lab.store().watch().await.unwrap();
    assert_eq!(watch.next().await, LeaseUpdate::Snapshot(vec![lease]), "our own is told as we hold it");
}

#[tokio::test(start_paused = true)]
async fn the_node_is_said_to_be_ready_once_and_the_time_of_the_change_stays() {
    let mut lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    lab.fake.edit("own", |node| {
        node["status"] = json!({"conditions": [
            {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Ready", "status": "True"},
        ]});
    });
    let condition = |lab: &Lab| lab.fake.node("own")["status"]["conditions"][0].clone();
    lab.store().announce_ready().await.unwrap();
    let first = condition(&lab);
    assert_eq!(
        (&first["status"], &first["reason"], &first["message"]),
        (&json!("False"), &json!("FlannelIsUp"), &json!("Flannel is running on this node"))
    );
    let time = first["lastTransitionTime"].as_str().unwrap();
    assert!(time != "2026-01-01T00:00:00Z" && time.len() == 20 && time.ends_with('Z'), "{time}");
    lab.store().announce_ready().await.unwrap();
    assert_eq!(lab.fake.seen(Kind::Patch).len(), 1);
    lab.fake.edit("own", |node| {
        node["status"]["conditions"][0]["reason"] = "Cloud".into();
        node["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-02T00:00:00Z".into();
    });
    lab.store().announce_ready().await.unwrap();
    assert_eq!(condition(&lab)["reason"], "FlannelIsUp");
    assert_eq!(condition(&lab)["lastTransitionTime"], "2026-01-02T00:00:00Z");
    lab.settings.set_network_unavailable = false;
    lab.fake.edit("own", |node| node["status"]["conditions"] = json!([]));
    lab.store().announce_ready().await.unwrap();
    assert_eq!(lab.fake.seen(Kind::Patch).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_node_is_found_by_the_pod() {
    let mut lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    lab.settings.node_name = None;
    assert!(KubeStore::open(&lab.settings, &lab.net_conf()).is_err());
    lab.settings.pod = Some(("flannel-x".to_owned(), "kube-flannel".to_owned()));
    let error = lab.acquire().await.unwrap_err().to_string();
    assert!(error.contains("refuses to read this pod: HTTP 404"), "{error}");
    lab.fake.pod("kube-flannel", "flannel-x", "own");
    assert_eq!(lab.acquire().await.unwrap().subnet.to_string(), "10.244.7.0/24");
}

#[tokio::test(start_paused = true)]
async fn refusals_say_which_right_is_missing() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    lab.fake.faults(Kind::Patch, [Fault::Status(403, None)]);
    let error = lab.acquire().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("HTTP 403: scripted 403; grant nodes/status: patch"), "{error}");
    lab.fake.faults(Kind::Get, [Fault::Status(401, None)]);
    assert!(lab.acquire().await.unwrap_err().to_string().contains("the credentials are wrong"));
    lab.fake.faults(Kind::Get, [Fault::Html(502)]);
    let error = lab.acquire().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("HTTP 502: Bad Gateway"), "{error}");
    lab.fake.faults(Kind::Get, [Fault::Silence]);
    assert!(lab.acquire().await.unwrap_err().to_string().contains("no answer within 30s"));
}

#[tokio::test(start_paused = true)]
async fn a_patch_is_tried_again() {
    let lab = Lab::new().await;
    lab.register(Some("10.244.7.0/24"));
    lab.fake.faults(Kind::Patch, [Fault::Status(500, None), Fault::Cut, Fault::Html(503)]);
    assert_eq!(lab.acquire().await.unwrap().attrs, request().attrs);
    assert_eq!(lab.fake.seen(Kind::Patch).len(), 4);
}

/// A server with nodes a and b, and a watch that has told them.
async fn watched() -> (Lab, Followed) {
    let lab = Lab::new().await;
    lab.fake.put(node("a", 1, 1).cidr("10.244.1.0/24").json());
    lab.fake.put(node("b", 2, 1).cidr("10.244.2.0/24").json());
    let mut watch = lab.store().watch().await.unwrap();
    assert_eq!(subnets(watch.next().await), ["= 10.244.1.0/24", "= 10.244.2.0/24"]);
    (lab, watch)
}

/// Waits until the watch has asked so often.
async fn asked(lab: &Lab, kind: Kind, times: usize) {
    while lab.fake.seen(kind).len() < times {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_come_and_go_as_leases() {
    let (lab, mut watch) = watched().await;
    lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
    assert_eq!(subnets(watch.next().await), ["+ 10.244.3.0/24"]);
    lab.fake.put(node("a", 1, 1).cidr("10.244.1.0/24").address("192.0.2.77").json());
    let LeaseUpdate::Upsert(lease) = watch.next().await else { panic!() };
    assert_eq!(lease.attrs.public_ip, Some("192.0.2.77".parse().unwrap()));
    lab.fake.put(node("b", 2, 1).cidr("10.244.2.0/24").unmanaged().json());
    assert_eq!(subnets(watch.next().await), ["- 10.244.2.0/24"]);
    lab.fake.delete("a");
    assert_eq!(subnets(watch.next().await), ["- 10.244.1.0/24"]);
    assert!(watch.contact().last.is_some());
    assert_eq!(watch.contact().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn giving_up_waiting_loses_nothing() {
    let (lab, mut watch) = watched().await;
    lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
    for _ in 0..5 {
        drop(tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await);
        if let Ok(update) = tokio::time::timeout(Duration::from_millis(1), watch.next()).await {
            assert_eq!(subnets(update), ["+ 10.244.3.0/24"]);
            return;
        }
    }
    assert_eq!(subnets(watch.next().await), ["+ 10.244.3.0/24"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let (lab, mut watch) = watched().await;
    asked(&lab, Kind::Watch, 5).await;
    let whole = lab.fake.seen(Kind::List).iter().filter(|seen| seen.target.contains("limit=500")).count();
    assert_eq!(whole, 1, "four ends of a watch cost no list");
    lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
    assert_eq!(subnets(watch.next().await), ["+ 10.244.3.0/24"]);
    let targets = lab.fake.seen(Kind::Watch);
    assert!(targets.iter().all(|seen| seen.target.contains("allowWatchBookmarks=true")), "{targets:?}");
}

#[tokio::test(start_paused = true)]
async fn a_half_open_connection_is_noticed_within_65_seconds() {
    let (lab, mut watch) = watched().await;
    asked(&lab, Kind::Watch, 1).await;
    lab.fake.faults(Kind::Watch, [Fault::Watch(vec![], Then::Stall)]);
    asked(&lab, Kind::Watch, 2).await;
    let begin = Instant::now();
    lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
    assert_eq!(subnets(watch.next().await), ["+ 10.244.3.0/24"]);
    let waited = begin.elapsed();
    // Noticed within 65, asked again within one more; on a machine that is busy the clock of these tests runs ahead of its sockets.
    assert!(waited <= Duration::from_secs(80) && waited >= Duration::from_secs(40), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn both_kinds_of_410_are_a_new_list() {
    for as_event in [true, false] {
        let (lab, mut watch) = watched().await;
        asked(&lab, Kind::Watch, 1).await;
        let event = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}});
        let fault = match as_event {
            true => Fault::Watch(vec![event.to_string()], Then::End),
            false => Fault::Status(410, None),
        };
        lab.fake.faults(Kind::Watch, [fault]);
        asked(&lab, Kind::List, 2).await;
        lab.fake.delete("a");
        let mut told = subnets(watch.next().await);
        told.retain(|line| line.contains("10.244.1.0"));
        assert!(told.is_empty() || told == ["- 10.244.1.0/24"], "{told:?}");
        assert_eq!(watch.contact().trouble, None, "a history that ended is no trouble");
    }
}

#[tokio::test(start_paused = true)]
async fn a_compacted_history_is_made_good_by_a_list() {
    let (lab, mut watch) = watched().await;
    asked(&lab, Kind::Watch, 1).await;
    lab.fake.stop().await;
    lab.fake.delete("a");
    lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
    lab.fake.compact();
    lab.fake.again().await;
    assert_eq!(subnets(watch.next().await), ["= 10.244.2.0/24", "= 10.244.3.0/24"]);
}

#[tokio::test(start_paused = true)]
async fn whatever_the_server_answers_leases_stay_and_the_rest_is_learnt_later() {
    let half =
        json!({"type": "MODIFIED", "object": node("a", 1, 900).cidr("10.244.1.0/24").json()}).to_string();
    for fault in [
        Fault::Status(401, None),
        Fault::Status(403, None),
        Fault::Status(429, Some(3)),
        Fault::Status(500, None),
        Fault::Status(503, Some(1)),
        Fault::Html(502),
        Fault::Html(200),
        Fault::Silence,
        Fault::Cut,
        Fault::Endless,
        Fault::Watch(vec!["{}".to_owned()], Then::End),
        Fault::Watch(vec!["not json".to_owned()], Then::Stall),
        Fault::Watch(vec![half.clone(), half.clone()], Then::Break),
    ] {
        let (lab, mut watch) = watched().await;
        asked(&lab, Kind::Watch, 1).await;
        lab.fake.faults(Kind::Watch, std::iter::repeat_n(fault.clone(), 2));
        lab.fake.faults(Kind::List, [fault.clone()]);
        asked(&lab, Kind::Watch, 3).await;
        assert!(!lab.fake.seen(Kind::Watch).is_empty());
        let begin = Instant::now();
        lab.fake.put(node("c", 3, 1).cidr("10.244.3.0/24").json());
        loop {
            let told = subnets(watch.next().await);
            assert!(!told.iter().any(|line| line.starts_with('-')), "{fault:?}: {told:?}");
            if told.contains(&"+ 10.244.3.0/24".to_owned()) || told.len() == 3 {
                break;
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(300), "{fault:?}: {:?}", begin.elapsed());
        assert_eq!(watch.contact().trouble, None, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_ten_minutes_costs_no_lease_and_few_questions() {
    let (lab, mut watch) = watched().await;
    asked(&lab, Kind::Watch, 1).await;
    let heard = watch.contact().last;
    lab.fake.stop().await;
    let silence = tokio::time::timeout(Duration::from_secs(600), watch.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    let contact = watch.contact();
    assert!(contact.trouble.is_some() && contact.last == heard, "{contact:?}");
    let trouble = contact.trouble.unwrap();
    assert!(trouble.contains("refused"), "{trouble}");
    lab.fake.again().await;
    lab.fake.delete("a");
    let begin = Instant::now();
    assert_eq!(subnets(watch.next().await), ["- 10.244.1.0/24"]);
    assert!(begin.elapsed() <= Duration::from_secs(35), "{:?}", begin.elapsed());
    assert_eq!(watch.contact().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn five_thousand_nodes_come_in_pages() {
    let lab = Lab::new().await;
    std::fs::write(lab.net_conf(), r#"{"Network": "10.0.0.0/8"}"#).unwrap();
    for n in 0..5000u32 {
        lab.fake
            .put(node(&format!("n{n:04}"), 1, 1).cidr(&format!("10.{}.{}.0/24", n / 250, n % 250)).json());
    }
    let mut watch = lab.store().watch().await.unwrap();
    let LeaseUpdate::Snapshot(all) = watch.next().await else { panic!() };
    assert_eq!(all.len(), 5000);
    let lists = lab.fake.seen(Kind::List);
    assert_eq!(lists.len(), 10);
    assert!(lists.iter().all(|seen| seen.target.contains("limit=500")), "{lists:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_rotated_is_read_again() {
    let mut lab = Lab::new().await;
    lab.fake.put(node("a", 1, 1).cidr("10.244.1.0/24").json());
    lab.fake.only("first");
    let token = lab.dir.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let kubeconfig = lab.dir.path().join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": lab.fake.url()}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    (lab.settings.api_url, lab.settings.kubeconfig) = (None, Some(kubeconfig));
    let mut watch = lab.store().watch().await.unwrap();
    assert_eq!(subnets(watch.next().await), ["= 10.244.1.0/24"]);
    asked(&lab, Kind::Watch, 1).await;
    lab.fake.only("second");
    asked(&lab, Kind::Watch, 3).await;
    let trouble = watch.contact().trouble.unwrap();
    assert!(trouble.contains("401") && !trouble.contains("first"), "{trouble}");
    std::fs::write(&token, "second").unwrap();
    lab.fake.delete("a");
    let begin = Instant::now();
    assert_eq!(subnets(watch.next().await), ["- 10.244.1.0/24"]);
    assert!(begin.elapsed() <= Duration::from_secs(60), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn settings_that_lead_nowhere_say_what_to_do() {
    let mut lab = Lab::new().await;
    lab.settings.annotation_prefix = "org".to_owned();
    let error = KubeStore::open(&lab.settings, &lab.net_conf()).err().unwrap().to_string();
    assert!(
        error.contains("\"org\" does not begin with a name") && error.contains("example.org/flannel"),
        "{error}"
    );
    lab.settings.annotation_prefix = "flannel.alpha.coreos.com".to_owned();
    (lab.settings.api_url, lab.settings.kubeconfig) = (None, Some(lab.dir.path().join("absent")));
    let error = lab.acquire().await.unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("No such file"), "{error}");
    std::fs::remove_file(lab.net_conf()).unwrap();
    assert!(matches!(lab.acquire().await, Err(StoreError::NoConfig { .. })));
}
