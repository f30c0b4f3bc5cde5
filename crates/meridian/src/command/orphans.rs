//! `meridian orphans`: batches of a lost primary beyond the base of the next epoch, which each node
//! keeps in files.

mod batch;
mod key;
mod queue;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Cluster, Node};
use meridian_net::grpc::Access;
use meridian_proto::admin as wire;
use meridian_types::NodeId;
use serde::Serialize;
use tempfile::NamedTempFile;
use tonic::Streaming;

use super::operator::{
    Connect, Directory, Table, admin, every_node, format, print, print_json, resolve,
};
use batch::Orphaned;

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Orphans {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the files on all nodes. Each node of the old region keeps its own, so the same batch
    /// may be in several.
    List,
    /// Shows the batches of one file: time, keys, and whether they were committed. Without values.
    Show {
        #[command(flatten)]
        file: File,
    },
    /// Writes all transactions of a file with their values, one JSON text a line.
    ///
    /// Meridian writes nothing back: only the application knows what should be written again, and
    /// where that would overwrite newer values.
    Export {
        #[command(flatten)]
        file: File,
        /// File to write; it must not exist yet.
        #[arg(long, value_name = "FILE.jsonl")]
        output: PathBuf,
    },
}

#[derive(Args)]
struct File {
    /// Name as shown by `meridian orphans list`: NODE/FILE, or FILE alone if only one node has it.
    #[arg(value_name = "FILE")]
    name: String,
    /// Id or name of the node that has the file.
    #[arg(long, value_name = "NODE")]
    on: Option<String>,
}

/// A file on a node.
#[derive(Serialize)]
struct Listed {
    node_id: NodeId,
    node: String,
    name: String,
    shard: u32,
    epoch: u32,
    base_sequence: u64,
    batches: u64,
    transactions: u64,
    first_time_ms: u64,
    last_time_ms: u64,
    bytes: u64,
    /// The first and the last batch that had already been purged from the node's log; 0: none.
    missing_from: u64,
    missing_through: u64,
    /// The file is damaged: `meridian orphans show` shows how.
    unreadable: bool,
}

impl Listed {
    fn of(node_id: NodeId, node: &Node, file: wire::OrphanFile) -> Self {
        Self {
            node_id,
            node: node.name.clone(),
            name: file.name,
            shard: file.shard,
            epoch: file.epoch,
            base_sequence: file.base_sequence,
            batches: file.batches,
            transactions: file.transactions,
            first_time_ms: file.first_time_ms,
            last_time_ms: file.last_time_ms,
            bytes: file.bytes,
            missing_from: file.missing_from,
            missing_through: file.missing_through,
            // A file without batches is written only to record the missing ones.
            unreadable: file.batches == 0 && file.missing_through == 0,
        }
    }
}

/// The range of batches that are in no file of the node, if any.
fn missing(from: u64, through: u64) -> Option<String> {
    (through > 0)
        .then(|| if from == through { from.to_string() } else { format!("{from} to {through}") })
}

impl Orphans {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let cluster = directory.inspect(0).await?.cluster;
        let access = directory.access().clone();
        let json = self.connect.json;
        match self.command {
            Command::List => {
                let files = list(&cluster, &access).await?;
                if json { print_json(&files) } else { print(&table(&files)) }
            }
            Command::Show { file } => show(&cluster, &access, &file, json).await,
            Command::Export { file, output } => {
                export(&cluster, &access, &file, &output, json).await
            }
        }
    }
}

/// The files of all nodes that answer.
async fn list(cluster: &Cluster, access: &Access) -> Result<Vec<Listed>> {
    let answers = every_node(cluster, "list the files of", async |node| {
        let mut client = admin(&node.rpc_address, access).await?;
        Ok(client.list_orphans(wire::ListOrphansRequest {}).await?.into_inner())
    });
    let mut files = Vec::new();
    for (id, node, list) in answers.await? {
        files.extend(list.files.into_iter().map(|file| Listed::of(id, node, file)));
    }
    Ok(files)
}

