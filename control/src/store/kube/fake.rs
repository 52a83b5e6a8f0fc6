//! A Kubernetes API server of a few hundred lines that misbehaves on command. Nodes and Pods only; its objects are JSON.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

type Answer = UnsyncBoxBody<Bytes, Broken>;

/// The connection is cut in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
pub(super) struct Broken;

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// A Status object with this code, and `Retry-After` if given.
    Status(u16, Option<u64>),
    /// A page of a proxy.
    Html(u16),
    /// No answer at all.
    Silence,
    /// The connection is closed.
    Cut,
    /// An answer that has no end.
    Endless,
    /// A watch that tells these lines and then does this.
    Watch(Vec<String>, Then),
}

/// How a watch goes on after its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It ends well.
    End,
    /// The connection breaks, behind half an object.
    Break,
    /// Nothing comes any more.
    Stall,
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Watch,
    Get,
    Patch,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) target: String,
    pub(super) content_type: String,
    pub(super) body: String,
    pub(super) authorization: String,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    history: Vec<(u64, String)>,
    compacted: u64,
    version: u64,
    faults: Vec<(Kind, VecDeque<Fault>)>,
    seen: Vec<Seen>,
    /// The only token that is taken, if there is one.
    token: Option<String>,
}

/// A running server, on a port of its own. It ends with its last handle.
pub(super) struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    server: Mutex<JoinHandle<()>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.get_mut().unwrap_or_else(PoisonError::into_inner).abort();
    }
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { version: 100, ..State::default() }));
        let (changed, _) = watch::channel(0);
        let server = Mutex::new(serve(listener, state.clone(), changed.clone()));
        Self { address, state, changed, server }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Nobody listens any more, and every connection is closed.
    pub(super) async fn stop(&self) {
        let server = {
            let mut slot = self.server.lock().unwrap();
            std::mem::replace(&mut *slot, tokio::spawn(async {}))
        };
        server.abort();
        drop(server.await);
    }

    /// It listens again, on the same port.
    pub(super) async fn again(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        *self.server.lock().unwrap() = serve(listener, self.state.clone(), self.changed.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes or replaces a node.
    pub(super) fn put(&self, mut node: Value) {
        let mut state = self.state();
        let name = node["metadata"]["name"].as_str().unwrap().to_owned();
        state.version += 1;
        node["metadata"]["resourceVersion"] = state.version.to_string().into();
        let kind = if state.nodes.contains_key(&name) { "MODIFIED" } else { "ADDED" };
        state.record(kind, &node);
        state.nodes.insert(name, node);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Deletes a node.
    pub(super) fn delete(&self, name: &str) {
        let mut state = self.state();
        let mut node = state.nodes.remove(name).unwrap();
        state.version += 1;
        node["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.record("DELETED", &node);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Changes one value of a node.
    pub(super) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut node = self.node(name);
        change(&mut node);
        self.put(node);
    }

    pub(super) fn node(&self, name: &str) -> Value {
        self.state().nodes[name].clone()
    }

    pub(super) fn pod(&self, namespace: &str, name: &str, node: &str) {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node}});
        self.state().pods.insert(format!("/api/v1/namespaces/{namespace}/pods/{name}"), pod);
    }

    /// Takes only this token from here on.
    pub(super) fn only(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Forgets what happened.
    pub(super) fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.version;
        state.history.clear();
    }

    /// The next requests of this kind meet these faults, one each.
    pub(super) fn faults(&self, kind: Kind, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.push((kind, faults.into_iter().collect()));
    }

    pub(super) fn seen(&self, kind: Kind) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.kind == kind).cloned().collect()
    }
}

impl State {
    fn record(&mut self, kind: &str, node: &Value) {
        let line = json!({"type": kind, "object": node});
        self.history.push((self.version, line.to_string()));
    }

    fn fault(&mut self, kind: Kind) -> Option<Fault> {
        self.faults.iter_mut().filter(|(of, _)| *of == kind).find_map(|(_, faults)| faults.pop_front())
    }

    fn list(&self, limit: usize, after: &str) -> Value {
        let rest: Vec<&Value> =
            self.nodes.iter().filter(|(name, _)| name.as_str() > after).map(|(_, node)| node).collect();
        let items: Vec<&Value> = rest.iter().take(limit).copied().collect();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if rest.len() > limit {
            metadata["continue"] = items[limit - 1]["metadata"]["name"].clone();
            metadata["remainingItemCount"] = (rest.len() - limit).into();
        }
        json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items})
    }
}

