//! `flanneld install-conf` puts a configuration in place whole or not at all, with its mode.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use control::install_conf::install;

fn run(words: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanneld")).arg("install-conf").args(words).env_clear().output().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_configmaps_file_is_copied_with_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("data"), "{\"name\": \"cbr0\"}\n").unwrap();
    // A ConfigMap's files are links.
    symlink(at("data"), at("cni-conf.json")).unwrap();
    fs::create_dir(at("net.d")).unwrap();
    let to = at("net.d").join("10-flannel.conflist");
    for (mode, old) in [(0o644, None), (0o600, Some("old")), (0o755, None)] {
        fs::set_permissions(at("data"), Permissions::from_mode(mode)).unwrap();
        if let Some(old) = old {
            fs::write(&to, old).unwrap();
        }
        let output = run(&[&at("cni-conf.json"), &to]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
        assert_eq!(fs::read(&to).unwrap(), fs::read(at("data")).unwrap());
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o7777, mode);
        assert_eq!(names(&at("net.d")), ["10-flannel.conflist"], "nothing else is left there");
    }
}

#[test]
fn errors_end_with_1_and_leave_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("there"), "old").unwrap();
    fs::write(at("from"), "new").unwrap();
    let cases: [(Vec<&Path>, &str); 6] = [
        (vec![], "usage: flanneld install-conf SRC DEST"),
        (vec![Path::new("a")], "usage: "),
        (vec![Path::new("a"), Path::new("b"), Path::new("c")], "usage: "),
        (vec![Path::new("/nonexistent"), Path::new("there")], "read /nonexistent: "),
        (vec![Path::new("."), Path::new("there")], "read .: it is not a regular file"),
        (vec![Path::new("from"), Path::new("missing/there")], "write missing/there: "),
    ];
    for (words, expected) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_flanneld"))
            .arg("install-conf")
            .args(&words)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{words:?}: {said}");
        assert!(output.stdout.is_empty());
        assert_eq!(fs::read_to_string(at("there")).unwrap(), "old");
    }
    assert_eq!(names(dir.path()), ["from", "there"]);
}

#[test]
fn a_reader_meanwhile_sees_one_file_or_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let texts = ["a".repeat(100_000), "b".repeat(50_000)];
    for (name, text) in ["one", "two"].iter().zip(&texts) {
        fs::write(at(name), text).unwrap();
    }
    install(&at("one"), &at("to")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !over.load(Ordering::Relaxed) || reads == 0 {
                let text = fs::read_to_string(at("to")).unwrap();
                assert!(texts.contains(&text), "a torn read of {} bytes", text.len());
                reads += 1;
            }
        });
        for round in 0..100 {
            install(&at(if round % 2 == 0 { "two" } else { "one" }), &at("to")).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn called_by_that_name_it_is_that_program() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("install-conf");
    symlink(env!("CARGO_BIN_EXE_flanneld"), &program).unwrap();
    fs::write(dir.path().join("from"), "text").unwrap();
    let status = Command::new(&program).args(["from", "to"]).current_dir(dir.path()).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(dir.path().join("to")).unwrap(), "text");
}
