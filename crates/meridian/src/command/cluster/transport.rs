//! `meridian cluster transport` and `rotate-authority`: changes that go step by step, and wait for
//! every node before the next.

use std::time::Duration;

use anyhow::{Result, bail};
use meridian_directory::{Authority, Change, Cluster, Transport};
use meridian_net::grpc::Access;
use meridian_pki::pem_fingerprint;
use meridian_proto::admin::{StatusRequest, StatusResponse};
use meridian_types::Level;
use serde::Serialize;
use tokio::time::Instant;

use crate::command::operator::{Directory, Table, admin, format, print, print_json};

const WAYS: [Transport; 4] =
    [Transport::Off, Transport::Allow, Transport::Prefer, Transport::Require];
/// For the answer of a node.
const ANSWER: Duration = Duration::from_secs(5);
/// For all nodes to do what a step asks of them.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);
/// For gateways, of which the directory does not know how far they are: they hear of a change within
/// a second, and act on it at once.
const FOR_GATEWAYS: Duration = Duration::from_secs(10);
/// A process that calls in the clear does it more often.
const QUIET_MS: u64 = 5000;

pub(super) fn parse(text: &str) -> Result<Transport, String> {
    let found = WAYS.into_iter().find(|way| way.name() == text);
    found.ok_or_else(|| format!("`{text}` is none of off, allow, prefer and require"))
}

