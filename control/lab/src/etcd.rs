//! Real etcd servers on ports of their own, in the namespace of the thread that starts them; gone when dropped.
//!
//! ```text
//! let Some(etcd) = Etcd::start(&Setup::default())? else { return Err(lab::skip(lab::etcd::MISSING)) };
//! etcd.members()[0].url()     freeze(), thaw(), kill(), restart(), wipe()
//! ```

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::cluster::Process;

/// What to say where there is no etcd.
pub const MISSING: &str = "etcd is not on the PATH: apt-get install etcd-server";

/// How long a server may take to serve, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// How often to look for other ports where somebody took those that were free.
const ATTEMPTS: u32 = 4;

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many servers form the cluster.
    pub members: usize,
    /// Where they listen.
    pub address: IpAddr,
    /// Certificates; without them they speak clear text.
    pub tls: Option<ServerTls>,
}

/// What servers show and what they want to see.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM of their certificate.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
    /// Whose client certificates are wanted; `None`: none are.
    pub client_ca: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { members: 1, address: Ipv4Addr::LOCALHOST.into(), tls: None }
    }
}

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// After the processes: they end before their files go.
    _dir: TempDir,
}

/// One server.
#[derive(Debug)]
pub struct Member {
    process: Process,
    program: PathBuf,
    arguments: Vec<OsString>,
    data: PathBuf,
    url: String,
}

impl Etcd {
    /// Starts the servers and waits until they serve; `None` where the machine has no etcd.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start(setup: &Setup) -> anyhow::Result<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        let mut attempt = 1;
        loop {
            match Self::try_start(&program, setup) {
                Err(error)
                    if attempt < ATTEMPTS && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                started => return started.map(Some),
            }
        }
    }

    fn try_start(program: &Path, setup: &Setup) -> anyhow::Result<Self> {
        let dir = directory()?;
        // All at once: one that is given back may be given again.
        let places = free_ports(setup.address, setup.members * 2)?;
        let (clients, peers) = places.split_at(setup.members);
        let cluster: Vec<_> =
            peers.iter().enumerate().map(|(index, peer)| format!("m{index}=http://{peer}")).collect();
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        let mut members = Vec::new();
        for (index, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let data = dir.path().join(format!("m{index}"));
            let url = format!("{scheme}://{client}");
            let mut arguments: Vec<OsString> = Vec::new();
            let mut flag = |name: &str, value: &str| {
                arguments.push(format!("--{name}={value}").into());
            };
            flag("name", &format!("m{index}"));
            flag("data-dir", &data.display().to_string());
            flag("listen-client-urls", &url);
            flag("advertise-client-urls", &url);
            flag("listen-peer-urls", &format!("http://{peer}"));
            flag("initial-advertise-peer-urls", &format!("http://{peer}"));
            flag("initial-cluster", &cluster.join(","));
            flag("initial-cluster-state", "new");
            // Another leader within a second, and not at every hiccup of a busy machine.
            flag("heartbeat-interval", "50");
            flag("election-timeout", "500");
            flag("logger", "zap");
            flag("log-outputs", "stderr");
            if let Some(tls) = &setup.tls {
                flag("cert-file", &tls.certificate.display().to_string());
                flag("key-file", &tls.key.display().to_string());
                if let Some(ca) = &tls.client_ca {
                    flag("client-cert-auth", "true");
                    flag("trusted-ca-file", &ca.display().to_string());
                }
            }
            let process = run(program, &arguments)?;
            members.push(Member { process, program: program.to_owned(), arguments, data, url });
        }
        let etcd = Self { members, _dir: dir };
        for member in &etcd.members {
            member.await_service()?;
        }
        Ok(etcd)
    }

    /// The servers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The same, to be disturbed.
    #[must_use]
    pub fn members_mut(&mut self) -> &mut [Member] {
        &mut self.members
    }

    /// The URLs of all servers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }
}

impl Member {
    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Stops it as it is: connections stay open, and nothing is answered.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// When it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again after it was killed, with the data that it has, and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        self.process = run(&self.program, &self.arguments)?;
        self.await_service()
    }

    /// Kills it, deletes its data and starts it again.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn wipe(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        fs::remove_dir_all(&self.data).with_context(|| format!("delete {}", self.data.display()))?;
        self.restart()
    }

    fn await_service(&self) -> anyhow::Result<()> {
        self.process.wait_for_line("serving client traffic", START).map(drop)
    }
}

/// Where etcd is, if it is anywhere.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file())
}

fn run(program: &Path, arguments: &[OsString]) -> anyhow::Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments);
    // Variables named ETCD_ are flags too.
    command.env_clear();
    Process::here(command)
}

/// In memory where the machine has such a place: etcd waits for the disk at every write.
fn directory() -> anyhow::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    match tempfile::Builder::new().prefix("lab-etcd-").tempdir_in(memory) {
        Ok(dir) => Ok(dir),
        Err(_) => TempDir::with_prefix("lab-etcd-").context("make a directory for etcd"),
    }
}

fn free_ports(address: IpAddr, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(SocketAddr::new(address, 0)))
        .collect::<Result<_, _>>()
        .with_context(|| format!("listen on {address}"))?;
    let places: Vec<_> = held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    if places.len() != count {
        bail!("{} ports in place of {count}", places.len());
    }
    Ok(places)
}
