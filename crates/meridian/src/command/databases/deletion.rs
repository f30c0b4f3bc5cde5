//! The deletion of a database, and the loss that it would be, told to operators before they confirm it.

use anyhow::{Result, bail};
use meridian_directory::{Change, TokenScope};
use meridian_types::DatabaseId;

use crate::command::operator::{Directory, View, format, print, print_json, resolve};

pub(super) async fn delete(
    directory: &mut Directory,
    database: &str,
    is_confirmed: bool,
    json: bool,
) -> Result<()> {
    let view = directory.inspect_leader(0).await?;
    let id = resolve::database(&view.cluster, database)?;
    if !is_confirmed {
        bail!("{}", would_be_lost(&view, id));
    }
    directory.execute(&Change::DeleteDatabase { id }).await?;
    if json {
        return print_json(&id);
    }
    print(&format!(
        "database {database} ({id}) was deleted: no client can use it any more. `meridian databases list` \
         shows it until its data is gone from every node\n"
    ))
}

pub(super) fn would_be_lost(view: &View, id: DatabaseId) -> String {
    let cluster = &view.cluster;
    let Some(database) = cluster.databases.get(&id) else {
        return format!("there is no database {id}");
    };
    let mut text = format!(
        "deleting {} ({id}) loses all of its keys, in all regions, and cannot be undone; its clients get errors",
        database.name
    );
    let neighbours: Vec<&str> = resolve::databases_in(cluster, database.shard)
        .into_iter()
        .filter(|name| *name != database.name)
        .collect();
    let reports = view.fresh_reports(database.shard);
    if let Some(transactions) = reports.map(|(_, report)| report.progress.transactions).max() {
        let made = format::count(transactions, "transaction");
        text.push_str(&format!(". Shard {} has taken {made} since it was created", database.shard));
        if !neighbours.is_empty() {
            text.push_str(&format!(", including those of {}", neighbours.join(", ")));
        }
    }
    let scoped = cluster.tokens.iter().filter(|(_, token)| match &token.scope {
        TokenScope::All => false,
        TokenScope::Databases(ids) => ids.contains(&id),
    });
    let scoped: Vec<String> =
        scoped.map(|(token, known)| format!("{token} ({})", known.label)).collect();
    if !scoped.is_empty() {
        text.push_str(&format!(". Tokens limited to it: {}", scoped.join(", ")));
    }
    if cluster.default_database == Some(id) {
        text.push_str(". It is the default database, which clients open at `/`");
    }
    text.push_str(". Add --yes-delete-all-data to delete it");
    text
}
