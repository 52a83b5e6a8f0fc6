//! What an engine costs while it has nothing to do: memory and wake-ups. One test, alone in its process.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "shares its nodes with other tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU8;
use std::thread;
use std::time::Duration;

use dataplane::core::Family;
use dataplane::{Duplex, Tuning};

#[path = "kernel/pair.rs"]
mod pair;

use pair::{Node, Shape, pair, possible, table};

/// Bytes of the transfer that makes every buffer touched.
const TRANSFER: usize = 200 << 20;
/// KiB that one engine may take, code of the program and its libraries aside, which are some 4 MiB in a release build.
const KIB_WITH_1000_PEERS: u64 = 4 << 10;
const KIB_WITH_100_000_LEASES: u64 = 12 << 10;

/// KiB of memory that is no file's: heap, stacks, buffers.
fn anonymous() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How often the engines' threads have gone to sleep so far.
fn sleeps() -> Vec<u64> {
    let mut sleeps = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        // A thread may end while the list is read.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        if name.starts_with("engine-") {
            let text = fs::read_to_string(task.join("status")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            sleeps.push(line.trim().parse().unwrap());
        }
    }
    sleeps
}

fn transfer(from: &Node, to: &Node) {
    let address = SocketAddr::from((to.address(Family::V4), 5201));
    let listener = to.ns.run("listen", || TcpListener::bind(address).unwrap()).unwrap();
    let mut client = from.ns.run("connect", || TcpStream::connect(address).unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = [7; 64 << 10];
            for _ in 0..TRANSFER / block.len() {
                client.write_all(&block).unwrap();
            }
        });
        let mut block = [0; 64 << 10];
        let mut received = 0;
        while let Ok(len @ 1..) = server.read(&mut block) {
            received += len;
        }
        assert_eq!(received, TRANSFER);
    });
}

#[test]
fn an_engine_with_a_large_cluster_is_small_and_sleeps() {
    if !possible() {
        return;
    }
    let before = anonymous();
    // What a small machine has by itself; every further thread has buffers of its own, some 1.5 MiB.
    let tuning = Tuning { workers: NonZeroU8::new(1), duplex: Duplex::Half, ..Tuning::default() };
    let shape = Shape { crowd: 1000, tuning, ..Shape::vxlan() };
    let nodes = pair(&shape);
    transfer(&nodes[0], &nodes[1]);
    transfer(&nodes[1], &nodes[0]);

    // The last acknowledgements and what a kernel says of its own accord have passed when nobody wakes any more.
    let quiet = Duration::from_secs(1);
    let slept = || {
        let before = sleeps();
        thread::sleep(quiet);
        (before, sleeps())
    };
    let asleep = (0..20).map(|_| slept()).find(|(before, after)| before == after);
    let (before_quiet, _) = asleep.expect("engines without traffic sleep for a second at last");
    assert_eq!(before_quiet.len(), 2, "a thread for each engine");
    let (start, end) = slept();
    assert_eq!(start, end, "wake-ups of idle engines");

    let with_1000 = anonymous().saturating_sub(before) / 2;
    eprintln!("{with_1000} KiB with 1000 peers");
    assert!(with_1000 <= KIB_WITH_1000_PEERS, "{with_1000} KiB an engine");

    // Tables come and go whole, and the old one is there until the worker has the new one.
    let large = Shape { crowd: 100_000, ..shape };
    for _ in 0..10 {
        for node in &nodes {
            node.engine().publish(table(node.number, &large));
        }
    }
    let peak = anonymous().saturating_sub(before) / 2;
    eprintln!("{peak} KiB before anything is given back");
    transfer(&nodes[0], &nodes[1]);
    dataplane::give_back_memory();
    let with_100_000 = anonymous().saturating_sub(before) / 2;
    eprintln!("{with_100_000} KiB with 100 000 leases");
    assert!(with_100_000 <= KIB_WITH_100_000_LEASES, "{with_100_000} KiB an engine");
    for node in nodes {
        let counters = node.engine.unwrap().stop().unwrap();
        assert!(counters.rx.is_balanced() && counters.tx.is_balanced(), "{counters:?}");
    }
}
