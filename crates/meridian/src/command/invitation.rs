//! Join tokens, and certificates that are refused from now on.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_directory::{Change, Cluster, Invitation, Member};
use meridian_pki::{JoinToken, Secret, pem_fingerprint};
use serde::Serialize;

use super::operator::format::now_ms;
use super::operator::{Directory, print, print_json, seeds};

/// How long a join token can be used.
#[derive(Debug, Clone, Args)]
pub(crate) struct Lifetime {
    /// Hours within which the token has to be used.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=24 * 30))]
    expires_in_hours: u64,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { expires_in_hours: 24 }
    }
}

/// The SHA-256 of the certificate of the authority that issues.
pub(crate) fn authority(cluster: &Cluster) -> Result<String> {
    let Some(issuing) = cluster.trust.issuer() else {
        bail!(
            "the cluster has no authority of its own: its processes have certificates of yours, and need no token \
             (`meridian cluster transport allow` makes one for an open cluster)"
        );
    };
    pem_fingerprint(&issuing.certificate_pem)
        .context("the certificate of the cluster's authority cannot be read")
}

/// Makes a join token for a member of the cluster.
pub(crate) async fn invite(
    directory: &mut Directory,
    cluster: &Cluster,
    member: Member,
    lifetime: &Lifetime,
) -> Result<JoinToken> {
    let authority = authority(cluster)?;
    let secret = Secret::random();
    let lifetime = Duration::from_secs(lifetime.expires_in_hours * 3600);
    let expires_at_ms = now_ms() + u64::try_from(lifetime.as_millis()).unwrap_or(0);
    let invitation = Invitation {
        member,
        sha256: Secret::digest(secret.expose()),
        expires_at_ms,
        used_by: None,
    };
    let addresses = seeds(cluster);
    let cluster = cluster.id.clone().context("the cluster has no id yet")?;
    directory.execute(&Change::Invite { invitation, now_ms: 0 }).await?;
    Ok(JoinToken { cluster, authority, addresses, secret, expires_at_ms })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    join_token: String,
    expires_at_ms: u64,
}

/// Prints the token alone: it goes into a file.
pub(crate) fn show_token(token: &JoinToken, json: bool) -> Result<()> {
    if json {
        let expires_at_ms = token.expires_at_ms;
        return print_json(&Shown { join_token: token.to_string(), expires_at_ms });
    }
    print(&format!("{token}\n"))
}

/// Has the certificates of a member refused that were issued up to now.
pub(crate) async fn revoke(directory: &mut Directory, member: Member) -> Result<()> {
    // The time is the leader's.
    directory.execute(&Change::RevokeCertificates { member, before_ms: 0 }).await?;
    Ok(())
}