fn table(files: &[Listed]) -> String {
    if files.is_empty() {
        return "no node that answered keeps orphans\n".to_owned();
    }
    let mut table =
        Table::new(&["FILE", ">BATCHES", ">TRANSACTIONS", "FROM", "TO", ">SIZE", "MISSING"]);
    for file in files {
        let name = format!("{}/{}", file.node, file.name);
        if file.unreadable {
            table.row([
                name,
                "-".to_owned(),
                "-".to_owned(),
                "cannot be read".to_owned(),
                String::new(),
                String::new(),
            ]);
            continue;
        }
        // The times of missing batches are unknown.
        let time = |ms| if ms == 0 { "-".to_owned() } else { format::time(ms) };
        table.row([
            name,
            file.batches.to_string(),
            file.transactions.to_string(),
            time(file.first_time_ms),
            time(file.last_time_ms),
            format::size(file.bytes),
            missing(file.missing_from, file.missing_through).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.to_string()
}

/// A file that is being read from its node.
struct Reading<'a> {
    node: &'a Node,
    name: String,
    batches: Streaming<wire::OrphanBatch>,
}

impl Reading<'_> {
    async fn next(&mut self) -> Result<Option<Orphaned>> {
        let batch = match tokio::time::timeout(TIMEOUT, self.batches.message()).await {
            Ok(batch) => batch.map_err(|status| {
                anyhow!("{}/{}: {}", self.node.name, self.name, status.message())
            })?,
            Err(_) => bail!("{} no longer answers", self.node.name),
        };
        batch.map(Orphaned::read).transpose()
    }
}

async fn open<'a>(cluster: &'a Cluster, access: &Access, file: &File) -> Result<Reading<'a>> {
    let (on, name) = match (&file.on, file.name.rsplit_once('/')) {
        (Some(on), None) => (Some(on.as_str()), file.name.as_str()),
        (None, Some((on, name))) => (Some(on), name),
        (Some(_), Some(_)) => bail!("name the node once: by --on, or before the file's name"),
        (None, None) => (None, file.name.as_str()),
    };
    let holder = match on {
        Some(on) => resolve::node(cluster, on)?.0,
        None => holder(&list(cluster, access).await?, name)?,
    };
    let node = cluster.nodes.get(&holder).context("the node was removed meanwhile")?;
    let opened = async {
        let mut client = admin(&node.rpc_address, access).await?;
        let listed = client.list_orphans(wire::ListOrphansRequest {}).await?.into_inner();
        let batches = client
            .read_orphans(wire::ReadOrphansRequest { name: name.to_owned() })
            .await?
            .into_inner();
        Ok::<_, tonic::Status>((listed.files, batches))
    };
    let opened = tokio::time::timeout(TIMEOUT, opened)
        .await
        .map_err(|_| anyhow!("{} does not answer", node.name))?;
    let (files, batches) =
        opened.map_err(|status| anyhow!("{}: {}", node.name, status.message()))?;
    let entry = files.iter().find(|file| file.name == name);
    if let Some(missing) = entry.and_then(|file| missing(file.missing_from, file.missing_through)) {
        // On the standard error: a program may read the lines of batches.
        eprintln!(
            "meridian: {}/{name} lacks batches {missing}, already purged from the node's log",
            node.name
        );
    }
    Ok(Reading { node, name: name.to_owned(), batches })
}

/// The only node that has a file of this name.
fn holder(files: &[Listed], name: &str) -> Result<NodeId> {
    let holders: Vec<&Listed> = files.iter().filter(|file| file.name == name).collect();
    match holders.as_slice() {
        [] => bail!("no node that answered has a file {name}; `meridian orphans list` shows all"),
        [one] => Ok(one.node_id),
        several => {
            let names: Vec<String> =
                several.iter().map(|file| format!("{}/{name}", file.node)).collect();
            bail!("several nodes have a file of that name: {}", names.join(", "))
        }
    }
}