fn serve(listener: TcpListener, state: Arc<Mutex<State>>, changed: watch::Sender<u64>) -> JoinHandle<()> {
    tokio::spawn(async move {
        // Connections end with the server.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            connections.spawn(connection(stream, state.clone(), changed.clone()));
        }
    })
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>, changed: watch::Sender<u64>) {
    let service = service_fn(|request| answer(request, state.clone(), changed.clone()));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A cut connection is an error here, and wanted.
    drop(served.await);
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
) -> Result<Response<Answer>, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, v)| v.to_owned()))
    };
    let path = parts.uri.path().to_owned();
    let kind = match (&parts.method, path.as_str()) {
        (&Method::PATCH, _) => Kind::Patch,
        (_, "/api/v1/nodes") if parameter("watch").is_some() => Kind::Watch,
        (_, "/api/v1/nodes") => Kind::List,
        _ => Kind::Get,
    };
    let header = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen {
            kind,
            target: parts.uri.to_string(),
            content_type: header("content-type"),
            body: String::from_utf8_lossy(&body).into_owned(),
            authorization: header("authorization"),
        });
        if state.token.as_ref().is_some_and(|token| header("authorization") != format!("Bearer {token}")) {
            return Ok(status(401, None));
        }
        state.fault(kind)
    };
    if let Some(fault) = fault {
        return misbehave(fault).await;
    }
    match kind {
        Kind::List => {
            let limit = parameter("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
            let list = state.lock().unwrap().list(limit, &parameter("continue").unwrap_or_default());
            Ok(whole(200, &list))
        }
        Kind::Watch => {
            let from = parameter("resourceVersion").and_then(|from| from.parse().ok()).unwrap_or(0);
            let seconds = parameter("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(300);
            if from < state.lock().unwrap().compacted {
                return Ok(status(410, None));
            }
            Ok(follow(state, changed.subscribe(), from, Duration::from_secs(seconds)))
        }
        Kind::Get => {
            let state = state.lock().unwrap();
            let name = path.rsplit('/').next().unwrap_or_default();
            let object = state.pods.get(&path).or_else(|| state.nodes.get(name));
            Ok(object.map_or_else(|| status(404, None), |object| whole(200, object)))
        }
        Kind::Patch => {
            let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default().to_owned();
            let mut state = state.lock().unwrap();
            let Some(mut node) = state.nodes.get(&name).cloned() else { return Ok(status(404, None)) };
            let patch: Value = serde_json::from_slice(&body).map_err(|_| Broken)?;
            merge(&mut node, &patch);
            state.version += 1;
            node["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.record("MODIFIED", &node);
            state.nodes.insert(name, node.clone());
            changed.send_modify(|n| *n += 1);
            Ok(whole(200, &node))
        }
    }
}

/// The two places that a lease's patches touch, as a strategic merge treats them.
fn merge(node: &mut Value, patch: &Value) {
    if let Some(annotations) = patch["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            node["metadata"]["annotations"][key] = value.clone();
        }
    }
    for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
        if !node["status"]["conditions"].is_array() {
            node["status"]["conditions"] = json!([]);
        }
        let Some(all) = node["status"]["conditions"].as_array_mut() else { continue };
        match all.iter_mut().find(|known| known["type"] == condition["type"]) {
            Some(known) => {
                for (key, value) in condition.as_object().into_iter().flatten() {
                    known[key] = value.clone();
                }
            }
            None => all.push(condition.clone()),
        }
    }
}

async fn misbehave(fault: Fault) -> Result<Response<Answer>, Broken> {
    match fault {
        Fault::Status(code, retry_after) => Ok(status(code, retry_after)),
        Fault::Html(code) => {
            let page = Full::from("<html><body>Bad gateway</body></html>").map_err(never).boxed_unsync();
            Ok(response(code, page))
        }
        Fault::Silence => std::future::pending().await,
        Fault::Cut => Err(Broken),
        Fault::Endless => {
            let spaces = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 65_536]))));
            Ok(response(200, StreamBody::new(spaces).boxed_unsync()))
        }
        Fault::Watch(lines, then) => {
            let (sender, body) = channel();
            tokio::spawn(async move {
                for line in lines {
                    say(&sender, &line).await;
                }
                match then {
                    Then::End => {}
                    Then::Break => {
                        drop(sender.send(Ok(Frame::data(Bytes::from_static(b"{\"type\":\"MODIF")))).await);
                        drop(sender.send(Err(Broken)).await);
                    }
                    Then::Stall => std::future::pending().await,
                }
            });
            Ok(response(200, body))
        }
    }
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, Broken>>;

fn channel() -> (Frames, Answer) {
    let (sender, mut receiver) = mpsc::channel(16);
    let frames = stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, StreamBody::new(frames).boxed_unsync())
}

async fn say(sender: &Frames, line: &str) -> bool {
    sender.send(Ok(Frame::data(Bytes::from(format!("{line}\n"))))).await.is_ok()
}

fn follow(
    state: Arc<Mutex<State>>,
    mut changed: watch::Receiver<u64>,
    mut from: u64,
    lasts: Duration,
) -> Response<Answer> {
    let (sender, body) = channel();
    tokio::spawn(async move {
        let end = tokio::time::Instant::now() + lasts;
        loop {
            let lines: Vec<(u64, String)> = {
                let state = state.lock().unwrap();
                state.history.iter().filter(|(at, _)| *at > from).cloned().collect()
            };
            for (at, line) in lines {
                from = at;
                if !say(&sender, &line).await {
                    return;
                }
            }
            // No change before the end, or no server any more.
            if !matches!(tokio::time::timeout_at(end, changed.changed()).await, Ok(Ok(()))) {
                let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Node", "metadata": {"resourceVersion": from.to_string()}}});
                say(&sender, &bookmark.to_string()).await;
                return;
            }
        }
    });
    response(200, body)
}

fn status(code: u16, retry_after: Option<u64>) -> Response<Answer> {
    let text = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": format!("scripted {code}")});
    let mut answer = whole(code, &text);
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert("retry-after", seconds.into());
    }
    answer
}

fn whole(code: u16, value: &Value) -> Response<Answer> {
    response(code, Full::from(value.to_string()).map_err(never).boxed_unsync())
}

fn response(code: u16, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn never(never: Infallible) -> Broken {
    match never {}
}
