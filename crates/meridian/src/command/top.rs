//! `meridian databases top`: how much each database and token uses, live.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use meridian_directory::Cluster;
use meridian_net::grpc::Access;
use meridian_proto::admin::account_usage::Account;
use meridian_proto::admin::{AccountUsage, UsageRequest, UsageResponse};
use meridian_types::NodeId;
use serde::Serialize;

use super::operator::{Directory, Table, admin, every_node, format, print, print_json};

/// Clears a terminal.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Args)]
pub(crate) struct Top {
    /// Show access tokens instead of databases.
    #[arg(long)]
    tokens: bool,
    /// Time between two looks, over which rates are taken.
    #[arg(long, value_name = "DURATION", value_parser = format::parse_duration, default_value = "2s")]
    every: Duration,
    /// Tables to show, one behind the other. Default: without end on a terminal, and else one.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    number: Option<u32>,
}

/// The use of one database or token between two looks at all nodes, and what it has open.
#[derive(Debug, Default, Serialize, PartialEq)]
struct Row {
    /// Of the database, or the token.
    name: String,
    requests_per_second: f64,
    bytes_in_per_second: f64,
    bytes_out_per_second: f64,
    /// Requests that a quota held back.
    slowed_per_second: f64,
    /// Requests that a quota refused, at gateways and at the leader of the database's shard.
    refused_per_second: f64,
    connections: u64,
    watches: u64,
    listeners: u64,
    /// Measured where there is a quota on what is stored.
    keys: Option<u64>,
    stored_bytes: Option<u64>,
}

type Looked = BTreeMap<NodeId, UsageResponse>;

