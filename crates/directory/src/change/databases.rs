//! Databases and their deletion.

use meridian_types::limits::MAX_QUEUE_NAMES;
use meridian_types::{DatabaseId, QueueName, ShardId, V8Format};

use crate::change::names::check_name;
use crate::change::{Refused, ensure};
use crate::cluster::Cluster;
use crate::database::{Database, Deletion, FailoverMode, Rpo};
use crate::shard::Shard;
use crate::webhook::{Webhook, WebhookSettings};

/// Databases that are being deleted at once at most: each waits for the node that is longest away.
const MAX_DELETIONS: usize = 1000;

fn check_rpo(rpo: Rpo) -> Result<(), Refused> {
    ensure(rpo.soft_ms <= rpo.max_ms, || {
        format!(
            "writes cannot be slowed from {} ms and refused from {} ms on",
            rpo.soft_ms, rpo.max_ms
        )
    })
}

fn no_webhook() -> Refused {
    Refused("the queue has no webhook".to_owned())
}

impl Cluster {
    pub(super) fn create_database(
        &mut self,
        id: DatabaseId,
        database: &Database,
        own_shard: bool,
    ) -> Result<(), Refused> {
        check_name("database", &database.name, &['~'])?;
        check_rpo(database.rpo)?;
        ensure(database.webhooks.is_empty(), || "a new database has no webhook".to_owned())?;
        ensure(!self.databases.contains_key(&id), || format!("database {id} exists already"))?;
        ensure(!self.deleting.contains_key(&id), || format!("database {id} is being deleted"))?;
        ensure(self.databases.values().all(|other| other.name != database.name), || {
            format!("there is a database called {} already", database.name)
        })?;
        self.check_region_with_nodes(&database.primary_region)?;
        let shared = if own_shard { None } else { self.emptiest_shard(&database.primary_region) };
        let shard = match shared {
            Some(shard) => shard,
            None => self.create_shard(&database.primary_region)?,
        };
        self.databases.insert(id, Database { shard, ..database.clone() });
        Ok(())
    }

    fn emptiest_shard(&self, region: &str) -> Option<ShardId> {
        let here = self.shards.iter().filter(|(_, shard)| shard.primary_region == region);
        let databases =
            |id: ShardId| self.databases.values().filter(|database| database.shard == id).count();
        here.map(|(id, _)| *id).min_by_key(|id| (databases(*id), *id))
    }

    /// Shard 0 is the directory's own, and never one of these.
    fn create_shard(&mut self, region: &str) -> Result<ShardId, Refused> {
        let id = self
            .last_shard_id
            .checked_add(1)
            .ok_or_else(|| Refused("all shard ids were used".to_owned()))?;
        let voters = self.would_be_voters(region);
        let leader = self.spread_leader(&voters);
        let shard = Shard::new(region.to_owned(), voters, leader);
        self.last_shard_id = id;
        self.shards.insert(ShardId(id), shard);
        Ok(ShardId(id))
    }

    pub(super) fn delete_database(&mut self, id: DatabaseId) -> Result<(), Refused> {
        ensure(self.deleting.len() < MAX_DELETIONS, || {
            format!(
                "{MAX_DELETIONS} databases are being deleted already: `meridian databases list` says what they wait for"
            )
        })?;
        let database = self
            .databases
            .remove(&id)
            .ok_or_else(|| Refused(format!("there is no database {id}")))?;
        self.default_database = self.default_database.filter(|default| *default != id);
        self.deleting.insert(id, Deletion { name: database.name, shard: database.shard });
        Ok(())
    }

    pub(super) fn end_deletion(&mut self, id: DatabaseId) -> Result<(), Refused> {
        ensure(self.deleting.remove(&id).is_some(), || {
            format!("database {id} is not being deleted")
        })
    }

    pub(super) fn set_database(
        &mut self,
        id: DatabaseId,
        failover: Option<FailoverMode>,
        rpo: Option<Rpo>,
        primary_region: Option<&str>,
        v8_format: Option<V8Format>,
        queue_paused: Option<bool>,
    ) -> Result<(), Refused> {
        if let Some(region) = primary_region {
            self.check_region_with_nodes(region)?;
        }
        let database = self
            .databases
            .get_mut(&id)
            .ok_or_else(|| Refused(format!("there is no database {id}")))?;
        database.failover = failover.unwrap_or(database.failover);
        database.rpo = rpo.unwrap_or(database.rpo);
        database.v8_format = v8_format.unwrap_or(database.v8_format);
        database.queue_paused = queue_paused.unwrap_or(database.queue_paused);
        check_rpo(database.rpo)?;
        if let Some(region) = primary_region {
            region.clone_into(&mut database.primary_region);
        }
        Ok(())
    }

    pub(super) fn set_webhook(
        &mut self,
        id: DatabaseId,
        queue: &str,
        settings: &WebhookSettings,
    ) -> Result<(), Refused> {
        queue.parse::<QueueName>().map_err(|error| Refused(error.to_string()))?;
        let webhooks = self.webhooks(id)?;
        let place = webhooks.iter().position(|webhook| webhook.queue == queue);
        let present = place.and_then(|place| webhooks.get(place));
        let webhook = Webhook::with(present, queue, settings)?;
        webhooks.retain(|webhook| webhook.queue != queue);
        webhooks.push(webhook);
        ensure(webhooks.len() <= MAX_QUEUE_NAMES, || {
            format!("a database has at most {MAX_QUEUE_NAMES} webhooks")
        })
    }

    pub(super) fn rotate_webhook_key(
        &mut self,
        id: DatabaseId,
        queue: &str,
    ) -> Result<(), Refused> {
        let mut webhooks = self.webhooks(id)?.iter_mut();
        match webhooks.find(|webhook| webhook.queue == queue) {
            Some(webhook) => webhook.rotate(),
            None => Err(no_webhook()),
        }
    }

    pub(super) fn remove_webhook(&mut self, id: DatabaseId, queue: &str) -> Result<(), Refused> {
        let webhooks = self.webhooks(id)?;
        let before = webhooks.len();
        webhooks.retain(|webhook| webhook.queue != queue);
        if webhooks.len() < before { Ok(()) } else { Err(no_webhook()) }
    }

    fn webhooks(&mut self, id: DatabaseId) -> Result<&mut Vec<Webhook>, Refused> {
        let database = self.databases.get_mut(&id);
        let found = database.map(|database| &mut database.webhooks);
        found.ok_or_else(|| Refused(format!("there is no database {id}")))
    }
}
