//! What the kernel remembers of connections, by the program `conntrack`.
//!
//! A flow of UDP has no end that the kernel could see: while packets come, it is sent where its first packet was sent,
//! whatever the rules say by then.
use super::IpVersion;
use super::program::{ProgramError, run};

const PROGRAM: &str = "conntrack";

/// Forgets the flows of UDP that began with a packet to this port; answers whether there were any.
///
/// # Errors
/// The program is missing or cannot be run, or the kernel refuses.
pub async fn forget_udp_to(version: IpVersion, port: u16) -> Result<bool, ProgramError> {
    let family = match version {
        IpVersion::V4 => "ipv4",
        IpVersion::V6 => "ipv6",
    };
    let port = port.to_string();
    let arguments = ["-D", "-f", family, "-p", "udp", "--orig-port-dst", port.as_str()];
    match run(PROGRAM, &arguments, "").await {
        Ok(_) => Ok(true),
        // Status 1 is also that of "0 flow entries have been deleted".
        Err(ProgramError::Refused { said, .. }) if said.contains(" 0 flow entries") => Ok(false),
        Err(error) => Err(error),
    }
}
