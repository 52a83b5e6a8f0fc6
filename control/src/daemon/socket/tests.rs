use std::sync::Arc;

use tokio::sync::watch;

use super::*;
use crate::status::{Identity, NodeStatus, Reading, StoreStatus};

fn shown() -> Shown {
    let identity = Identity::of_this_process();
    let node = NodeStatus::starting(identity, "/run/x".into(), StoreStatus::default(), "a test");
    watch::channel(Arc::new(Reading { node, peers: Arc::default() })).1
}

/// A socket that answers in a directory that is made for it.
async fn answering(path: &Path) -> tokio::task::JoinHandle<()> {
    let served = tokio::spawn(serve(path.to_owned(), shown()));
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    served
}

async fn ask(path: &Path, question: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // An answer may come before the question is over.
    stream.write_all(question).await.ok();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok();
    answer
}

#[tokio::test]
async fn one_line_asks_and_one_line_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/flanneld.sock");
    let _served = answering(&path).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o750, 0o660));
    let status = ask(&path, b"status\n").await;
    assert!(status.ends_with('\n') && status.lines().count() == 1, "{status}");
    serde_json::from_str::<NodeStatus>(&status).unwrap();
    let peers = ask(&path, b"peers\r\n").await;
    assert!(serde_json::from_str::<PeersAnswer>(&peers).unwrap().peers.is_empty());
    assert!(ask(&path, b"stop\n").await.contains("the requests are: status, peers"));
    assert!(ask(&path, &[b'x'; LONGEST_REQUEST]).await.contains("at most 1024 bytes"));
    assert!(ask(&path, &[0xff, b'\n']).await.contains("error"));
}

#[tokio::test]
async fn a_socket_that_somebody_answers_on_is_left_alone_and_a_dead_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flanneld.sock");
    let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let refusal = Socket::bind(&path).await.err().unwrap().to_string();
    assert!(refusal.contains("another process answers there"), "{refusal}");
    drop(living);
    let ours = Socket::bind(&path).await.unwrap();
    assert!(ours.is_there());
    drop(ours);
    assert!(!path.exists(), "it goes with its owner");
}

#[tokio::test]
async fn nothing_but_a_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flanneld.sock");
    fs::write(&path, "precious").unwrap();
    let refusal = Socket::bind(&path).await.err().unwrap().to_string();
    assert!(refusal.contains("no socket"), "{refusal}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn one_that_took_our_place_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flanneld.sock");
    let first = Socket::bind(&path).await.unwrap();
    fs::remove_file(&path).unwrap();
    let second = Socket::bind(&path).await.unwrap();
    drop(first);
    assert!(second.is_there());
}
