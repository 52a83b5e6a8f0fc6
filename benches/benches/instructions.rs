//! Instructions that the hot functions of the core execute, counted by callgrind: the same to the instruction on a busy
//! machine, so that a rise of 2 % means the code. `make instructions` compares with `callgrind/baseline.json`.
//!
//! ```text
//!  cargo bench -p benches --bench instructions               compare; status 1 if anything rose
//!  cargo bench -p benches --bench instructions -- --accept   take today's counts as the baseline
//! ```
//!
//! This program starts itself once a case under `valgrind --tool=callgrind`, and only [`measured`] is counted. Counts
//! depend on the compiler, on the registers that the CPU has and on the `memcpy` of the C library, so there is a baseline for
//! each combination. Valgrind has no AVX-512: under it a program sees a CPU with AVX2 at best.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use benches::packets::{MSS, Tunnel, adder, addresses, segments, superpacket, table};
use dataplane_core::checksum::Adder;
use dataplane_core::split::Segmenter;
use dataplane_core::testing::{Builder, Transport, mac, vxlan};
use dataplane_core::wire::{Ip, Length};
use dataplane_core::{Encap, Family, MergeConfig, Merger, VnetHdr};
use serde::{Deserialize, Serialize};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/callgrind/baseline.json");
/// The rise that is worth a look: less comes and goes with the order of a compiler's decisions.
const RISE: f64 = 0.02;

/// A name, and how to make the work; what that allocates is not counted.
type Case = (&'static str, fn() -> Box<dyn FnMut()>);

const CASES: &[Case] = &[
    ("checksum of 1400 bytes, scalar", || sum(Adder::SCALAR, 1400)),
    ("checksum of 1400 bytes", || sum(adder(), 1400)),
    ("checksum of 20 bytes", || sum(adder(), 20)),
    ("parse IPv4", || parse(Family::V4)),
    ("parse IPv6", || parse(Family::V6)),
    ("encapsulate and strip VXLAN", encapsulate),
    ("split into 44 TCP segments", || split(Transport::tcp(1))),
    ("split into 44 UDP datagrams", || split(Transport::Udp)),
    ("merge 64 packets of one flow", || merge(1)),
    ("merge 64 packets of 16 flows", || merge(16)),
    ("look up 256 addresses among 16 leases", || look_up(16)),
    ("look up 256 addresses among 100000 leases", || look_up(100_000)),
    ("out and in: a small packet, raw", || small(Encap::Raw)),
    ("out and in: a small packet, VXLAN", || small(vxlan())),
    ("out and in: a superpacket, raw", || large(Encap::Raw)),
    ("out and in: a superpacket, VXLAN", || large(vxlan())),
];

fn sum(adder: Adder, len: usize) -> Box<dyn FnMut()> {
    let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    Box::new(move || {
        black_box(adder.sum(black_box(&data)).checksum());
    })
}

fn parse(family: Family) -> Box<dyn FnMut()> {
    let packet = Builder::new(family, Transport::tcp(1)).payload(&[1; 1000]).packet();
    Box::new(move || {
        black_box(Ip::parse(black_box(&packet), Length::Claimed)).expect("a packet");
    })
}

fn encapsulate() -> Box<dyn FnMut()> {
    let packet = Builder::new(Family::V4, Transport::Udp).payload(&[1; 64]).packet();
    let mut datagram = vec![0; vxlan().headroom() + packet.len()];
    Box::new(move || {
        let header = black_box(vxlan()).header(mac(1), mac(2), Family::V4);
        let (head, body) = datagram.split_at_mut(header.as_slice().len());
        head.copy_from_slice(header.as_slice());
        body.copy_from_slice(&packet);
        black_box(vxlan().strip(black_box(&datagram), mac(2))).expect("our own datagram");
    })
}

fn split(transport: Transport) -> Box<dyn FnMut()> {
    let (vnet, packet) = superpacket(transport);
    let mut out = vec![0; MSS + 100];
    Box::new(move || {
        let ip = Ip::parse(&packet, Length::Buffer).expect("a packet");
        let cut = Segmenter::new(&packet, &ip, &vnet).expect("a superpacket").summed_by(adder());
        for i in 0..cut.count() {
            cut.write(i, black_box(&mut out));
        }
    })
}

fn merge(flows: u32) -> Box<dyn FnMut()> {
    let packets = segments(flows);
    let parsed: Vec<Ip> =
        packets.iter().map(|packet| Ip::parse(packet, Length::Claimed).expect("a packet")).collect();
    let mut merger = Merger::new(MergeConfig::ALL).with_adder(adder());
    Box::new(move || {
        for (slot, (packet, ip)) in packets.iter().zip(&parsed).enumerate() {
            merger.push(black_box(packet), ip, slot as u16, 0, false);
        }
        black_box(merger.writes().map(|write| write.head().len()).sum::<usize>());
        merger.clear();
    })
}

fn look_up(leases: u32) -> Box<dyn FnMut()> {
    let table = table(leases);
    let addresses: Vec<_> = addresses(leases).take(256).collect();
    Box::new(move || {
        for address in &addresses {
            black_box(table.owner(black_box(*address)));
        }
    })
}

fn small(encap: Encap) -> Box<dyn FnMut()> {
    let packet = Builder::new(Family::V4, Transport::Udp).payload(&[1; 64]).packet();
    let mut tunnel = Tunnel::new(encap, VnetHdr::PLAIN, &packet);
    Box::new(move || assert_eq!(tunnel.carry(), 1))
}

fn large(encap: Encap) -> Box<dyn FnMut()> {
    let (vnet, packet) = superpacket(Transport::tcp(1));
    let mut tunnel = Tunnel::new(encap, vnet, &packet);
    Box::new(move || assert_eq!(tunnel.carry(), 44))
}

/// What callgrind counts, by this name.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Runs one case, under callgrind.
fn run(name: &str) -> anyhow::Result<()> {
    let (_, make) = CASES.iter().find(|(case, _)| *case == name).context("no such case")?;
    let mut work = make();
    // The first time finds out about the CPU and binds `memcpy`.
    work();
    measured(black_box(&mut *work));
    Ok(())
}

/// Instructions of one case.
fn count(name: &str) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let counts = folder.path().join("counts");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg("--toggle-collect=*measured*")
        .arg(env::current_exe()?)
        .args(["--case", name])
        // What lies above the stack moves it, and with it what `memcpy` does about alignment.
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .output()
        .context("valgrind does not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{name}` failed under valgrind: {said}");
    let counts = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.with_context(|| format!("callgrind wrote no total: {said}"))?.trim().parse()?;
    ensure!(total > 0, "nothing was counted for `{name}`: callgrind did not find the function `measured`");
    Ok(total)
}

