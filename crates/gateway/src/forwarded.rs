//! The way that a request came by: from which address, over which scheme, to which host. Proxies tell
//! it in headers, which are believed of trusted ones alone: a client can write them as well.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use ipnet::IpNet;

/// Addresses of a header that are looked at, from the nearest proxy on.
const MAX_HOPS: usize = 32;

/// The networks of the proxies before a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Text that is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IP address and no network such as 10.0.0.0/8")]
pub struct InvalidNetwork(pub String);

impl TrustedProxies {
    /// # Errors
    /// The first of `networks` that is neither a network nor an address.
    pub fn parse<'a>(
        networks: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self, InvalidNetwork> {
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse().or_else(|_| address()).map_err(|_| InvalidNetwork(text.clone()))
        };
        networks.into_iter().map(network).collect::<Result<_, _>>().map(Self)
    }

    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The way that a request came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// Of the client, as far as the trusted proxies know it.
    pub(crate) address: IpAddr,
    pub(crate) is_https: bool,
    /// The host that the client named, if a proxy tells of it.
    pub(crate) host: Option<String>,
}

impl Way {
    /// Of a connection without proxies.
    pub(crate) fn direct(peer: IpAddr, is_https: bool) -> Self {
        Self { address: peer.to_canonical(), is_https, host: None }
    }

    /// Of a request that this connection carries. The client is the nearest address that is not a
    /// trusted proxy's: what lies behind it was written by it. `Forwarded` counts only where there is
    /// no `X-Forwarded-For`, `-Proto` or `-Host`: a proxy that writes these may let a client's
    /// `Forwarded` pass.
    pub(crate) fn behind(self, trusted: &TrustedProxies, headers: &HeaderMap) -> Self {
        if !trusted.trusts(self.address) {
            return self;
        }
        let [of, scheme, host] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
            .map(|name| list(headers, name));
        if of.is_empty() && scheme.is_empty() && host.is_empty() {
            return self.behind_forwarded(trusted, &list(headers, "forwarded"));
        }
        let (address, at) = nearest_untrusted(self.address, of.iter().copied(), trusted);
        let of_client = |values: &[&str]| {
            let aligned = values.len() == of.len();
            let value =
                if aligned { at.and_then(|at| values.iter().nth_back(at)) } else { values.first() };
            value.or(values.first()).map(|value| (*value).to_owned())
        };
        let is_https = of_client(&scheme).map_or(self.is_https, |scheme| is_https(&scheme));
        Self { address, is_https, host: of_client(&host) }
    }

    /// Each element is what one proxy tells.
    fn behind_forwarded(self, trusted: &TrustedProxies, elements: &[&str]) -> Self {
        let of = elements.iter().map(|element| pair(element, "for").unwrap_or_default());
        let (address, at) = nearest_untrusted(self.address, of, trusted);
        let element = at.and_then(|at| elements.iter().nth_back(at)).copied().unwrap_or_default();
        Self {
            address,
            is_https: pair(element, "proto").map_or(self.is_https, is_https),
            host: pair(element, "host").map(str::to_owned),
        }
    }
}

fn is_https(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("https")
}

/// The elements of all headers of this name, in order.
fn list<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// The value of a pair `name=value` of an element of `Forwarded`.
fn pair<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    named.next().map(|(_, value)| value.trim().trim_matches('"'))
}

/// The first address, from the end of `hops`, that is not a trusted proxy's, and how far from the
/// end it stands. Where a hop is no address, the proxy that told of it is as near as can be said.
fn nearest_untrusted<'a>(
    peer: IpAddr,
    hops: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &TrustedProxies,
) -> (IpAddr, Option<usize>) {
    let (mut nearest, mut at) = (peer, None);
    for (index, hop) in hops.rev().take(MAX_HOPS).enumerate() {
        at = Some(index);
        let Some(address) = address(hop) else { break };
        nearest = address;
        if !trusted.trusts(address) {
            break;
        }
    }
    (nearest, at)
}

