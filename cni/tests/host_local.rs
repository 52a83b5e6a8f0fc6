//! `host-local` and `static` as a container runtime runs them: processes, many at once, killed in the middle, and beside
//! Debian's reference plugin in one directory.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use serde_json::json;

#[path = "host_local/beside.rs"]
mod beside;
#[path = "host_local/runtime.rs"]
mod runtime;

use runtime::{Answer, Call, Network, OURS, THEIRS, files, reserved};

#[test]
fn a_result_has_the_form_of_its_version() {
    let network = Network::new(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]));
    let mut config = network.config.clone();
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.9", "mtu": 1400}]);
    let old = r#"{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.1.0.2/24",
        "gateway": "10.1.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "10.1.0.9"
            }
        ]
    },
    "ip6": {
        "ip": "fd00::2/64",
        "gateway": "fd00::1"
    },
    "dns": {}
}"#;
    let with_family = r#"{
    "cniVersion": "0.3.1",
    "ips": [
        {
            "version": "4",
            "address": "10.1.0.2/24",
            "gateway": "10.1.0.1"
        },
        {
            "version": "6",
            "address": "fd00::2/64",
            "gateway": "fd00::1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.1.0.9"
        }
    ],
    "dns": {}
}"#;
    let newest = r#"{
    "cniVersion": "1.1.0",
    "ips": [
        {
            "address": "10.1.0.2/24",
            "gateway": "10.1.0.1"
        },
        {
            "address": "fd00::2/64",
            "gateway": "fd00::1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.1.0.9",
            "mtu": 1400
        }
    ]
}"#;
    let of_1_0 =
        newest.replace("1.1.0", "1.0.0").replace("\"10.1.0.9\",\n            \"mtu\": 1400", "\"10.1.0.9\"");
    for (version, expected) in [
        ("0.1.0", old.replace("0.2.0", "0.1.0")),
        ("0.2.0", old.to_owned()),
        ("0.3.0", with_family.replace("0.3.1", "0.3.0")),
        ("0.3.1", with_family.to_owned()),
        ("0.4.0", with_family.replace("0.3.1", "0.4.0")),
        ("1.0.0", of_1_0),
        ("1.1.0", newest.to_owned()),
    ] {
        config["cniVersion"] = json!(version);
        let answer = Call::new(OURS, "ADD", "c", &config).run();
        assert!(answer.is_success, "{}", answer.text);
        assert_eq!(answer.text, expected);
        assert_eq!(Call::new(OURS, "DEL", "c", &config).run().text, "");
        fs::remove_file(network.path().join("last_reserved_ip.0")).unwrap();
        fs::remove_file(network.path().join("last_reserved_ip.1")).unwrap();
    }
}

#[test]
fn static_answers_with_the_configured_address() {
    let config = json!({"cniVersion": "1.0.0", "name": "n", "ipam": {
        "type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
    }});
    let answer = Call::new(env!("CARGO_BIN_EXE_static"), "ADD", "c", &config).run();
    assert!(answer.is_success, "{}", answer.text);
    assert_eq!(answer.json()["ips"], json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]));
}