/// The first line that a program says.
fn first_line(program: &str, argument: &str) -> Option<String> {
    let output =
        Command::new(program).arg(argument).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

/// What the counts depend on, as the baseline is keyed.
fn machine() -> anyhow::Result<String> {
    let compiler = first_line("rustc", "--version").context("rustc does not say its version")?;
    let compiler = compiler.split(" (").next().unwrap_or_default();
    let library = first_line("getconf", "GNU_LIBC_VERSION").unwrap_or_else(|| "another C library".to_owned());
    Ok(format!("{compiler}, {}, {}, {library}", env::consts::ARCH, adder().name()))
}

/// Counts by case, by machine.
#[derive(Default, Deserialize, Serialize)]
#[serde(transparent)]
struct Baseline(BTreeMap<String, BTreeMap<String, u64>>);

impl Baseline {
    fn read() -> anyhow::Result<Self> {
        match fs::read_to_string(BASELINE) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{BASELINE} is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("{BASELINE} cannot be read")),
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(BASELINE, text).with_context(|| format!("{BASELINE} cannot be written"))
    }
}

/// Prints every case; returns how many rose.
fn compare(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> io::Result<usize> {
    let mut out = io::stdout().lock();
    let mut risen = 0;
    writeln!(out, "{:44} {:>10} {:>10}", "instructions", "baseline", "now")?;
    for (name, _) in CASES {
        let count = now.get(*name).copied().unwrap_or(0);
        let Some(old) = before.get(*name).copied() else {
            writeln!(out, "{name:44} {:>10} {count:>10}  new", "-")?;
            continue;
        };
        let change = count as f64 / old as f64 - 1.0;
        let word = if change > RISE { "  ROSE" } else { "" };
        risen += usize::from(change > RISE);
        writeln!(out, "{name:44} {old:>10} {count:>10} {:>+7.1} %{word}", change * 100.0)?;
    }
    for gone in before.keys().filter(|name| !now.contains_key(*name)) {
        writeln!(out, "{gone:44} is not measured any more")?;
    }
    Ok(risen)
}

fn main() -> anyhow::Result<ExitCode> {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let accept = match arguments[..] {
        ["--case", name] => return run(name).map(|()| ExitCode::SUCCESS),
        ["--accept"] => true,
        [] => false,
        _ => bail!("the only argument is --accept"),
    };
    let mut out = io::stdout().lock();
    let Some(version) = first_line("valgrind", "--version") else {
        writeln!(out, "skipped: instruction counts: valgrind is not installed (.ci/tools valgrind)")?;
        return Ok(ExitCode::SUCCESS);
    };
    let machine = machine()?;
    let mut baseline = Baseline::read()?;
    if !accept && !baseline.0.contains_key(&machine) {
        writeln!(
            out,
            "skipped: instruction counts: no baseline for {machine}; make accept-instructions adds one"
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let now: BTreeMap<String, u64> = CASES
        .iter()
        .map(|(name, _)| Ok(((*name).to_owned(), count(name)?)))
        .collect::<anyhow::Result<_>>()?;
    writeln!(out, "{machine}, {version}")?;
    drop(out);
    let before = baseline.0.entry(machine).or_default();
    let risen = compare(before, &now)?;
    let mut out = io::stdout().lock();
    if accept {
        *before = now;
        baseline.write()?;
        writeln!(out, "accepted: {BASELINE}")?;
    } else if risen > 0 {
        writeln!(
            out,
            "{risen} rose by more than {:.0} %. Find out why; if it is worth it: make accept-instructions, and say \
             so in the commit.",
            RISE * 100.0
        )?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
