//! One server of `--etcd-endpoints`.

use std::fmt;

use crate::store::StoreError;

/// A server's URL. Printed without what a person may have written before an `@`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    scheme: &'static str,
    /// `127.0.0.1:2379`, with whatever follows.
    rest: String,
}

impl Endpoint {
    /// Takes a URL, or only an address with a port: that is https where certificates are given, else http, as for etcdctl.
    pub(super) fn parse(text: &str, with_tls: bool) -> Result<Self, StoreError> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => ("http", rest),
            Some(("https", rest)) => ("https", rest),
            Some(_) => return Err(Self::refuse(text)),
            None if with_tls => ("https", text),
            None => ("http", text),
        };
        let endpoint = Self { scheme, rest: rest.trim_end_matches('/').to_owned() };
        if endpoint.address().is_empty() || rest.contains(|c: char| c.is_whitespace() || "?#".contains(c)) {
            return Err(Self::refuse(text));
        }
        Ok(endpoint)
    }

    /// As the client wants it.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// The connection is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.scheme == "https"
    }

    fn address(&self) -> &str {
        self.rest.rsplit_once('@').map_or(self.rest.as_str(), |(_, address)| address)
    }

    fn refuse(text: &str) -> StoreError {
        let shown = text.rsplit_once('@').map_or(text, |(_, address)| address);
        let shown = shown.split(['?', '#']).next().unwrap_or_default();
        StoreError::Refused {
            store: "etcd".to_owned(),
            doing: "be asked",
            why: format!("the endpoint {shown:?} is no URL of a server"),
            remedy: "give --etcd-endpoints like https://192.0.2.1:2379, several by commas".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_scheme_is_completed_as_etcdctl_does() {
        for (text, with_tls, url) in [
            ("127.0.0.1:2379", false, "http://127.0.0.1:2379"),
            ("127.0.0.1:2379", true, "https://127.0.0.1:2379"),
            ("http://etcd:2379/", true, "http://etcd:2379"),
            (" https://[::1]:2379", false, "https://[::1]:2379"),
        ] {
            assert_eq!(Endpoint::parse(text, with_tls).unwrap().url(), url);
        }
    }

    #[test]
    fn what_is_no_url_is_refused_and_a_secret_is_not_repeated() {
        for text in
            ["", "https://", "unix:///run/etcd", "ftp://u:hunter2@host", "http://a b", "http://a?x=hunter2"]
        {
            let error = Endpoint::parse(text, false).unwrap_err().to_string();
            assert!(error.contains("--etcd-endpoints") && !error.contains("hunter2"), "{error}");
        }
        let shown = format!("{0} {0:?}", Endpoint::parse("https://u:hunter2@host:1", false).unwrap());
        assert_eq!(shown, "https://host:1 https://host:1");
    }
}
