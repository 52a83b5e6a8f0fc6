//! The command line and the environment, exactly as given: [`RawFlags`]. What they mean is [`crate::settings`]'s business.
//!
//! flanneld's flags follow the grammar of Go's `flag` package, which no Rust argument parser speaks: one dash or two are
//! the same, a boolean takes its value only with `=`, the first word that is not a flag ends the flags, and integers may
//! be written `0x10`, `0o17` or `0b11`. The whole grammar is the table [`FLAGS`] and the parser below; a new flag is one row.
//!
//! One difference from flannel is deliberate: flannel answers an unknown flag or a bad value with its usage and exit
//! status **0**, so a supervisor takes the typo for a clean end. Here it is an error that names the nearest flag, and
//! the exit status is 2.

use std::collections::BTreeMap;
use std::fmt;

mod help;
mod shown;
mod table;

pub use help::Help;
pub use shown::{shown_words, without_credentials};
pub use table::{FLAGS, Flag, Kind};

/// Every variable that sets a flag starts with this.
pub const ENVIRONMENT_PREFIX: &str = "FLANNELD_";

/// flannel's variables that are no flags: who this node is for the Kubernetes API.
pub const OTHER_VARIABLES: [&str; 3] = ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"];

/// Where a value came from. The command line wins over the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A word on the command line.
    CommandLine,
    /// A `FLANNELD_*` variable.
    Environment,
}

/// A flag's value after the grammar, before any meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A boolean.
    Switch(bool),
    /// An integer; the range is checked where its meaning is known.
    Integer(i64),
    /// Text as it was typed.
    Text(String),
    /// The values of a flag that may be repeated, in the order given.
    List(Vec<String>),
}

/// What the user gave, checked for grammar only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawFlags {
    given: BTreeMap<&'static str, (Value, Origin)>,
    /// Words after the flags. The daemon ignores them, as flannel does, but says so: `-ip-masq true` ends here.
    pub words: Vec<String>,
    /// `FLANNELD_*` variables that no flag answers to, each with the nearest one.
    pub unknown_variables: Vec<(String, String)>,
    /// Those of [`OTHER_VARIABLES`] that are set.
    pub variables: BTreeMap<&'static str, String>,
    /// `-h` or `--help` was given.
    pub help: bool,
}

/// Why the flags were refused. The text is one sentence for a person; nobody needs to tell the variants apart by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No flag has this name. The process ends with status 2.
    #[error("unknown flag {typed}{}. `flanneld --help` lists them all", hint(*nearest))]
    Unknown {
        /// The flag with the dashes the user typed.
        typed: String,
        /// The closest name by edit distance, if one is close.
        nearest: Option<&'static str>,
    },
    /// A flag that takes a value stood at the end of the line.
    #[error("--{name} needs a value: --{name}={example}")]
    MissingValue {
        /// The flag.
        name: &'static str,
        /// What a value looks like.
        example: &'static str,
    },
    /// The value does not fit the flag's kind.
    #[error("{from}: {text:?} is not {expected}")]
    BadValue {
        /// The flag or the variable, as the user would write it.
        from: String,
        /// The refused value.
        text: String,
        /// What would have been taken.
        expected: &'static str,
    },
    /// Three dashes, or a dash with no name behind it.
    #[error(
        "{typed:?} is not a flag: one or two dashes, a name, and the value after `=` or as the next word"
    )]
    BadSyntax {
        /// The refused word.
        typed: String,
    },
}

impl RawFlags {
    /// Parses `words` (without the program's name) and the environment. Variables that neither start with
    /// [`ENVIRONMENT_PREFIX`] nor are in [`OTHER_VARIABLES`] are passed over; an empty variable counts as unset.
    pub fn parse(
        words: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        flags.take_words(words.into_iter())?;
        // Help and the version answer whatever the environment holds.
        if !flags.help && !flags.switch("version") {
            flags.take_environment(environment)?;
        }
        Ok(flags)
    }

    /// The flag's boolean, or its default.
    pub fn switch(&self, name: &str) -> bool {
        match self.value(name) {
            Some(Value::Switch(on)) => *on,
            _ => find(name).is_some_and(|flag| flag.default == "true"),
        }
    }