/// The steps from one way to another, without the first.
fn steps(from: Transport, to: Transport) -> Vec<Transport> {
    let between = |way: &Transport| (*way > from && *way <= to) || (*way < from && *way >= to);
    let mut steps: Vec<_> = WAYS.into_iter().filter(between).collect();
    if to < from {
        steps.reverse();
    }
    steps
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    transport: String,
    authorities: Vec<String>,
    nodes: Vec<ShownNode>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownNode {
    name: String,
    answers: bool,
    certificate_until_ms: Option<u64>,
    issuer: Option<String>,
    plain_call_age_ms: Option<u64>,
}

/// The SHA-256 of the certificate of each authority that is believed, oldest first.
fn authorities(cluster: &Cluster) -> Vec<String> {
    let print =
        |authority: &Authority| pem_fingerprint(&authority.certificate_pem).unwrap_or_default();
    cluster.trust.authorities.iter().map(print).collect()
}

pub(super) async fn show(directory: &mut Directory, json: bool) -> Result<()> {
    let cluster = directory.inspect(0).await?.cluster;
    let nodes = ask(&cluster, directory.access()).await.into_iter().map(|(name, status)| {
        let status = status.as_ref().ok();
        let certificate = status.and_then(|status| status.certificate.as_ref());
        ShownNode {
            name,
            answers: status.is_some(),
            certificate_until_ms: certificate.map(|certificate| certificate.not_after_ms),
            issuer: certificate.map(|certificate| certificate.issuer.clone()),
            plain_call_age_ms: status.and_then(|status| status.plain_call_age_ms),
        }
    });
    let shown = Shown {
        transport: cluster.trust.transport.to_string(),
        authorities: authorities(&cluster),
        nodes: nodes.collect(),
    };
    if json {
        return print_json(&shown);
    }
    let mut table = Table::new(&["NODE", "CERTIFICATE UNTIL", "ISSUED BY", "CALLED IN THE CLEAR"]);
    for node in &shown.nodes {
        let short = |issuer: &String| issuer.chars().take(12).collect::<String>();
        table.row([
            node.name.clone(),
            match node.certificate_until_ms {
                Some(until) => format::time(until),
                None if node.answers => "none".to_owned(),
                None => "does not answer".to_owned(),
            },
            node.issuer.as_ref().map_or("-".to_owned(), short),
            match node.plain_call_age_ms {
                Some(age) => format!("{} ago", format::duration(age)),
                None => "never".to_owned(),
            },
        ]);
    }
    print(&format!("transport: {}\n{table}", shown.transport))
}

/// The status of each node, or why there is none.
async fn ask(cluster: &Cluster, access: &Access) -> Vec<(String, Result<StatusResponse, String>)> {
    let asked = cluster.present_nodes().map(|(_, node)| async move {
        let ask = async {
            let mut client = admin(&node.rpc_address, access).await?;
            Ok(client.status(StatusRequest {}).await?.into_inner())
        };
        let late = |_| Err(tonic::Status::deadline_exceeded("no answer"));
        let answer = tokio::time::timeout(ANSWER, ask).await.unwrap_or_else(late);
        (node.name.clone(), answer.map_err(|status| status.message().to_owned()))
    });
    futures::future::join_all(asked).await
}

/// Waits until every node fulfils a condition; an error names those that do not, and why.
async fn all(
    cluster: &Cluster,
    access: &Access,
    what: &str,
    fulfils: impl Fn(&StatusResponse) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answers = ask(cluster, access).await;
        let unfit: Vec<String> = answers
            .iter()
            .filter_map(|(name, answer)| match answer {
                Ok(status) if fulfils(status) => None,
                Ok(_) => Some(name.clone()),
                Err(why) => Some(format!("{name} ({why})")),
            })
            .collect();
        if unfit.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "not all nodes {what}: {}. Nothing more was changed; the command can be repeated",
                unfit.join(", ")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn change(directory: &mut Directory, to: Transport, yes: bool) -> Result<()> {
    let mut cluster = directory.inspect_leader(0).await?.cluster;
    if cluster.trust.transport == to {
        return print(&format!("the transport is `{to}` already\n"));
    }
    check_reopening(cluster.trust.transport, to, yes)?;
    for step in steps(cluster.trust.transport, to) {
        if step == Transport::Allow && cluster.trust.transport == Transport::Off {
            cluster = prepare(directory, cluster).await?;
        }
        if step > cluster.trust.transport {
            ready(directory, &cluster, step, yes).await?;
        }
        cluster = directory.execute(&Change::SetTransport { transport: step }).await?;
        print(&format!("the transport is `{step}`\n"))?;
        if step == Transport::Require && !cluster.trust.authorities.is_empty() {
            print(
                "the authority's key crossed the network before: `meridian cluster rotate-authority` comes next\n",
            )?;
        }
        let version = cluster.version;
        let access = directory.access().clone();
        all(&cluster, &access, "have heard of it", |node| node.cluster_version >= version).await?;
    }
    Ok(())
}

/// Refuses, without `yes`, to open a closed cluster again.
fn check_reopening(from: Transport, to: Transport, yes: bool) -> Result<()> {
    if yes || from < Transport::Require || to == from {
        return Ok(());
    }
    bail!(
        "with `{to}` calls in the clear are believed again: any program that reaches a gRPC port may do everything. \
         Add --yes to open the cluster"
    )
}

/// Gives an open cluster an authority, unless its nodes have certificates of their operator's.
async fn prepare(directory: &mut Directory, cluster: Cluster) -> Result<Cluster> {
    let answers = ask(&cluster, directory.access()).await;
    let have = |answer: &Result<StatusResponse, String>| {
        answer.as_ref().is_ok_and(|status| status.certificate.is_some())
    };
    if !cluster.trust.authorities.is_empty() || answers.iter().all(|(_, answer)| have(answer)) {
        return Ok(cluster);
    }
    if let Some((name, Err(why))) = answers.iter().find(|(_, answer)| answer.is_err()) {
        bail!(
            "{name} does not answer ({why}), so that it is unknown whether nodes have certificates of yours"
        );
    }
    let authority = Authority { certificate_pem: String::new(), key: None, issues: false };
    directory.execute(&Change::AddAuthority { authority }).await
}

/// Waits until all is ready for a step.
async fn ready(
    directory: &mut Directory,
    cluster: &Cluster,
    step: Transport,
    yes: bool,
) -> Result<()> {
    let access = directory.access().clone();
    if step == Transport::Prefer {
        let has = |node: &StatusResponse| node.certificate.is_some();
        all(cluster, &access, "have a certificate", has).await?;
    }
    if step == Transport::Require && !yes {
        let mut operators = cluster.trust.operators.values();
        let has_admin = operators.any(|operator| operator.level == Level::Admin);
        if !has_admin && !cluster.trust.authorities.is_empty() {
            bail!(
                "no operator could command the cluster any more: `meridian operators add NAME --level admin` and \
                 `meridian login` come first, or say --yes"
            );
        }
        let quiet = |node: &StatusResponse| node.plain_call_age_ms.is_none_or(|age| age > QUIET_MS);
        let what =
            "are called over TLS alone (a gateway needs a certificate: `meridian gateways add`)";
        all(cluster, &access, what, quiet).await?;
    }
    Ok(())
}

pub(super) async fn rotate_authority(directory: &mut Directory) -> Result<()> {
    let cluster = directory.inspect_leader(0).await?.cluster;
    if cluster.trust.authorities.is_empty() {
        bail!("the cluster has no authority of its own: rotate your own, which issued its files");
    }
    // A rotation that was broken off is gone on with.
    let cluster = match cluster.trust.authorities.len() {
        1 => {
            let authority = Authority { certificate_pem: String::new(), key: None, issues: false };
            directory.execute(&Change::AddAuthority { authority }).await?
        }
        _ => cluster,
    };
    let newest = cluster.trust.authorities.len() - 1;
    let issuer = authorities(&cluster).pop().unwrap_or_default();
    let short: String = issuer.chars().take(12).collect();
    print(&format!("authority {short} is added; waiting for all nodes to believe it\n"))?;
    let version = cluster.version;
    let access = directory.access().clone();
    all(&cluster, &access, "believe it", |node| node.cluster_version >= version).await?;
    tokio::time::sleep(FOR_GATEWAYS).await;
    let issues = cluster.trust.authorities.get(newest).is_some_and(|authority| authority.issues);
    let cluster = match issues {
        true => cluster,
        false => directory.execute(&Change::IssueWith { number: newest }).await?,
    };
    print("it issues certificates now; waiting for all nodes to have one\n")?;
    // The answers come from certificates of either authority.
    let access = directory.access().clone();
    let has = |node: &StatusResponse| {
        node.certificate.as_ref().is_some_and(|certificate| certificate.issuer == issuer)
    };
    all(&cluster, &access, "have a certificate of it", has).await?;
    tokio::time::sleep(FOR_GATEWAYS).await;
    for _ in 0..newest {
        directory.execute(&Change::RemoveAuthority { number: 0 }).await?;
    }
    print("the authority before is not believed any more\n")?;
    print(
        "tokens from before are void, for login and unused ones to join, and so are contexts that no command was run \
         with meanwhile: `meridian operators login-token NAME`, `nodes join-token` and `gateways join-token` print others\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_from_one_way_to_another_by_all_between() {
        use Transport::{Allow, Off, Prefer, Require};
        assert_eq!(steps(Off, Require), [Allow, Prefer, Require]);
        assert_eq!(steps(Require, Off), [Prefer, Allow, Off]);
        assert_eq!(steps(Allow, Prefer), [Prefer]);
        assert!(steps(Allow, Allow).is_empty());
        assert!(parse("prefer") == Ok(Prefer) && parse("on").is_err());
    }

    #[test]
    fn closed_cluster_is_opened_again_only_with_yes() {
        use Transport::{Allow, Off, Prefer, Require};
        for to in [Off, Allow, Prefer] {
            let error = check_reopening(Require, to, false).unwrap_err().to_string();
            assert!(error.contains("in the clear") && error.contains("--yes"), "{error}");
            check_reopening(Require, to, true).unwrap();
        }
        for (from, to) in [(Prefer, Off), (Off, Require), (Prefer, Require), (Require, Require)] {
            check_reopening(from, to, false).unwrap();
        }
    }
}