/// With or without a port, and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address =
        bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn trusted(networks: &[&str]) -> TrustedProxies {
        TrustedProxies::parse(&networks.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
            .unwrap()
    }

    /// Of a plain connection from 10.0.0.1.
    fn way(
        trusts: &[&str],
        pairs: &[(&'static str, &'static str)],
    ) -> (String, bool, Option<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let direct = Way::direct("10.0.0.1".parse().unwrap(), false);
        let way = direct.behind(&trusted(trusts), &headers);
        (way.address.to_string(), way.is_https, way.host)
    }

    #[test]
    fn headers_of_a_client_are_not_believed() {
        for trusts in [&[][..], &["10.0.0.2", "192.168.0.0/16"]] {
            for pairs in [
                &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")][..],
                &[("forwarded", "for=1.2.3.4;proto=https;host=kv")],
                &[("x-forwarded-host", "kv")],
            ] {
                assert_eq!(way(trusts, pairs), ("10.0.0.1".to_owned(), false, None), "{pairs:?}");
            }
        }
    }

    #[test]
    fn client_is_the_nearest_address_that_is_no_proxy_of_ours() {
        let of = |value| way(&["10.0.0.0/8", "::1"], &[("x-forwarded-for", value)]).0;
        for (value, client) in [
            ("1.2.3.4", "1.2.3.4"),
            // The client has written the first one.
            ("8.8.8.8, 1.2.3.4, 10.0.0.7", "1.2.3.4"),
            ("8.8.8.8,1.2.3.4", "1.2.3.4"),
            ("10.0.0.9, 10.0.0.8", "10.0.0.9"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            // A proxy that tells of no address is the client.
            ("1.2.3.4, unknown", "10.0.0.1"),
            ("1.2.3.4, unknown, 10.0.0.7", "10.0.0.7"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(of(value), client, "{value}");
        }
        let two = [("x-forwarded-for", "8.8.8.8"), ("x-forwarded-for", "1.2.3.4, 10.0.0.7")];
        assert_eq!(way(&["10.0.0.0/8"], &two).0, "1.2.3.4");
    }

    #[test]
    fn scheme_and_host_are_those_that_the_client_came_by() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let (_, is_https, host) = way(&["10.0.0.0/8"], pairs);
            (is_https, host)
        };
        let kv = || Some("kv.test".to_owned());
        for (pairs, expected) in [
            (&[("x-forwarded-proto", "https")][..], (true, None)),
            (&[("x-forwarded-proto", "HTTPS"), ("x-forwarded-host", "kv.test")], (true, kv())),
            (&[("x-forwarded-proto", "http")], (false, None)),
            (&[("x-forwarded-proto", "https, http")], (true, None)),
            // One for each address: the client itself has written the first.
            (
                &[("x-forwarded-for", "8.8.8.8, 1.2.3.4"), ("x-forwarded-proto", "https, http")],
                (false, None),
            ),
            (
                &[("x-forwarded-for", "1.2.3.4, 10.0.0.7"), ("x-forwarded-proto", "https, http")],
                (true, None),
            ),
            (
                &[("forwarded", "for=192.0.2.1;proto=https;host=kv.test, For=\"10.0.0.7:80\"")],
                (true, kv()),
            ),
            (
                &[("forwarded", "proto=https;host=evil, for=192.0.2.1;proto=http;host=kv.test")],
                (false, kv()),
            ),
            // Written by the client, and let pass by a proxy that knows the other headers.
            (
                &[("x-forwarded-for", "1.2.3.4"), ("forwarded", "proto=https;host=evil")],
                (false, None),
            ),
        ] {
            assert_eq!(of(pairs), expected, "{pairs:?}");
        }
    }

    #[test]
    fn networks_are_addresses_or_prefixes() {
        let both = trusted(&["127.0.0.1", "10.0.0.0/8", "2001:db8::/32", "::1"]);
        for address in ["127.0.0.1", "10.255.0.1", "2001:db8:1::1", "::1"] {
            assert!(both.trusts(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.2", "11.0.0.1", "2001:db9::1", "::2"] {
            assert!(!both.trusts(address.parse().unwrap()), "{address}");
        }
        for text in ["", "10.0.0.0/33", "proxy", "10.0.0"] {
            let refused = TrustedProxies::parse(&[text.to_owned()]);
            assert_eq!(refused, Err(InvalidNetwork(text.to_owned())));
        }
    }
}
