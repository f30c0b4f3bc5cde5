//! A process that joins a cluster by a token: its first certificate, and the cluster that it is of.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use meridian_config::{IdentityFolder, Joined, Joining};
use meridian_directory::Cluster;
use meridian_net::grpc::{self, Access, Timeouts};
use meridian_pki::{KeyAndRequest, Secret, Subject};
use meridian_proto::directory::{
    self as wire, certify_response, membership_client::MembershipClient,
};

use crate::process::start_error::StartError;

/// The key that was made, and the request that it signed, until they have been answered.
const KEY: &str = "joining-key.pem";
const REQUEST: &str = "joining-request.der";

const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(5), call: Some(Duration::from_secs(15)) };
/// In one round.
const MAX_ASKED: usize = 32;
const PAUSE: Duration = Duration::from_secs(1);
/// Between two words on why it takes so long.
const TRIES_BETWEEN_WORDS: u32 = 10;

/// Asks the cluster for a certificate until there is one, and keeps it. May be dropped at any time,
/// and begun again: the same request is shown then.
///
/// # Errors
/// [`StartError::Join`]: the cluster refuses the token, or the folder cannot be written.
pub async fn join(joining: &Joining) -> Result<(), StartError> {
    let Joining { token, folder, .. } = joining;
    let failed = |error: &dyn std::fmt::Display| StartError::Join(error.to_string());
    let (key, request) = key_and_request(folder).map_err(|error| failed(&error))?;
    let access = Access::pinned(token.cluster.clone(), token.authority.clone());
    let access = access.map_err(|error| failed(&error))?;
    // Of one round: each is asked once.
    let mut seen = BTreeSet::new();
    let mut asked: VecDeque<String> = token.addresses.iter().cloned().collect();
    for tries in 0.. {
        let Some(address) = asked.pop_front() else {
            seen.clear();
            asked.extend(token.addresses.iter().cloned());
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if seen.len() >= MAX_ASKED || !seen.insert(address.clone()) {
            continue;
        }
        let answer = ask(&address, &access, token.secret.expose(), &request).await;
        let why = match answer {
            Ok(certify_response::Result::Certified(certified)) => {
                return keep(joining, &key, &certified).map_err(|error| failed(&error));
            }
            Ok(certify_response::Result::Refused(reason)) => return Err(StartError::Join(reason)),
            Ok(certify_response::Result::Ask(others)) => {
                // Bounded: an answer is no larger than a message.
                asked.extend(others.addresses.into_iter().take(MAX_ASKED));
                "it does not lead the directory".to_owned()
            }
            Err(why) => why,
        };
        if tries % TRIES_BETWEEN_WORDS == 0 {
            tracing::warn!(address, why, "this process has not joined yet, and goes on asking");
        }
    }
    Err(StartError::Join("it was asked too often".to_owned()))
}

/// Made once, so that an answer that was lost is given again.
fn key_and_request(folder: &IdentityFolder) -> std::io::Result<(String, Vec<u8>)> {
    let kept = || {
        let key = std::fs::read_to_string(folder.file(KEY)).ok()?;
        Some((key, std::fs::read(folder.file(REQUEST)).ok()?))
    };
    if let Some(kept) = kept() {
        return Ok(kept);
    }
    let KeyAndRequest { key_pem, request } = KeyAndRequest::new().map_err(std::io::Error::other)?;
    folder.write(KEY, key_pem.as_bytes())?;
    // It is signed with the key: without it, the key is made anew.
    folder.write(REQUEST, &request)?;
    Ok((key_pem, request))
}

async fn ask(
    address: &str,
    access: &Access,
    secret: &str,
    request: &[u8],
) -> Result<certify_response::Result, String> {
    let channel = grpc::connect(address, access, TIMEOUTS).await;
    let mut client = MembershipClient::new(channel.map_err(|error| error.to_string())?)
        .max_decoding_message_size(meridian_net::MAX_MESSAGE_BYTES);
    let request = wire::JoinRequest { secret: secret.to_owned(), request: request.to_vec().into() };
    let answer = client.join(request).await.map_err(|status| status.message().to_owned())?;
    answer.into_inner().result.ok_or_else(|| "it answers what is not known here".to_owned())
}

fn keep(joining: &Joining, key: &str, certified: &wire::Certified) -> std::io::Result<()> {
    let Joining { token, folder, .. } = joining;
    let json = certified.cluster.as_ref().map(|state| state.json.clone()).unwrap_or_default();
    let cluster: Cluster = serde_json::from_slice(&json).map_err(std::io::Error::other)?;
    let subject = certified.subject.parse::<Subject>().map_err(std::io::Error::other)?;
    folder.keep(&format!("{}{key}", certified.chain_pem), &certified.authorities_pem)?;
    // It is kept in the clear, and gives way to what the process hears of the cluster, keys included.
    let version = cluster.version.saturating_sub(1);
    let cluster = Cluster { version, ..cluster.for_gateways() };
    let token = Secret::digest(token.secret.expose());
    folder.remember(&Joined { subject: subject.to_string(), token, cluster })?;
    tracing::info!(%subject, "this process has joined");
    for done in [REQUEST, KEY] {
        // They are of no more use.
        drop(std::fs::remove_file(folder.file(done)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use meridian_config::DevLayout;
    use meridian_pki::JoinToken;

    use super::*;
    use crate::cluster_view::wire::cluster_to_wire;
    use crate::testing::{WEBHOOK_KEY, webhook};

    /// An encrypted node keeps it in the clear, too.
    #[test]
    fn cluster_is_kept_without_keys_of_webhooks_and_gives_way_to_what_is_heard() {
        let layout = DevLayout::new(&[3]);
        let mut cluster = layout.found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        cluster.version = 7;
        let webhooks = cluster.databases.values_mut().map(|database| &mut database.webhooks);
        webhooks.for_each(|webhooks| webhooks.push(webhook()));
        let told = cluster_to_wire(&cluster, false);
        let has_key = |json: &[u8]| String::from_utf8_lossy(json).contains(WEBHOOK_KEY);
        assert!(has_key(&told.json));
        let folder = tempfile::tempdir().unwrap();
        let token = JoinToken {
            cluster: "00ff00ff00ff00ff".to_owned(),
            authority: "00".repeat(32),
            addresses: vec!["127.0.0.1:1".to_owned()],
            secret: Secret::random(),
            expires_at_ms: 0,
        };
        let folder = IdentityFolder::of(folder.path());
        let joining = Joining { token, folder: folder.clone(), worker_threads: None };
        let certified = wire::Certified {
            subject: "meridian://00ff00ff00ff00ff/node/1".to_owned(),
            cluster: Some(told),
            ..wire::Certified::default()
        };
        keep(&joining, "key", &certified).unwrap();
        let kept = folder.joined(&joining.token).unwrap().unwrap().cluster;
        assert_eq!(kept.version, 6);
        assert!(!has_key(&serde_json::to_vec(&kept).unwrap()));
        assert_eq!(kept.nodes.len(), cluster.nodes.len());
    }
}
