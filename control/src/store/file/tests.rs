//! What only the store in a directory has: torn files, locks, notification.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use super::*;
use crate::lease::{BackendData, Key, LeaseAttrs, LeaseUpdate};
use crate::store::LeaseWatch;
use crate::store::contract::{HandClock, Harness, lease_store_contract};

lease_store_contract!(FileHarness::new());

struct FileHarness {
    dir: tempfile::TempDir,
    clock: HandClock,
}

impl FileHarness {
    fn new() -> Self {
        let clock = HandClock::new();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("subnets")).unwrap();
        Self { dir, clock }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.dir.path().join("subnets").join(key)
    }
}

impl Harness for FileHarness {
    type Store = FileStore<HandClock>;

    fn store(&self) -> Self::Store {
        FileStore::open(self.dir.path(), Path::new("/nonexistent/net-conf.json"), self.clock.clone()).unwrap()
    }

    fn configure(&self, text: &str) {
        fs::write(self.dir.path().join("config"), text).unwrap();
    }

    fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn reserve(&self, key: &str, value: &str) {
        fs::write(self.file(key), value).unwrap();
    }

    fn delete(&self, key: &str) {
        fs::remove_file(self.file(key)).unwrap();
    }

    fn spoil(&self, key: &str, value: &[u8]) {
        fs::write(self.file(key), value).unwrap();
    }
}

fn request(host: u32) -> LeaseRequest {
    let attrs = LeaseAttrs { public_ip: Some(host.into()), public_ipv6: None, backend: BackendData::Udp };
    LeaseRequest { attrs, previous: None }
}

#[tokio::test]
async fn the_directory_is_readable_by_people() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    let previous = Some("10.5.34.0-24".parse::<Key>().unwrap().0);
    store.acquire(&network, &LeaseRequest { previous, ..request(0xc000_0201) }).await.unwrap();
    assert_eq!(
        fs::read_to_string(h.file("10.5.34.0-24")).unwrap(),
        "{\"PublicIP\":\"192.0.2.1\",\"PublicIPv6\":null,\"Expiry\":1700086400}\n"
    );
    let names: BTreeSet<_> = fs::read_dir(h.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["config", "lock", "subnets"].map(String::from).into());
}

#[tokio::test]
async fn the_configuration_falls_back_to_the_flag_and_says_what_was_tried() {
    let h = FileHarness::new();
    let error = h.store().network().await.unwrap_err().to_string();
    let config = h.dir.path().join("config");
    assert!(error.contains(&config.display().to_string()), "{error}");
    assert!(error.contains("/nonexistent/net-conf.json"), "{error}");
    let elsewhere = h.dir.path().join("net-conf.json");
    fs::write(&elsewhere, r#"{"Network": "10.9.0.0/16"}"#).unwrap();
    let store = FileStore::open(h.dir.path(), &elsewhere, h.clock.clone()).unwrap();
    assert_eq!(store.network().await.unwrap().v4.unwrap().network().to_string(), "10.9.0.0/16");
    h.configure("{\n \"Network\": 1}");
    let error = store.network().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:2:13: expected", config.display())), "{error}");
}

/// Fifty nodes at once, each with a runtime, a thread and an open lock file of its own, as processes have.
#[test]
fn fifty_nodes_at_once_get_fifty_subnets() {
    let h = FileHarness::new();
    // 63 subnets for 50 nodes: every draw is among few.
    h.configure(r#"{"Network": "10.5.0.0/18"}"#);
    let subnets: Vec<_> = std::thread::scope(|scope| {
        let nodes: Vec<_> = (1..=50)
            .map(|host| {
                let store = h.store();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let network = store.network().await.unwrap();
                        let lease = store.acquire(&network, &request(host)).await.unwrap();
                        assert_eq!(
                            store.acquire(&network, &request(host)).await.unwrap().subnet,
                            lease.subnet
                        );
                        lease.subnet
                    })
                })
            })
            .collect();
        nodes.into_iter().map(|node| node.join().unwrap()).collect()
    });
    assert_eq!(subnets.iter().collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(fs::read_dir(h.dir.path().join("subnets")).unwrap().count(), 50);
}

