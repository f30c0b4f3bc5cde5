use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meridian_directory::{Phase, Shard};
use meridian_types::{NodeId, ShardId};
use serde::Serialize;

use crate::command::operator::{View, amounts, is_fresh, selection};

/// What a failover would lose, as far as the directory's leader can know before anything is sealed.
#[derive(Debug, Serialize)]
pub(crate) struct Prospect {
    pub(crate) shard: ShardId,
    pub(crate) databases: Vec<String>,
    pub(crate) epoch: u16,
    pub(crate) from: String,
    /// Where it would go: as said, or, of the regions in which a commit would lie in two data
    /// centers, where most is. `None`: it would wait for such a region.
    pub(crate) to: Option<String>,
    /// Who has the newest commit that was ever told.
    pub(crate) newest: Option<Holder>,
    /// Of the nodes that answer, who has the newest. The target gets it from there.
    pub(crate) survivor: Option<Holder>,
    /// Committed, and on no node that answers: at least so many. `None`: nothing is known of the
    /// old region.
    pub(crate) transactions: Option<u64>,
    /// From the newest that survives to the newest that was told, by the leader's clock.
    pub(crate) window_ms: Option<u64>,
    /// Voters of the epoch that answer, and all.
    pub(crate) voters_up: usize,
    pub(crate) voters: usize,
    /// Of each region, how many data centers answer.
    pub(crate) data_centers_up: BTreeMap<String, usize>,
    pub(crate) served: bool,
}

/// A node and what it said last.
#[derive(Debug, Serialize)]
pub(crate) struct Holder {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) position: String,
    pub(crate) transactions: u64,
    pub(crate) time_ms: u64,
    pub(crate) age_ms: u64,
}

impl Prospect {
    pub(crate) fn of(view: &View, id: ShardId, shard: &Shard, to: Option<&str>) -> Self {
        let cluster = &view.cluster;
        // What an earlier failover lost is in no history any more.
        let reports = view.contacts.iter().filter_map(|(node, contact)| {
            let report =
                contact.reports.get(&id).filter(|report| shard.in_history(report.position))?;
            let known = cluster.nodes.get(node).filter(|known| !known.removed)?;
            Some((*node, known, contact.age_ms, report))
        });
        let reports: Vec<_> = reports.collect();
        let newest = reports.iter().max_by_key(|(.., report)| (report.position, report.leads));
        let survivors = || reports.iter().filter(|(_, _, age, _)| is_fresh(*age));
        let survivor = survivors().max_by_key(|(.., report)| report.position);
        let holder =
            |(node, known, age_ms, report): &(NodeId, &meridian_directory::Node, u64, &_)| {
                let report: &crate::command::operator::Report = report;
                Holder {
                    node: *node,
                    name: known.name.clone(),
                    region: known.region.clone(),
                    position: report.position.to_string(),
                    transactions: report.transactions,
                    time_ms: report.time_ms,
                    age_ms: *age_ms,
                }
            };
        let from_old_region = reports.iter().any(|(node, ..)| shard.voters.contains(node));
        let lost = newest.zip(survivor).filter(|_| from_old_region).map(
            |((.., newest), (.., survivor))| {
                let transactions = newest.transactions.saturating_sub(survivor.transactions);
                (transactions, newest.time_ms.saturating_sub(survivor.time_ms))
            },
        );
        let is_up =
            |node: &NodeId| view.contacts.get(node).is_some_and(|contact| is_fresh(contact.age_ms));
        let data_centers_up = |region: &str| {
            let up = cluster.nodes_of(region).filter(|(node, _)| is_up(node));
            up.map(|(_, node)| &node.data_center).collect::<BTreeSet<_>>().len()
        };
        // As the failover controller chooses.
        let may_take_over = |region: &&String| {
            let up = data_centers_up(region);
            up >= 2 && up * 2 > cluster.would_be_voters(region).len()
        };
        let most = |region: &str| {
            survivors()
                .filter(|(_, node, ..)| node.region == region)
                .map(|(.., report)| report.position)
                .max()
        };
        let preference =
            |region: &&String| (**region == shard.primary_region, Reverse(most(region)));
        let best = cluster.regions.iter().filter(may_take_over).min_by_key(preference);
        let databases = selection::databases_in(cluster, id);
        Self {
            shard: id,
            databases: databases.into_iter().map(str::to_owned).collect(),
            epoch: shard.epoch.0,
            from: shard.primary_region.clone(),
            to: to.map(str::to_owned).or(best.cloned()),
            newest: newest.map(holder),
            survivor: survivor.map(holder),
            transactions: lost.map(|(transactions, _)| transactions),
            window_ms: lost.map(|(_, window_ms)| window_ms),
            voters_up: shard.voters.iter().filter(|voter| is_up(voter)).count(),
            voters: shard.voters.len(),
            data_centers_up: cluster
                .regions
                .iter()
                .map(|region| (region.clone(), data_centers_up(region)))
                .collect(),
            served: view.leader_of(id, shard).is_some()
                && !matches!(shard.phase, Phase::Sealing(_)),
        }
    }
}

