//! The effect and the loss of a failover before it is ordered, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use meridian_directory::{Phase, Shard};
use meridian_failover::{ControllerConfig, FailoverPreview, Holder};
use meridian_types::{NodeId, ShardId};
use serde::Serialize;

use crate::command::operator::{View, format, resolve};

/// A [`FailoverPreview`], with names.
#[derive(Debug, Serialize)]
pub(crate) struct Preview {
    pub(crate) shard: ShardId,
    pub(crate) databases: Vec<String>,
    pub(crate) epoch: u16,
    pub(crate) from: String,
    pub(crate) to: Option<String>,
    pub(crate) newest: Option<NamedHolder>,
    pub(crate) survivor: Option<NamedHolder>,
    pub(crate) transactions: Option<u64>,
    pub(crate) window_ms: Option<u64>,
    pub(crate) voters_up: usize,
    pub(crate) voters: usize,
    pub(crate) data_centers_up: BTreeMap<String, usize>,
    pub(crate) served: bool,
}

/// A node and its latest report.
#[derive(Debug, Serialize)]
pub(crate) struct NamedHolder {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) position: String,
    pub(crate) transactions: u64,
    pub(crate) time_ms: u64,
    pub(crate) age_ms: u64,
}

impl Preview {
    pub(crate) fn new(view: &View, id: ShardId, shard: &Shard, to: Option<&str>) -> Self {
        let cluster = &view.cluster;
        let within = ControllerConfig::default().reachable_within;
        let preview = FailoverPreview::new(cluster, id, shard, &view.contacts, within, to);
        let holder = |holder: Holder| {
            let known = cluster.nodes.get(&holder.node)?;
            Some(NamedHolder {
                node: holder.node,
                name: known.name.clone(),
                region: known.region.clone(),
                position: holder.report.position.to_string(),
                transactions: holder.report.progress.transactions,
                time_ms: holder.report.progress.time_ms,
                age_ms: holder.age_ms,
            })
        };
        let databases = resolve::databases_in(cluster, id);
        Self {
            shard: id,
            databases: databases.into_iter().map(str::to_owned).collect(),
            epoch: shard.epoch.0,
            from: shard.primary_region.clone(),
            to: preview.to,
            newest: preview.newest.and_then(holder),
            survivor: preview.survivor.and_then(holder),
            transactions: preview.loss.map(|loss| loss.transactions),
            window_ms: preview.loss.map(|loss| loss.window_ms),
            voters_up: preview.voters_up,
            voters: shard.voters.len(),
            data_centers_up: preview.data_centers_up,
            served: view.leader_of(id, shard).is_some()
                && !matches!(shard.phase, Phase::Sealing(_)),
        }
    }
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, from, epoch, voters_up, voters, .. } = self;
        let databases = match self.databases.as_slice() {
            [] => "no databases".to_owned(),
            databases => format!("databases {}", databases.join(", ")),
        };
        writeln!(
            f,
            "shard {shard} ({databases}) is in {from}, epoch {epoch}; {voters_up} of its {voters} voters answer"
        )?;
        write_holder(f, "has the newest commit:", self.newest.as_ref())?;
        write_holder(f, "most advanced reachable:", self.survivor.as_ref())?;
        match &self.to {
            Some(to) => {
                let up = self.data_centers_up.get(to).copied().unwrap_or(0);
                let note = if up < 2 {
                    ": a commit there would have a single copy in its region"
                } else {
                    ""
                };
                writeln!(
                    f,
                    "it would fail over to {to} ({} reachable){note}",
                    format::count(up as u64, "data center")
                )?;
            }
            None => writeln!(
                f,
                "it would stay sealed: no region has two reachable data centers; --to chooses a region in any case"
            )?,
        }
        match (self.transactions, self.window_ms) {
            (Some(0), _) => writeln!(f, "no loss is known")?,
            (Some(transactions), window_ms) => {
                let window = format::duration(window_ms.unwrap_or(0));
                writeln!(
                    f,
                    "at least {} ({window}) would be lost",
                    format::count(transactions, "transaction")
                )?;
            }
            _ => writeln!(
                f,
                "the loss is unknown: no voter of this epoch has reported to the directory's present leader"
            )?,
        }
        writeln!(
            f,
            "commits of {from} after it was last seen would be lost, too. Nodes that come back keep them in files \
             (`meridian orphans list`), and the report of the failover then counts them"
        )?;
        if self.served {
            writeln!(
                f,
                "{from} serves the shard now: `meridian switchover {shard} --to {}` moves it without loss",
                self.to.as_deref().unwrap_or("REGION")
            )?;
        }
        Ok(())
    }
}