async fn show(cluster: &Cluster, access: &Access, file: &File, json: bool) -> Result<()> {
    let mut reading = open(cluster, access, file).await?;
    while let Some(orphaned) = reading.next().await? {
        if json {
            orphaned.lines(cluster)?.into_iter().try_for_each(|line| print(&(line + "\n")))?;
        } else {
            print(&orphaned.text(cluster))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Exported<'a> {
    output: &'a Path,
    batches: u64,
    transactions: u64,
}

/// Writes to a temporary file, which gets its name when it is complete.
async fn export(
    cluster: &Cluster,
    access: &Access,
    file: &File,
    output: &Path,
    json: bool,
) -> Result<()> {
    let unusable = || format!("cannot write {}", output.display());
    if output.exists() {
        bail!("{} exists already", output.display());
    }
    let mut reading = open(cluster, access, file).await?;
    let folder =
        output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The file holds the application's data: readable by its owner only, under an unpredictable
    // name.
    let mut out = BufWriter::new(NamedTempFile::new_in(folder).with_context(unusable)?);
    let mut exported = Exported { output, batches: 0, transactions: 0 };
    while let Some(orphaned) = reading.next().await? {
        for line in orphaned.lines(cluster)? {
            writeln!(out, "{line}").with_context(unusable)?;
            exported.transactions += 1;
        }
        exported.batches += 1;
    }
    let file = out.into_inner().map_err(|error| error.into_error()).with_context(unusable)?;
    file.as_file().sync_all().with_context(unusable)?;
    // Never overwrites a file that was created meanwhile.
    file.persist_noclobber(output).map_err(|error| error.error).with_context(unusable)?;
    if json {
        return print_json(&exported);
    }
    let transactions = format::count(exported.transactions, "transaction");
    print(&format!("{}: {transactions}, in {} batches\n", output.display(), exported.batches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::cluster;

    fn listed(node: u64, name: &str, batches: u64) -> Listed {
        let node = NodeId(node);
        let file =
            wire::OrphanFile { name: name.to_owned(), batches, bytes: 2048, ..Default::default() };
        Listed::of(node, &cluster().nodes[&node], file)
    }

    #[test]
    fn file_is_found_by_its_name_if_only_one_node_has_it() {
        let files = [listed(1, "a", 1), listed(2, "a", 1), listed(2, "b", 1)];
        assert_eq!(holder(&files, "b").unwrap(), NodeId(2));
        assert!(
            holder(&files, "a").unwrap_err().to_string().contains("region-1-a/a, region-1-b/a")
        );
        assert!(holder(&files, "c").is_err());
    }

    #[test]
    fn damaged_files_are_listed_as_such() {
        let text = table(&[listed(1, "a", 3), listed(2, "b", 0)]);
        assert!(text.contains("region-1-a/a        3") && text.contains("2.0 KiB"), "{text}");
        assert!(text.contains("region-1-b/b        -             -  cannot be read"), "{text}");
        assert_eq!(table(&[]), "no node that answered keeps orphans\n");
    }

    #[test]
    fn missing_batches_are_listed() {
        let lacking = |batches, missing_from, missing_through| Listed {
            unreadable: false,
            missing_from,
            missing_through,
            ..listed(1, "a", batches)
        };
        let text = table(&[lacking(3, 101, 105), lacking(0, 101, 101), lacking(3, 0, 0)]);
        let ends: Vec<_> =
            text.lines().map(|line| line.split("  ").last().unwrap().trim()).collect();
        assert_eq!(ends, ["MISSING", "101 to 105", "101", "-"]);
        let file =
            wire::OrphanFile { missing_from: 101, missing_through: 101, ..Default::default() };
        assert!(!Listed::of(NodeId(1), &cluster().nodes[&NodeId(1)], file).unreadable);
    }
}