#[test]
fn a_hundred_containers_at_once_get_a_hundred_addresses() {
    const MANY: usize = 100;
    let network = Network::new(json!([[{"subnet": "10.1.0.0/24"}]]));
    let begin = Barrier::new(MANY);
    let all = |command: &'static str| -> Vec<Answer> {
        thread::scope(|scope| {
            let one = |index: usize| {
                let call = Call::new(OURS, command, &format!("c{index}"), &network.config);
                begin.wait();
                call.run()
            };
            let threads: Vec<_> = (0..MANY).map(|index| scope.spawn(move || one(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let started = Instant::now();
    let answers = all("ADD");
    println!("{MANY} ADDs at once: {:?}", started.elapsed());
    let given: BTreeSet<String> = answers.iter().map(Answer::address).collect();
    assert_eq!(given.len(), MANY);
    assert_eq!(reserved(&network.path()).len(), MANY);
    assert!(all("DEL").iter().all(|answer| answer.is_success));
    assert_eq!(files(&network.path()), Vec::<String>::new());
}

#[test]
fn a_process_that_is_killed_at_any_step_leaves_nothing_after_del_or_gc() {
    if Command::new("strace").args(["-o", "/dev/null", "true"]).output().is_ok_and(|out| out.status.success())
    {
        kill_at_each_step();
    } else {
        println!("skipped: kill at each step: strace is not installed, or may not trace here");
    }
}

fn kill_at_each_step() {
    const CALLS: [&str; 9] =
        ["openat", "mkdir", "flock", "getdents64", "write", "utimensat", "linkat", "unlink", "rename"];
    let network = Network::new(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]));
    let (mut kills, mut half_done) = (0, 0);
    for call in CALLS {
        // The step at which it is killed, until it comes to its end unharmed.
        for step in 1.. {
            let last = ["DEL", "GC"].map(|cleaner| {
                fs::remove_dir_all(network.path()).ok();
                let inject = format!("inject={call}:signal=KILL:when={step}");
                let killed = Call::new(OURS, "ADD", "c", &network.config)
                    .under(&["strace", "-o", "/dev/null", "-e", &inject])
                    .run();
                if !killed.is_success {
                    kills += 1;
                    half_done += usize::from(!files(&network.path()).is_empty());
                    // Whole or not at all, at every moment.
                    for (ip, content) in reserved(&network.path()) {
                        assert_eq!(content, "c\r\neth0", "{ip} after a kill at {call} {step}");
                    }
                }
                let config = network.with("cni.dev/valid-attachments", json!([]));
                let answer = Call::new(OURS, cleaner, "c", &config).run();
                assert!(answer.is_success, "{cleaner} after a kill at {call} {step}: {}", answer.text);
                assert_eq!(files(&network.path()), Vec::<String>::new(), "{cleaner}, {call} {step}");
                killed.is_success
            });
            if last == [true, true] {
                break;
            }
        }
    }
    println!("{kills} kills, {half_done} of them left something to clear");
    assert!(half_done > 10, "the kills came at the wrong moments: {half_done} of {kills} left something");
}

#[test]
fn a_stuck_holder_of_the_lock_is_named_after_a_while() {
    let network = Network::new(json!([[{"subnet": "10.1.0.0/24"}]]));
    fs::create_dir_all(network.path()).unwrap();
    let lock = File::create(network.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let started = Instant::now();
    let answer = Call::new(OURS, "ADD", "c", &network.config).run();
    assert!((9..20).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(answer.json()["code"], 11);
    let text = answer.json()["msg"].as_str().unwrap().to_owned();
    assert!(text.contains(&format!("process {} (", process::id())), "{text}");
    drop(lock);
    assert!(Call::new(OURS, "ADD", "c", &network.config).run().is_success);
}

#[test]
fn the_first_use_after_a_reboot_frees_the_addresses_of_dead_containers() {
    let network = Network::new(json!([[{"subnet": "10.1.0.0/24"}]]));
    let rebooted = network.directory.path().join("boot_id");
    fs::write(&rebooted, "99999999-9999-4999-8999-999999999999\n").unwrap();
    let script =
        format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", rebooted.display());
    let another_boot = ["unshare", "-m", "sh", "-c", &script, "sh"];
    let possible = Command::new("unshare").args(&another_boot[1..]).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("skipped: a reboot as seen from outside: no mount namespace can be made");
        return;
    }
    assert!(Call::new(OURS, "ADD", "dead", &network.config).run().is_success);
    assert!(Call::new(OURS, "DEL", "unknown", &network.config).run().is_success);
    assert_eq!(reserved(&network.path()).len(), 1, "the same boot");
    let answer = Call::new(OURS, "ADD", "new", &network.config).under(&another_boot).run();
    assert_eq!(answer.address(), "10.1.0.3/24");
    let left = reserved(&network.path()).len();
    if fs::read_link("/proc/self/ns/pid").unwrap() == Path::new("pid:[4026531836]") {
        assert_eq!(left, 1);
    } else {
        println!("skipped: in a container a reboot frees nothing");
        assert_eq!(left, 2);
    }
}

/// One ADD at a time, for whoever wants a figure: `cargo test --release -p cni -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn time_of_one_add() {
    for (name, filled) in [("an empty directory", 0_u8), ("200 reservations", 200)] {
        let network = Network::new(json!([[{"subnet": "10.1.0.0/23"}]]));
        fs::create_dir_all(network.path()).unwrap();
        for host in 0..filled {
            fs::write(network.path().join(format!("10.1.1.{host}")), format!("{host:064}\r\neth0")).unwrap();
        }
        for program in [OURS, THEIRS] {
            if !PathBuf::from(program).exists() {
                println!("skipped: {program} is not there");
                continue;
            }
            let mut times = Vec::new();
            for _ in 0..200 {
                let call = Call::new(program, "ADD", "c", &network.config);
                let started = Instant::now();
                assert!(call.run().is_success);
                times.push(started.elapsed());
                assert!(Call::new(program, "DEL", "c", &network.config).run().is_success);
            }
            times.sort_unstable();
            println!("{name}: {program}: median {:?}, p95 {:?}", times[100], times[190]);
        }
    }
}
