//! The CNI protocol (SPEC 1.1.0 and its predecessors back to 0.1.0): what a container runtime hands to a plugin and what it
//! gets back.
//!
//! ```text
//!  environment ──► Request ──► a plugin ──► AddResult ──► JSON of the version that was asked for, on stdout
//!  JSON on stdin ─►                    └──► CniError ──► JSON on stdout, exit status 1
//! ```
//!
//! Everything here is pure: the environment and stdin come as arguments.

mod error;
mod request;
mod result;
mod version;

pub use error::{CniError, Code};
pub use request::{Args, Attachment, Command, Request, no_device_name, parse_config};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::Version;

/// JSON as the reference library prints it: indented by four blanks, without a newline at its end.
pub fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut printer = serde_json::Serializer::with_formatter(&mut text, format);
    // Values of ours have string keys and finite numbers, and a Vec takes all.
    if value.serialize(&mut printer).is_err() {
        return String::new();
    }
    String::from_utf8(text).unwrap_or_default()
}
