//! `flanneld mk-docker-opts` writes what flannel's script writes, byte for byte, and refuses what it refuses.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use control::docker_opts::{Options, assignments, gateway_route};

const SUBNET_ENV: &str = "\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
";

const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const IPMASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
const ALL: &str = "\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

/// Runs the subcommand over `subnet_env` with output into `dir`; gives its answer and the file, if there is one.
fn run(
    dir: &Path,
    subnet_env: Option<&str>,
    words: &[&str],
    environment: &[(&str, &str)],
) -> (Output, Option<String>) {
    let (from, to) = (dir.join("subnet.env"), dir.join("docker_opts.env"));
    if let Some(text) = subnet_env {
        fs::write(&from, text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .arg("mk-docker-opts")
        .arg("-f")
        .arg(&from)
        .arg("-d")
        .arg(&to)
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (output, fs::read_to_string(&to).ok())
}

fn written(subnet_env: Option<&str>, words: &[&str], environment: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (output, text) = run(dir.path(), subnet_env, words, environment);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    text.unwrap()
}

#[test]
fn flannels_five_examples_come_out_byte_for_byte() {
    for (words, expected) in [
        (vec![], format!("{BIP}{IPMASQ}{MTU}DOCKER_OPTS={ALL}")),
        (vec!["-i"], format!("{BIP}{IPMASQ}{MTU}")),
        (vec!["-c"], format!("DOCKER_OPTS={ALL}")),
        (vec!["-k", "CUSTOM_KEY"], format!("{BIP}{IPMASQ}{MTU}CUSTOM_KEY={ALL}")),
        (vec!["-m"], format!("{BIP}{MTU}DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n")),
    ] {
        assert_eq!(written(Some(SUBNET_ENV), &words, &[]), expected, "{words:?}");
    }
}

#[test]
fn options_are_read_as_getopts_reads_them() {
    let both = format!("{BIP}{IPMASQ}{MTU}NAME={ALL}");
    for words in [
        vec!["-ickNAME"],
        vec!["-i", "-c", "-k", "NAME"],
        vec!["-kNAME", "word", "-m", "-z"],
        vec!["-kNAME", "--", "-m"],
    ] {
        assert_eq!(written(Some(SUBNET_ENV), &words, &[]), both, "{words:?}");
    }
}

#[test]
fn what_is_not_known_is_left_out() {
    assert_eq!(written(None, &[], &[]), "DOCKER_OPTS=\"\"\n");
    assert_eq!(written(None, &["-i"], &[]), "");
    let mtu_alone = "FLANNEL_IPMASQ=\nFLANNEL_MTU=1400\n";
    assert_eq!(written(Some(mtu_alone), &["-c"], &[]), "DOCKER_OPTS=\" --mtu=1400\"\n");
}

#[test]
fn the_environment_counts_as_it_does_for_a_script() {
    let given = [("FLANNEL_MTU", "9"), ("DOCKER_OPT_A", "--a b"), ("DOCKER_OPTS", "--first")];
    assert_eq!(
        written(Some("FLANNEL_SUBNET=10.1.74.1/24\n"), &[], &given),
        "DOCKER_OPT_A=\"--a b\"\nDOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_MTU=\"--mtu=9\"\n\
         DOCKER_OPTS=\"--first  --a b --bip=10.1.74.1/24 --mtu=9\"\n",
    );
    let over = [("FLANNEL_MTU", "9")];
    assert_eq!(written(Some(SUBNET_ENV), &["-i"], &over), format!("{BIP}{IPMASQ}{MTU}"), "the file wins");
}

#[test]
fn the_file_is_read_as_leniently_as_a_shell_does_and_executes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trap = dir.path().join("executed");
    let text = format!(
        "# a comment\n\nexport FLANNEL_SUBNET=\"10.1.74.1/24\"; x=1\n  FLANNEL_MTU='1472' # bytes\n\
         FLANNEL_IPMASQ=true\r\nno assignment\n$(touch {0})\nX=`touch {0}`\n9=9\n",
        trap.display()
    );
    assert_eq!(
        written(Some(&text), &["-i"], &[]),
        format!("{BIP}DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n{MTU}")
    );
    assert!(!trap.exists());
    assert_eq!(
        assignments("A=1\nA=2\nB=a\"b c\"'d'e f\n").into_iter().collect::<Vec<_>>(),
        [("A".to_owned(), "2".to_owned()), ("B".to_owned(), "ab cde".to_owned())]
    );
}

#[test]
fn the_file_is_truncated_and_keeps_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("docker_opts.env"));
    fs::write(&real, "x".repeat(10_000)).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let (output, text) = run(dir.path(), Some(SUBNET_ENV), &["-i"], &[]);
    assert!(output.status.success());
    assert_eq!(text.unwrap(), format!("{BIP}{IPMASQ}{MTU}"));
    assert!(link.is_symlink() && fs::read_to_string(&real).unwrap().len() < 200);
}

