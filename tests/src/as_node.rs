//! Calls with the certificate of a node, as its thief could make them.

use std::fs;
use std::path::Path;

use meridian_net::grpc::{Peer, Way};
use meridian_net::tls::PemFile;
use meridian_net::{Credentials, Expected, Mutual};
use meridian_types::NodeId;
use tonic::transport::Channel;

/// A channel to node `to` at `address`, with the identity of the folder `identities` that belongs
/// to the node of this name. `cluster`: the id that calls name.
///
/// # Panics
/// When the identity cannot be used.
pub fn channel(
    identities: &Path,
    name: &str,
    (to, address): (NodeId, &str),
    cluster: &str,
) -> Channel {
    let file = |name: &str| {
        let path = identities.join(name);
        let bytes = fs::read(&path).unwrap();
        PemFile::new(path, bytes)
    };
    let (identity, authorities) = (file(&format!("{name}.pem")), file("authority.pem"));
    let credentials =
        Credentials { certificate: &identity, key: &identity, authorities: &authorities };
    let mutual = Mutual::new(credentials).unwrap();
    let way = Way::Tls {
        dialler: mutual.dialler().unwrap(),
        expected: Expected { cluster: None, node: Some(to) },
        or_plain: false,
    };
    let origin = format!("http://{cluster}.meridian").parse().unwrap();
    Peer::new(address, Some(origin), way).unwrap().channel()
}
