//! Questions to the API server: who we are there, one request and its answer, and what an answer that is none means.
//!
//! The client comes from the `kube` crate: kubeconfig and in-cluster credentials, TLS, token files that are read again
//! every minute. It is thrown away after a failure of the connection or of the credentials, so that the next question
//! reads files anew (a CA or a client certificate that was replaced) and opens a connection of its own.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Response;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::request::Error as RequestError;
use kube::{Client, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::follow::Failure;
use crate::settings::KubeSettings;

/// How long an ordinary question may take, its answer included.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// The longest answer that is read: five hundred Nodes of 60 kB.
const LONGEST_ANSWER: usize = 32 * 1024 * 1024;
/// The longest explanation of an error that is read.
const LONGEST_STATUS: usize = 16 * 1024;

/// A request as the `kube` crate builds it.
pub(super) type Request = hyper::Request<Vec<u8>>;

/// The way to the API server.
pub(super) struct Access {
    settings: KubeSettings,
    client: Mutex<Option<Client>>,
}

/// The parts of a Status object that are read.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: Option<u64>,
    #[serde(default)]
    causes: Option<Vec<Cause>>,
}

#[derive(Debug, Default, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Access {
    pub(super) fn new(settings: &KubeSettings) -> Self {
        Self { settings: settings.clone(), client: Mutex::new(None) }
    }

    /// Where it was looked for, for errors.
    pub(super) fn place(&self) -> String {
        match (&self.settings.api_url, &self.settings.kubeconfig) {
            (Some(url), _) => format!("the Kubernetes API at {}", without_secrets(url)),
            (None, Some(path)) => format!("the Kubernetes API of {}", path.display()),
            (None, None) => {
                let host =
                    std::env::var("KUBERNETES_SERVICE_HOST").unwrap_or_else(|_| "its cluster".to_owned());
                format!("the Kubernetes API at {host}")
            }
        }
    }

    /// A question whose answer is one JSON value.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        request: Result<Request, RequestError>,
    ) -> Result<T, Failure> {
        let whole = async {
            let response = self.send(request).await?;
            let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
            let bytes = body.map_err(|error| unread(&*error, LONGEST_ANSWER))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|error| Failure::Nonsense(error.to_string()))
        };
        let answer = tokio::time::timeout(PATIENCE, whole).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Failure::Silent(format!("no answer within {PATIENCE:?}"))));
        if let Err(failure) = &answer {
            self.learn_from(failure);
        }
        answer
    }

    /// A question whose answer is read piece by piece by the caller, who also keeps the time of it.
    pub(super) async fn open(&self, request: Result<Request, RequestError>) -> Result<Body, Failure> {
        let answer = self.send(request).await.map(Response::into_body);
        if let Err(failure) = &answer {
            self.learn_from(failure);
        }
        answer
    }

    /// After this failure the next question is asked with files read anew and on a connection of its own.
    pub(super) fn learn_from(&self, failure: &Failure) {
        if matches!(failure, Failure::Silent(_) | Failure::Status { code: 401, .. }) {
            *self.slot() = None;
        }
    }

    async fn send(&self, request: Result<Request, RequestError>) -> Result<Response<Body>, Failure> {
        let request =
            request.map_err(|error| Failure::Nonsense(format!("no request can be made: {error}")))?;
        let client = self.client().await?;
        let response =
            client.send(request.map(Body::from)).await.map_err(|error| Failure::Silent(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let header =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), LONGEST_STATUS).collect().await;
        let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
        // A proxy before the server answers in HTML.
        let status: Status = serde_json::from_slice(&bytes).unwrap_or_default();
        let mut failure = status.failure(code);
        if let Failure::Status { retry_after, code: told, .. } = &mut failure {
            *told = code;
            *retry_after = header.map(Duration::from_secs).or(*retry_after);
        }
        Err(failure)
    }

    async fn client(&self) -> Result<Client, Failure> {
        if let Some(client) = self.slot().clone() {
            return Ok(client);
        }
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT);
        // Pauses between questions are ours to choose.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| Failure::Silent(chain(&error)))?;
        *self.slot() = Some(client.clone());
        Ok(client)
    }

    async fn config(&self) -> Result<Config, Failure> {
        let url = |text: &str| {
            text.parse().map_err(|_| Failure::Silent(format!("{:?} is no URL", without_secrets(text))))
        };
        match (&self.settings.kubeconfig, &self.settings.api_url) {
            (Some(path), server) => {
                let read = Kubeconfig::read_from(path).map_err(|error| Failure::Silent(unread_kubeconfig(path, &error)))?;
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                let mut config = config.map_err(|error| Failure::Silent(chain(&error)))?;
                if let Some(server) = server {
                    config.cluster_url = url(server)?;
                }
                Ok(config)
            }
            (None, Some(server)) => Ok(Config::new(url(server)?)),
            (None, None) => Config::incluster().map_err(|error| {
                Failure::Silent(format!(
                    "{}. Outside a pod give --kubeconfig-file or --kube-api-url; in a pod see that the service account's \
                     token is mounted",
                    chain(&error)
                ))
            }),
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Status {
    /// What it says; `code` where it names none.
    pub(super) fn failure(self, code: u16) -> Failure {
        let details = self.details.unwrap_or_default();
        let causes = details.causes.unwrap_or_default();
        let mut message: String = self
            .message
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(300)
            .collect();
        if message.is_empty() {
            message = reason(code).to_owned();
        }
        Failure::Status {
            code: self.code.unwrap_or(code),
            message,
            retry_after: details.retry_after_seconds.filter(|&s| s > 0).map(Duration::from_secs),
            // Since Kubernetes 1.18 a cause, before that only the sentence.
            version_unknown: causes.iter().any(|cause| {
                cause.reason.as_deref() == Some("ResourceVersionTooLarge")
                    || cause.message.as_deref() == Some("Too large resource version")
            }),
        }
    }
}

fn reason(code: u16) -> &'static str {
    hyper::StatusCode::from_u16(code)
        .ok()
        .and_then(|code| code.canonical_reason())
        .unwrap_or("no explanation")
}

/// Why an answer could not be read to its end.
pub(super) fn unread(error: &(dyn StdError + 'static), limit: usize) -> Failure {
    if error.is::<LengthLimitError>() { Failure::TooLong { limit } } else { Failure::Silent(chain(error)) }
}

/// An error and its causes in one line, without those that the line says already.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A URL without the user and password that somebody may have put into it.
/// The parser shows the lines around an error, and those hold tokens: only their place is told.
fn unread_kubeconfig(path: &Path, error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(error) => {
            let at = error.location().map(|at| format!(", line {} column {}", at.line(), at.column()));
            format!("{}{}: it is no YAML of a kubeconfig's form", path.display(), at.unwrap_or_default())
        }
        other => chain(other),
    }
}

fn without_secrets(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or(authority);
            format!("{scheme}://{host}{path}")
        }
        None => url.rsplit('@').next().unwrap_or(url).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_that_cannot_be_read_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        for text in [
            "users:\n- name: u\n  user:\n\ttoken: sekret\n",
            "users: sekret\n",
            "a: \"sekret\n",
            "{,sekret: }: b",
        ] {
            std::fs::write(&path, text).unwrap();
            let told = unread_kubeconfig(&path, &Kubeconfig::read_from(&path).unwrap_err());
            assert!(!told.contains("sekret") && told.contains("line"), "{told}");
        }
    }

    #[test]
    fn no_error_shows_a_password() {
        for (url, shown) in [
            ("https://me:hunter2@api:6443/x", "https://api:6443/x"),
            ("https://api", "https://api"),
            ("me:hunter2@api", "api"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }

    #[test]
    fn a_status_tells_when_to_ask_again_and_that_a_version_is_unknown() {
        let text = r#"{"kind":"Status","code":504,"message":"Timeout: Too large resource version: 9, current: 7",
            "details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        let Failure::Status { code, message, retry_after, version_unknown } = status.failure(500) else {
            panic!()
        };
        assert_eq!((code, retry_after, version_unknown), (504, Some(Duration::from_secs(1)), true));
        assert_eq!(message, "Timeout: Too large resource version: 9, current: 7");
        assert_eq!(Status::default().failure(502).to_string(), "HTTP 502: Bad Gateway");
    }
}
