//! The last known network on disk, so that a node starts while its store is down.
//!
//! ```json
//! {"version": 1, "store": "etcd /coreos.com/network at http://192.0.2.9:2379", "heard": 1763740000,
//!  "network": "{\"Network\": \"10.5.0.0/16\"}", "public": {"v4": null, "v6": null},
//!  "own": {"subnet": "10.5.1.0-24", "value": {"PublicIP": "192.0.2.1", ...}}, "leases": [...]}
//! ```
//!
//! Keys and values of leases are flannel's. The file is a copy that nobody has to believe: whatever is not exactly as
//! this program writes it, or speaks of another store or node, is passed over, and the store is waited for.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use hostnet::regular_file;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::flags::without_credentials;
use crate::lease::{Key, Lease, parse_value, print_value};
use crate::network::NetworkConfig;
use crate::settings::StoreChoice;
use crate::store::PublicAddresses;
use crate::store::allocate::fits;

const VERSION: u32 = 1;
/// Ten times what 5 000 nodes need.
const LONGEST: u64 = 16 << 20;
/// How old `heard` gets in the file while nothing changes.
pub(super) const STILL_TRUE: Duration = Duration::from_secs(600);

/// What a node knew when it last heard of its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// The network's configuration.
    pub(super) network: NetworkConfig,
    /// The public addresses that the store held for this node.
    pub(super) public: PublicAddresses,
    /// This node's lease.
    pub(super) own: Lease,
    /// Everybody else's.
    pub(super) leases: Vec<Lease>,
    /// When the store was last heard, in whole seconds.
    pub(super) heard: SystemTime,
}

/// Why a file is passed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is not what this program writes: {0}")]
    Text(String),
    #[error("it is of {theirs}, and this node's leases are in {ours}")]
    OtherStore { theirs: String, ours: String },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    store: String,
    heard: u64,
    network: String,
    public: Public,
    own: Entry,
    leases: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Public {
    v4: Option<std::net::Ipv4Addr>,
    v6: Option<std::net::Ipv6Addr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    subnet: String,
    value: Box<RawValue>,
}

/// The name of a store, the same at every start: what is cached of one is nothing to another.
pub(super) fn name_of(store: &StoreChoice) -> String {
    match store {
        StoreChoice::File { dir } => format!("directory {}", dir.display()),
        StoreChoice::Kube(kube) => {
            let at = match (&kube.api_url, &kube.kubeconfig) {
                (Some(url), _) => without_credentials(url),
                (None, Some(file)) => file.display().to_string(),
                (None, None) => "this cluster".to_owned(),
            };
            let node = kube.node_name.as_deref().unwrap_or("this node");
            format!("Kubernetes, {at}, {node}, {}", kube.annotation_prefix)
        }
        StoreChoice::Etcd(etcd) => {
            // A password that changes does not make it another store, and it belongs neither in the file nor in the log.
            let mut endpoints: Vec<String> =
                etcd.endpoints.iter().map(|one| without_credentials(one)).collect();
            endpoints.sort_unstable();
            format!("etcd {} at {}", etcd.prefix, endpoints.join(","))
        }
    }
}

/// The cached lease is this node's: it has our public address. With Kubernetes it is known by the node's name, which is
/// part of the store's, and the address may be one that an annotation puts in the place of ours.
pub(super) fn is_ours(known: &Known, store: &StoreChoice, owner: Option<IpAddr>) -> bool {
    let is_named = matches!(store, StoreChoice::Kube(kube) if kube.node_name.is_some());
    owner.is_some() && (is_named || known.own.attrs.owner() == owner)
}