fn write_holder(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    holder: Option<&NamedHolder>,
) -> fmt::Result {
    let Some(NamedHolder { name, position, transactions, time_ms, age_ms, .. }) = holder else {
        return writeln!(f, "  {what:<24} unknown");
    };
    let (count, time) = (format::count(*transactions, "transaction"), format::time(*time_ms));
    let age = format::duration(*age_ms);
    writeln!(f, "  {what:<24} {name}: {position}, {count}, {time} (last seen {age} ago)")
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position};

    use super::*;
    use crate::command::operator::samples::{view, view_without};

    fn preview(view: &View, to: Option<&str>) -> Preview {
        Preview::new(view, ShardId(1), &view.cluster.shards[&ShardId(1)], to)
    }

    #[test]
    fn batches_that_only_the_lost_region_has_would_be_lost() {
        let view = view_without("region-1", 42_000);
        let lost = preview(&view, None);
        assert_eq!((lost.transactions, lost.window_ms), (Some(20), Some(50)));
        assert_eq!((lost.voters_up, lost.voters, lost.served), (0, 3, false));
        let newest = lost.newest.as_ref().unwrap();
        assert_eq!(
            (newest.node, newest.position.as_str()),
            (NodeId(1), "1.100"),
            "the leader, among equals"
        );
        assert_eq!(lost.survivor.as_ref().unwrap().position, "1.98");
        let text = lost.to_string();
        for part in [
            "shard 1 (databases default) is in region-1, epoch 1; 0 of its 3 voters answer",
            "1.100, 1000 transactions",
            "last seen 42.0 s ago",
            "at least 20 transactions (50 ms) would be lost",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("without loss"), "{text}");
        assert!(preview(&view, Some("region-3")).to_string().contains("single copy in its region"));
    }

    #[test]
    fn surviving_data_center_of_the_old_region_saves_its_batches() {
        let mut view = view_without("region-1", 42_000);
        view.contacts.get_mut(&NodeId(3)).unwrap().age_ms = 100;
        let lost = preview(&view, None);
        assert_eq!((lost.transactions, lost.voters_up), (Some(0), 1));
        assert_eq!(lost.survivor.unwrap().node, NodeId(3));
        assert_eq!(preview(&view, None).to.as_deref(), Some("region-2"));
    }

    #[test]
    fn preview_of_a_healthy_shard_names_the_switchover() {
        let text = preview(&view(), Some("region-2")).to_string();
        assert!(text.contains("no loss is known"), "{text}");
        assert!(
            text.contains("`meridian switchover 1 --to region-2` moves it without loss"),
            "{text}"
        );
    }

    #[test]
    fn unknown_loss_is_not_shown_as_none() {
        let mut view = view();
        view.contacts.retain(|node, _| node.0 > 3);
        let lost = preview(&view, None);
        assert_eq!(lost.transactions, None);
        assert!(lost.to_string().contains("the loss is unknown"));
        view.contacts.clear();
        assert!(preview(&view, None).to_string().contains("it would stay sealed"));
    }

    #[test]
    fn batches_of_an_earlier_lost_tail_do_not_count() {
        let mut view = view();
        let shard = view.cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(2);
        shard.bases.push((Epoch(2), Position::new(Epoch(1), 98)));
        let lost = preview(&view, None);
        // The voters of the first epoch still report 100 of it; the second epoch began at 98.
        assert_eq!(lost.newest.unwrap().position, "1.98");
    }
}