#[test]
fn what_cannot_be_said_ends_with_1_and_writes_nothing() {
    for (text, words, expected) in [
        ("FLANNEL_IPMASQ=maybe\n", vec![], "FLANNEL_IPMASQ is \"maybe\", expected true or false"),
        (SUBNET_ENV, vec!["-h"], "usage: flanneld mk-docker-opts"),
        (SUBNET_ENV, vec!["-?"], "usage: flanneld mk-docker-opts"),
        (SUBNET_ENV, vec!["-ix"], "there is no option -x"),
        (SUBNET_ENV, vec!["--help"], "there is no option --"),
        (SUBNET_ENV, vec!["-k"], "-k needs a value"),
        (SUBNET_ENV, vec!["-k", "A B"], "-k is \"A B\", expected the name of a variable"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (output, file) = run(dir.path(), Some(text), &words, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(said.contains(expected), "{words:?}: {said}");
        assert!(output.stdout.is_empty() && file.is_none(), "{words:?}");
    }
    // Without --ip-masq, nobody asks for it.
    assert_eq!(written(Some("FLANNEL_IPMASQ=maybe\n"), &["-im"], &[]), "");
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("subnet.env")).unwrap();
    let (output, _) = run(dir.path(), None, &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("subnet.env: it is not a regular file"));
    let (output, _) = run(tempfile::tempdir().unwrap().path(), None, &["-d", "/nonexistent/x"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("write /nonexistent/x: "));
}

#[test]
fn a_route_that_sends_the_subnet_elsewhere_is_found() {
    // As /proc/net/route prints it on a little-endian machine; the test turns it round elsewhere.
    let word = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
    let row = |destination, gateway, flags, mask| {
        format!("eth0\t{}\t{}\t{flags}\t0\t0\t0\t{}\t0\t0\t0\n", word(destination), word(gateway), word(mask))
    };
    let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    let subnet = "10.1.74.1/24".parse().unwrap();
    let (net, router, wide) = ([10, 1, 74, 0], [192, 168, 1, 9], [255, 255, 0, 0]);
    let table = |rows: &[String]| format!("{head}{}", rows.concat());
    let local = row(net, [0; 4], "0001", [255, 255, 255, 0]);
    let default = row([0; 4], router, "0003", [0; 4]);
    let wider = row([10, 1, 0, 0], router, "0003", wide);
    assert_eq!(gateway_route(&table(&[default.clone(), wider, local.clone()]), subnet), None);
    let taken = row(net, router, "0003", [255, 255, 255, 0]);
    assert_eq!(
        gateway_route(&table(&[default, local, taken]), subnet).as_deref(),
        Some("10.1.74.0/24 via 192.168.1.9 dev eth0")
    );
    for garbage in ["", "x", "a\nb c d e f g h i j", "h\neth0 zz 0 3 0 0 0 FF 0 0 0"] {
        assert_eq!(gateway_route(garbage, subnet), None);
    }
}

#[test]
fn called_by_the_scripts_name_it_is_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("mk-docker-opts.sh");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flanneld"), &script).unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, SUBNET_ENV).unwrap();
    let status = Command::new(&script).arg("-f").arg(&from).arg("-d").arg(&to).arg("-c").env_clear().status();
    assert!(status.unwrap().success());
    assert_eq!(fs::read_to_string(&to).unwrap(), format!("DOCKER_OPTS={ALL}"));
}

#[test]
fn no_words_and_no_file_make_it_panic() {
    let words = ["-", "--", "-é", "-kß", "-f", "", "\u{0}", "-iiiiicccc", "-d"];
    for first in words {
        for second in words {
            // Either answer is right; that there is one is the promise.
            let parsed = Options::parse(&[first.to_owned(), second.to_owned()]);
            if let Ok(options) = parsed {
                assert!(options.individual || options.combined);
            }
        }
    }
    for text in ["=", "A=", "A=\"", "A='x\ny'", "export", "export =", "\u{feff}A=1", "A=\u{0}"] {
        let found: BTreeMap<_, _> = assignments(text);
        assert!(found.len() <= 1, "{text:?}: {found:?}");
    }
}
