//! TLS: what is let in, and that what is not is told in one line that says what to mend.

use std::fs;
use std::path::{Path, PathBuf};

use lab::etcd::ServerTls;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use super::*;

const NETWORK: &str = r#"{"Network": "10.5.0.0/16"}"#;

/// An authority and the directory where it puts what it signs.
struct Authority<'a> {
    dir: &'a Path,
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    file: PathBuf,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let file = dir.join(format!("{name}.crt"));
        fs::write(&file, parameters.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(parameters, key), file }
    }

    /// A certificate for these names, and its key.
    fn sign(&self, file: &str, names: &[&str], years: [i32; 2]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_before = date_time_ymd(years[0], 1, 1);
        parameters.not_after = date_time_ymd(years[1], 1, 1);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, file);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let paths = (self.dir.join(format!("{file}.crt")), self.dir.join(format!("{file}.key")));
        fs::write(&paths.0, certificate.pem()).unwrap();
        fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }
}

const VALID: [i32; 2] = [2020, 2120];

fn server((certificate, key): (PathBuf, PathBuf), client_ca: Option<&Path>) -> Option<Etcd> {
    let client_ca = client_ca.map(Path::to_owned);
    let tls = Some(ServerTls { certificate, key, client_ca });
    let etcd = Etcd::start(&Setup { tls, ..Setup::default() }).unwrap();
    if etcd.is_none() {
        skipped(MISSING);
    }
    etcd
}

/// What opening the store and asking it ends with.
async fn ask(settings: &EtcdSettings) -> Result<(), StoreError> {
    let store = EtcdStore::open(settings)?;
    match store.network().await {
        // It was asked, and has nothing.
        Ok(_) | Err(StoreError::NoConfig { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn assert_says(case: &str, error: &StoreError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{case}: no {part:?} in: {text}");
    }
    assert!(!text.contains('\n'), "{case}: more than a line: {text}");
}

#[tokio::test]
async fn an_authority_alone_is_enough_and_nothing_is_said_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let Some(etcd) = server(ours.sign("server", &["127.0.0.1"], VALID), None) else { return };
    let settings = EtcdSettings { ca: Some(ours.file.clone()), ..settings(&etcd.urls()) };
    let store = EtcdStore::open(&settings).unwrap();
    let network = NetworkConfig::parse(NETWORK.as_bytes()).unwrap();
    let mut watch = store.watch().await.unwrap();
    let own = store.acquire(&network, &request(1)).await.unwrap();
    until(&mut watch, &mut Vec::new(), |known| known == [own.clone()]).await;
    // Without a scheme, as for etcdctl: certificates make it TLS.
    let bare = etcd.urls().iter().map(|url| url.trim_start_matches("https://").to_owned()).collect();
    ask(&EtcdSettings { endpoints: bare, ..settings.clone() }).await.unwrap();
    let clear = etcd.urls().iter().map(|url| url.replace("https", "http")).collect();
    let error = ask(&EtcdSettings { endpoints: clear, ..settings }).await.unwrap_err();
    assert_says("http to a port with TLS", &error, &["https://"]);
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let theirs = Authority::new(dir.path(), "theirs");
    let certificate = ours.sign("server", &["127.0.0.1"], VALID);
    let Some(etcd) = server(certificate, Some(&ours.file)) else { return };
    let with = |identity| EtcdSettings { ca: Some(ours.file.clone()), identity, ..settings(&etcd.urls()) };
    ask(&with(Some(ours.sign("client", &["node"], VALID)))).await.unwrap();
    let error = ask(&with(None)).await.unwrap_err();
    assert_says("no certificate", &error, &["--etcd-certfile", "--etcd-keyfile"]);
    let error = ask(&with(Some(theirs.sign("stranger", &["node"], VALID)))).await.unwrap_err();
    assert_says("a stranger's", &error, &["stranger.crt"]);
    let mixed = (ours.sign("one", &["node"], VALID).0, ours.sign("two", &["node"], VALID).1);
    let error = ask(&with(Some(mixed))).await.unwrap_err();
    assert_says("another key", &error, &["--etcd-keyfile"]);
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let theirs = Authority::new(dir.path(), "theirs");
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "no PEM").unwrap();
    for (case, certificate, ca, parts) in [
        (
            "another authority",
            ours.sign("a", &["127.0.0.1"], VALID),
            Some(&theirs.file),
            &["UnknownIssuer", "theirs.crt", "--etcd-cafile"][..],
        ),
        ("no authority of the machine", ours.sign("b", &["127.0.0.1"], VALID), None, &["--etcd-cafile"]),
        ("expired", ours.sign("c", &["127.0.0.1"], [2020, 2021]), Some(&ours.file), &["expired", "renew"]),
        (
            "not yet",
            ours.sign("d", &["127.0.0.1"], [2119, 2120]),
            Some(&ours.file),
            &["not valid yet", "clock"],
        ),
        (
            "another name",
            ours.sign("e", &["etcd.example"], VALID),
            Some(&ours.file),
            &["etcd.example", "name"],
        ),
        (
            "no file",
            ours.sign("f", &["127.0.0.1"], VALID),
            Some(&dir.path().join("none")),
            &["none", "cannot read"],
        ),
        ("no certificate", ours.sign("g", &["127.0.0.1"], VALID), Some(&garbage), &["garbage", "PEM"]),
    ] {
        let Some(etcd) = server(certificate, None) else { return };
        let error = ask(&EtcdSettings { ca: ca.cloned(), ..settings(&etcd.urls()) }).await.unwrap_err();
        assert_says(case, &error, parts);
        assert!(matches!(error, StoreError::Refused { .. }), "{case}: {error}");
    }
}

#[tokio::test]
async fn https_to_a_server_without_tls_is_told() {
    let Some(h) = EtcdHarness::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let endpoints = h.etcd.urls().iter().map(|url| url.replace("http", "https")).collect();
    let settings = EtcdSettings { endpoints, ca: Some(ours.file.clone()), ..h.settings() };
    assert_says("https", &ask(&settings).await.unwrap_err(), &["http://"]);
}

#[tokio::test]
async fn a_server_that_hangs_up_makes_us_doubt_the_scheme() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    // What is unread when a connection is closed makes a reset of its end.
    std::thread::spawn(move || {
        for accepted in server.incoming().flatten() {
            accepted.peek(&mut [0]).unwrap_or_default();
        }
    });
    for scheme in ["http", "https"] {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new(dir.path(), "ours").file;
        for ca in [None, Some(ca)] {
            let settings = EtcdSettings { ca, ..settings(&[format!("{scheme}://{address}")]) };
            let error = ask(&settings).await.unwrap_err();
            assert_says(scheme, &error, &["http://", "https://", &address.to_string()]);
            assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        }
    }
}
