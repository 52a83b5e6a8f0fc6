//! What readiness is made of, and the form of the JSON.

use std::net::Ipv4Addr;

use super::*;

/// What is done to a good status, and what is said then.
type Case = (fn(&mut NodeStatus), &'static str);

/// A node on which everything is as it should be.
pub(crate) fn well() -> NodeStatus {
    let traffic = Traffic::from(&Counters::default());
    let device = DeviceStatus {
        name: "flannel.1".to_owned(),
        family: "ipv4".into(),
        carrier: "engine".into(),
        running: true,
        mtu: 1450,
        endpoint: "192.0.2.1:8472".parse().unwrap(),
        mac: Some("02:00:00:00:00:01".to_owned()),
        traffic: Some(traffic),
    };
    let mut node = NodeStatus {
        api_version: API_VERSION.into(),
        state: State::NotReady,
        problems: Vec::new(),
        version: "0.1.0".into(),
        pid: 7,
        started: 1_000,
        at: 2_000,
        store: StoreStatus { name: "file".to_owned(), last_heard: Some(1_998), ..StoreStatus::default() },
        backend: Some(BackendStatus { kind: "vxlan".into(), reasons: Vec::new(), devices: vec![device] }),
        lease: Some(LeaseStatus {
            subnets: vec!["10.5.1.0/24".parse().unwrap()],
            public: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
            expires: Some(90_000),
        }),
        mtu: Some(1450),
        underlay: Some(UnderlayStatus {
            device: "eth0".to_owned(),
            mtu: 1500,
            addresses: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
            trouble: None,
        }),
        peers: PeerCounts { used: 3, refused: 0, held_back: 0 },
        reconcile: ReconcileStatus { last_ok: Some(1_999), ..ReconcileStatus::default() },
        rules: RulesStatus::default(),
        subnet_file: FileStatus { path: "/run/flannel/subnet.env".into(), written: true, trouble: None },
        checks: Vec::new(),
    };
    node.judge();
    node
}

/// The state, and the first problem.
fn judged(spoil: impl FnOnce(&mut NodeStatus)) -> (State, String) {
    let mut node = well();
    spoil(&mut node);
    node.judge();
    (node.state, node.problems.first().cloned().unwrap_or_default())
}

#[test]
fn what_stops_packets_makes_a_node_not_ready_and_the_rest_degraded() {
    assert_eq!(judged(|_| {}), (State::Ready, String::new()));
    let stop: [Case; 6] = [
        (|node| node.lease = None, "lease: this node has none yet"),
        (|node| node.backend = None, "device: it is not made yet"),
        (
            |node| node.backend.iter_mut().for_each(|backend| backend.devices[0].running = false),
            "device: flannel.1 carries no packets",
        ),
        (
            |node| {
                node.underlay.iter_mut().for_each(|underlay| underlay.trouble = Some("it is gone".to_owned()))
            },
            "device: the interface eth0 does not carry it: it is gone",
        ),
        (|node| node.reconcile.last_ok = None, "routes: they are not set yet"),
        (|node| node.subnet_file.written = false, "subnet-file: /run/flannel/subnet.env is not written yet"),
    ];
    for (spoil, problem) in stop {
        assert_eq!(judged(spoil), (State::NotReady, problem.to_owned()));
    }
    let harm: [Case; 7] = [
        (
            |node| node.store.stale_since = Some(1_900),
            "store: not heard for 1m40s; what was known stays in use",
        ),
        (
            |node| node.lease.iter_mut().for_each(|lease| lease.expires = Some(1_940)),
            "lease: it ended 1m ago and could not be renewed; another node may get the subnet",
        ),
        (|node| node.reconcile.trouble = Some("1 refused".to_owned()), "routes: 1 refused"),
        (
            |node| node.peers.refused = 2,
            "peers: 2 of the other nodes' leases cannot be used: see flanneld peers",
        ),
        (
            |node| node.peers.held_back = 5,
            "peers: 5 vanished from the store at once, and are kept for a while in case it is a mistake",
        ),
        (|node| node.rules.trouble = Some("no nft".to_owned()), "rules: no nft"),
        (|node| node.rules.guard_trouble = Some("no nft".to_owned()), "guard: no nft"),
    ];
    for (spoil, problem) in harm {
        assert_eq!(judged(spoil), (State::Degraded, problem.to_owned()));
    }
    let (state, problem) = judged(|node| {
        node.rules.trouble = Some("no nft".to_owned());
        node.lease = None;
    });
    assert_eq!(
        (state, problem.as_str()),
        (State::NotReady, "lease: this node has none yet"),
        "the worst first"
    );
}

#[test]
fn a_check_reads_like_those_of_the_kubernetes_api_server() {
    let mut node = well();
    node.store.stale_since = Some(1_900);
    node.lease = None;
    node.judge();
    let lines: Vec<String> = node.checks.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "[+]store degraded: not heard for 1m40s; what was known stays in use",
            "[-]lease failed: this node has none yet",
            "[+]device ok",
            "[+]routes ok",
            "[+]peers ok",
            "[+]rules ok",
            "[+]guard ok",
            "[+]subnet-file ok",
        ]
    );
}

#[test]
fn a_daemon_that_starts_says_what_it_waits_for() {
    let identity = Identity::of_this_process();
    let store = StoreStatus { name: "file".to_owned(), ..StoreStatus::default() };
    let node =
        NodeStatus::starting(identity, "/run/flannel/subnet.env".into(), store, "waiting for a podCIDR");
    assert_eq!(node.state, State::NotReady);
    assert_eq!(node.problems, ["starting: waiting for a podCIDR"]);
    assert!(node.checks.iter().any(|check| check.text == "waiting for a podCIDR"));
}

#[test]
fn the_json_reads_back_as_it_was_written() {
    let node = well();
    let text = serde_json::to_string(&node).unwrap();
    assert_eq!(serde_json::from_str::<NodeStatus>(&text).unwrap(), node);
    assert!(text.contains(r#""subnets":["10.5.1.0/24"]"#) && text.contains(r#""unknown_peer":0"#), "{text}");
}
