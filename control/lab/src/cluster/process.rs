//! A process that runs inside a namespace, with its output captured line by line; killed when dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a wait looks whether the process has ended.
const LOOK_UP: Duration = Duration::from_millis(20);

/// A process of a node.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Log>,
}

/// What a process has written, standard output and error as they came.
#[derive(Debug, Default)]
struct Log {
    written: Mutex<Written>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    /// Pipes that are still open.
    open: usize,
}

impl Process {
    /// Starts `command` in the namespace; its standard input is empty.
    pub(super) fn start(namespace: &NetNs, command: Command) -> anyhow::Result<Self> {
        // A child gets the namespace of the thread that starts it.
        namespace.run("lab-spawn", || Self::here(command))?
    }

    /// Starts `command` in the namespace of this thread; its standard input is empty.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn here(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        let mut process = Self { child, log: Arc::default() };
        let (out, err) = (process.child.stdout.take(), process.child.stderr.take());
        process.log.lock().open = usize::from(out.is_some()) + usize::from(err.is_some());
        if let Some(out) = out {
            follow(out, process.log.clone())?;
        }
        if let Some(err) = err {
            follow(err, process.log.clone())?;
        }
        Ok(process)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Waits for a line that contains `part`, from the first line on, and returns it.
    ///
    /// # Errors
    ///
    /// When the time is over, or the output ended without it. The error quotes the last lines.
    pub fn wait_for_line(&self, part: &str, timeout: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + timeout;
        let mut written = self.log.lock();
        let mut seen = 0;
        loop {
            if let Some(line) = written.lines[seen..].iter().find(|line| line.contains(part)) {
                return Ok(line.clone());
            }
            seen = written.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || written.open == 0 {
                let why = if written.open == 0 { "it ended" } else { "time is over" };
                let last = written.lines[seen.saturating_sub(20)..].join("\n  ");
                bail!("process {} wrote no line with {part:?}: {why}. Its last lines:\n  {last}", self.id());
            }
            let (guard, _) =
                self.log.grown.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner);
            written = guard;
        }
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// As [`Child::try_wait`].
    pub fn status(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end and for the rest of its output.
    ///
    /// # Errors
    ///
    /// When it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.log.wait_for_end(deadline);
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("process {} has not ended within {timeout:?}", self.id());
            }
            thread::sleep(LOOK_UP);
        }
    }

    /// Sends it a signal, such as SIGTERM or SIGHUP.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to process {pid}"))
    }

    /// Asks it to end (SIGTERM) and waits; after `grace` kills it.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled or waited for.
    pub fn terminate(&mut self, grace: Duration) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(grace).or_else(|_late| self.kill())
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`Child::kill`] and [`Child::wait`].
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended before; then there is nothing to kill and wait has its status.
        drop(self.kill());
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_end(&self, deadline: Instant) {
        let mut written = self.lock();
        while written.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let (guard, _) = self.grown.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner);
            written = guard;
        }
    }
}

/// Reads lines until the pipe's last writer is gone, on a thread that nobody waits for: a child of the process may
/// hold the pipe longer than the process lives.
fn follow(pipe: impl Read + Send + 'static, log: Arc<Log>) -> anyhow::Result<()> {
    thread::Builder::new().name("lab-log".to_owned()).spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            log.lock().lines.push(text);
            log.grown.notify_all();
            line.clear();
        }
        log.lock().open -= 1;
        log.grown.notify_all();
    })?;
    Ok(())
}
