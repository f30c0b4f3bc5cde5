//! The authorities whose certificates this process believes of servers, and the client of TLS.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use meridian_net::tls::{self, PemFile, Versions};

use crate::http_version::HttpVersion;

static CLIENTS: OnceLock<Clients> = OnceLock::new();

struct Clients {
    h1: tls::Client,
    h2: tls::Client,
}

impl Clients {
    fn new(authorities: Option<&PemFile>) -> io::Result<Self> {
        let client = |alpn: &[u8]| {
            let config = tls::public_client(authorities, Versions::Tls12AndLater, &[alpn]);
            config.map(tls::Client::new)
        };
        Ok(Self { h1: client(b"http/1.1")?, h2: client(b"h2")? })
    }
}

/// Has this process believe the authorities of this file, in the place of those of the machine.
///
/// # Errors
/// The file is of no use, or connections over TLS were made already.
pub fn trust(file: &Path) -> io::Result<()> {
    let authorities = PemFile::read(file, PemFile::MAX_AUTHORITIES_BYTES)?;
    let late = |_| io::Error::other("authorities are chosen before connections are made");
    CLIENTS.set(Clients::new(Some(&authorities))?).map_err(late)
}

pub(crate) fn client(http: HttpVersion) -> io::Result<&'static tls::Client> {
    let clients = match CLIENTS.get() {
        Some(clients) => clients,
        None => {
            let of_machine = Clients::new(None)?;
            CLIENTS.get_or_init(|| of_machine)
        }
    };
    Ok(match http {
        HttpVersion::H1 => &clients.h1,
        HttpVersion::H2 => &clients.h2,
    })
}
