//! Calls with the certificate of a node or a gateway, as its thief could make them.

use std::fs;
use std::path::{Path, PathBuf};

use meridian_config::IdentityFiles;
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
pub fn channel(identities: &Path, name: &str, to: (NodeId, &str), cluster: &str) -> Channel {
    let identity = identities.join(format!("{name}.pem"));
    let files = IdentityFiles {
        certificate: identity.clone(),
        key: identity,
        authorities: identities.join("authority.pem"),
        operator: None,
    };
    channel_with(&files, to, cluster)
}

/// The same with an identity in these files.
///
/// # Panics
/// When the identity cannot be used.
pub fn channel_with(
    files: &IdentityFiles,
    (to, address): (NodeId, &str),
    cluster: &str,
) -> Channel {
    let file = |path: &PathBuf| PemFile::new(path.clone(), fs::read(path).unwrap());
    let (certificate, key) = (file(&files.certificate), file(&files.key));
    let authorities = file(&files.authorities);
    let credentials =
        Credentials { certificate: &certificate, key: &key, authorities: &authorities };
    let mutual = Mutual::new(credentials).unwrap();
    let way = Way::Tls {
        dialler: mutual.dialler().unwrap(),
        expected: Expected { cluster: None, node: Some(to) },
        or_plain: false,
    };
    let origin = format!("http://{cluster}.meridian").parse().unwrap();
    Peer::new(address, Some(origin), way).unwrap().channel()
}
