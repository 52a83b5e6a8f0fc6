//! Why a server did not do what it was asked for, in words that say what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use etcd_client::Error;

use crate::settings::EtcdSettings;

/// What is wrong with one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It may be over in a moment, and another server may do better.
    Failed(String),
    /// A person has to mend it.
    Refused {
        /// The reason, in one line.
        why: String,
        /// What to do.
        remedy: String,
    },
}

impl Fault {
    /// It took too long.
    pub(super) fn late(patience: Duration) -> Self {
        Self::Failed(format!("no answer within {patience:?}"))
    }

    /// Reads the client's error.
    pub(super) fn of(error: &Error, settings: &EtcdSettings) -> Self {
        let why = root(error);
        let Error::GRpcStatus(status) = error else { return Self::of_transport(why, settings) };
        let message = status.message();
        let refused = |remedy: &str| Self::Refused { why: one_line(message), remedy: remedy.to_owned() };
        // etcd's own words, the same from 3.2 to 3.6 (api/v3rpc/rpctypes/error.go).
        if message.contains("authentication failed") {
            refused("check --etcd-username and --etcd-password")
        } else if message.contains("user name is empty") || message.contains("invalid auth token") {
            refused("this etcd wants a user: give --etcd-username and --etcd-password")
        } else if message.contains("permission denied") {
            refused("grant the user read and write below --etcd-prefix")
        } else if message.contains("database space exceeded") {
            refused("compact and defragment etcd, then disarm its alarm")
        } else {
            Self::of_transport(why, settings)
        }
    }

    /// Trouble below gRPC. TLS tells what it dislikes in words only, which are rustls' own.
    fn of_transport(why: String, settings: &EtcdSettings) -> Self {
        let trusted = match &settings.ca {
            Some(path) => format!("the server's certificate is not signed by an authority in {} (--etcd-cafile)", path.display()),
            None => "the server's certificate is not signed by an authority that this machine trusts: give --etcd-cafile".to_owned(),
        };
        let shown = match &settings.identity {
            Some((path, _)) => format!("the server does not trust {} (--etcd-certfile)", path.display()),
            None => {
                "the server wants a client certificate: give --etcd-certfile and --etcd-keyfile".to_owned()
            }
        };
        let remedy = if why.contains("UnknownIssuer") || why.contains("BadSignature") {
            &trusted
        } else if why.contains("expired") || why.contains("Expired") {
            "renew the server's certificate, or set the clock"
        } else if why.contains("NotValidYet") || why.contains("not valid yet") {
            "set the clock: the server's certificate is not valid yet"
        } else if why.contains("NotValidForName") || why.contains("not valid for name") {
            "name the server in --etcd-endpoints as its certificate does, or add this name to the certificate"
        } else if why.contains("received fatal alert") {
            &shown
        } else if why.contains("InvalidContentType") {
            "the server speaks no TLS: write http:// in --etcd-endpoints"
        } else if why.contains("tls handshake eof") {
            // As etcd ends it; so does a server that is just killed.
            return Self::Failed(format!(
                "{why} (if the server has no TLS, write http:// in --etcd-endpoints)"
            ));
        } else if ended(&why) {
            // With TLS 1.3 a server judges the client's certificate when the client takes the connection for made, so
            // its alert may come too late to be read. A server that speaks another protocol, or is just killed, ends
            // connections like this too.
            let or_else = match settings.ca.is_some() || settings.identity.is_some() {
                true => format!(", or {shown}"),
                false => String::new(),
            };
            return Self::Failed(format!(
                "{why} (if that stays so, the wrong one of http:// and https:// stands in --etcd-endpoints{or_else})"
            ));
        } else if why.contains("KeyMismatch") || why.contains("keys may not be consistent") {
            "--etcd-keyfile is not the key of --etcd-certfile"
        } else {
            return Self::Failed(why);
        };
        Self::Refused { why, remedy: remedy.to_owned() }
    }
}

/// Whether the connection was ended without a word. hyper and the kernel write this with another first letter.
fn ended(why: &str) -> bool {
    let why = why.to_ascii_lowercase();
    ["connection closed", "broken pipe", "connection reset"].iter().any(|end| why.contains(end))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Refused { why, remedy } => write!(f, "{why}; {remedy}"),
        }
    }
}

/// The deepest reason: what stands above it says only that something failed.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut deepest = match error.downcast_ref::<Error>() {
        // The client's own error does not tell its source.
        Some(Error::TransportError(error)) => error as &(dyn StdError + 'static),
        Some(Error::GRpcStatus(status)) => status,
        Some(Error::IoError(error)) => error,
        _ => error,
    };
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    one_line(&deepest.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
