//! One real `flanneld` process on a lab node, its files, its log, and the books that it closes when it stops.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::ensure;
use hostnet::subnet_env::SubnetEnv;
pub use lab::books::Books;
use lab::{Node, PodNetwork, Process};
use nix::unistd::Pid;

use crate::binary;

/// How long a daemon may take to be ready, or to end, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    subnet_file: PathBuf,
}

/// The command line of a daemon whose files are in `dir`: the store in `dir/store`, `subnet.env` in `dir/NODE`. The
/// engine carries its packets, unless a later flag or another backend says otherwise.
///
/// # Errors
///
/// When the program is not there.
pub fn command(node: &str, dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(binary::flanneld()?);
    command
        .arg(format!("--file-subnet-mgr={}", dir.join("store").display()))
        .arg(format!("-subnet-file={}", subnet_file(node, dir).display()))
        .args(["--log-format", "json", "--iface=eth0", "--engine=always"]);
    Ok(command)
}

/// Where a daemon whose files are in `dir` writes its `subnet.env`.
#[must_use]
pub fn subnet_file(node: &str, dir: &Path) -> PathBuf {
    dir.join(node).join("subnet.env")
}

impl Daemon {
    /// Starts the daemon on the node; its files are in `dir` as [`command`] says. It is not ready yet.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(node: &Node, dir: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        let mut command = command(node.name(), dir)?;
        command.args(extra);
        let process = node.spawn(command)?;
        Ok(Self { process, subnet_file: subnet_file(node.name(), dir) })
    }

    /// A daemon that was started in another way.
    #[must_use]
    pub fn of(process: Process, subnet_file: PathBuf) -> Self {
        Self { process, subnet_file }
    }

    /// Waits until the node carries packets, and reads its `subnet.env`.
    ///
    /// # Errors
    ///
    /// When it ends or takes too long; the error quotes its log.
    pub fn ready(&self) -> anyhow::Result<SubnetEnv> {
        self.process.wait_for_line("flannel is ready", PATIENCE)?;
        Ok(SubnetEnv::read(&self.subnet_file)?)
    }

    /// Where its `subnet.env` is.
    #[must_use]
    pub fn subnet_file(&self) -> &Path {
        &self.subnet_file
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// Waits for a line of the log that contains `part`.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn wait_for_line(&self, part: &str) -> anyhow::Result<String> {
        self.process.wait_for_line(part, PATIENCE)
    }

    /// Everything that it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.lines().join("\n")
    }

    /// Kills it, as the kernel would for want of memory.
    ///
    /// # Errors
    ///
    /// When it cannot be killed.
    pub fn kill(mut self) -> anyhow::Result<ExitStatus> {
        self.process.kill()
    }

    /// Waits for the end of a daemon that is to end by itself with an error; answers its log.
    ///
    /// # Errors
    ///
    /// When it goes on, ends without an error, or by a signal.
    pub fn ends_with_an_error(mut self) -> anyhow::Result<String> {
        let status = self.process.wait(PATIENCE)?;
        let log = self.process.lines().join("\n");
        ensure!(status.code().is_some_and(|code| code != 0), "it ended with {status}: {log}");
        ensure!(!log.contains("panicked"), "it panicked: {log}");
        Ok(log)
    }

    /// Asks it to stop, and checks that it ends well and that the books of every engine balance.
    ///
    /// # Errors
    ///
    /// When it does not end, ends with an error, or a packet has no fate.
    pub fn stop(mut self) -> anyhow::Result<Vec<Books>> {
        let status = self.process.terminate(PATIENCE)?;
        let lines = self.process.lines();
        ensure!(status.success(), "it ended with {status}:\n{}", lines.join("\n"));
        let books = Books::in_log(&lines)?;
        ensure!(!books.is_empty(), "it closed no books:\n{}", lines.join("\n"));
        for book in &books {
            ensure!(book.rx.balances() && book.tx.balances(), "the books do not balance: {book:?}");
        }
        Ok(books)
    }
}

/// What pods of this node are made from, as a CNI plugin reads it from the file.
#[must_use]
pub fn pod_network(env: &SubnetEnv) -> PodNetwork {
    PodNetwork { subnets: env.subnets.clone(), mtu: env.mtu }
}
