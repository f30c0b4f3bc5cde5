//! `meridian databases`: lists, creates, changes and deletes databases.

mod deletion;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use meridian_directory::{
    Change, Cluster, Database, Deletion, FailoverMode, QuotaOwner, Rpo, RpoMode,
};
use meridian_types::{DatabaseId, Quotas, ShardId, V8Format};
use serde::Serialize;
use uuid::Uuid;

use super::cluster::change_text;
use super::operator::{Connect, Directory, Table, View, print, print_json, resolve};
use super::quotas::{self, SetQuotas, SetStoredQuotas};
use super::top::Top;

#[derive(Args)]
pub(crate) struct Databases {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the databases with their settings, and those being deleted.
    List,
    /// Creates a database; clients open it at /db/NAME or /databases/ID/connect.
    Create {
        /// Letters, digits, `-`, `_`, `.` and `~`.
        name: String,
        /// Region in which the database commits: the one nearest to its writers.
        #[arg(long, value_name = "REGION")]
        primary_region: String,
        /// Give the database a shard of its own, so that it fails over and switches over alone.
        #[arg(long)]
        own_shard: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Changes settings of a database; settings that are not named stay.
    Set {
        /// Name or id of the database.
        #[arg(value_name = "DATABASE")]
        database: String,
        /// Region in which the database belongs. `meridian failback` moves it there.
        #[arg(long, value_name = "REGION")]
        primary_region: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Sets quotas of a database, or removes them; those that are not named stay.
    SetQuotas {
        /// Name or id of the database.
        #[arg(value_name = "DATABASE")]
        database: String,
        #[command(flatten)]
        quotas: SetQuotas,
        #[command(flatten)]
        stored: SetStoredQuotas,
    },
    /// Shows what databases ask of the gateways of all nodes, and what they store, live.
    ///
    /// Gateways without a node of their own are not asked. What is stored is measured for databases
    /// that have a quota on it.
    Top(Top),
    /// Deletes a database with all its data, in all regions.
    ///
    /// When the command returns, clients can no longer use the database. Nodes that are up drop its
    /// data within seconds, and free its disk space soon after. `list` shows the database as `being
    /// deleted`, with the nodes that still have to drop it; a node that is away drops it when it is
    /// back. The name can be used again at once. Orphan files, which keep the losses of failovers,
    /// are not touched: see `meridian orphans`.
    Delete {
        /// Name or id of the database.
        #[arg(value_name = "DATABASE")]
        database: String,
        /// Confirm. Without it, the command only shows what would be lost.
        #[arg(long)]
        yes_delete_all_data: bool,
    },
}

#[derive(Args)]
struct Settings {
    /// Treatment of writes when no replica region keeps up [default of a new database: enforce].
    #[arg(long, value_enum)]
    rpo: Option<RpoWord>,
    /// Replication lag in milliseconds from which writes are slowed [default of a new database:
    /// 500].
    #[arg(long, value_name = "MS")]
    rpo_soft_ms: Option<u64>,
    /// Replication lag in milliseconds from which writes are refused [default of a new database:
    /// 1000].
    #[arg(long, value_name = "MS")]
    rpo_max_ms: Option<u64>,
    /// Whether its shard fails over automatically; `manual` for one database applies to all in its
    /// shard [default of a new database: auto].
    #[arg(long, value_enum)]
    failover: Option<FailoverWord>,
    /// Format of V8 values that are written from now on; those that are stored stay as they are
    /// [default of a new database: portable].
    #[arg(long, value_enum)]
    v8_format: Option<V8FormatWord>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RpoWord {
    /// Lag has no consequence.
    Off,
    /// Lag appears in logs and metrics only.
    Warn,
    /// Lag slows writes, then has them refused.
    Enforce,
}

#[derive(Clone, Copy, ValueEnum)]
enum FailoverWord {
    /// Automatically, when the primary region is lost.
    Auto,
    /// Only by `meridian failover`.
    Manual,
}

#[derive(Clone, Copy, ValueEnum)]
enum V8FormatWord {
    /// Format 15, which Node, Python and every Deno read; a value that needs format 16 stays in it.
    Portable,
    /// As the client sent them: format 16 of Deno 2.8 and later, which Node and Python cannot read.
    AsSent,
}

impl Settings {
    /// The bound on lag after these settings; `None` if they do not change it.
    fn rpo(&self, before: Rpo) -> Option<Rpo> {
        if self.rpo.is_none() && self.rpo_soft_ms.is_none() && self.rpo_max_ms.is_none() {
            return None;
        }
        let mode = match self.rpo {
            None => before.mode,
            Some(RpoWord::Off) => RpoMode::Off,
            Some(RpoWord::Warn) => RpoMode::Warn,
            Some(RpoWord::Enforce) => RpoMode::Enforce,
        };
        let soft_ms = self.rpo_soft_ms.unwrap_or(before.soft_ms);
        Some(Rpo { mode, soft_ms, max_ms: self.rpo_max_ms.unwrap_or(before.max_ms) })
    }

    fn v8_format(&self) -> Option<V8Format> {
        self.v8_format.map(|word| match word {
            V8FormatWord::Portable => V8Format::Portable,
            V8FormatWord::AsSent => V8Format::AsSent,
        })
    }

    fn failover(&self) -> Option<FailoverMode> {
        self.failover.map(|word| match word {
            FailoverWord::Auto => FailoverMode::Auto,
            FailoverWord::Manual => FailoverMode::Manual,
        })
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    id: DatabaseId,
    is_default: bool,
    /// The present primary region of its shard.
    present_region: Option<&'a str>,
    #[serde(flatten)]
    database: &'a Database,
}

impl<'a> Listed<'a> {
    fn of(cluster: &'a Cluster, id: DatabaseId, database: &'a Database) -> Self {
        Self {
            id,
            is_default: cluster.default_database == Some(id),
            present_region: cluster
                .shards
                .get(&database.shard)
                .map(|shard| shard.primary_region.as_str()),
            database,
        }
    }
}

/// A deleted database whose data may still be on some node.
#[derive(Serialize)]
struct Deleting<'a> {
    id: DatabaseId,
    deleting: bool,
    #[serde(flatten)]
    deletion: &'a Deletion,
    /// Names of the nodes that may still have its data; `None` if the answer did not come from the
    /// leader.
    waits_for: Option<Vec<String>>,
}

fn deleting(view: &View) -> Vec<Deleting<'_>> {
    let cluster = &view.cluster;
    let of = |(id, deletion): (&DatabaseId, _)| {
        let has = |node| {
            let reports =
                view.contacts.get(&node).into_iter().flat_map(|contact| contact.reports.values());
            reports.into_iter().any(|report| report.dropped.contains(id))
        };
        let names = || {
            cluster
                .lacking_drop(has)
                .iter()
                .map(|node| resolve::node_name(cluster, *node))
                .collect()
        };
        Deleting {
            id: *id,
            deleting: true,
            deletion,
            waits_for: view.leader_address.is_some().then(names),
        }
    };
    cluster.deleting.iter().map(of).collect()
}

fn deletions_text(deleting: &[Deleting<'_>]) -> String {
    let line = |Deleting { id, deletion, waits_for, .. }: &Deleting<'_>| {
        let waits_for = match waits_for.as_deref() {
            None => String::new(),
            Some([]) => ", ends soon".to_owned(),
            Some(nodes) => format!(", waits for {}", nodes.join(", ")),
        };
        format!("being deleted: {} ({id}), of shard {}{waits_for}\n", deletion.name, deletion.shard)
    };
    deleting.iter().map(line).collect()
}

impl Databases {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let json = self.connect.json;
        match self.command {
            Command::List => list(&directory.inspect(0).await?, json),
            Command::Create { name, primary_region, own_shard, settings } => {
                let id = DatabaseId(Uuid::new_v4().into_bytes());
                let database = Database {
                    name,
                    // The directory chooses the shard.
                    shard: ShardId(0),
                    primary_region,
                    failover: settings.failover().unwrap_or_default(),
                    rpo: settings.rpo(Rpo::default()).unwrap_or_default(),
                    v8_format: settings.v8_format().unwrap_or_default(),
                    queue_paused: false,
                    webhooks: Vec::new(),
                    quotas: Quotas::default(),
                };
                let cluster =
                    directory.execute(&Change::CreateDatabase { id, database, own_shard }).await?;
                show(&cluster, id, "created", json)
            }
            Command::Set { database, primary_region, settings } => {
                let view = directory.inspect_leader(0).await?;
                let id = resolve::database(&view.cluster, &database)?;
                let present = view.cluster.databases.get(&id);
                let before = present.map(|database| database.rpo).unwrap_or_default();
                let (failover, rpo) = (settings.failover(), settings.rpo(before));
                let v8_format = settings.v8_format();
                let is_some = [
                    failover.is_some(),
                    rpo.is_some(),
                    primary_region.is_some(),
                    v8_format.is_some(),
                ];
                if !is_some.contains(&true) {
                    bail!(
                        "nothing to set: name --primary-region, --failover, --rpo, --rpo-soft-ms, --rpo-max-ms or --v8-format"
                    );
                }
                let change = Change::SetDatabase {
                    id,
                    failover,
                    rpo,
                    primary_region,
                    v8_format,
                    queue_paused: None,
                };
                let cluster = directory.execute(&change).await?;
                show(&cluster, id, "set", json)
            }
            Command::SetQuotas { database, quotas, stored } => {
                let view = directory.inspect_leader(0).await?;
                let of = QuotaOwner::Database(resolve::database(&view.cluster, &database)?);
                quotas.run(&mut directory, of, Some(stored), json).await
            }
            Command::Top(top) => top.run(&mut directory, json).await,
            Command::Delete { database, yes_delete_all_data } => {
                deletion::delete(&mut directory, &database, yes_delete_all_data, json).await
            }
        }
    }
}

fn list(view: &View, json: bool) -> Result<()> {
    let databases = view.cluster.databases.iter();
    let listed: Vec<Listed<'_>> =
        databases.map(|(id, database)| Listed::of(&view.cluster, *id, database)).collect();
    let deleting = deleting(view);
    if !json {
        return print(&format!("{}{}", table(&listed), deletions_text(&deleting)));
    }
    let (listed, deleting) = (serde_json::to_value(&listed)?, serde_json::to_value(&deleting)?);
    let all = [listed, deleting].into_iter().filter_map(|list| list.as_array().cloned());
    print_json(&all.flatten().collect::<Vec<_>>())
}

fn show(cluster: &Cluster, id: DatabaseId, what: &str, json: bool) -> Result<()> {
    let Some(database) = cluster.databases.get(&id) else {
        bail!("database {id} was deleted meanwhile")
    };
    if json {
        return print_json(&Listed::of(cluster, id, database));
    }
    let present =
        cluster.shards.get(&database.shard).map_or("", |shard| shard.primary_region.as_str());
    let (name, shard) = (&database.name, database.shard);
    let mut text = format!(
        "database {name} was {what}: {id}, shard {shard} in {present}, opened as /db/{name}\n"
    );
    if database.primary_region != present {
        text.push_str(&format!(
            "it belongs in {}: `meridian failback {name}` moves its shard there\n",
            database.primary_region
        ));
    }
    print(&text)
}

fn table(databases: &[Listed<'_>]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        ">SHARD",
        "PRIMARY",
        "FAILOVER",
        "RPO",
        "V8 FORMAT",
        "QUEUE",
        "QUOTAS",
    ]);
    for Listed { id, is_default, present_region, database } in databases {
        let primary = match present_region {
            Some(present) if *present != database.primary_region => {
                format!("{} (now in {present})", database.primary_region)
            }
            _ => database.primary_region.clone(),
        };
        table.row([
            if *is_default {
                format!("{} (default)", database.name)
            } else {
                database.name.clone()
            },
            id.to_string(),
            database.shard.to_string(),
            primary,
            change_text::failover(database.failover).to_owned(),
            change_text::rpo(&database.rpo),
            change_text::v8_format(database.v8_format).to_owned(),
            change_text::queue(database),
            quotas::text(&database.quotas),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use meridian_directory::{Webhook, WebhookKey};

    use super::deletion::would_be_lost;
    use super::*;
    use crate::command::operator::samples::view;

    fn settings(rpo: Option<RpoWord>, soft: Option<u64>, max: Option<u64>) -> Settings {
        Settings { rpo, rpo_soft_ms: soft, rpo_max_ms: max, failover: None, v8_format: None }
    }

    #[test]
    fn settings_that_are_not_named_stay() {
        let before = Rpo { mode: RpoMode::Warn, soft_ms: 100, max_ms: 200 };
        assert_eq!(settings(None, None, None).rpo(before), None);
        assert_eq!(
            settings(None, None, Some(900)).rpo(before),
            Some(Rpo { max_ms: 900, ..before })
        );
        let enforced = Rpo { mode: RpoMode::Enforce, soft_ms: 50, max_ms: 200 };
        assert_eq!(settings(Some(RpoWord::Enforce), Some(50), None).rpo(before), Some(enforced));
    }

    #[test]
    fn unconfirmed_deletion_shows_what_would_be_lost() {
        let text = would_be_lost(&view(), "00000000-0000-4000-8000-000000000001".parse().unwrap());
        assert!(text.starts_with(
            "deleting default (00000000-0000-4000-8000-000000000001) loses all of its keys"
        ));
        for part in
            ["Shard 1 has taken 1000 transactions", "the default database", "--yes-delete-all-data"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn deletion_is_listed_with_the_nodes_it_waits_for() {
        let mut view = view();
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        view.cluster = view.cluster.after(&Change::DeleteDatabase { id }).unwrap();
        for contact in view.contacts.values_mut() {
            contact.reports.get_mut(&ShardId(1)).unwrap().dropped.push(id);
        }
        let silent = *view.contacts.keys().next().unwrap();
        view.contacts.get_mut(&silent).unwrap().reports.clear();
        let waiting = deleting(&view);
        let lacking = waiting[0].waits_for.clone().unwrap();
        assert!(lacking.contains(&resolve::node_name(&view.cluster, silent)), "{lacking:?}");
        let text = deletions_text(&waiting);
        assert!(
            text.starts_with(&format!("being deleted: default ({id}), of shard 1, waits for ")),
            "{text}"
        );
        let json = serde_json::to_value(&waiting).unwrap();
        assert_eq!((&json[0]["name"], &json[0]["deleting"]), (&"default".into(), &true.into()));
    }

    #[test]
    fn databases_are_listed_with_their_regions() {
        let mut view = view();
        view.cluster.shards.get_mut(&ShardId(2)).unwrap().primary_region = "region-2".to_owned();
        view.cluster.databases.values_mut().last().unwrap().queue_paused = true;
        let webhook = Webhook {
            queue: String::new(),
            url: "https://example.com/".to_owned(),
            concurrency: 1,
            timeout_ms: 1000,
            key: WebhookKey::new(&[7; 32]).unwrap(),
            next_key: None,
        };
        view.cluster.databases.values_mut().last().unwrap().webhooks = vec![webhook];
        let databases = view.cluster.databases.iter();
        let listed: Vec<_> =
            databases.map(|(id, database)| Listed::of(&view.cluster, *id, database)).collect();
        let text = table(&listed).to_string();
        assert!(
            text.contains("portable   runs") && text.contains("portable   paused, webhook"),
            "{text}"
        );
        assert!(
            text.contains("default (default)") && text.contains("region-1 (now in region-2)"),
            "{text}"
        );
        let json = serde_json::to_value(&listed).unwrap();
        assert_eq!((&json[1]["name"], &json[1]["queue_paused"]), (&"second".into(), &true.into()));
        assert_eq!(json[1]["present_region"], "region-2");
    }
}
