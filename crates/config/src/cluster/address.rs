//! Addresses, as `host:port`, that can be compared.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// `host:port`, so taken apart that two spellings of one address are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Ip(IpAddr),
    /// In lower case.
    Name(String),
}

/// Text that is not an address, or not one for this purpose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    #[error("`{0}` is not a host and a port, such as `10.0.0.1:4601`")]
    Malformed(String),
    #[error("`{0}` has port 0, which cannot be dialled")]
    PortZero(String),
    #[error("`{0}` stands for every address of a machine: write the address that others dial")]
    Unspecified(String),
}

impl Address {
    /// Takes any host and any port, 0 included.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() });
        }
        let named =
            text.rsplit_once(':').filter(|(host, port)| is_host_name(host) && is_number(port));
        match named.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
            Some((host, port)) => Ok(Self { host: Host::Name(host.to_ascii_lowercase()), port }),
            None => Err(InvalidAddress::Malformed(text.to_owned())),
        }
    }

    /// An address that something can connect to.
    pub(crate) fn parse_dialable(text: &str) -> Result<Self, InvalidAddress> {
        let address = Self::parse(text)?;
        if address.port == 0 {
            return Err(InvalidAddress::PortZero(text.to_owned()));
        }
        if address.host.is_unspecified() {
            return Err(InvalidAddress::Unspecified(text.to_owned()));
        }
        Ok(address)
    }

    /// Whether listening on both must fail.
    pub(crate) fn clashes_with(&self, other: &Self) -> bool {
        let same_host =
            self.host == other.host || self.host.is_unspecified() || other.host.is_unspecified();
        self.port != 0 && self.port == other.port && same_host
    }
}

impl Host {
    fn is_unspecified(&self) -> bool {
        matches!(self, Self::Ip(ip) if ip.is_unspecified())
    }

    /// On loopback one machine plays them all: trials and tests.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    // Digits and dots alone are an IP address that did not parse.
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    !numeric && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_address_are_equal() {
        let parse = |text| Address::parse(text).unwrap();
        assert_eq!(parse("KV.example.com:80"), parse("kv.example.com:80"));
        assert_eq!(parse("[::ffff:10.0.0.1]:80"), parse("10.0.0.1:80"));
        assert_eq!(parse("[0:0::1]:80"), parse("[::1]:80"));
        assert_ne!(parse("10.0.0.1:80"), parse("10.0.0.1:81"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "4601", ":4601", "host", "host:", "host:x", "host:65536", "host:+1", "::1:4601"]
        {
            assert_eq!(Address::parse(text), Err(InvalidAddress::Malformed(text.to_owned())));
        }
        for text in
            ["http://host:1", "300.1.1.1:1", "10.1:1", "a b:1", "a..b:1", "[::1]", "[::1]x:1"]
        {
            assert_eq!(Address::parse(text), Err(InvalidAddress::Malformed(text.to_owned())));
        }
        assert_eq!(
            Address::parse_dialable("h:0").unwrap_err().to_string(),
            "`h:0` has port 0, which cannot be dialled"
        );
        for text in ["0.0.0.0:1", "[::]:1"] {
            assert_eq!(
                Address::parse_dialable(text),
                Err(InvalidAddress::Unspecified(text.to_owned()))
            );
        }
    }

    #[test]
    fn listening_clashes() {
        let clash = |a, b| Address::parse(a).unwrap().clashes_with(&Address::parse(b).unwrap());
        assert!(clash("127.0.0.1:1", "127.0.0.1:1"));
        assert!(clash("0.0.0.0:1", "127.0.0.1:1"));
        assert!(!clash("127.0.0.2:1", "127.0.0.1:1"));
        assert!(!clash("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
    }
}
