//! The rules for names and addresses.

use meridian_types::limits::MAX_NAME_BYTES;

use crate::change::{Refused, ensure};

/// Names stand in paths, labels and file names: letters, digits, `-_.`, and what else is allowed
/// here.
pub(super) fn check_name(what: &str, name: &str, also: &[char]) -> Result<(), Refused> {
    ensure(!name.is_empty(), || format!("the name of a {what} may not be empty"))?;
    ensure(name.len() <= MAX_NAME_BYTES, || {
        format!("the name of a {what} has at most {MAX_NAME_BYTES} bytes")
    })?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || also.contains(&c);
    ensure(name.chars().all(is_allowed), || {
        let also: String = also.iter().collect();
        format!("`{name}` cannot name a {what}: letters, digits and any of -_.{also} can")
    })
}

/// `host:port`.
pub(super) fn check_address(what: &str, address: &str) -> Result<(), Refused> {
    let is_host = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    ensure(is_host(host) && port.parse::<u16>().is_ok(), || {
        format!("`{address}` is not a {what} address: host:port is wanted")
    })
}
