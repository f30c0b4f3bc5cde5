//! Additions of the steps of a request to its entry: none, where it has no entry.

use std::sync::Arc;

use bytes::Bytes;
use hyper::http::Extensions;
use hyper::http::request::Parts;
use meridian_types::{Consistency, DatabaseId, QueueName, ReadRange, Transaction, WriteOutcome};

use super::entry::{Entry, consistency_word, named};
use super::line::Field;
use super::parts::PartsText;
use crate::Catalogue;
use crate::database::{ReadOutput, WriteFailure};
use crate::refusal::Refusal;

/// The entry of a request, if it may have a line when it ends well, or when it is gone.
#[derive(Clone, Copy)]
pub(crate) struct Noted<'a>(Option<&'a Arc<Entry>>);

pub(crate) fn of(parts: &Parts) -> Noted<'_> {
    Noted(parts.extensions.get())
}

/// The request is over, though the rest of its body may come yet: its entry waits for none of it.
pub(crate) fn over(extensions: &mut Extensions) {
    drop(extensions.remove::<Arc<Entry>>());
}

impl Noted<'_> {
    /// For what goes on without the request.
    pub(crate) fn entry(self) -> Option<Arc<Entry>> {
        self.0.cloned()
    }

    fn set(self, name: &'static str, field: impl Into<Field>) {
        if let Some(entry) = self.0 {
            entry.note(|line| line.set(name, field));
        }
    }

    /// The token opens the database, and the request may go on unless the log has no room for it.
    pub(crate) fn admit(self) -> Result<(), Refusal> {
        self.0.map_or(Ok(()), |entry| entry.admit())
    }

    /// The request waits, maybe for long, and its line has no room meanwhile.
    pub(crate) fn wait(self) {
        if let Some(entry) = self.0 {
            entry.wait();
        }
    }

    /// The request has waited, and may go on unless the log has no room for it by now.
    pub(crate) fn go_on(self) -> Result<(), Refusal> {
        self.0.map_or(Ok(()), |entry| entry.go_on())
    }

    /// A metadata exchange, whose path names the database.
    pub(crate) fn opened(
        self,
        database: DatabaseId,
        consistency: Consistency,
        catalogue: &impl Catalogue,
    ) {
        self.set("consistency", consistency_word(consistency));
        if let Some(entry) = self.0 {
            entry.note(|line| named(line, database, catalogue));
        }
    }

    pub(crate) fn body(self, body: &Bytes) {
        self.set("bytes_in", body.len());
    }

    pub(crate) fn count(self, name: &'static str, count: usize) {
        self.set(name, count);
    }

    pub(crate) fn read(self, ranges: &[ReadRange]) -> Result<(), Refusal> {
        self.count("ranges", ranges.len());
        self.parts(|parts| ranges.iter().for_each(|range| parts.range(range)))
    }

    pub(crate) fn found(self, output: &ReadOutput) {
        self.count("keys", output.ranges.iter().map(Vec::len).sum());
    }

    pub(crate) fn watch(self, keys: &[Bytes]) -> Result<(), Refusal> {
        self.count("keys", keys.len());
        self.parts(|parts| keys.iter().for_each(|key| parts.key("watch", key)))
    }

    /// Of a change feed.
    pub(crate) fn follow(self, prefix: &Bytes) -> Result<(), Refusal> {
        self.parts(|parts| parts.key("prefix", prefix))
    }

    pub(crate) fn queue(self, name: &QueueName) -> Result<(), Refusal> {
        self.parts(|parts| parts.queue(name))
    }

    pub(crate) fn write(self, transaction: &Transaction) -> Result<(), Refusal> {
        let Transaction { checks, mutations, enqueues, settlements } = transaction;
        let counts = [checks.len(), mutations.len(), enqueues.len(), settlements.len()];
        let names = ["checks", "mutations", "enqueues", "settlements"];
        names.into_iter().zip(counts).for_each(|(name, count)| self.count(name, count));
        self.parts(|parts| parts.transaction(transaction))
    }

    /// Has keys and values in the line, if operators ask for them and there is room.
    fn parts(self, add: impl FnOnce(&mut PartsText)) -> Result<(), Refusal> {
        let Some(entry) = self.0 else { return Ok(()) };
        let settings = entry.audit().settings();
        if !settings.keys || !entry.is_sampled() {
            return Ok(());
        }
        let mut parts = PartsText::new(settings.values);
        add(&mut parts);
        let has_room = entry.has_room(parts.bytes())?;
        let (parts, left_out) = parts.finish(has_room);
        entry.note(|line| {
            line.set("parts", Field::Json(parts));
            if left_out > 0 {
                line.set("parts_left_out", left_out);
            }
        });
        Ok(())
    }
}

/// Notes the outcome of a write, whether or not its client is still there.
pub(crate) fn written(entry: Option<Arc<Entry>>, outcome: &Result<WriteOutcome, WriteFailure>) {
    let Some(entry) = entry else { return };
    match outcome {
        Ok(WriteOutcome::Committed(versionstamp)) => entry.note(|line| {
            line.set("outcome", "committed");
            line.set("versionstamp", versionstamp.to_hex());
        }),
        Ok(WriteOutcome::CheckFailed(failed)) => entry.note(|line| {
            line.set("outcome", "conflict");
            line.set("failed_checks", failed.len());
        }),
        Ok(WriteOutcome::Rejected(_)) | Err(WriteFailure::NotCommitted(_)) => {
            entry.note_for_certain(|line| line.set("outcome", "refused"));
        }
        Err(WriteFailure::Unknown(_)) => {
            entry.note_for_certain(|line| line.set("outcome", "unknown"));
        }
    }
}
