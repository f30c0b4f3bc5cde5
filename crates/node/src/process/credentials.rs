//! The certificate of a process and the authorities that it believes, read from files and again
//! when they change.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use meridian_config::IdentityFiles;
use meridian_net::tls::{self, Files, PemFile};
use meridian_net::{Credentials, Mutual};
use tokio_util::sync::CancellationToken;

use crate::process::start_error::StartError;

/// Reads the files of an identity, if there are any, and follows them until `follow_until`, if that
/// is given: files that this process writes itself are not followed.
///
/// # Errors
/// [`StartError::Identity`], naming the file and what is wrong with it.
pub(crate) fn read(
    files: Option<&IdentityFiles>,
    follow_until: Option<&CancellationToken>,
) -> Result<Arc<Mutual>, StartError> {
    let Some(files) = files else { return Ok(Arc::new(Mutual::empty())) };
    if let Some(warning) = tls::exposed_key(&files.key) {
        tracing::warn!("{warning}");
    }
    let files = Files::read(parts(files)).map_err(unusable)?;
    let mutual = Mutual::new(credentials(files.contents())?).map_err(unusable)?;
    let mutual = Arc::new(mutual);
    if let Some(stop) = follow_until.cloned() {
        let following = Arc::clone(&mutual);
        tokio::spawn(async move {
            let apply = move |contents: &[PemFile]| replace(&following, contents);
            stop.run_until_cancelled(tls::follow(files, apply)).await;
        });
    }
    Ok(mutual)
}

/// With how many bytes each has at most.
fn parts(files: &IdentityFiles) -> Vec<(PathBuf, usize)> {
    vec![
        (files.certificate.clone(), PemFile::MAX_BYTES),
        (files.key.clone(), PemFile::MAX_BYTES),
        (files.authorities.clone(), PemFile::MAX_AUTHORITIES_BYTES),
    ]
}

fn credentials(contents: &[PemFile]) -> Result<Credentials<'_>, StartError> {
    match contents {
        [certificate, key, authorities] => Ok(Credentials { certificate, key, authorities }),
        _ => Err(StartError::Identity("it has three files".to_owned())),
    }
}

fn unusable(error: impl Display) -> StartError {
    StartError::Identity(error.to_string())
}

fn replace(mutual: &Mutual, contents: &[PemFile]) -> Result<(), StartError> {
    mutual.replace(credentials(contents)?).map_err(unusable)?;
    let subject = mutual.own().map(|own| own.subject.to_string());
    tracing::info!(subject, "the certificate of this process was read anew");
    Ok(())
}
