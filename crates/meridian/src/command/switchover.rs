//! `meridian switchover` and `meridian failback`: planned moves of a shard's primary to another
//! region. Nothing is lost, and writes wait for a moment.

mod goal;
mod watch;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use meridian_directory::{Change, Cluster, Phase};
use meridian_types::ShardId;

use super::operator::{Connect, Directory, print, print_json, resolve};
pub(crate) use goal::Goal;
pub(crate) use watch::{Outcome, wait};

/// Moves the primary of a shard to another region, without loss.
///
/// The target catches up while everything is served. Then writes wait until it has the rest, the
/// epoch grows by one, and writes continue there: well under a second. Until then `--cancel` stops
/// the move.
#[derive(Args)]
pub(crate) struct Switchover {
    /// A shard's number, or a database's name or id: all databases of the shard move with it.
    #[arg(value_name = "SHARD|DATABASE", required_unless_present = "all")]
    target: Option<String>,
    /// Move every shard that is not there yet.
    #[arg(long, conflicts_with_all = ["target", "cancel"])]
    all: bool,
    /// Region to move to.
    #[arg(long, value_name = "REGION", required_unless_present = "cancel")]
    to: Option<String>,
    /// Cancel a switchover that has not reached its commit point.
    #[arg(long, conflicts_with_all = ["to", "wait"])]
    cancel: bool,
    /// Show the progress, and end when the shard is served in its new region.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Moves the primary of a shard back to the region in which its databases belong, without loss.
///
/// It is a switchover to the primary region that `meridian databases list` shows.
#[derive(Args)]
pub(crate) struct Failback {
    /// A shard's number, or a database's name or id: all databases of the shard move with it.
    #[arg(value_name = "SHARD|DATABASE", required_unless_present = "all")]
    target: Option<String>,
    /// Move every shard that is elsewhere.
    #[arg(long, conflicts_with = "target")]
    all: bool,
    /// Show the progress, and end when the shard is served in its new region.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: Connect,
}

impl Switchover {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let cluster = directory.inspect_leader(0).await?.cluster;
        if self.cancel {
            let target = self.target.unwrap_or_default();
            let (shard, _) = resolve::shard_of(&cluster, &target)?;
            return cancel(&mut directory, shard, self.connect.json).await;
        }
        let to = self.to.unwrap_or_default();
        let to = resolve::region(&cluster, &to)?;
        let moves = match self.target {
            Some(target) => {
                let (id, shard) = resolve::shard_of(&cluster, &target)?;
                if shard.primary_region == to {
                    bail!("shard {id} has its primary in {to} already");
                }
                tell_company(&cluster, id, &target);
                vec![(id, to.to_owned())]
            }
            None => {
                let elsewhere =
                    cluster.shards.iter().filter(|(_, shard)| shard.primary_region != to);
                elsewhere.map(|(id, _)| (*id, to.to_owned())).collect()
            }
        };
        switch(&mut directory, &cluster, moves, self.wait, self.connect.json).await
    }
}

impl Failback {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let cluster = directory.inspect_leader(0).await?.cluster;
        let shards: Vec<ShardId> = match &self.target {
            Some(target) => {
                let (id, _) = resolve::shard_of(&cluster, target)?;
                tell_company(&cluster, id, target);
                vec![id]
            }
            None => cluster.shards.keys().copied().collect(),
        };
        let mut moves = Vec::new();
        for id in shards {
            match home(&cluster, id) {
                Ok(to) => {
                    let to = to.filter(|to| {
                        cluster.shards.get(&id).is_some_and(|shard| shard.primary_region != *to)
                    });
                    moves.extend(to.map(|to| (id, to.to_owned())));
                }
                Err(error) if self.all => eprintln!("meridian: {error:#}"),
                Err(error) => return Err(error),
            }
        }
        switch(&mut directory, &cluster, moves, self.wait, self.connect.json).await
    }
}