    /// The flag's integer, or its default.
    pub fn integer(&self, name: &str) -> i64 {
        match self.value(name) {
            Some(Value::Integer(n)) => *n,
            _ => find(name).and_then(|flag| parse_integer(flag.default)).unwrap_or(0),
        }
    }

    /// The flag's text, or its default; empty means not given.
    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Some(Value::Text(text)) => text,
            _ => find(name).map_or("", |flag| flag.default),
        }
    }

    /// Every value of a repeatable flag.
    pub fn list(&self, name: &str) -> &[String] {
        match self.value(name) {
            Some(Value::List(all)) => all,
            _ => &[],
        }
    }

    /// The flag stands on the command line or in the environment.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// How the user would recognise the flag in an error: `--iface`, or `FLANNELD_IFACE` when that was its source.
    pub fn source(&self, name: &str) -> String {
        match self.given.get(name) {
            Some((_, Origin::Environment)) => variable(name),
            _ => format!("--{name}"),
        }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.given.get(name).map(|(value, _)| value)
    }

    fn take_words(&mut self, mut words: impl Iterator<Item = String>) -> Result<(), FlagError> {
        while let Some(word) = words.next() {
            if word == "--" {
                self.words = words.collect();
                return Ok(());
            }
            if word == "-" || !word.starts_with('-') {
                self.words = std::iter::once(word).chain(words).collect();
                return Ok(());
            }
            let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
            if body.is_empty() || body.starts_with(['-', '=']) {
                return Err(FlagError::BadSyntax { typed: word });
            }
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            if name == "h" || name == "help" {
                self.help = true;
                continue;
            }
            let dashes = word.len() - body.len();
            let Some(flag) = find(name) else {
                let typed = word.get(..dashes + name.len()).unwrap_or(name).to_owned();
                let nearest = Some(nearest(name)).filter(|nearest| likeness(name, nearest) >= ALIKE);
                return Err(FlagError::Unknown { typed, nearest });
            };
            let text = match (flag.kind, inline) {
                (_, Some(text)) => text,
                (Kind::Switch, None) => "true".to_owned(),
                (_, None) => words
                    .next()
                    .ok_or(FlagError::MissingValue { name: flag.name, example: flag.placeholder })?,
            };
            self.set(flag, text, Origin::CommandLine, || format!("--{}", flag.name))?;
        }
        Ok(())
    }

    fn take_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), FlagError> {
        for (name, text) in environment {
            if text.is_empty() {
                continue;
            }
            let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
                if let Some(known) = OTHER_VARIABLES.into_iter().find(|known| *known == name) {
                    self.variables.insert(known, text);
                }
                continue;
            };
            let known = FLAGS.iter().find(|flag| variable_part(flag.name) == rest);
            let Some(flag) = known else {
                let nearest = variable(nearest(&rest.to_ascii_lowercase().replace('_', "-")));
                self.unknown_variables.push((name, nearest));
                continue;
            };
            if !self.given.contains_key(flag.name) {
                self.set(flag, text, Origin::Environment, || name.clone())?;
            }
        }
        Ok(())
    }

    fn set(
        &mut self,
        flag: &Flag,
        text: String,
        origin: Origin,
        from: impl Fn() -> String,
    ) -> Result<(), FlagError> {
        let refuse = |text: String, expected| FlagError::BadValue { from: from(), text, expected };
        let value = match flag.kind {
            Kind::Switch => Value::Switch(parse_bool(&text).ok_or_else(|| refuse(text, "true or false"))?),
            Kind::Integer => {
                Value::Integer(parse_integer(&text).ok_or_else(|| refuse(text, "a whole number"))?)
            }
            Kind::Text => Value::Text(text),
            Kind::List => {
                let mut all = match self.given.remove(flag.name) {
                    Some((Value::List(all), _)) => all,
                    _ => Vec::new(),
                };
                all.push(text);
                Value::List(all)
            }
        };
        self.given.insert(flag.name, (value, origin));
        Ok(())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(on) => write!(f, "{on}"),
            Self::Integer(n) => write!(f, "{n}"),
            Self::Text(text) => f.write_str(text),
            Self::List(all) => f.write_str(&all.join(" ")),
        }
    }
}

