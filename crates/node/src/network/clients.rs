//! The security of connections of clients to the gateway of this process: certificates from files,
//! which may change, its audit log, how much databases and tokens use, and what operators should know of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use meridian_config::GatewaySettings;
use meridian_gateway::{Audit, Options, Usage};
use meridian_net::tls::{self, Files, Identity, PemFile, Versions};
use parking_lot::Mutex;

/// A certificate whose end is nearer should have been renewed; or nearer than a quarter of its life.
const RENEWED_BEFORE: Duration = Duration::from_secs(14 * 86400);
/// Most programs prefer HTTP/2.
const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
const VALID_UNTIL: &str = "meridian_gateway_certificate_valid_until_seconds";

/// How clients are served, in the clear or with TLS.
pub(crate) struct ClientSecurity {
    tls: Option<tls::Server>,
    /// Why it matters that there is no TLS, if it does.
    in_the_clear: Option<String>,
    /// The certificates that are shown at present.
    shown: Mutex<Vec<Shown>>,
    files: Option<Files>,
    audit: Option<Audit>,
    usage: Usage,
}

/// A certificate as operators know it.
struct Shown {
    path: PathBuf,
    valid_from: SystemTime,
    valid_until: SystemTime,
}

impl ClientSecurity {
    /// Opens the audit log, and reads the certificates. `address`: where clients are listened for.
    /// `name`: of the gateway, in its audit log.
    ///
    /// # Errors
    /// The file that is of no use, and why.
    pub(crate) fn new(
        settings: &GatewaySettings,
        address: SocketAddr,
        name: &str,
    ) -> Result<Self, String> {
        let named = |error: &dyn std::fmt::Display| format!("[[gateway.certificates]]: {error}");
        let audit = settings.audit.clone().map(|settings| Audit::open(settings, name));
        let audit = audit.transpose().map_err(|error| format!("[gateway.audit]: {error}"))?;
        let (shown, usage) = Default::default();
        let mut security = Self { tls: None, in_the_clear: None, shown, files: None, audit, usage };
        if settings.certificates.is_empty() {
            security.in_the_clear = in_the_clear(settings, address);
            if let Some(warning) = security.in_the_clear.as_ref().filter(|_| !settings.insecure) {
                tracing::warn!("{warning}");
            }
            return Ok(security);
        }
        let pairs = settings.certificates.iter();
        let paths = pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]);
        let files = Files::read(paths.map(|path| (path, PemFile::MAX_BYTES)).collect())
            .map_err(|error| named(&error))?;
        let identities = security.identities(files.contents()).map_err(|error| named(&error))?;
        let config = server_config(identities).map_err(|error| named(&error))?;
        security.tls = Some(tls::Server::new(config).map_err(|error| named(&error))?);
        security.files = Some(files);
        for warning in security.key_files().iter().filter_map(|key| tls::exposed_key(key)) {
            tracing::warn!("{warning}");
        }
        Ok(security)
    }

    /// Certificate and key by turns. An ended certificate is shown nevertheless: a client that checks it
    /// refuses, and any other client is served.
    fn identities(&self, files: &[PemFile]) -> Result<Vec<Identity>, tls::Unusable> {
        let (mut identities, mut shown) = (Vec::new(), Vec::new());
        for pair in files.chunks(2) {
            let [certificate, key] = pair else { continue };
            let identity = Identity::from_pem(certificate, key)?;
            let path = certificate.path().to_owned();
            let (valid_from, valid_until) = (identity.valid_from(), identity.valid_until());
            shown.push(Shown { path, valid_from, valid_until });
            identities.push(identity);
        }
        for shown in &shown {
            shown.measure();
            if let Some(warning) = shown.warning(SystemTime::now()) {
                tracing::warn!("{warning}");
            }
        }
        *self.shown.lock() = shown;
        Ok(identities)
    }

    /// Shows changed certificates to new connections, from now on.
    pub(crate) async fn follow_files(self: Arc<Self>) {
        let (Some(server), Some(files)) = (&self.tls, self.files.clone()) else { return };
        tls::follow(files, |files| {
            let identities = self.identities(files).map_err(|error| error.to_string())?;
            let config = server_config(identities).map_err(|error| error.to_string())?;
            server.replace(config).map_err(|error| error.to_string())
        })
        .await;
    }

    /// With the private keys of the certificates.
    pub(crate) fn key_files(&self) -> Vec<PathBuf> {
        let files = self.files.as_ref().map(Files::contents).unwrap_or_default();
        files.iter().skip(1).step_by(2).map(|key| key.path().to_owned()).collect()
    }

    pub(crate) fn server(&self) -> Option<tls::Server> {
        self.tls.clone()
    }

    /// The counts of how much each database and token uses.
    pub(crate) fn usage(&self) -> Usage {
        self.usage.clone()
    }

    pub(crate) fn audit(&self) -> Option<Audit> {
        self.audit.clone()
    }

    /// The memory of a connection before its client is known.
    pub(crate) fn connection_bytes(&self) -> usize {
        let of_tls = self.tls.as_ref().map_or(0, |_| tls::CONNECTION_BYTES);
        Options::CONNECTION_BYTES + of_tls
    }

    /// For operators.
    pub(crate) fn warnings(&self, now: SystemTime) -> Vec<String> {
        let of_certificates = self.shown.lock();
        let of_certificates = of_certificates.iter().filter_map(|shown| shown.warning(now));
        let of_audit = self.audit.as_ref().and_then(Audit::warning);
        self.in_the_clear.iter().cloned().chain(of_certificates).chain(of_audit).collect()
    }
}

