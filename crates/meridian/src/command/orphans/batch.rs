//! A batch of an orphan file, as text and as JSON.

use anyhow::{Context, Result};
use meridian_directory::Cluster;
use meridian_proto::{admin as wire, decode_batch};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Refusal, ValueEncoding, Versionstamp,
};
use serde::Serialize;

use super::key::{self, Part};
use super::queue::{self, ExportedQueueEffect};
use crate::command::operator::format;

pub(super) struct Orphaned {
    pub(super) batch: Batch,
    /// `true`: known to be committed. `false`: unknown.
    pub(super) committed: bool,
    pub(super) bytes: u64,
}

impl Orphaned {
    pub(super) fn read(sent: wire::OrphanBatch) -> Result<Self> {
        let bytes = sent.batch.len() as u64;
        let batch = decode_batch(sent.batch).context("a batch cannot be read by this version")?;
        Ok(Self { batch, committed: sent.committed, bytes })
    }

    /// For people: without values.
    pub(super) fn text(&self, cluster: &Cluster) -> String {
        let position = self.batch.position;
        let committed = if self.committed { "committed" } else { "not known to be committed" };
        let time = format::time(self.batch.time_ms);
        let count = format::count(self.batch.transactions.len() as u64, "transaction");
        let mut out =
            format!("{position}  {time}  {committed}, {count}, {}\n", format::size(self.bytes));
        for (versionstamp, transaction) in self.batch.iter() {
            let database = name(cluster, transaction.database);
            out.push_str(&format!(
                "  {versionstamp}  {database}  request {}\n",
                transaction.request_id
            ));
            if let Some(refusal) = &transaction.refusal {
                out.push_str(&format!("    no effect: {}\n", why(refusal)));
            }
            for effect in &transaction.effects {
                out.push_str(&format!("    {}\n", effect_text(effect)));
            }
        }
        out
    }

    /// One JSON text for each transaction, with all its content.
    pub(super) fn lines(&self, cluster: &Cluster) -> Result<Vec<String>> {
        let line = |(versionstamp, transaction): (Versionstamp, &CommittedTransaction)| {
            let known = cluster.databases.get(&transaction.database);
            let line = Line {
                versionstamp: versionstamp.to_hex(),
                time_ms: self.batch.time_ms,
                committed: self.committed,
                database: transaction.database,
                database_name: known.map(|database| database.name.as_str()),
                request_id: transaction.request_id.to_string(),
                refusal: transaction.refusal.as_ref().map(why),
                effects: transaction.effects.iter().map(Exported::of).collect(),
            };
            Ok(serde_json::to_string(&line)?)
        };
        self.batch.iter().map(line).collect()
    }
}

/// A transaction as `meridian orphans export` writes it.
#[derive(Serialize)]
struct Line<'a> {
    versionstamp: String,
    /// The leader's clock, milliseconds since the Unix epoch.
    time_ms: u64,
    committed: bool,
    database: DatabaseId,
    database_name: Option<&'a str>,
    request_id: String,
    /// Set for a transaction without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    effects: Vec<Exported>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Exported {
    OnQueue(Box<ExportedQueueEffect>),
    OnKey(ExportedEffect),
}

impl Exported {
    fn of(effect: &Effect) -> Self {
        let (op, value, expire_at_ms) = match effect {
            Effect::Put { value, expire_at_ms, .. } => ("put", Some(value), Some(*expire_at_ms)),
            Effect::Delete { .. } => ("delete", None, None),
            Effect::Unindex { expire_at_ms, .. } => ("unindex", None, Some(*expire_at_ms)),
            Effect::DropDatabase => ("drop-database", None, None),
            Effect::Queue(effect) => {
                return Self::OnQueue(Box::new(ExportedQueueEffect::of(effect)));
            }
        };
        Self::OnKey(ExportedEffect {
            op,
            key_hex: key::hex(effect.key()),
            key: key::parts(effect.key()),
            encoding: value.map(|value| encoding(value.encoding)),
            value_hex: value.map(|value| key::hex(&value.data)),
            expire_at_ms: expire_at_ms.filter(|at| *at > 0),
        })
    }
}