/// The variable that sets a flag: `ip-masq` is `FLANNELD_IP_MASQ`.
pub fn variable(name: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", variable_part(name))
}

fn variable_part(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Below this a suggestion is worse than none.
const ALIKE: f64 = 0.5;

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; the nearest is --{name}")).unwrap_or_default()
}

/// Swapped letters are one slip; what is added to a short name counts more than what is missing from a long one.
fn likeness(typed: &str, name: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(typed, name)
}

fn nearest(name: &str) -> &'static str {
    FLAGS
        .iter()
        .filter(|flag| !flag.hidden)
        .map(|flag| flag.name)
        .max_by(|a, b| likeness(name, a).total_cmp(&likeness(name, b)))
        .unwrap_or("help")
}

/// The spellings Go's `strconv.ParseBool` takes.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt` with base 0: a sign, then `0x`, `0o`, `0b`, a leading `0` for octal, or decimal; `_` may
/// stand between digits and after the prefix.
fn parse_integer(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let lower = unsigned.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (8, rest)
    } else {
        (10, lower.as_str())
    };
    let digits = if radix == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    if digits.starts_with('_')
        || digits.ends_with('_')
        || digits.contains("__")
        || digits.starts_with(['+', '-'])
    {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(words: &[&str]) -> Result<RawFlags, FlagError> {
        with_environment(words, &[])
    }

    fn with_environment(words: &[&str], environment: &[(&str, &str)]) -> Result<RawFlags, FlagError> {
        RawFlags::parse(
            words.iter().map(|&word| word.to_owned()),
            environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())),
        )
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        for words in
            [["-iface", "eth0"].as_slice(), &["--iface", "eth0"], &["-iface=eth0"], &["--iface=eth0"]]
        {
            assert_eq!(parse(words).unwrap().list("iface"), ["eth0"], "{words:?}");
        }
    }

    #[test]
    fn a_boolean_takes_its_value_only_with_an_equals_sign() {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            assert!(parse(&[&format!("-ip-masq={yes}")]).unwrap().switch("ip-masq"), "{yes}");
        }
        for no in ["0", "f", "F", "false", "FALSE", "False"] {
            assert!(!parse(&[&format!("--ip-masq={no}")]).unwrap().switch("ip-masq"), "{no}");
        }
        let flags = parse(&["-ip-masq", "true", "--iface", "eth0"]).unwrap();
        assert!(flags.switch("ip-masq"));
        assert_eq!(flags.words, ["true", "--iface", "eth0"], "the first word ends the flags");
        assert!(
            parse(&["-ip-masq=yes"])
                .unwrap_err()
                .to_string()
                .contains("--ip-masq: \"yes\" is not true or false")
        );
    }

    #[test]
    fn flags_end_at_a_word_a_lone_dash_or_two_dashes() {
        assert_eq!(parse(&["-v=1", "demo", "-v=2"]).unwrap().words, ["demo", "-v=2"]);
        assert_eq!(parse(&["--", "-v=2"]).unwrap().words, ["-v=2"]);
        assert_eq!(parse(&["-", "-v=2"]).unwrap().words, ["-", "-v=2"]);
        for bad in ["---v", "-=1", "--=1"] {
            assert!(matches!(parse(&[bad]), Err(FlagError::BadSyntax { .. })), "{bad}");
        }
    }

    #[test]
    fn repeatable_flags_collect_and_others_keep_the_last() {
        let flags = parse(&["-iface=a", "-v=1", "-iface", "b", "-v", "2"]).unwrap();
        assert_eq!(flags.list("iface"), ["a", "b"]);
        assert_eq!(flags.integer("v"), 2);
    }

    #[test]
    fn integers_follow_go() {
        for (text, value) in [
            ("10", 10),
            ("0x1F", 31),
            ("0o17", 15),
            ("017", 15),
            ("0b101", 5),
            ("-3", -3),
            ("+3", 3),
            ("1_000", 1000),
            ("0x_ff", 255),
            ("0", 0),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_integer(text), Some(value), "{text}");
        }
        for text in [
            "",
            "x",
            "1.0",
            "1e3",
            "0x",
            "_1",
            "1_",
            "1__0",
            "9223372036854775808",
            "--1",
            "0b2",
            "-+1",
            "0x-1",
        ] {
            assert_eq!(parse_integer(text), None, "{text}");
        }
    }

    #[test]
    fn a_missing_value_is_named() {
        let error = parse(&["--public-ip"]).unwrap_err();
        assert!(matches!(error, FlagError::MissingValue { name: "public-ip", .. }));
    }

    #[test]
    fn an_unknown_flag_names_the_nearest() {
        let error = parse(&["-ifaec", "eth0"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown flag -ifaec; the nearest is --iface. `flanneld --help` lists them all"
        );
    }

    #[test]
    fn what_is_like_no_flag_gets_no_suggestion() {
        let error = parse(&["--alsologtostderr"]).unwrap_err();
        assert_eq!(error.to_string(), "unknown flag --alsologtostderr. `flanneld --help` lists them all");
    }

    #[test]
    fn the_nearest_flag_is_the_one_that_was_meant() {
        for (typed, meant) in [
            ("interface", "iface"),
            ("ifcae", "iface"),
            ("ipmasq", "ip-masq"),
            ("file-subnet-manager", "file-subnet-mgr"),
            ("net-config", "net-config-path"),
            ("public-ip6", "public-ipv6"),
            ("subnetfile", "subnet-file"),
        ] {
            assert_eq!(nearest(typed), meant, "{typed}");
        }
    }

    #[test]
    fn the_environment_fills_what_the_command_line_leaves_open() {
        let environment =
            [("FLANNELD_IP_MASQ", "true"), ("FLANNELD_IFACE", "a,b"), ("FLANNELD_V", ""), ("PATH", "x")];
        let flags = with_environment(&["--iface=eth0"], &environment).unwrap();
        assert!(flags.switch("ip-masq"));
        assert_eq!(flags.list("iface"), ["eth0"], "the command line wins");
        assert_eq!(flags.integer("v"), 0, "an empty variable is unset");
        let flags = with_environment(&[], &environment).unwrap();
        assert_eq!(flags.list("iface"), ["a,b"], "a variable is one element, whatever it holds");
    }

    #[test]
    fn a_bad_variable_is_named() {
        let error = with_environment(&[], &[("FLANNELD_V", "many")]).unwrap_err();
        assert_eq!(error.to_string(), "FLANNELD_V: \"many\" is not a whole number");
        let flags = with_environment(&[], &[("FLANNELD_IP_MASK", "1")]).unwrap();
        assert_eq!(flags.unknown_variables, [("FLANNELD_IP_MASK".to_owned(), "FLANNELD_IP_MASQ".to_owned())]);
    }

    #[test]
    fn version_and_help_do_not_look_at_the_environment() {
        assert!(with_environment(&["--version"], &[("FLANNELD_V", "many")]).unwrap().switch("version"));
        assert!(with_environment(&["-h"], &[("FLANNELD_V", "many")]).unwrap().help);
    }

    #[test]
    fn every_default_in_the_table_parses() {
        for flag in FLAGS {
            match flag.kind {
                Kind::Switch => assert!(parse_bool(flag.default).is_some(), "{}", flag.name),
                Kind::Integer => assert!(parse_integer(flag.default).is_some(), "{}", flag.name),
                Kind::Text => {}
                Kind::List => assert!(flag.default.is_empty(), "{}", flag.name),
            }
        }
    }

    proptest! {
        #[test]
        fn no_line_of_words_panics(words in proptest::collection::vec("-{0,3}[a-z=0-9_-]{0,12}|.{0,20}", 0..8)) {
            drop(RawFlags::parse(words, []));
        }

        #[test]
        fn integers_round_trip(n in any::<i64>()) {
            prop_assert_eq!(parse_integer(&n.to_string()), Some(n));
        }
    }
}