/// The region in which the databases of a shard belong; `None` for a shard without databases.
fn home(cluster: &Cluster, id: ShardId) -> Result<Option<&str>> {
    let mut databases = cluster.databases.values().filter(|database| database.shard == id);
    let Some(first) = databases.next() else { return Ok(None) };
    match databases.find(|database| database.primary_region != first.primary_region) {
        None => Ok(Some(&first.primary_region)),
        Some(other) => Err(anyhow!(
            "the databases of shard {id} do not belong in one region ({} in {}, {} in {}): `meridian databases set` \
             changes that, `meridian switchover` moves the shard in any case",
            first.name,
            first.primary_region,
            other.name,
            other.primary_region
        )),
    }
}

/// Tells an operator that moving a database moves the others of its shard, too.
fn tell_company(cluster: &Cluster, id: ShardId, named: &str) {
    let databases = resolve::databases_in(cluster, id);
    if databases.len() > 1 && named.trim_start_matches("shard:") != id.to_string() {
        eprintln!("shard {id} moves as a whole, with the databases {}", databases.join(", "));
    }
}

/// Begins all moves, and waits for them if `and_wait`. A refused move does not stop the others.
async fn switch(
    directory: &mut Directory,
    cluster: &Cluster,
    moves: Vec<(ShardId, String)>,
    and_wait: bool,
    json: bool,
) -> Result<()> {
    if moves.is_empty() {
        return if json {
            print_json(&Vec::<Outcome>::new())
        } else {
            print("nothing to move: every shard is in its region\n")
        };
    }
    let mut begun = Vec::new();
    let mut refused = 0;
    for (shard, to) in moves {
        let Some(goal) = Goal::switchover(cluster, shard, &to) else { continue };
        match directory.execute(&Change::BeginSwitchover { shard, to }).await {
            Ok(after) => begun.push(Goal { version: after.version, ..goal }),
            Err(error) => {
                refused += 1;
                eprintln!("meridian: shard {shard}: {error:#}");
            }
        }
    }
    let reached = match and_wait {
        true => wait(directory, &begun, json).await?,
        false => {
            if json {
                print_json(&begun)?;
            }
            for goal in begun.iter().filter(|_| !json) {
                let Goal { shard, from, .. } = goal;
                let to = goal.to.as_deref().unwrap_or("another region");
                print(&format!(
                    "shard {shard}: switchover from {from} to {to} begun; `meridian cluster status` shows the progress, \
                     `meridian switchover --cancel {shard}` cancels it before its commit point\n"
                ))?;
            }
            true
        }
    };
    match (refused, reached) {
        (0, true) => Ok(()),
        (0, false) => bail!("not every shard reached its target region"),
        (refused, _) => bail!("{refused} of the switchovers were refused"),
    }
}

async fn cancel(directory: &mut Directory, shard: ShardId, json: bool) -> Result<()> {
    let cluster = directory.execute(&Change::CancelSwitchover { shard }).await?;
    let Some(after) = cluster.shards.get(&shard) else { bail!("shard {shard} is gone") };
    if json {
        return print_json(after);
    }
    let region = &after.primary_region;
    print(&match after.phase {
        Phase::Active => {
            format!(
                "the switchover of shard {shard} is cancelled: it stays in {region}, and nothing was interrupted\n"
            )
        }
        _ => format!(
            "the switchover of shard {shard} is cancelled: it was sealed already, so it opens again in {region}, under \
             its next epoch; `meridian cluster status` shows when\n"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::cluster;

    #[test]
    fn failback_goes_where_all_databases_of_the_shard_belong() {
        let mut cluster = cluster();
        assert_eq!(home(&cluster, ShardId(1)).unwrap(), Some("region-1"));
        assert_eq!(home(&cluster, ShardId(9)).unwrap(), None);
        for database in cluster.databases.values_mut() {
            database.shard = ShardId(1);
        }
        assert_eq!(home(&cluster, ShardId(1)).unwrap(), Some("region-1"));
        for database in cluster.databases.values_mut().filter(|database| database.name == "second")
        {
            database.primary_region = "region-2".to_owned();
        }
        let error = home(&cluster, ShardId(1)).unwrap_err().to_string();
        assert!(error.contains("default in region-1, second in region-2"), "{error}");
    }
}