impl Top {
    pub(crate) async fn run(self, directory: &mut Directory, json: bool) -> Result<()> {
        let cluster = directory.inspect(0).await?.cluster;
        let access = directory.access().clone();
        let is_live = std::io::stdout().is_terminal() && !json;
        let mut left = self.number.or((!is_live).then_some(1));
        let (mut before, mut at) = (look(&cluster, &access).await?, Instant::now());
        while left != Some(0) {
            tokio::time::sleep(self.every).await;
            let (now, seconds) = (look(&cluster, &access).await?, at.elapsed().as_secs_f64());
            let rows = rows(&cluster, (&before, &now), seconds, self.tokens);
            if json {
                print_json(&rows)?;
            } else {
                let clear = if is_live { CLEAR } else { "" };
                let left_out: u64 = now.values().map(|usage| usage.left_out).sum();
                print(&format!("{clear}{}", text(&rows, self.tokens, left_out)))?;
            }
            (before, at) = (now, Instant::now());
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}

async fn look(cluster: &Cluster, access: &Access) -> Result<Looked> {
    let answers = every_node(cluster, "ask", async |node| {
        let mut client = admin(&node.rpc_address, access).await?;
        Ok(client.usage(UsageRequest {}).await?.into_inner())
    });
    Ok(answers.await?.into_iter().map(|(id, _, usage)| (id, usage)).collect())
}

/// The rows of all databases, or tokens, that were used or have something open; those with most
/// requests first.
fn rows(
    cluster: &Cluster,
    (before, now): (&Looked, &Looked),
    seconds: f64,
    of_tokens: bool,
) -> Vec<Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let none = UsageResponse::default();
    for (node, usage) in now {
        let earlier = &before.get(node).unwrap_or(&none).accounts;
        let earlier: BTreeMap<_, _> =
            earlier.iter().filter_map(|usage| Some((key(usage)?, usage))).collect();
        for used in &usage.accounts {
            let Some(key) = key(used).filter(|(is_token, _)| *is_token == of_tokens) else {
                continue;
            };
            let zero = AccountUsage::default();
            // Of a node that was not there before, the time of its counts is not known.
            let was = earlier.get(&key).copied().unwrap_or(if before.contains_key(node) {
                &zero
            } else {
                used
            });
            let name = name(cluster, used);
            let row = rows.entry(name.clone()).or_insert_with(|| Row { name, ..Row::default() });
            row.add(used, was, seconds);
        }
        let refused_before = |database: &[u8]| {
            let stored = &before.get(node)?.stored;
            let known = stored.iter().find(|stored| stored.database == *database);
            Some(known.map_or(0, |stored| stored.refused))
        };
        for stored in usage.stored.iter().filter(|_| !of_tokens) {
            let name = database_name(cluster, &stored.database);
            let row = rows.entry(name.clone()).or_insert_with(|| Row { name, ..Row::default() });
            (row.keys, row.stored_bytes) = (Some(stored.keys), Some(stored.bytes));
            let was = refused_before(&stored.database).unwrap_or(stored.refused);
            row.refused_per_second += rate(stored.refused, was, seconds);
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by(|one, other| other.requests_per_second.total_cmp(&one.requests_per_second));
    rows
}

/// Whether it is of a token, and which.
fn key(usage: &AccountUsage) -> Option<(bool, Vec<u8>)> {
    Some(match usage.account.as_ref()? {
        Account::Database(id) => (false, id.to_vec()),
        Account::TokenId(id) => (true, id.to_be_bytes().to_vec()),
        Account::ConfiguredTokens(_) => (true, Vec::new()),
    })
}

fn name(cluster: &Cluster, usage: &AccountUsage) -> String {
    match &usage.account {
        Some(Account::Database(id)) => database_name(cluster, id),
        Some(Account::TokenId(id)) => cluster
            .tokens
            .get(id)
            .map_or_else(|| format!("{id} (revoked)"), |token| format!("{id} ({})", token.label)),
        Some(Account::ConfiguredTokens(_)) | None => "of configuration files".to_owned(),
    }
}

fn database_name(cluster: &Cluster, id: &[u8]) -> String {
    let database = cluster.databases.iter().find(|(known, _)| known.0 == *id);
    let hex = || id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    database.map_or_else(hex, |(_, database)| database.name.clone())
}

impl Row {
    fn add(&mut self, used: &AccountUsage, was: &AccountUsage, seconds: f64) {
        let rate = |now, before| rate(now, before, seconds);
        self.requests_per_second += rate(used.requests, was.requests);
        self.bytes_in_per_second += rate(used.bytes_in, was.bytes_in);
        self.bytes_out_per_second += rate(used.bytes_out, was.bytes_out);
        self.slowed_per_second += rate(used.slowed, was.slowed);
        self.refused_per_second += rate(used.refused, was.refused);
        self.connections += used.connections;
        self.watches += used.watches;
        self.listeners += used.listeners;
    }
}

/// A node that was started again, or came to lead again, counts from 0.
fn rate(now: u64, before: u64, seconds: f64) -> f64 {
    now.saturating_sub(before) as f64 / seconds
}

fn text(rows: &[Row], of_tokens: bool, left_out: u64) -> String {
    let mut table = Table::new(&[
        if of_tokens { "TOKEN" } else { "DATABASE" },
        ">REQUESTS/S",
        ">IN/S",
        ">OUT/S",
        ">SLOWED/S",
        ">REFUSED/S",
        ">CONNECTIONS",
        ">WATCHES",
        ">LISTENERS",
        ">KEYS",
        ">STORED",
    ]);
    let rate = |rate: f64| format!("{rate:.1}");
    #[allow(clippy::cast_possible_truncation, reason = "no rate is so large")]
    let size = |bytes: f64| format::size(bytes as u64);
    for row in rows {
        table.row([
            row.name.clone(),
            rate(row.requests_per_second),
            size(row.bytes_in_per_second),
            size(row.bytes_out_per_second),
            rate(row.slowed_per_second),
            rate(row.refused_per_second),
            row.connections.to_string(),
            row.watches.to_string(),
            row.listeners.to_string(),
            row.keys.map_or_else(|| "-".to_owned(), |keys| keys.to_string()),
            row.stored_bytes.map_or_else(|| "-".to_owned(), format::size),
        ]);
    }
    let mut text = table.to_string();
    if rows.is_empty() {
        text.push_str("(nothing was used at the gateways of nodes since they started)\n");
    }
    if left_out > 0 {
        text.push_str(&format!("(and {left_out} accounts that use less)\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use meridian_proto::admin::StoredSize;

    use super::*;
    use crate::command::operator::samples::cluster;

    fn usage(account: Account, requests: u64, watches: u64) -> AccountUsage {
        let (account, bytes_out) = (Some(account), 1000 * requests);
        AccountUsage { account, requests, bytes_out, watches, ..AccountUsage::default() }
    }

    fn looked(nodes: [Vec<AccountUsage>; 2]) -> Looked {
        let of = |accounts| UsageResponse { accounts, ..UsageResponse::default() };
        let [first, second] = nodes.map(of);
        BTreeMap::from([(NodeId(1), first), (NodeId(2), second)])
    }

    fn stored(database: &[u8], refused: u64) -> StoredSize {
        let database = database.to_vec().into();
        StoredSize { database, keys: 3, bytes: 2048, refused }
    }

    #[test]
    fn refusals_of_gateways_and_of_the_leader_are_added() {
        let cluster = cluster();
        let id = cluster.databases.keys().next().unwrap().0;
        let of_gateway = |refused| {
            let usage = usage(Account::Database(id.to_vec().into()), 0, 0);
            vec![AccountUsage { refused, ..usage }]
        };
        let looked = |refused, by_leader: Option<u64>| {
            let mut looked = looked([of_gateway(refused), Vec::new()]);
            let of_leader = by_leader.map(|refused| stored(&id, refused));
            looked.get_mut(&NodeId(2)).unwrap().stored.extend(of_leader);
            looked
        };
        let refused = |before: Looked, now: Looked| {
            rows(&cluster, (&before, &now), 2.0, false)[0].refused_per_second
        };
        assert_eq!(refused(looked(10, Some(100)), looked(14, Some(200))), 52.0);
        // It came to lead between the two looks.
        assert_eq!(refused(looked(10, None), looked(10, Some(6))), 3.0);
        assert_eq!(refused(looked(10, Some(100)), looked(10, Some(6))), 0.0);
        // Its refusals before the first look at it are no rate.
        let mut unseen = looked(10, None);
        unseen.remove(&NodeId(2));
        assert_eq!(refused(unseen, looked(10, Some(6))), 0.0);
    }

    #[test]
    fn rates_of_all_nodes_are_added_and_a_node_that_was_started_again_has_none() {
        let cluster = cluster();
        let ids: Vec<_> = cluster.databases.keys().map(|id| id.0.to_vec()).collect();
        let of = |index: usize| Account::Database(ids[index].clone().into());
        let before = looked([vec![usage(of(0), 100, 5)], vec![usage(of(0), 900, 0)]]);
        let mut now = looked([
            vec![usage(of(0), 140, 1), usage(of(1), 200, 0), usage(Account::TokenId(9), 7, 0)],
            vec![usage(of(0), 10, 2)],
        ]);
        now.get_mut(&NodeId(2)).unwrap().stored = vec![stored(&ids[0], 0)];
        let shown = rows(&cluster, (&before, &now), 2.0, false);
        let [busy, other] = &shown[..] else { panic!("{shown:?}") };
        let names: Vec<_> = cluster.databases.values().map(|known| known.name.as_str()).collect();
        assert_eq!((busy.name.as_str(), busy.requests_per_second), (names[1], 100.0));
        assert_eq!((other.name.as_str(), other.requests_per_second), (names[0], 20.0));
        assert_eq!((other.watches, other.bytes_out_per_second), (3, 20_000.0));
        assert_eq!((other.keys, other.stored_bytes, busy.keys), (Some(3), Some(2048), None));
        let table = text(&shown, false, 2);
        assert!(table.contains("19.5 KiB") && table.contains("2 accounts"), "{table}");
        let tokens = rows(&cluster, (&before, &now), 2.0, true);
        assert_eq!((tokens.len(), tokens[0].name.as_str()), (1, "9 (revoked)"));
        // A node's use before the first look at it is no rate.
        let first = rows(&cluster, (&BTreeMap::new(), &now), 2.0, true);
        assert_eq!(first[0].requests_per_second, 0.0);
    }
}
