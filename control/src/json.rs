//! JSON read by Go's rules, with positions: what flannel's `encoding/json` takes, and where each piece stands.
//!
//! Go matches keys without regard to case, lets a later duplicate win, takes `null` for "not given" and takes only
//! integers for integers. An error names line, column, what was expected and what was found.
//!
//! Positions come from [`RawValue`]: it borrows its text from the source, so the distance between the two is the offset.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A place in a text, both counted from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Position {
    /// The place `offset` bytes into `source`.
    pub fn of(source: &str, offset: usize) -> Self {
        let before = source.get(..offset).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Something about one place in a text: an error, or a warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {text}")]
pub struct Remark {
    /// Where.
    pub at: Position,
    /// What was expected, what was found and what to do.
    pub text: String,
}

/// One JSON value and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    source: &'a str,
    text: &'a str,
}

/// A JSON object: its members in the order of the text.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    node: Node<'a>,
    members: Vec<Member<'a>>,
}

/// One member of an object.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// The key as written, escapes resolved.
    pub key: String,
    /// Where the key stands.
    pub at: Position,
    /// Its value.
    pub value: Node<'a>,
}

impl<'a> Node<'a> {
    /// Checks that `bytes` is one JSON value in UTF-8 and nothing else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Remark> {
        let source = std::str::from_utf8(bytes).map_err(|error| {
            let valid = &bytes[..error.valid_up_to()];
            let before = std::str::from_utf8(valid).unwrap_or_default();
            Remark {
                at: Position::of(before, before.len()),
                text: format!("expected UTF-8 text, found the byte {:#04x}", bytes[valid.len()]),
            }
        })?;
        if source.trim_ascii().is_empty() {
            let text = "not JSON: nothing is in it".to_owned();
            return Err(Remark { at: Position::of(source, 0), text });
        }
        if source.starts_with('\u{feff}') {
            let text =
                "it begins with a byte order mark, which JSON does not allow: save it as UTF-8 without one";
            return Err(Remark { at: Position::of(source, 0), text: text.to_owned() });
        }
        let raw: &RawValue =
            serde_json::from_str(source).map_err(|error| syntax(source, 0, source, &error))?;
        Ok(Self { source, text: raw.get() })
    }

    /// The value's text as it stands in the source.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Where the value begins.
    pub fn position(&self) -> Position {
        Position::of(self.source, offset_in(self.source, self.text))
    }

    /// An error about this value: `expected …, found …`.
    pub fn expected(&self, expected: impl fmt::Display) -> Remark {
        let mut found: String = self.text.chars().take(40).collect();
        if found.len() < self.text.len() {
            found.push('…');
        }
        let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
        Remark { at: self.position(), text: format!("expected {expected}, found {found}") }
    }

    /// The value is `null`, which Go reads as not given.
    pub fn is_null(&self) -> bool {
        self.text == "null"
    }

    /// The value as an object, or an error that says `what` was expected.
    pub fn object(&self, what: &str) -> Result<Object<'a>, Remark> {
        if !self.text.starts_with('{') {
            return Err(self.expected(what));
        }
        let RawMembers(raw) = serde_json::from_str(self.text)
            .map_err(|error| syntax(self.source, offset_in(self.source, self.text), self.text, &error))?;
        let members = raw
            .into_iter()
            .map(|(key, value)| Member {
                // A key that the reader above let through is a JSON string; a lone surrogate in it is the exception.
                key: serde_json::from_str(key.get()).unwrap_or_else(|_| key.get().to_owned()),
                at: Position::of(self.source, offset_in(self.source, key.get())),
                value: Node { source: self.source, text: value.get() },
            })
            .collect();
        Ok(Object { node: *self, members })
    }

    /// The value as a boolean.
    pub fn boolean(&self) -> Result<bool, Remark> {
        self.text.parse().map_err(|_| self.expected("true or false"))
    }

    /// The value as an integer between `least` and `most`.
    pub fn integer(&self, least: u32, most: u32) -> Result<u32, Remark> {
        let refuse = || self.expected(format_args!("a whole number from {least} to {most}"));
        let number = self.text.parse::<u32>().map_err(|_| refuse())?;
        if (least..=most).contains(&number) { Ok(number) } else { Err(refuse()) }
    }

    /// The value as a string.
    pub fn string(&self) -> Result<String, Remark> {
        serde_json::from_str(self.text).map_err(|_| self.expected("a string"))
    }

    /// A string that holds a `T`; `expected` describes one.
    pub fn parsed<T: FromStr>(&self, expected: &str) -> Result<T, Remark> {
        let text = self.string().map_err(|_| self.expected(expected))?;
        text.parse().map_err(|_| self.expected(expected))
    }
}

impl<'a> Object<'a> {
    /// Every member, in order.
    pub fn members(&self) -> &[Member<'a>] {
        &self.members
    }

