//! The holder of a certificate, as a URI among the certificate's alternative names:
//! `meridian://CLUSTER/node/7`, `meridian://CLUSTER/gateway/NAME`,
//! `meridian://CLUSTER/operator/LEVEL/NAME` or `meridian://CLUSTER/observer/NAME`.

use std::fmt;
use std::str::FromStr;

use meridian_types::limits::MAX_NAME_BYTES;
use meridian_types::{Level, NodeId};

const SCHEME: &str = "meridian://";

/// The holder of a certificate within its cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A node: a peer of all others.
    Node(NodeId),
    /// A gateway without data.
    Gateway(String),
    /// A person or a program that gives orders.
    Operator { level: Level, name: String },
    /// A monitor, which sees the status of nodes and nothing else.
    Observer(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Gateway(name) => write!(f, "gateway/{name}"),
            Self::Operator { level, name } => write!(f, "operator/{level}/{name}"),
            Self::Observer(name) => write!(f, "observer/{name}"),
        }
    }
}

/// A holder in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// The id of the cluster: hexadecimal digits.
    pub cluster: String,
    pub holder: Holder,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.holder)
    }
}

/// A URI that names no holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no holder of a cluster: meridian://CLUSTER/ and then node/ID, gateway/NAME, \
     operator/LEVEL/NAME or observer/NAME"
)]
pub struct NotASubject(pub String);

/// Whether a URI is meant to name a holder.
pub(crate) fn is_meant(uri: &str) -> bool {
    uri.starts_with(SCHEME)
}

fn name(text: &str) -> Option<String> {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(is_sound);
    fits.then(|| text.to_owned())
}

impl FromStr for Subject {
    type Err = NotASubject;

    fn from_str(uri: &str) -> Result<Self, NotASubject> {
        let parsed = || {
            let (cluster, holder) = uri.strip_prefix(SCHEME)?.split_once('/')?;
            let is_id = (16..=64).contains(&cluster.len())
                && cluster.bytes().all(|b| b.is_ascii_hexdigit());
            let mut parts = holder.split('/');
            let holder = match (parts.next()?, parts.next()?, parts.next()) {
                // One way to write a number: an id is compared as text elsewhere.
                ("node", id, None) => {
                    let node = id.parse().ok().filter(|node| *node != 0)?;
                    Holder::Node(Some(NodeId(node)).filter(|node| node.to_string() == id)?)
                }
                ("gateway", text, None) => Holder::Gateway(name(text)?),
                ("operator", level, Some(text)) => {
                    Holder::Operator { level: level.parse().ok()?, name: name(text)? }
                }
                ("observer", text, None) => Holder::Observer(name(text)?),
                _ => return None,
            };
            let is_whole = is_id && parts.next().is_none();
            is_whole.then(|| Self { cluster: cluster.to_owned(), holder })
        };
        // A name of unbounded length does not go into logs.
        parsed().ok_or_else(|| NotASubject(uri.chars().take(200).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: &str = "00ff00ff00ff00ff";

    #[test]
    fn subject_is_read_as_it_was_written() {
        let operator = |level| Holder::Operator { level, name: "ana.b-c_1".to_owned() };
        let mut holders: Vec<_> = Level::ALL.into_iter().map(operator).collect();
        holders.extend([
            Holder::Node(NodeId(7)),
            Holder::Node(NodeId(u64::MAX)),
            Holder::Gateway("edge".to_owned()),
            Holder::Gateway("x".repeat(MAX_NAME_BYTES)),
            Holder::Observer("prometheus".to_owned()),
        ]);
        for holder in holders {
            let subject = Subject { cluster: CLUSTER.to_owned(), holder };
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
    }

    #[test]
    fn uri_that_names_no_holder_is_refused() {
        for holder in [
            "",
            "node",
            "node/",
            "node/0",
            "node/07",
            "node/+7",
            "node/-1",
            "node/7/8",
            "gateway/",
            "gateway/a b",
            "gateway/a/b",
            "operator/ana",
            "operator/root/ana",
            "operator/admin/",
            "operator/admin/a/b",
            "peer/1",
            "observer/",
            "node/18446744073709551616",
        ] {
            let uri = format!("meridian://{CLUSTER}/{holder}");
            assert!(uri.parse::<Subject>().is_err(), "{uri}");
        }
        for uri in ["meridian://0/node/1", "meridian://x0ff00ff00ff00ff/node/1", "http://a/node/1"]
        {
            assert!(uri.parse::<Subject>().is_err(), "{uri}");
        }
        let long = format!("meridian://{CLUSTER}/gateway/{}", "x".repeat(MAX_NAME_BYTES + 1));
        assert!(long.parse::<Subject>().is_err());
    }

    proptest! {
        #[test]
        fn text_is_one_subject_or_none(text in "meridian://[0-9a-f]{15,17}/[a-z/0-9.]{0,20}") {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }
}
