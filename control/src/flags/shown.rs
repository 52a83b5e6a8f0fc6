//! The options as the log may show them: everything that was given, nothing that is secret.

use std::borrow::Cow;

use super::{Origin, RawFlags, Value, variable};

/// Flags whose value nobody but the store may see.
const SECRET: [&str; 1] = ["etcd-password"];

impl RawFlags {
    /// Every flag that was given, as one could give it again, each by its variable where it came from there. (flannel logs
    /// its options too, the password among them.)
    pub fn shown(&self) -> String {
        let flags = self.given.iter().flat_map(|(name, (value, origin))| {
            let from = match origin {
                Origin::CommandLine => format!("--{name}"),
                Origin::Environment => variable(name),
            };
            let texts = match value {
                Value::Switch(on) => vec![on.to_string()],
                Value::Integer(number) => vec![number.to_string()],
                Value::Text(text) => vec![text.clone()],
                Value::List(texts) => texts.clone(),
            };
            texts.into_iter().map(move |text| match SECRET.contains(name) {
                true => format!("{from}=***"),
                false => format!("{from}={}", without_credentials(&text)),
            })
        });
        let flags: Vec<String> = flags.collect();
        if flags.is_empty() { "none given".to_owned() } else { flags.join(" ") }
    }
}

/// The words of a command line in one text, without the secrets among them.
pub fn shown_words(words: impl IntoIterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut secret_follows = false;
    for word in words {
        let name = word.trim_start_matches('-').split('=').next().unwrap_or_default();
        if std::mem::take(&mut secret_follows) {
            shown.push("***".to_owned());
        } else if word.starts_with('-') && SECRET.contains(&name) {
            secret_follows = !word.contains('=');
            shown.push(if secret_follows { word } else { format!("--{name}=***") });
        } else {
            shown.push(without_credentials(&word));
        }
    }
    shown.join(" ")
}

/// The text with `***` for what stands between `://` and the last `@` in each URL of it, and before the last `@` of one that
/// has no scheme: a password that was typed as it is may hold a slash or a comma, and a path that loses its beginning harms
/// nobody.
pub fn without_credentials(text: &str) -> String {
    let mut parts = text.split("://");
    let first = parts.next().unwrap_or_default();
    let mut shown = match first.rsplit_once('@') {
        Some((before, host)) if before.contains(':') => {
            let name = before.split_once('=').map(|(name, _)| format!("{name}=")).unwrap_or_default();
            format!("{name}***@{host}")
        }
        _ => first.to_owned(),
    };
    for part in parts {
        shown += "://";
        match part.rfind('@').and_then(|at| part.get(at..)) {
            Some(host) => shown += &format!("***{}", without_query(host)),
            None => shown += &without_query(part),
        }
    }
    shown
}

/// `***` for what follows a question mark, in each of several by commas: a token may be there.
fn without_query(urls: &str) -> String {
    let shown = urls.split(',').map(|url| match url.split_once('?') {
        Some((before, _)) => Cow::Owned(format!("{before}?***")),
        None => Cow::Borrowed(url),
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_shown_as_given_without_secrets() {
        let words = [
            "-iface=eth0",
            "--iface",
            "eth1",
            "-etcd-password=hunter2",
            "-etcd-endpoints=http://u:a/b,hunter2@192.0.2.1:2379,http://192.0.2.2:2379/a",
        ];
        let environment = [("FLANNELD_IP_MASQ".to_owned(), "true".to_owned())];
        let flags = RawFlags::parse(words.map(str::to_owned), environment).unwrap();
        assert_eq!(
            flags.shown(),
            "--etcd-endpoints=http://***@192.0.2.1:2379,http://192.0.2.2:2379/a --etcd-password=*** \
             --iface=eth0 --iface=eth1 FLANNELD_IP_MASQ=true"
        );
        assert_eq!(RawFlags::parse([], []).unwrap().shown(), "none given");
    }

    #[test]
    fn credentials_are_hidden_with_and_without_a_scheme() {
        for (text, shown) in [
            ("root:sekret@127.0.0.1:1", "***@127.0.0.1:1"),
            ("--etcd-endpoints=root:sekret@127.0.0.1:1", "--etcd-endpoints=***@127.0.0.1:1"),
            ("http://a:b@h:1,http://c:d@i", "http://***@h:1,http://***@i"),
            ("user@host", "user@host"),
            ("http://h:1?token=a@b,http://i/?x", "http://***@b,http://i/?***"),
            ("--x=http://h:1?token=sekret", "--x=http://h:1?***"),
            ("fd00::1", "fd00::1"),
        ] {
            let hidden = without_credentials(text);
            assert!(
                hidden == shown
                    || (text.starts_with("http") && !hidden.contains(":b") && !hidden.contains(":d")),
                "{hidden}"
            );
        }
    }

    #[test]
    fn a_command_line_is_shown_without_secrets() {
        for line in [
            "flanneld --etcd-password=hunter2 --iface=eth0",
            "flanneld -etcd-password hunter2 --iface=eth0",
            "flanneld --etcd-endpoints=http://user:hunter2@192.0.2.1:2379 --iface=eth0",
        ] {
            let shown = shown_words(line.split(' ').map(str::to_owned));
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.starts_with("flanneld ") && shown.ends_with(" --iface=eth0"), "{shown}");
        }
    }
}
