//! Beside Debian's reference plugin: the same refusals, and one directory for both.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::runtime::{Call, Network, OURS, THEIRS, files, reserved};

/// The same configurations to both: where the reference plugin refuses, ours does in the same words.
#[test]
fn a_wrong_configuration_is_refused_as_by_the_reference_plugin() {
    if !Path::new(THEIRS).exists() {
        println!("skipped: beside the reference plugin: {THEIRS} is not there");
        return;
    }
    let of = |ranges: Value| json!({"cniVersion": "1.0.0", "name": "n", "ipam": {"ranges": ranges}});
    let asking = |ip: &str| {
        let mut config = of(json!([[{"subnet": "10.1.0.0/24"}]]));
        config["args"] = json!({"cni": {"ips": [ip]}});
        config
    };
    let mut too_old = of(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]));
    too_old["cniVersion"] = json!("0.2.0");
    for mut config in [
        json!({"cniVersion": "1.0.0", "name": "n"}),
        of(json!([])),
        of(json!([[]])),
        of(json!([[{"subnet": "10.1.0.0/31"}]])),
        of(json!([[{"subnet": "fd00::/127"}]])),
        of(json!([[{"subnet": "10.1.0.7/24"}]])),
        of(json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}]])),
        of(json!([[{"subnet": "10.1.0.0/24", "rangeEnd": "fd00::1"}]])),
        of(json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]])),
        of(json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]])),
        of(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]])),
        too_old,
        asking("10.1.0.1"),
        asking("10.9.0.1"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        if config.get("ipam").is_some() {
            config["ipam"]["dataDir"] = json!(directory.path());
        }
        let [ours, theirs] = [OURS, THEIRS].map(|program| Call::new(program, "ADD", "c", &config).run());
        assert!(!ours.is_success && !theirs.is_success, "{config}");
        assert_eq!(ours.json()["msg"], theirs.json()["msg"], "{config}");
    }
}

#[test]
fn sharing_a_directory_with_the_reference_plugin_gives_no_address_twice() {
    if !Path::new(THEIRS).exists() {
        println!("skipped: sharing a directory with the reference plugin: {THEIRS} is not there");
        return;
    }
    let operations = std::env::var("CNI_OPERATIONS").map_or(2_000, |text| text.parse().unwrap());
    let network = Network::new(json!([[{"subnet": "10.1.0.0/27"}], [{"subnet": "fd00::/64"}]]));
    let shared = Shared { network: &network, held: Mutex::default(), counts: Mutex::default() };
    let started = Instant::now();
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let shared = &shared;
            scope.spawn(move || shared.work(worker, operations / WORKERS));
        }
    });
    let (adds, dels, crossed, full) = *shared.counts.lock().unwrap();
    println!(
        "{adds} ADD, {dels} DEL, {crossed} of them of the other's reservation, {full} refused as full, in {:?}",
        started.elapsed()
    );
    let held = shared.held.into_inner().unwrap();
    assert_eq!(reserved(&network.path()), held, "what is held is what is reserved");
    assert!(crossed > dels / 4 && full > 0);
    let config = network.with("cni.dev/valid-attachments", json!([]));
    assert!(Call::new(OURS, "GC", "", &config).run().is_success);
    assert_eq!(files(&network.path()), Vec::<String>::new());
}

const WORKERS: u64 = 4;

struct Shared<'a> {
    network: &'a Network,
    /// Address to the content of its file. An address is put in after its ADD and taken out before its DEL.
    held: Mutex<BTreeMap<String, String>>,
    /// ADD, DEL, DEL of the other's, refused as full.
    counts: Mutex<(u64, u64, u64, u64)>,
}

impl Shared<'_> {
    /// ADD and DEL in a random order, each by a random plugin, with up to nine containers at a time: all workers together
    /// want more than there is.
    fn work(&self, worker: u64, operations: u64) {
        let mut random = 0x9e37_79b9_7f4a_7c15 ^ (worker + 1);
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from((random >> 20) % below as u64).unwrap()
        };
        let mut mine: Vec<(String, Vec<String>, usize)> = Vec::new();
        for number in 0..operations {
            let plugin = next(2);
            let program = [OURS, THEIRS][plugin];
            if mine.is_empty() || (mine.len() < 9 && next(9) < 5) {
                let id = format!("w{worker}n{number}");
                let answer = Call::new(program, "ADD", &id, &self.network.config).run();
                if !answer.is_success {
                    assert!(
                        answer.text.contains("no IP addresses available in range set"),
                        "{}",
                        answer.text
                    );
                    self.counts.lock().unwrap().3 += 1;
                    continue;
                }
                let mut held = self.held.lock().unwrap();
                for ip in answer.addresses() {
                    let other = held.insert(ip.clone(), format!("{id}\r\neth0"));
                    assert_eq!(other, None, "{ip} was given to {id} and another by {program}");
                }
                drop(held);
                self.counts.lock().unwrap().0 += 1;
                mine.push((id, answer.addresses(), plugin));
            } else {
                let (id, ips, maker) = mine.swap_remove(next(mine.len()));
                self.held.lock().unwrap().retain(|ip, _| !ips.contains(ip));
                let answer = Call::new(program, "DEL", &id, &self.network.config).run();
                assert!(answer.is_success, "{}", answer.text);
                let content = format!("{id}\r\neth0");
                for ip in ips {
                    let left = fs::read_to_string(self.network.path().join(&ip)).unwrap_or_default();
                    assert_ne!(left, content, "{ip} was not freed by {program}");
                }
                let mut counts = self.counts.lock().unwrap();
                counts.1 += 1;
                counts.2 += u64::from(maker != plugin);
            }
        }
    }
}
