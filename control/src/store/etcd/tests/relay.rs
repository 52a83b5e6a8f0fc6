//! A wire between a node and etcd that can be cut.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Hands connections on to a server until it is cut.
pub(super) struct Relay {
    address: SocketAddr,
    wire: Arc<Mutex<Wire>>,
}

#[derive(Default)]
struct Wire {
    is_cut: bool,
    ends: Vec<TcpStream>,
}

impl Relay {
    /// A relay to the server behind an `http://` URL. Its threads end with the test's process.
    pub(super) fn to(url: &str) -> Self {
        let server: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Mutex::new(Wire::default()));
        let shared = wire.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let mut wire = shared.lock().unwrap();
                // A dropped connection is closed.
                if wire.is_cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect(server) else { continue };
                for end in [&near, &far] {
                    wire.ends.push(end.try_clone().unwrap());
                }
                pump(near.try_clone().unwrap(), far.try_clone().unwrap());
                pump(far, near);
            }
        });
        Self { address, wire }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes every connection and takes no new one.
    pub(super) fn cut(&self) {
        let mut wire = self.wire.lock().unwrap();
        wire.is_cut = true;
        for end in wire.ends.drain(..) {
            // One that is closed already is as it should be.
            end.shutdown(Shutdown::Both).ok();
        }
    }

    /// Takes connections again.
    pub(super) fn mend(&self) {
        self.wire.lock().unwrap().is_cut = false;
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Both).ok();
    });
}
