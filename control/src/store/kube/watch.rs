//! The watch on all nodes: a task that asks what [`Follow`] says and hands on what it learns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::NODES;
use super::access::{Access, Status, chain};
use super::follow::{Ask, Event, Failure, Follow, Page};
use super::node::NodeObject;
use crate::lease::LeaseUpdate;
use crate::store::followed::{Followed, SharedContact};

/// How much later than the server we end a watch.
const GRACE: Duration = Duration::from_secs(5);
/// The longest line of a watch: etcd keeps no object of more than 1.5 MB, and managed fields may double it.
const LONGEST_LINE: usize = 4 * 1024 * 1024;
/// Updates that wait for the daemon.
const QUEUE: usize = 256;

/// Starts to watch the nodes.
pub(super) fn watch(access: Arc<Access>, follow: Follow) -> Followed {
    Followed::begin(QUEUE, |sender, contact| {
        Run { access, follow, sender, contact, told: None, named: HashMap::new(), doubts: 0 }.forever()
    })
}

struct Run {
    access: Arc<Access>,
    follow: Follow,
    sender: mpsc::Sender<LeaseUpdate>,
    contact: SharedContact,
    /// The last snapshot, until something else was told.
    told: Option<LeaseUpdate>,
    /// What the log has said about a node.
    named: HashMap<String, String>,
    /// The table's doubts when it was said.
    doubts: u64,
}