#[tokio::test]
async fn what_is_no_regular_small_file_is_passed_over() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let good = r#"{"PublicIP":"192.0.2.9"}"#;
    fs::write(h.file("10.5.7.0-24"), good).unwrap();
    fs::write(h.dir.path().join("elsewhere"), good).unwrap();
    symlink(h.dir.path().join("elsewhere"), h.file("10.5.8.0-24")).unwrap();
    nix::unistd::mkfifo(&h.file("10.5.9.0-24"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(h.file("10.5.10.0-24")).unwrap();
    fs::write(h.file("10.5.11.0-24"), good.to_owned() + &" ".repeat(20_000)).unwrap();
    fs::write(h.file("10.5.12.0-24"), "").unwrap();
    fs::write(h.file(".10.5.13.0-24.tmp"), good).unwrap();
    let scan = Scan::of(&h.dir.path().join("subnets")).unwrap();
    assert_eq!(scan.leases.iter().map(|lease| lease.subnet.to_string()).collect::<Vec<_>>(), ["10.5.7.0/24"]);
    let mut why: Vec<_> = scan
        .unreadable
        .iter()
        .map(|file| format!("{} {}", file.path.file_name().unwrap().display(), file.why))
        .collect();
    why.sort();
    assert_eq!(why.len(), 5, "{why:?}");
    assert!(why[0].contains("10.5.10.0-24 it is not a regular file"), "{why:?}");
    assert!(why[1].contains("10.5.11.0-24 it is longer than"), "{why:?}");
    assert!(why[2].contains("10.5.12.0-24 the file is empty"), "{why:?}");
    assert!(why[3].contains("10.5.8.0-24"), "{why:?}");
    assert!(why[4].contains("10.5.9.0-24 it is not a regular file"), "{why:?}");
}

#[tokio::test]
async fn what_a_killed_writer_left_is_cleared_away() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    fs::write(h.file(".10.5.13.0-24.x7Yp0Q"), "{\"Pub").unwrap();
    for others in [".10.5.13.0-24.swp", ".nfs0000000000000001", ".notes.abcdef"] {
        fs::write(h.file(others), "").unwrap();
    }
    fs::create_dir(h.file(".snapshot")).unwrap();
    fs::create_dir(h.file(".10.5.14.0-24.abcdef")).unwrap();
    let store = h.store();
    store.acquire(&store.network().await.unwrap(), &request(1)).await.unwrap();
    assert!(!h.file(".10.5.13.0-24.x7Yp0Q").exists());
    for others in [".10.5.13.0-24.swp", ".nfs0000000000000001", ".notes.abcdef", ".snapshot"] {
        assert!(h.file(others).exists(), "{others} is not ours");
    }
    assert!(Scan::of(&h.dir.path().join("subnets")).unwrap().unreadable.is_empty());
}

#[tokio::test]
async fn a_lock_that_is_a_pipe_or_a_link_is_refused_at_once() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    let lock = h.dir.path().join("lock");
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = store.acquire(&network, &request(1)).await.unwrap_err().to_string();
    assert!(error.contains("it is not a regular file; remove it"), "{error}");
    fs::remove_file(&lock).unwrap();
    symlink(h.dir.path().join("elsewhere"), &lock).unwrap();
    let error = store.acquire(&network, &request(1)).await.unwrap_err().to_string();
    assert!(error.contains("open the lock"), "{error}");
    assert!(!h.dir.path().join("elsewhere").exists());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_holder_of_the_lock_is_told_and_not_waited_for() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    let held = store.lock().await.unwrap();
    let error = store.acquire(&network, &request(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(held);
    assert!(store.acquire(&network, &request(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_vanishes_removes_nobody() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    let one = store.acquire(&network, &request(1)).await.unwrap();
    let mut watch = store.watch().await.unwrap();
    assert_eq!(watch.next().await, LeaseUpdate::Snapshot(vec![one.clone()]));
    let subnets = h.dir.path().join("subnets");
    let aside = h.dir.path().join("aside");
    fs::rename(&subnets, &aside).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(60), watch.next()).await.is_err(), "nothing is told");
    fs::rename(&aside, &subnets).unwrap();
    let two = store.acquire(&network, &request(2)).await.unwrap();
    let LeaseUpdate::Snapshot(leases) = watch.next().await else { panic!("a snapshot") };
    assert!(leases.contains(&one) && leases.contains(&two));
}

#[tokio::test]
async fn a_change_is_told_without_waiting_for_the_tick() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let mut watch = store.watch().await.unwrap();
    assert_eq!(watch.next().await, LeaseUpdate::Snapshot(vec![]));
    let begin = std::time::Instant::now();
    let (lease, update) = tokio::join!(
        async { store.acquire(&store.network().await.unwrap(), &request(1)).await.unwrap() },
        watch.next()
    );
    assert_eq!(update, LeaseUpdate::Snapshot(vec![lease]));
    assert!(begin.elapsed() < Duration::from_secs(4), "inotify, not the tick of five seconds");
}

/// The daemon's loop gives up waiting every second, to look at other things.
#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_is_told_to_whoever_gives_up_waiting_again_and_again() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    store.acquire(&network, &request(1)).await.unwrap();
    let mut watch = store.watch().await.unwrap();
    assert!(matches!(watch.next().await, LeaseUpdate::Snapshot(leases) if leases.len() == 1));
    h.advance(crate::lease::LEASE_TTL + Duration::from_secs(1));
    for _ in 0..20 {
        if let Ok(update) = tokio::time::timeout(Duration::from_secs(1), watch.next()).await {
            return assert_eq!(update, LeaseUpdate::Snapshot(vec![]));
        }
    }
    panic!("nothing was told");
}

#[tokio::test]
async fn a_reader_never_sees_half_a_lease() {
    let h = FileHarness::new();
    h.configure(r#"{"Network": "10.5.0.0/16"}"#);
    let store = h.store();
    let network = store.network().await.unwrap();
    let lease = store.acquire(&network, &request(1)).await.unwrap();
    let dir = h.dir.path().join("subnets");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let scan = Scan::of(&dir).unwrap();
                assert_eq!((scan.leases.len(), scan.unreadable.len()), (1, 0));
                looks += 1;
            }
            looks
        });
        for _ in 0..500 {
            store.write(&lease).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}
