//! The embedded store, `--file-subnet-mgr DIR`: one directory that all nodes share.
//!
//! ```text
//! DIR/config                  net-conf.json; else --net-config-path
//! DIR/lock                    flock: whoever writes leases holds it
//! DIR/subnets/10.5.34.0-24    one file a lease, named by flannel's key, holding flannel's value and "Expiry"
//! ```
//!
//! Files are replaced whole (write aside, fsync, rename), so a reader never meets half of one and takes no lock. What a
//! lease file should not be - torn, empty, a link, a pipe, nonsense - is passed over and named once; its subnet counts
//! as taken, because it may be somebody's. A missing `Expiry` is a reservation: `echo '{"PublicIP":"192.0.2.7"}'` into
//! a file reserves its subnet for that node for good.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::time::Instant;

use super::allocate::{Decision, Origin, decide, may_publish};
use super::{Clock, LeaseRequest, LeaseStore, StoreError, SystemClock, lease_end};
use crate::lease::{Lease, LeaseAttrs, Subnet, print_value};
use crate::network::NetworkConfig;

mod scan;
mod watch;

pub use scan::{Scan, Unreadable};
pub use watch::FileWatch;

/// How long to wait for the lock. Its holder needs milliseconds; one that is stopped keeps it for ever.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The store in a directory.
#[derive(Debug, Clone)]
pub struct FileStore<C = SystemClock> {
    dir: PathBuf,
    /// Where the configuration is when the directory has none.
    net_config_path: PathBuf,
    clock: C,
}

impl<C: Clock> FileStore<C> {
    /// Opens the store, making `DIR/subnets` if it is not there. DIR itself is made only where the network's
    /// configuration is elsewhere: otherwise it holds that, and a DIR that is not there is one that went away.
    pub fn open(dir: &Path, net_config_path: &Path, clock: C) -> Result<Self, StoreError> {
        let store = Self::at(dir, net_config_path, clock);
        if !dir.exists() && !net_config_path.exists() {
            return Err(store.no_config());
        }
        let subnets = store.subnets();
        fs::create_dir_all(&subnets).map_err(during("create the lease directory", &subnets))?;
        Ok(store)
    }

    /// The store as it is, for who only reads; nothing is made.
    pub fn at(dir: &Path, net_config_path: &Path, clock: C) -> Self {
        Self { dir: dir.to_owned(), net_config_path: net_config_path.to_owned(), clock }
    }

    fn no_config(&self) -> StoreError {
        StoreError::NoConfig { tried: vec![self.dir.join("config"), self.net_config_path.clone()] }
    }

    fn subnets(&self) -> PathBuf {
        self.dir.join("subnets")
    }

    fn lease_path(&self, subnet: &Subnet) -> PathBuf {
        self.subnets().join(subnet.key().to_string())
    }

    /// The lock, held until the file is dropped.
    async fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            // Whatever somebody put there, opening it does not block and makes no file elsewhere.
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits())
            .open(&path)
            .map_err(during("open the lock", &path))?;
        if !file.metadata().map_err(during("look at the lock", &path))?.is_file() {
            return Err(during("lock", &path)(io::Error::other("it is not a regular file; remove it")));
        }
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_PATIENCE => {
                    // Unequal waits keep many nodes that start together from asking in step.
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(2..20))).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Locked { path, waited: LOCK_PATIENCE });
                }
                Err(TryLockError::Error(source)) => return Err(during("lock", &path)(source)),
            }
        }
    }

    fn write(&self, lease: &Lease) -> Result<(), StoreError> {
        let path = self.lease_path(&lease.subnet);
        let text = print_value(&lease.attrs, lease.expires);
        let write = || -> io::Result<()> {
            let mut file = atomic_write_file::AtomicWriteFile::open(&path)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.commit()
        };
        write().map_err(during("write the lease", &path))
    }

    fn remove(&self, subnet: &Subnet) -> Result<(), StoreError> {
        let path = self.lease_path(subnet);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(during("delete the lease", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// What is in force; under the lock, so that what ended and what a killed writer left can be cleared away.
    fn scan_locked(&self) -> Result<Scan, StoreError> {
        let mut scan = Scan::of(&self.subnets())?;
        let now = self.clock.now();
        for ended in scan.leases.extract_if(.., |lease| lease.is_over(now)) {
            self.remove(&ended.subnet)?;
        }
        for leftover in &scan.leftovers {
            if let Err(error) = fs::remove_file(leftover) {
                tracing::debug!(file = %leftover.display(), %error, "a leftover stays");
            }
        }
        Ok(scan)
    }
}

impl<C: Clock> LeaseStore for FileStore<C> {
    type Watch = FileWatch<C>;

    fn name(&self) -> String {
        format!("directory {}", self.dir.display())
    }

    async fn network(&self) -> Result<NetworkConfig, StoreError> {
        match [&self.dir.join("config"), &self.net_config_path].into_iter().find(|path| path.exists()) {
            Some(path) => Ok(NetworkConfig::read(path)?),
            None => Err(self.no_config()),
        }
    }

    async fn held_by(&self, owner: IpAddr) -> Result<Option<Lease>, StoreError> {
        let now = self.clock.now();
        // A store that no daemon has opened yet, which only `explain` meets.
        if !self.subnets().exists() && self.dir.exists() {
            return Ok(None);
        }
        let scan = Scan::of(&self.subnets())?;
        Ok(scan.leases.into_iter().find(|lease| lease.attrs.owner() == Some(owner) && !lease.is_over(now)))
    }

    async fn acquire(&self, network: &NetworkConfig, request: &LeaseRequest) -> Result<Lease, StoreError> {
        let _lock = self.lock().await?;
        let scan = self.scan_locked()?;
        let Decision { subnet, origin, release } =
            decide(network, request, &scan.leases, &scan.unreadable_subnets(), &mut fastrand::Rng::new())?;
        for subnet in &release {
            self.remove(subnet)?;
        }
        let expires = match origin {
            Origin::Held { reservation: true } => None,
            Origin::Held { reservation: false } | Origin::Previous | Origin::Fresh => {
                Some(lease_end(self.clock.now()))
            }
        };
        let lease = Lease { subnet, attrs: request.attrs.clone(), expires };
        self.write(&lease)?;
        Ok(lease)
    }

    async fn renew(&self, network: &NetworkConfig, own: &Lease) -> Result<Lease, StoreError> {
        self.readdress(network, own, &own.attrs).await
    }

    async fn readdress(
        &self,
        network: &NetworkConfig,
        own: &Lease,
        attrs: &LeaseAttrs,
    ) -> Result<Lease, StoreError> {
        let _lock = self.lock().await?;
        let scan = self.scan_locked()?;
        let holder = scan.leases.iter().find(|lease| lease.subnet == own.subnet);
        may_publish(network, own, attrs, &scan.leases)?;
        let reservation = match holder {
            Some(holder) => holder.expires.is_none(),
            None => own.expires.is_none(),
        };
        let expires = (!reservation).then(|| lease_end(self.clock.now()));
        let lease = Lease { subnet: own.subnet, attrs: attrs.clone(), expires };
        self.write(&lease)?;
        Ok(lease)
    }

    async fn watch(&self) -> Result<FileWatch<C>, StoreError> {
        Ok(FileWatch::new(self.subnets(), self.clock.clone()))
    }
}

fn during<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