    /// The value of `key` by Go's rules: any case, the last one counts, `null` is not there.
    pub fn get(&self, key: &str) -> Option<Node<'a>> {
        self.members
            .iter()
            .rev()
            .find(|member| member.key.eq_ignore_ascii_case(key))
            .map(|member| member.value)
            .filter(|value| !value.is_null())
    }

    /// An error about `key`, which is not there: the unknown key that was meant for it, if there is one.
    pub fn missing(&self, key: &str, expected: &str, known: &[&str]) -> Remark {
        let typed = self.members.iter().find(|member| {
            !known.iter().any(|known| member.key.eq_ignore_ascii_case(known))
                && nearest(&member.key, known) == key
                && strsim::jaro_winkler(&member.key.to_ascii_lowercase(), &key.to_ascii_lowercase()) > 0.8
        });
        match typed {
            Some(member) => {
                let typed: String = member.key.chars().take(40).collect();
                let text = format!("{typed:?} is no key, it should be {key}: expected {expected}");
                Remark { at: member.at, text }
            }
            None => Remark { at: self.position(), text: format!("{key} is missing: expected {expected}") },
        }
    }

    /// Where the object begins.
    pub fn position(&self) -> Position {
        self.node.position()
    }

    /// A remark for each key that is not in `known`, with the nearest that is.
    pub fn unknown_keys(&self, known: &[&str], place: &str) -> Vec<Remark> {
        self.members
            .iter()
            .filter(|member| !known.iter().any(|key| member.key.eq_ignore_ascii_case(key)))
            .map(|member| {
                let nearest = nearest(&member.key, known);
                let key: String = member.key.chars().take(40).collect();
                let text = format!("{place} has no key {key:?}, it is ignored; the nearest is \"{nearest}\"");
                Remark { at: member.at, text }
            })
            .collect()
    }
}

/// The word of `known` that is closest to `typed`.
pub fn nearest<'k>(typed: &str, known: &[&'k str]) -> &'k str {
    let typed: String = typed.chars().take(64).collect::<String>().to_ascii_lowercase();
    known
        .iter()
        .copied()
        .max_by(|a, b| {
            strsim::jaro_winkler(&typed, &a.to_ascii_lowercase())
                .total_cmp(&strsim::jaro_winkler(&typed, &b.to_ascii_lowercase()))
        })
        .unwrap_or_default()
}

/// How far `part` stands inside `source`; both come from one buffer.
fn offset_in(source: &str, part: &str) -> usize {
    (part.as_ptr().addr()).saturating_sub(source.as_ptr().addr()).min(source.len())
}

/// serde_json's error, placed in the whole text: `text` begins `base` bytes into `source`.
fn syntax(source: &str, base: usize, text: &str, error: &serde_json::Error) -> Remark {
    let line_start: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    // serde_json counts the bytes read in the line, the offending one included.
    let mut offset = (line_start + error.column().saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    Remark { at: Position::of(source, base + offset), text: format!("not JSON: {message}") }
}

/// The members of one object as raw text; duplicates are kept.
struct RawMembers<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(&'de RawValue, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Members).map(RawMembers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(text: &str) -> Object<'_> {
        Node::parse(text.as_bytes()).unwrap().object("an object").unwrap()
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_one_counts() {
        let object = object(r#"{"vni": 1, "VNI": 2, "Vni": 3, "port": null}"#);
        assert_eq!(object.get("VNI").unwrap().integer(0, 9), Ok(3));
        assert!(object.get("Port").is_none(), "null is not given");
    }

    #[test]
    fn values_and_keys_know_where_they_stand() {
        let object = object("{\n  \"é\": \"ü\", \"Netwrok\": [1,\n2]\n}");
        let members = object.members();
        assert_eq!(members[0].at, Position { line: 2, column: 3 });
        assert_eq!(members[1].at, Position { line: 2, column: 13 });
        assert_eq!(members[1].value.position(), Position { line: 2, column: 24 });
        assert_eq!(members[1].value.expected("a string").text, "expected a string, found [1, 2]");
    }

    #[test]
    fn an_escaped_key_is_the_key_it_spells() {
        let object = object(r#"{"\u0056NI": 7}"#);
        assert_eq!(object.get("vni").unwrap().integer(0, 9), Ok(7));
    }

    #[test]
    fn integers_are_json_integers_in_range() {
        for bad in ["1.0", "1e1", "-1", "\"1\"", "true", "10", "99999999999999"] {
            let text = format!("{{\"a\": {bad}}}");
            assert!(object(&text).get("a").unwrap().integer(0, 9).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = Node::parse(b"{\n  \"a\": 1,\n  oops\n}").unwrap_err();
        assert_eq!(error.at, Position { line: 3, column: 3 });
        assert!(error.text.starts_with("not JSON: "), "{}", error.text);
        assert!(!error.text.contains("line"), "{}", error.text);
        for empty in [&b""[..], b" \n"] {
            let error = Node::parse(empty).unwrap_err();
            assert_eq!(error.to_string(), "1:1: not JSON: nothing is in it");
        }
        let error = Node::parse("\u{feff}{}".as_bytes()).unwrap_err();
        assert!(error.text.contains("byte order mark"), "{error}");
        let error = Node::parse(b"{}\n{}").unwrap_err();
        assert_eq!(error.at.line, 2);
        let error = Node::parse(b"{\"\xff\": 1}").unwrap_err();
        assert_eq!(error.at, Position { line: 1, column: 3 });
    }

    #[test]
    fn deep_nesting_is_no_stack_overflow() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
        if let Ok(node) = Node::parse(deep.as_bytes()) {
            assert_eq!(node.object("an object").unwrap().members().len(), 1);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(node) = Node::parse(&bytes) {
                drop(node.object("an object").map(|object| object.unknown_keys(&["a"], "x")));
            }
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\":,a-c0-9\\\\u \n]{0,60}") {
            if let Ok(node) = Node::parse(text.as_bytes()) {
                drop(node.object("an object").map(|object| object.unknown_keys(&["a"], "x")));
            }
        }
    }
}