/// Reads the file; `None` if there is none. The network's text is read as this store's is.
pub(super) fn read(path: &Path, store: &StoreChoice) -> Result<Option<Known>, Unusable> {
    let bytes = match regular_file::read_own(path, LONGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    parse(&bytes, store).map(Some)
}

/// Reads a text.
pub(super) fn parse(bytes: &[u8], store: &StoreChoice) -> Result<Known, Unusable> {
    let text = |why: &dyn std::fmt::Display| Unusable::Text(why.to_string());
    // The version first: another one may have other fields.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| text(&error))?;
    if version != VERSION {
        return Err(text(&format_args!("its version is {version}, not {VERSION}")));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| text(&error))?;
    let ours = name_of(store);
    if document.store != ours {
        return Err(Unusable::OtherStore { theirs: document.store.chars().take(200).collect(), ours });
    }
    // With Kubernetes the subnets are the API's, wherever they are.
    let is_kube = matches!(store, StoreChoice::Kube(_));
    let parse = if is_kube { NetworkConfig::parse_without_pool } else { NetworkConfig::parse };
    let network = parse(document.network.as_bytes())
        .map_err(|remark| text(&format_args!("the network's configuration, {remark}")))?;
    let lease = |entry: &Entry| {
        let named = |why: &dyn std::fmt::Display| text(&format_args!("the lease {:?}: {why}", entry.subnet));
        let Key(subnet) = entry.subnet.parse().map_err(|error| named(&error))?;
        let (attrs, expires) = parse_value(entry.value.get().as_bytes()).map_err(|error| named(&error))?;
        Ok::<_, Unusable>(Lease { subnet, attrs, expires })
    };
    let own = lease(&document.own)?;
    if !is_kube && !fits(&network, &own.subnet) {
        return Err(text(&format_args!("its own lease {} is outside its network", own.subnet)));
    }
    let leases = document.leases.iter().map(lease).collect::<Result<Vec<_>, _>>()?;
    let heard = UNIX_EPOCH
        .checked_add(Duration::from_secs(document.heard))
        .ok_or_else(|| text(&"its time is beyond all times"))?;
    let Public { v4, v6 } = document.public;
    Ok(Known { network, public: PublicAddresses { v4, v6 }, own, leases, heard })
}

/// The text of what is known.
pub(super) fn print(known: &Known, store: &StoreChoice) -> io::Result<String> {
    let entry = |lease: &Lease| {
        let value = RawValue::from_string(print_value(&lease.attrs, lease.expires))?;
        Ok::<_, serde_json::Error>(Entry { subnet: lease.subnet.key().to_string(), value })
    };
    let document = Document {
        version: VERSION,
        store: name_of(store),
        heard: seconds(known.heard),
        network: known.network.text.to_string(),
        public: Public { v4: known.public.v4, v6: known.public.v6 },
        own: entry(&known.own)?,
        leases: known.leases.iter().map(entry).collect::<Result<_, _>>()?,
    };
    Ok(serde_json::to_string(&document)?)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Keeps the file true, with few writes: once when something changed, and now and then so that its time means something.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    store: StoreChoice,
    /// What was last written.
    written: Option<Known>,
    /// The last trouble, which has been said.
    trouble: Option<String>,
}

impl Cache {
    pub(super) fn new(path: &Path, store: &StoreChoice) -> Self {
        Self { path: path.to_owned(), store: store.clone(), written: None, trouble: None }
    }

    /// Writes `known` if the file does not say it. A trouble is said once.
    pub(super) fn keep(&mut self, known: Known) {
        let fresh = self.written.as_ref().is_some_and(|written| {
            let age = known.heard.duration_since(written.heard).unwrap_or_default();
            age < STILL_TRUE && *written == Known { heard: written.heard, ..known.clone() }
        });
        if fresh {
            return;
        }
        match self.write(&known) {
            Ok(()) => {
                self.trouble = None;
                self.written = Some(known);
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(
                        file = %self.path.display(), %error,
                        "cannot remember the leases: a start without the store would have to wait for it"
                    );
                    self.trouble = Some(trouble);
                }
            }
        }
    }

    fn write(&self, known: &Known) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Whatever mode and owner somebody gave an earlier one: the next start believes a file of our own only.
        let mut file = AtomicWriteFile::options()
            .mode(0o600)
            .preserve_mode(false)
            .preserve_owner(false)
            .open(&self.path)?;
        file.write_all(print(known, &self.store)?.as_bytes())?;
        file.write_all(b"\n")?;
        file.commit()
    }
}

#[cfg(test)]
mod tests;