/// A list as the API gives it.
#[derive(Deserialize)]
struct NodeList {
    #[serde(default)]
    kind: String,
    metadata: ListMetadata,
    #[serde(default)]
    items: Option<Vec<NodeObject>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
    #[serde(default)]
    remaining_item_count: Option<u64>,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Run {
    async fn forever(mut self) {
        loop {
            let (pause, ask) = self.follow.ask();
            tokio::time::sleep(pause).await;
            match ask {
                Ask::List { after, limit } => {
                    let params =
                        ListParams { limit: Some(limit), continue_token: after, ..ListParams::default() };
                    match self.access.ask::<NodeList>(Request::new(NODES).list(&params)).await {
                        Ok(list) if list.kind != "NodeList" => {
                            self.failed(&Failure::Nonsense(format!(
                                "a {:?} in the place of a NodeList",
                                list.kind
                            )));
                        }
                        Ok(list) => {
                            self.heard();
                            let update = self.follow.listed(list.into());
                            self.speak();
                            if let Some(update) = update {
                                self.tell(update).await;
                            }
                        }
                        Err(failure) => self.failed(&failure),
                    }
                }
                Ask::Watch { from, seconds } => {
                    let begin = Instant::now();
                    let end = begin + Duration::from_secs(seconds.into()) + GRACE;
                    let params = WatchParams::default().timeout(seconds);
                    match self.watch(Request::new(NODES).watch(&params, &from), end).await {
                        Ok(()) => self.follow.ended(begin.elapsed()),
                        Err(failure) => {
                            self.access.learn_from(&failure);
                            self.failed(&failure);
                        }
                    }
                }
            }
        }
    }

    /// Reads a watch to its end. An event that ends it is an error here.
    async fn watch(
        &mut self,
        request: Result<super::access::Request, kube::core::request::Error>,
        end: Instant,
    ) -> Result<(), Failure> {
        let silent = |_| Failure::Silent("nothing came, not even the end of the watch".to_owned());
        let mut lines = Lines::new(timeout_at(end, self.access.open(request)).await.map_err(silent)??);
        self.heard();
        while let Some(line) = timeout_at(end, lines.next()).await.map_err(silent)?? {
            let event = parse(&line)?;
            self.heard();
            match event {
                Some(Event::Error(failure)) => return Err(failure),
                Some(event) => {
                    let updates = self.follow.event(event);
                    self.speak();
                    for update in updates {
                        self.tell(update).await;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A list that says what is known already is told to nobody.
    async fn tell(&mut self, update: LeaseUpdate) {
        if matches!(update, LeaseUpdate::Snapshot(_)) {
            if self.told.as_ref() == Some(&update) {
                return;
            }
            self.told = Some(update.clone());
        } else {
            self.told = None;
        }
        // Nobody listens any more: the task is about to be ended.
        drop(self.sender.send(update).await);
    }

    fn heard(&self) {
        let mut contact = self.contact.lock();
        contact.last = Some(Instant::now());
        if let Some(trouble) = contact.trouble.take() {
            drop(contact);
            tracing::info!(after = %trouble, "{} answers again", self.access.place());
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.follow.failed(failure);
        // Histories end, and the list that follows mends it.
        if matches!(failure, Failure::Status { code: 410, .. }) {
            tracing::debug!(%failure, "listing the nodes again");
            return;
        }
        let trouble = failure.to_string();
        let mut contact = self.contact.lock();
        let news = contact.trouble.is_none();
        contact.trouble = Some(trouble.clone());
        drop(contact);
        match news {
            true => tracing::warn!(
                why = %trouble,
                "{} does not tell about nodes; keeping those that are known, trying again",
                self.access.place()
            ),
            false => tracing::debug!(why = %trouble, "still no word about nodes"),
        }
    }

    /// Says once what is wrong with a node.
    fn speak(&mut self) {
        let table = self.follow.table();
        if std::mem::replace(&mut self.doubts, table.doubts()) == self.doubts {
            return;
        }
        let mut wrong: HashMap<String, String> = table
            .spoiled()
            .map(|(node, why)| (node.to_owned(), format!("its lease is passed over: {why}")))
            .collect();
        for conflict in table.conflicts() {
            let text = format!(
                "its pods' network {} belongs to the older node {}: its pods are not reached. Give it another podCIDR by \
                 deleting the Node object, so that it is registered anew",
                conflict.subnet, conflict.holder
            );
            wrong.insert(conflict.loser, text);
        }
        for (node, why) in &wrong {
            if self.named.get(node) != Some(why) {
                tracing::warn!(node, "{why}");
            }
        }
        self.named = wrong;
    }
}

impl From<NodeList> for Page {
    fn from(list: NodeList) -> Self {
        Self {
            nodes: list.items.unwrap_or_default(),
            version: list.metadata.resource_version,
            next: list.metadata.next,
            remaining: list.metadata.remaining_item_count,
        }
    }
}

/// `None` for a type of event that nobody knows.
fn parse(line: &[u8]) -> Result<Option<Event>, Failure> {
    let nonsense = |error: serde_json::Error| Failure::Nonsense(error.to_string());
    let line: Line<'_> = serde_json::from_slice(line).map_err(nonsense)?;
    let object = || serde_json::from_str::<NodeObject>(line.object.get()).map_err(nonsense);
    let node = || match object() {
        Ok(node) if node.metadata.name.is_empty() => {
            Err(Failure::Nonsense("a node without a name".to_owned()))
        }
        answer => answer,
    };
    Ok(match line.kind.as_str() {
        "ADDED" | "MODIFIED" => Some(Event::Put(node()?)),
        "DELETED" => Some(Event::Gone(node()?)),
        "BOOKMARK" => Some(Event::Bookmark(object()?.metadata.resource_version)),
        "ERROR" => {
            let status: Status = serde_json::from_str(line.object.get()).map_err(nonsense)?;
            Some(Event::Error(status.failure(500)))
        }
        _ => None,
    })
}

/// The lines of an answer.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// How much of the buffer has no end of line.
    searched: usize,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self { body, buffer: Vec::new(), searched: 0 }
    }

    /// The next line that is not empty; `None` at the end. What stands behind the last end of line is half an object, and
    /// nobody's.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST_LINE {
                return Err(Failure::TooLong { limit: LONGEST_LINE });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::Silent(chain(&error))),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_or_not_there() {
        let mut lines = Lines::new(Body::from(b"{\"a\":1}\n\n{\"b\":2}\nhalf".to_vec()));
        assert_eq!(lines.next().await.unwrap().unwrap(), b"{\"a\":1}\n");
        assert_eq!(lines.next().await.unwrap().unwrap(), b"{\"b\":2}\n");
        assert_eq!(lines.next().await, Ok(None));
        let mut lines = Lines::new(Body::from(vec![b'x'; LONGEST_LINE + 1]));
        assert_eq!(lines.next().await, Err(Failure::TooLong { limit: LONGEST_LINE }));
    }

    #[test]
    fn events_are_read_and_unknown_ones_passed_over() {
        let read = |text: &str| parse(text.as_bytes());
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"12","creationTimestamp":null},"spec":{},"status":{}}}"#;
        assert_eq!(read(bookmark), Ok(Some(Event::Bookmark("12".to_owned()))));
        let gone =
            r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}"#;
        let Ok(Some(Event::Error(failure))) = read(gone) else { panic!() };
        assert_eq!(failure.to_string(), "HTTP 410: too old resource version");
        assert_eq!(read(r#"{"type":"NEWS","object":{}}"#), Ok(None));
        for nonsense in ["<html>", "{}", r#"{"type":"ADDED","object":[]}"#, r#"{"type":"ADDED"}"#] {
            assert!(matches!(read(nonsense), Err(Failure::Nonsense(_))), "{nonsense}");
        }
    }
}