#[derive(Serialize)]
struct ExportedEffect {
    op: &'static str,
    key_hex: String,
    /// Absent for a key that no Deno client encodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Vec<Part>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_at_ms: Option<u64>,
}

fn effect_text(effect: &Effect) -> String {
    let key = key::text(effect.key());
    match effect {
        Effect::Put { value, expire_at_ms, .. } => {
            let (encoding, size) =
                (encoding(value.encoding), format::size(value.data.len() as u64));
            let expiry = match expire_at_ms {
                0 => String::new(),
                at => format!(", expires {}", format::time(*at)),
            };
            format!("put     {key}  {encoding}, {size}{expiry}")
        }
        Effect::Delete { .. } => format!("delete  {key}"),
        Effect::Unindex { expire_at_ms, .. } => {
            format!("unindex {key}  of {}", format::time(*expire_at_ms))
        }
        Effect::DropDatabase => "drop    the whole database".to_owned(),
        Effect::Queue(effect) => queue::text(effect),
    }
}

fn encoding(encoding: ValueEncoding) -> &'static str {
    match encoding {
        ValueEncoding::V8 => "v8",
        ValueEncoding::Le64 => "le64",
        ValueEncoding::Bytes => "bytes",
    }
}

fn why(refusal: &Refusal) -> String {
    match refusal {
        Refusal::CheckFailed(indexes) => format!("checks {indexes:?} failed"),
        Refusal::Rejected(text) => text.clone(),
    }
}

fn name(cluster: &Cluster, id: DatabaseId) -> String {
    cluster.databases.get(&id).map_or_else(|| id.to_string(), |database| database.name.clone())
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position, RequestId, Value};

    use super::*;
    use crate::command::operator::samples::cluster;

    fn orphaned() -> Orphaned {
        let value = Value { encoding: ValueEncoding::V8, data: vec![7; 3].into() };
        let transaction = CommittedTransaction {
            request_id: RequestId([1; 16]),
            database: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
            effects: vec![
                Effect::Put { key: b"\x02a\0".as_slice().into(), value, expire_at_ms: 1000 },
                Effect::Delete { key: b"raw".as_slice().into() },
            ],
            refusal: None,
        };
        let refused = CommittedTransaction {
            database: DatabaseId([9; 16]),
            effects: Vec::new(),
            refusal: Some(Refusal::CheckFailed(vec![0])),
            ..transaction.clone()
        };
        let batch = Batch {
            position: Position::new(Epoch(2), 5),
            time_ms: 0,
            transactions: vec![transaction, refused],
        };
        let wire =
            wire::OrphanBatch { batch: meridian_proto::encode_batch(&batch), committed: true };
        Orphaned::read(wire).unwrap()
    }

    #[test]
    fn batches_are_shown_without_values() {
        let expected = "\
2.5  1970-01-01T00:00:00.000Z  committed, 2 transactions, 118 B
  00020000000000050000  default  request 01010101-0101-0101-0101-010101010101
    put     [ \"a\" ]  v8, 3 B, expires 1970-01-01T00:00:01.000Z
    delete  hex 726177
  00020000000000050001  09090909-0909-0909-0909-090909090909  request 01010101-0101-0101-0101-010101010101
    no effect: checks [0] failed
";
        assert_eq!(orphaned().text(&cluster()), expected);
    }

    #[test]
    fn exported_lines_are_golden() {
        let lines = orphaned().lines(&cluster()).unwrap();
        let expected = concat!(
            r#"{"versionstamp":"00020000000000050000","time_ms":0,"committed":true,"#,
            r#""database":"00000000-0000-4000-8000-000000000001","database_name":"default","#,
            r#""request_id":"01010101-0101-0101-0101-010101010101","effects":["#,
            r#"{"op":"put","key_hex":"026100","key":[{"string":"a"}],"encoding":"v8","value_hex":"070707","#,
            r#""expire_at_ms":1000},{"op":"delete","key_hex":"726177"}]}"#,
        );
        assert_eq!(lines[0], expected);
        assert!(
            lines[1].contains(r#""database_name":null"#)
                && lines[1].contains(r#""refusal":"checks [0] failed""#)
        );
    }
}
