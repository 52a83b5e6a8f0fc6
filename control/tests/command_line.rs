//! What `flanneld` answers before it touches anything: exit status, and which stream it speaks on.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn flanneld(words: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(words)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("flanneld can be started")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_is_no_error() {
    for word in ["-h", "--help"] {
        let output = flanneld(&[word], &[("FLANNELD_V", "nonsense")]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains("--file-subnet-mgr DIR"));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn the_version_goes_to_stderr_as_flannels_does() {
    let output = flanneld(&["-version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert_eq!(stderr(&output), format!("v{}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_flags_end_with_2_and_one_line() {
    for (words, environment, expected) in [
        (vec!["-ifaec", "eth0"], vec![], "the nearest is --iface"),
        (vec!["-kube-subnet-mgr", "-file-subnet-mgr=x"], vec![], "give one of them"),
        (vec![], vec![("FLANNELD_ETCD_ENDPOINTS", ",")], "FLANNELD_ETCD_ENDPOINTS=,: expected URLs"),
        (vec!["help"], vec![], "\"help\" is no subcommand (there are demo, status,"),
        (vec!["-ip-masq", "true", "-file-subnet-mgr=x"], vec![], "\"true\" is no subcommand"),
        (
            vec!["-file-subnet-mgr=x"],
            vec![("FLANNELD_PUBLIC_IP", "1.2.3")],
            "FLANNELD_PUBLIC_IP=1.2.3: expected",
        ),
        (vec!["-file-subnet-mgr=x", "-engine-off=gso"], vec![], "udp-gso"),
    ] {
        let output = flanneld(&words, &environment);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let text = stderr(&output);
        assert!(text.starts_with("flanneld: ") && text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_configuration_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let leases = format!("-file-subnet-mgr={}", dir.path().display());
    // A configuration that is not there may come: it is waited for, as flannel does, and a signal ends the wait.
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args([&leases, "-net-config-path=/nonexistent", "-lease-cache=off", "-status-socket="])
        .arg(format!("-subnet-file={}", dir.path().join("subnet.env").display()))
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let said = lines.map(Result::unwrap).find(|line| line.contains("no network configuration: looked for"));
    assert!(said.is_some(), "it ended without a word about the configuration");
    kill(Pid::from_raw(i32::try_from(waiting.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    let config = dir.path().join("config");
    std::fs::write(
        &config,
        "{\n  \"Network\": \"10.5.0.0/16\",\n  \"Backend\": {\"Type\": \"wireguard\"}\n}",
    )
    .unwrap();
    let subnet_file = format!("-subnet-file={}", dir.path().join("subnet.env").display());
    let wrong = flanneld(&[&leases, "-log-format=json", &subnet_file, "-status-socket="], &[]);
    assert_eq!(wrong.status.code(), Some(1));
    let text = stderr(&wrong);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let message = last["message"].as_str().unwrap();
    assert!(
        message.starts_with(&format!("{}:3:23: backend type \"wireguard\"", config.display())),
        "{message}"
    );
    assert_eq!(last["level"], "ERROR");
}