impl fmt::Display for Prospect {
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
        let holder = |f: &mut fmt::Formatter<'_>, what: &str, holder: &Option<Holder>| match holder
        {
            None => writeln!(f, "  {what:<24} nobody is known to"),
            Some(Holder { name, position, transactions, time_ms, age_ms, .. }) => {
                let (count, time) =
                    (amounts::count(*transactions, "transaction"), amounts::time(*time_ms));
                let age = amounts::duration(*age_ms);
                writeln!(f, "  {what:<24} {name}: {position}, {count}, {time} (heard of {age} ago)")
            }
        };
        holder(f, "has the newest commit:", &self.newest)?;
        holder(f, "has most of who answers:", &self.survivor)?;
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
                    "it would go to {to} ({} reachable){note}",
                    amounts::count(up as u64, "data center")
                )?;
            }
            None => writeln!(
                f,
                "it would wait, sealed: no region has enough data centers that answer, two at least. --to names one all \
                 the same"
            )?,
        }
        match (self.transactions, self.window_ms) {
            (Some(0), _) => writeln!(f, "nothing is known to be lost by it")?,
            (Some(transactions), window_ms) => {
                let window = amounts::duration(window_ms.unwrap_or(0));
                writeln!(
                    f,
                    "at least {} ({window}) would be lost by it",
                    amounts::count(transactions, "transaction")
                )?;
            }
            _ => writeln!(
                f,
                "what would be lost is not known: no voter of this epoch has told its position to the directory's present \
                 leader"
            )?,
        }
        writeln!(
            f,
            "what {from} committed after it was last heard of would be lost, too. Nodes that come back keep what they \
             had in files (`meridian orphans list`), and the report then says what it was"
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

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position};

    use super::*;
    use crate::command::operator::samples::{view, view_without};

    fn prospect(view: &View, to: Option<&str>) -> Prospect {
        Prospect::of(view, ShardId(1), &view.cluster.shards[&ShardId(1)], to)
    }

    #[test]
    fn what_only_the_lost_region_has_is_what_would_be_lost() {
        let view = view_without("region-1", 42_000);
        let lost = prospect(&view, None);
        assert_eq!((lost.transactions, lost.window_ms), (Some(20), Some(50)));
        assert_eq!((lost.voters_up, lost.voters, lost.served), (0, 3, false));
        let newest = lost.newest.as_ref().unwrap();
        assert_eq!(
            (newest.node, newest.position.as_str()),
            (1, "1.100"),
            "the leader, among equals"
        );
        assert_eq!(lost.survivor.as_ref().unwrap().position, "1.98");
        let text = lost.to_string();
        for part in [
            "shard 1 (databases default) is in region-1, epoch 1; 0 of its 3 voters answer",
            "1.100, 1000 transactions",
            "heard of 42.0 s ago",
            "at least 20 transactions (50 ms) would be lost by it",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("without loss"), "{text}");
        assert!(
            prospect(&view, Some("region-3")).to_string().contains("single copy in its region")
        );
    }

    #[test]
    fn one_data_center_left_of_the_old_region_saves_what_it_has() {
        let mut view = view_without("region-1", 42_000);
        view.contacts.get_mut(&3).unwrap().age_ms = 100;
        let lost = prospect(&view, None);
        assert_eq!((lost.transactions, lost.voters_up), (Some(0), 1));
        assert_eq!(lost.survivor.unwrap().node, 3);
        assert_eq!(prospect(&view, None).to.as_deref(), Some("region-2"));
    }

    #[test]
    fn while_all_is_well_a_switchover_is_named() {
        let text = prospect(&view(), Some("region-2")).to_string();
        assert!(text.contains("nothing is known to be lost by it"), "{text}");
        assert!(
            text.contains("`meridian switchover 1 --to region-2` moves it without loss"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_known_is_not_called_nothing() {
        let mut view = view();
        view.contacts.retain(|node, _| *node > 3);
        let lost = prospect(&view, None);
        assert_eq!(lost.transactions, None);
        assert!(lost.to_string().contains("what would be lost is not known"));
        view.contacts.clear();
        assert!(prospect(&view, None).to_string().contains("it would wait, sealed"));
    }

    #[test]
    fn batches_of_an_earlier_lost_tail_do_not_count() {
        let mut view = view();
        let shard = view.cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(2);
        shard.bases.push((Epoch(2), Position::new(Epoch(1), 98)));
        let lost = prospect(&view, None);
        // The voters of the first epoch still say 100 of it, which the second one left behind.
        assert_eq!(lost.newest.unwrap().position, "1.98");
    }
}
