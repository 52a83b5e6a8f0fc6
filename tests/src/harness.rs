//! The `main` of a file of promises.

use std::fs::File;
use std::process::ExitCode;
use std::sync::OnceLock;

use lab::{Case, Scene};

use crate::apiserver;
use crate::binary;
use crate::flannel::{self, Missing};

/// Promises about engines that the tests run themselves.
pub fn of_engines(marker: &str, cases: Vec<Case>) -> ExitCode {
    lab::harness(marker, where_tun_is_allowed(cases))
}

/// Promises about `flanneld`, which is built first where cargo runs the tests.
#[expect(clippy::print_stderr, reason = "the main of a test program has no other place for it")]
pub fn of_daemons(marker: &str, cases: Vec<Case>) -> ExitCode {
    match binary::build() {
        Ok(()) => of_engines(marker, cases),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Promises about `flanneld` beside real flannel; both are built first. All of them skip aloud where the machine cannot
/// have flannel.
#[expect(clippy::print_stderr, reason = "the main of a test program has no other place for it")]
pub fn of_flannel(marker: &str, cases: Vec<Case>) -> ExitCode {
    match flannel::build() {
        Ok(Ok(())) => of_daemons(marker, cases),
        Ok(Err(missing)) => {
            let _first = NO_FLANNEL.set(missing);
            lab::harness(marker, cases.into_iter().map(|case| Case { body: skip_flannel, ..case }).collect())
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Promises about `flanneld` in a cluster with a real API server, which is built or found first. All of them skip aloud
/// where the machine cannot have one.
#[expect(clippy::print_stderr, reason = "the main of a test program has no other place for it")]
pub fn of_kubernetes(marker: &str, cases: Vec<Case>) -> ExitCode {
    match apiserver::build() {
        Ok(Ok(())) => of_daemons(marker, cases),
        Ok(Err(missing)) => {
            let _first = NO_KUBERNETES.set(missing);
            let skipped = |case| Case { body: skip_kubernetes, ..case };
            lab::harness(marker, cases.into_iter().map(skipped).collect())
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Why this process cannot have an API server.
static NO_KUBERNETES: OnceLock<Missing> = OnceLock::new();

fn skip_kubernetes(_: &Scene) -> anyhow::Result<()> {
    match NO_KUBERNETES.get() {
        Some(Missing(reason)) => Err(lab::skip(reason)),
        None => anyhow::bail!("a kube-apiserver is here after all"),
    }
}

/// Why this process cannot have flannel. A case is a plain function and can carry no reason.
static NO_FLANNEL: OnceLock<Missing> = OnceLock::new();

fn skip_flannel(_: &Scene) -> anyhow::Result<()> {
    match NO_FLANNEL.get() {
        Some(Missing(reason)) => Err(lab::skip(reason)),
        None => anyhow::bail!("flannel is here after all"),
    }
}

/// The cases; all of them skip aloud where this user may not open `/dev/net/tun`, in a namespace of its own or not.
fn where_tun_is_allowed(cases: Vec<Case>) -> Vec<Case> {
    match open_tun() {
        Ok(_) => cases,
        Err(_) => cases.into_iter().map(|case| Case { body: skip, ..case }).collect(),
    }
}

fn skip(_: &Scene) -> anyhow::Result<()> {
    match open_tun() {
        Ok(_) => anyhow::bail!("/dev/net/tun can be opened after all"),
        Err(error) => Err(lab::skip(format!("cannot open /dev/net/tun: {error}"))),
    }
}

fn open_tun() -> std::io::Result<File> {
    File::options().read(true).write(true).open("/dev/net/tun")
}
