//! A certificate of this machine for a development cluster, made anew at each start.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use meridian_config::CertificateFiles;
use rcgen::{CertificateParams, KeyPair};

/// Before its certificate ends, a development cluster is started again.
const VALID_FOR: TimeDelta = TimeDelta::days(365);

/// Makes a certificate for this machine and `host`, in a folder. Clients are given the file of the
/// certificate as an authority.
pub(super) fn certificate(
    folder: &Path,
    host: &str,
    now: DateTime<Utc>,
) -> Result<CertificateFiles> {
    let mut names: Vec<_> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    if !names.iter().any(|name| name == host) && !["0.0.0.0", "::", "[::]"].contains(&host) {
        names.push(host.to_owned());
    }
    let mut params = CertificateParams::new(names).context("a certificate cannot be made")?;
    [params.not_before, params.not_after] = [now - TimeDelta::days(1), now + VALID_FOR].map(|at| {
        let [month, day] = [at.month(), at.day()].map(|part| u8::try_from(part).unwrap_or(1));
        rcgen::date_time_ymd(at.year(), month, day)
    });
    let key = KeyPair::generate().context("a certificate cannot be made")?;
    let made = params.self_signed(&key).context("a certificate cannot be made")?;
    let folder = std::path::absolute(folder)?;
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    Ok(CertificateFiles {
        certificate: write("https.crt", made.pem())?,
        key: write("https.key", key.serialize_pem())?,
    })
}

#[cfg(test)]
mod tests {
    use meridian_net::tls::{Identity, PemFile};

    use super::*;

    #[test]
    fn certificate_of_a_development_cluster_is_read_again_and_valid_for_a_year() {
        let folder = tempfile::tempdir().unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let files = certificate(folder.path(), "dev.test", now).unwrap();
        let [certificate, key] = [&files.certificate, &files.key]
            .map(|path| PemFile::read(path, PemFile::MAX_BYTES).unwrap());
        let identity = Identity::from_pem(&certificate, &key).unwrap();
        let life = identity.valid_until().duration_since(identity.valid_from()).unwrap();
        assert_eq!(life.as_secs() / 86400, 366);
    }
}
