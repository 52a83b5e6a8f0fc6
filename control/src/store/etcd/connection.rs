//! The way to etcd: one server at a time, the next one when it fails.
//!
//! A client that spreads its requests over all servers meets a dead one again and again. This one stays with a server
//! that answers, and goes on to the next when a request fails or takes longer than [`PATIENCE`]: of three servers with
//! one frozen, a request takes two seconds once and milliseconds from then on.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, GetOptions, KeyValue};
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::fault::Fault;
use super::tls;
use crate::settings::EtcdSettings;
use crate::store::StoreError;

/// How long a server may take for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How often the kernel probes a connection over which nothing comes.
const TCP_PROBE: Duration = Duration::from_secs(10);

/// The servers, and the client of the one in use.
#[derive(Debug)]
pub(super) struct Connection {
    settings: EtcdSettings,
    endpoints: Vec<Endpoint>,
    current: Mutex<Current>,
    /// That certificates are given for clear text is said once.
    clear_text: Once,
}

#[derive(Default)]
struct Current {
    /// Which endpoint.
    index: usize,
    /// Its client, if there is one already.
    client: Option<Client>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A key at a revision.
pub(super) enum AtRevision {
    /// What it was; `None`: it was not there.
    Found(Option<KeyValue>),
    /// The revision is compacted away.
    Compacted,
    /// The revision is yet to come.
    Future,
}

/// A client and whose it is.
pub(super) struct Line {
    /// The client.
    pub(super) client: Client,
    index: usize,
}

impl Connection {
    /// Connects to nothing yet.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let with_tls = settings.ca.is_some() || settings.identity.is_some();
        let endpoints = settings
            .endpoints
            .iter()
            .map(|text| Endpoint::parse(text, with_tls))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { settings: settings.clone(), endpoints, current: Mutex::default(), clear_text: Once::new() })
    }

    /// The store and where it is, for people.
    pub(super) fn place(&self) -> String {
        let names: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        format!("etcd at {}", names.join(", "))
    }

    /// Asks one server after the other until one answers. `call` is repeated, so it must be safe to repeat.
    pub(super) async fn ask<T, F>(
        &self,
        doing: &'static str,
        call: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut faults: Vec<(String, Fault)> = Vec::new();
        // Once more than there are servers: a connection that broke unnoticed costs one attempt.
        for _ in 0..=self.endpoints.len() {
            let attempt = async {
                let line = self.line().await?;
                let answer = timeout(PATIENCE, call(line.client.clone())).await;
                match answer {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(error)) => Err((line.index, self.fault(&error))),
                    Err(_late) => Err((line.index, Fault::late(PATIENCE))),
                }
            };
            match attempt.await {
                Ok(answer) => return Ok(answer),
                Err((index, fault)) => {
                    self.leave(index);
                    let endpoint = self.endpoint(index).to_string();
                    if !faults.iter().any(|(at, _)| *at == endpoint) {
                        faults.push((endpoint, fault));
                    }
                }
            }
        }
        Err(self.error(doing, faults))
    }

    /// Reads one key.
    pub(super) async fn get(&self, key: Vec<u8>) -> Result<Option<KeyValue>, StoreError> {
        let answer = self
            .ask("read a key", |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        Ok(answer.kvs().first().cloned())
    }

    /// Reads one key as it was at a revision.
    pub(super) async fn get_at(&self, key: Vec<u8>, revision: i64) -> Result<AtRevision, StoreError> {
        self.ask("read a key", |mut client| {
            let key = key.clone();
            async move {
                match client.get(key, Some(GetOptions::new().with_revision(revision))).await {
                    Ok(answer) => Ok(AtRevision::Found(answer.kvs().first().cloned())),
                    // etcd's own words, the same from 3.2 to 3.6 (api/v3rpc/rpctypes/error.go).
                    Err(Error::GRpcStatus(status)) if status.message().contains("has been compacted") => {
                        Ok(AtRevision::Compacted)
                    }
                    Err(Error::GRpcStatus(status)) if status.message().contains("is a future revision") => {
                        Ok(AtRevision::Future)
                    }
                    Err(error) => Err(error),
                }
            }
        })
        .await
    }

    /// A client of the server in use.
    pub(super) async fn line(&self) -> Result<Line, (usize, Fault)> {
        let (index, client) = {
            let current = self.current();
            (current.index, current.client.clone())
        };
        if let Some(client) = client {
            return Ok(Line { client, index });
        }
        let endpoint = self.endpoint(index);
        let client = match timeout(PATIENCE, self.connect(endpoint)).await {
            Ok(connected) => connected.map_err(|fault| (index, fault))?,
            Err(_late) => return Err((index, Fault::late(PATIENCE))),
        };
        let mut current = self.current();
        if current.index == index {
            current.client = Some(client.clone());
        }
        Ok(Line { client, index })
    }

    /// Leaves a server that failed for the next one.
    pub(super) fn leave(&self, index: usize) {
        let mut current = self.current();
        // Several requests may find out at once; only the first moves on.
        if current.index == index {
            *current = Current { index: (index + 1) % self.endpoints.len(), client: None };
        }
    }

    /// The server of a line, for people.
    pub(super) fn endpoint(&self, index: usize) -> &Endpoint {
        &self.endpoints[index % self.endpoints.len()]
    }

    /// Reads a client's error.
    pub(super) fn fault(&self, error: &Error) -> Fault {
        Fault::of(error, &self.settings)
    }

    /// What to tell of the faults of all servers: a refusal if there is one, because it says what to mend.
    pub(super) fn error(&self, doing: &'static str, faults: Vec<(String, Fault)>) -> StoreError {
        let refusal = faults.iter().find_map(|(endpoint, fault)| match fault {
            Fault::Refused { why, remedy } => Some((endpoint.clone(), why.clone(), remedy.clone())),
            Fault::Failed(_) => None,
        });
        match refusal {
            Some((endpoint, why, remedy)) => {
                StoreError::Refused { store: format!("etcd at {endpoint}"), doing, why, remedy }
            }
            None => {
                let all: Vec<_> =
                    faults.into_iter().map(|(endpoint, fault)| format!("{endpoint}: {fault}")).collect();
                StoreError::Unreachable { store: "etcd".to_owned(), why: all.join("; ") }
            }
        }
    }

    /// Files are read again at each connection: certificates are replaced while a daemon runs.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Client, Fault> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_tcp_keepalive(TCP_PROBE)
            // A server that has lost the others says so at once instead of letting requests wait.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if endpoint.is_tls() {
            options = options.with_tls(tls::options(&self.settings)?);
        } else if self.settings.ca.is_some() || self.settings.identity.is_some() {
            self.clear_text.call_once(|| {
                tracing::warn!(
                    %endpoint,
                    "this endpoint is http: the connection is clear text, whatever certificates are given; if the server \
                     has TLS, write https://"
                );
            });
        }
        let plain = options.clone();
        if let Some((name, password)) = &self.settings.user {
            options = options.with_user(name, password);
        }
        let url = [endpoint.url()];
        match Client::connect(&url, Some(options)).await {
            // As flannel's client: a user that is not needed does no harm.
            Err(Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                Client::connect(&url, Some(plain)).await
            }
            connected => connected,
        }
        .map_err(|error| self.fault(&error))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Which server it leads to.
    pub(super) fn index(&self) -> usize {
        self.index
    }
}