fn server_config(identities: Vec<Identity>) -> std::io::Result<tls::ServerConfig> {
    tls::public_server(identities, Versions::Tls12AndLater, ALPN)
}

fn in_the_clear(settings: &GatewaySettings, address: SocketAddr) -> Option<String> {
    let ends_before = !settings.trusted_proxies.networks().is_empty();
    if address.ip().to_canonical().is_loopback() || ends_before {
        return None;
    }
    let text = format!("clients reach the gateway at {address} in the clear");
    Some(if settings.insecure {
        format!("{text}, as gateway.insecure says")
    } else {
        format!(
            "{text}: name a certificate in [[gateway.certificates]], or in gateway.trusted_proxies the proxies where \
             TLS ends, or set gateway.insecure = true if that is meant"
        )
    })
}

impl Shown {
    fn warning(&self, now: SystemTime) -> Option<String> {
        let path = self.path.display();
        let Ok(left) = self.valid_until.duration_since(now) else {
            return Some(format!(
                "the certificate {path} is not valid any more: clients refuse it"
            ));
        };
        if self.valid_from > now {
            return Some(format!("the certificate {path} is not valid yet: clients refuse it"));
        }
        let life = self.valid_until.duration_since(self.valid_from).unwrap_or_default();
        let (days, hours) = (left.as_secs() / 86400, left.as_secs() / 3600 % 24);
        (left < RENEWED_BEFORE.min(life / 4)).then(|| {
            format!("the certificate {path} is valid for {days} days and {hours} hours more")
        })
    }

    fn measure(&self) {
        let until = self.valid_until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = self.path.display().to_string();
        metrics::gauge!(VALID_UNTIL, "certificate" => path).set(until.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use meridian_config::CertificateFiles;
    use meridian_gateway::TrustedProxies;
    use meridian_pki::{Authority, CERTIFICATE_LIFETIME, Holder, KeyAndRequest, Subject};
    use meridian_types::NodeId;

    use super::*;

    fn plain(address: &str, insecure: bool, trusted: &[&str]) -> Vec<String> {
        let trusted: Vec<_> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let trusted_proxies = TrustedProxies::parse(&trusted).unwrap();
        let settings = GatewaySettings { insecure, trusted_proxies, ..GatewaySettings::default() };
        let security = ClientSecurity::new(&settings, address.parse().unwrap(), "a").unwrap();
        assert!(security.server().is_none());
        security.warnings(SystemTime::now())
    }

    #[test]
    fn plain_port_is_warned_of_unless_it_is_on_loopback_or_behind_proxies() {
        let [warning] = &plain("0.0.0.0:4512", false, &[])[..] else { panic!("one warning") };
        for name in ["[[gateway.certificates]]", "gateway.trusted_proxies", "gateway.insecure"] {
            assert!(warning.contains(name), "{warning}");
        }
        let [warning] = &plain("[::]:4512", true, &[])[..] else { panic!("one warning") };
        assert_eq!(
            warning,
            "clients reach the gateway at [::]:4512 in the clear, as gateway.insecure says"
        );
        for (address, trusted) in
            [("127.0.0.1:1", &[][..]), ("[::1]:1", &[]), ("10.0.0.1:1", &["10.0.0.0/8"])]
        {
            assert_eq!(plain(address, false, trusted), Vec::<String>::new(), "{address}");
        }
    }

    #[test]
    fn keys_of_certificates_are_the_files_that_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["crt", "key"].map(|name| folder.path().join(name));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let (cluster, asked) = ("00ff00ff00ff00ff", KeyAndRequest::new().unwrap());
        let authority = Authority::new(cluster, now).unwrap();
        let subject = Subject { cluster: cluster.to_owned(), holder: Holder::Node(NodeId(1)) };
        let issued = authority.issue(&asked.request, &subject, now, CERTIFICATE_LIFETIME).unwrap();
        fs::write(&certificate, issued.chain_pem).unwrap();
        fs::write(&key, &asked.key_pem).unwrap();
        fs::set_permissions(&certificate, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let certificates = vec![CertificateFiles { certificate, key: key.clone() }];
        let settings = GatewaySettings { certificates, ..GatewaySettings::default() };
        let security = ClientSecurity::new(&settings, "127.0.0.1:1".parse().unwrap(), "a").unwrap();
        assert_eq!(security.key_files(), std::slice::from_ref(&key));
        assert!(tls::exposed_key(&key).is_some());
    }

    #[test]
    fn certificate_near_its_end_is_warned_of() {
        let day = Duration::from_secs(86400);
        let shown = |days: u32| {
            let valid_from = SystemTime::UNIX_EPOCH + day * 10_000;
            Shown { path: "a.crt".into(), valid_from, valid_until: valid_from + day * days }
        };
        let at = |day_of_life: u32| SystemTime::UNIX_EPOCH + day * (10_000 + day_of_life);
        assert_eq!(shown(90).warning(at(0)), None);
        assert_eq!(shown(90).warning(at(76)), None);
        assert!(shown(90).warning(at(77)).unwrap().contains("valid for 13 days and 0 hours more"));
        // It lives for less than that, and is renewed more often.
        assert_eq!(shown(8).warning(at(6)), None);
        assert!(shown(8).warning(at(7)).is_some());
        assert!(shown(8).warning(at(9)).unwrap().contains("not valid any more"));
        assert!(shown(8).warning(at(0) - day).unwrap().contains("not valid yet"));
    }
}
