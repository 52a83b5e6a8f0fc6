//! `resolv.conf(5)` as the reference plugin reads it.

use std::fs;
use std::path::Path;

use crate::protocol::{CniError, Dns};

/// Reads a file.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Dns, CniError> {
    let text = fs::read(path).map_err(|error| {
        CniError::io("read", path, &error).with_details("it is the resolvConf of the ipam configuration")
    })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Words of lines. Lists grow over several lines, the last domain counts; what is not known is passed over.
pub fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        let all = || [first].into_iter().chain(words).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(first.to_owned()),
            "domain" => first.clone_into(&mut dns.domain),
            "search" => dns.search.extend(all()),
            "options" => dns.options.extend(all()),
            _ => {}
        }
    }
    dns
}
