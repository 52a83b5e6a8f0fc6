//! The health server: `/healthz`, `/livez`, `/readyz` and `/metrics` over HTTP, flannel's words first.
//!
//! It can be asked by anybody who reaches the address, so it reads little, waits briefly, and takes no more than a
//! header: GET and HEAD, one request a connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::board::Shown;
use super::guests::Guests;
use super::metrics;
use crate::status::NodeStatus;

/// The longest header; hyper takes no smaller limit.
const LONGEST_HEADER: usize = 8 * 1024;
/// How long a client may take to send it.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last.
const STAY: Duration = Duration::from_secs(10);
/// Connections at once.
const MOST: usize = 64;
/// How often an address that could not be bound is tried again.
const AGAIN: Duration = Duration::from_secs(5);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Answers for ever.
pub(super) async fn serve(address: SocketAddr, shown: Shown) {
    let mut said = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "health server answers /healthz, /readyz and /metrics");
                said = None;
                accept(&listener, &shown).await;
            }
            Err(error) => {
                let error = error.to_string();
                if said.as_ref() != Some(&error) {
                    tracing::warn!(
                        %address,
                        "the health server cannot have its address, trying again: {error}. See `ss -ltnp` for who has \
                         it, or give another --healthz-ip and --healthz-port"
                    );
                    said = Some(error);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Ends when the listener fails for good.
async fn accept(listener: &TcpListener, shown: &Shown) {
    let mut guests = Guests::new(MOST, STAY);
    let mut failures = 0;
    // One failure is a client's that went away, or the process is short of descriptors for a moment.
    while failures < 10 {
        match listener.accept().await {
            Ok((stream, _)) => {
                failures = 0;
                guests.admit(converse(stream, shown.clone()));
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, "the health server lost a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, shown: Shown) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), request.uri().query(), &shown);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(LONGEST_HEADER)
        .keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a client of the health server");
    }
}

fn answer(method: &Method, path: &str, query: Option<&str>, shown: &Shown) -> Response<Full<Bytes>> {
    // flannel answers whatever is asked there, and so some probes ask by POST.
    let is_read = method == Method::GET || method == Method::HEAD;
    if !is_read && !matches!(path, "/healthz" | "/livez") {
        let mut refused = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let reading = shown.borrow().clone();
    match path {
        // flannel's answer, always: a store that is down must not have the supervisor end what still forwards.
        "/healthz" | "/livez" => respond(StatusCode::OK, TEXT, "flanneld is running".to_owned()),
        "/readyz" => {
            let status =
                if reading.node.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            respond(status, TEXT, readiness(&reading.node, is_verbose(query)))
        }
        "/metrics" => match metrics::text(reading) {
            Ok(text) => respond(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => respond(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("cannot print the metrics: {error}\n"),
            ),
        },
        _ => {
            let known = "there are /healthz, /livez, /readyz, /readyz?verbose and /metrics\n";
            respond(StatusCode::NOT_FOUND, TEXT, known.to_owned())
        }
    }
}

/// flannel's words; before them, if asked for, the list in the manner of the Kubernetes API server.
fn readiness(node: &NodeStatus, verbose: bool) -> String {
    let verdict = if node.is_ready() { "flanneld is ready" } else { "flanneld is not ready yet" };
    if !verbose {
        return verdict.to_owned();
    }
    let mut text: String = node.checks.iter().map(|check| format!("{check}\n")).collect();
    text += verdict;
    text.push('\n');
    text
}

fn is_verbose(query: Option<&str>) -> bool {
    query.unwrap_or_default().split('&').any(|pair| pair.split('=').next() == Some("verbose"))
}

fn respond(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbose_is_a_key_of_the_query() {
        for (query, verbose) in [
            (None, false),
            (Some("verbose"), true),
            (Some("verbose=1"), true),
            (Some("exclude=x&verbose"), true),
            (Some("verbosely"), false),
        ] {
            assert_eq!(is_verbose(query), verbose, "{query:?}");
        }
    }
}
