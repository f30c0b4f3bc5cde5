//! Ports that the system gives to outgoing connections: a listener cannot count on one of them.

use std::io;
use std::ops::RangeInclusive;

/// The range that the system takes ports of outgoing connections from. `None`: it does not say.
pub(crate) fn outgoing() -> Option<RangeInclusive<u16>> {
    parse(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?)
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// Why a port cannot be listened on; with advice where another program may have it by chance.
pub(crate) fn explain(cause: io::Error, address: &str) -> io::Error {
    explain_within(cause, address, outgoing())
}

fn explain_within(
    cause: io::Error,
    address: &str,
    range: Option<RangeInclusive<u16>>,
) -> io::Error {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    match (cause.kind(), port, range) {
        (io::ErrorKind::AddrInUse, Some(port), Some(range)) if range.contains(&port) => {
            let (first, last) = range.into_inner();
            let advice = format!(
                "{cause}. The system gives ports {first} to {last} to outgoing connections, of any program: choose one \
                 below {first}"
            );
            io::Error::new(io::ErrorKind::AddrInUse, advice)
        }
        _ => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_in_use_is_advised_against_where_outgoing_connections_take_it() {
        let range = parse("32768\t60999\n").unwrap();
        assert_eq!(range, 32_768..=60_999);
        let explained = |kind: io::ErrorKind, address: &str| {
            explain_within(io::Error::from(kind), address, Some(range.clone())).to_string()
        };
        let in_use = explained(io::ErrorKind::AddrInUse, "127.0.0.1:40000");
        assert!(
            in_use.starts_with("address in use") && in_use.ends_with("choose one below 32768"),
            "{in_use}"
        );
        assert_eq!(explained(io::ErrorKind::AddrInUse, "127.0.0.1:4512"), "address in use");
        assert_eq!(
            explained(io::ErrorKind::PermissionDenied, "127.0.0.1:40000"),
            "permission denied"
        );
        assert_eq!(
            explain_within(io::ErrorKind::AddrInUse.into(), "[::]:40000", None).to_string(),
            "address in use"
        );
        assert_eq!((parse(""), parse("1"), parse("a b")), (None, None, None));
    }
}
