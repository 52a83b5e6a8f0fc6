//! How a plugin refuses: a number that the runtime decides on, and a text for people.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Version;

/// The numbers of the specification, and one of the reference library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub u32);

impl Code {
    /// The configuration's version is not spoken, or does not have the command.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field of the configuration asks for what the plugin cannot do.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is not known; nothing needs to be cleaned up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or makes no sense.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: Self = Self(5);
    /// The configuration is not JSON, or not of the form it should have.
    pub const DECODING_FAILURE: Self = Self(6);
    /// The configuration contradicts itself or is incomplete.
    pub const INVALID_CONFIG: Self = Self(7);
    /// The network namespace is not a container's.
    pub const INVALID_NETNS: Self = Self(8);
    /// Something is not there yet: the runtime tries again.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: as above, and containers that exist may have lost their network.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// CHECK: the container's network is not what ADD made. The first number that plugins may give a meaning.
    pub const CHECK_FAILED: Self = Self(100);
    /// Anything else; the reference library's own number.
    pub const INTERNAL: Self = Self(999);
}

/// A refusal, or a failure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CniError {
    /// What kind.
    pub code: Code,
    /// What was attempted and why it failed, in one line.
    #[serde(rename = "msg")]
    pub message: String,
    /// More of it, or what to do.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// A failure that has no number of its own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    /// The configuration contradicts itself or is incomplete.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_CONFIG, message)
    }

    /// What CHECK found.
    pub fn check(message: impl Into<String>) -> Self {
        Self::new(Code::CHECK_FAILED, message)
    }

    /// A file could not be read or written: `action` is a verb, `read` or `make the directory`.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(Code::IO_FAILURE, format!("{action} {}: {error}", path.display()))
    }

    /// What is printed on stdout.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        struct Printed<'a> {
            #[serde(rename = "cniVersion")]
            version: &'static str,
            code: Code,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        super::pretty(&Printed {
            version: version.as_str(),
            code: self.code,
            msg: &self.message,
            details: &self.details,
        })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.details.is_empty() {
            true => f.write_str(&self.message),
            false => write!(f, "{}; {}", self.message, self.details),
        }
    }
}

impl std::error::Error for CniError {}

impl From<hostnet::HostError> for CniError {
    fn from(error: hostnet::HostError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<hostnet::filter::ProgramError> for CniError {
    fn from(error: hostnet::filter::ProgramError) -> Self {
        Self::internal(error.to_string())
    }
}
