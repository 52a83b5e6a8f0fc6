//! Tests in a private network each: a harness for whole test binaries, and a wrapper for single `#[test]` functions.
//!
//! A binary with `harness = false` whose `main` calls [`harness`] needs no root where the machine lets users make user
//! namespaces: its `main` still has a single thread when it unshares. Inside `#[test]` that moment is over, so [`test()`]
//! needs root. Both skip aloud where they cannot run.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use hostnet::netns::NetNs;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;

use crate::isolation::{IsolateError, Place, run_inside};

/// What a test body gets: it runs on a thread in an empty network namespace of its own.
#[derive(Debug)]
pub struct Scene {
    name: String,
    dir: TempDir,
}

impl Scene {
    fn set(name: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("lab-").context("make a directory for the test")?;
        Ok(Self { name: name.to_owned(), dir })
    }

    /// The test's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An empty directory that goes with the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A test of a [`harness`]: a promise, and the code that finds out whether it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The promise, as a function is named.
    pub name: &'static str,
    /// Fails by an error or a panic; an error made by [`skip`] is no failure.
    pub body: fn(&Scene) -> anyhow::Result<()>,
}

/// Builds [`Case`]s from functions, named as they are: `lab::cases![pods_reach_each_other, nothing_leaks]`.
#[macro_export]
macro_rules! cases {
    ($($body:ident),* $(,)?) => { vec![$($crate::scene::Case { name: stringify!($body), body: $body }),*] };
}

/// Why a test could not run here. Not an error of the code under test.
#[derive(Debug)]
pub struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// The error by which a test says that this machine lacks something it needs: `return Err(lab::skip("no VXLAN"))`.
pub fn skip(reason: impl fmt::Display) -> anyhow::Error {
    Skipped(reason.to_string()).into()
}

/// The `main` of a test binary: takes the arguments of `cargo test`, moves into private namespaces as pid 1
/// ([`run_inside`]), and runs every case on a thread in an empty network namespace of its own, in parallel.
///
/// Where the machine refuses namespaces every case is skipped, with the reason on standard error.
pub fn harness(marker: &str, cases: Vec<Case>) -> ExitCode {
    let arguments = Arguments::from_args();
    let refused = if arguments.list {
        None
    } else {
        match run_inside(marker) {
            Ok(Place::Outside(code)) => return code,
            Ok(Place::Inside(_)) => None,
            Err(error) => Some(error),
        }
    };
    let trials = cases.into_iter().map(|case| trial(case, refused.as_ref())).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(case: Case, refused: Option<&IsolateError>) -> Trial {
    let refused = refused.map(ToString::to_string);
    Trial::ignorable_test(case.name, move || {
        let outcome = match refused {
            Some(reason) => Err(skip(reason)),
            None => play(case.name, case.body),
        };
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(Skipped(reason)) => {
                    say_skipped(case.name, reason);
                    Ok(Completion::ignored_with(reason))
                }
                None => Err(Failed::from(format!("{error:?}"))),
            },
        }
    })
}

/// Runs the body of a `#[test]` on a thread in an empty network namespace of its own; skips aloud where the machine
/// does not let this process make one. A failure is a panic.
///
/// Unlike under a [`harness`], processes that the body starts outlive a `kill -9` of the test binary.
///
/// # Panics
///
/// When the body fails or panics.
pub fn test(name: &str, body: impl FnOnce(&Scene) -> anyhow::Result<()> + Send) {
    if let Err(error) = NetNs::new() {
        let reason = format!("no private network namespace: {error}. Run as root, or by a lab::harness");
        return say_skipped(name, &reason);
    }
    match play(name, body) {
        Ok(()) => {}
        Err(error) => match error.downcast_ref::<Skipped>() {
            Some(Skipped(reason)) => say_skipped(name, reason),
            None => panic!("{name}: {error:?}"),
        },
    }
}

fn play(name: &str, body: impl FnOnce(&Scene) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    let scene = Scene::set(name)?;
    let namespace = NetNs::new().context("make a network namespace for the test")?;
    namespace.run("lab-test", || body(&scene))?
}

#[expect(clippy::print_stderr, reason = "a test that did not run says so where the person running it looks")]
fn say_skipped(name: &str, reason: &str) {
    eprintln!("skipped: {name}: {reason}");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;

    use anyhow::bail;
    use hostnet::netns::NetNs;

    #[test]
    fn a_test_gets_an_empty_network_and_a_directory() {
        super::test("a_test_gets_an_empty_network_and_a_directory", |scene| {
            let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
            let names: Vec<&str> =
                devices.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
            assert_eq!(names.iter().map(|name| name.trim()).collect::<Vec<_>>(), ["lo"]);
            assert_eq!(fs::read_dir(scene.dir())?.count(), 0);
            Ok(())
        });
    }

    #[test]
    fn a_failure_is_a_panic_and_a_skip_is_none() {
        if NetNs::new().is_ok() {
            assert!(catch_unwind(|| super::test("fails on purpose", |_| bail!("on purpose"))).is_err());
        }
        super::test("skips on purpose", |_| Err(super::skip("on purpose")));
    }
}
