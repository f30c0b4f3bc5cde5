//! The text of a change feed: lines of JSON, or server-sent events with the same JSON. A line is a
//! whole transaction, a bookmark, or the end of the feed with its reason.

use std::fmt::{self, Write};

use meridian_types::{ValueEncoding, Versionstamp};
use meridian_values::json::{push_base64url, quoted};

use crate::changes::{Change, ChangedTransaction};

/// The most bytes of the text of a change beside its key and value, or of a transaction beside its
/// changes.
const BESIDE_BYTES: usize = 128;

/// The form that a client has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Lines,
    /// The id of each event but the last is the versionstamp behind which a new feed goes on.
    Events,
}

impl Form {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }

    /// Of whole transactions, written in place: it is the only copy beside the changes themselves.
    pub(crate) fn transactions(self, transactions: &[ChangedTransaction]) -> String {
        let mut text = String::with_capacity(transactions.iter().map(max_text_bytes).sum());
        for transaction in transactions {
            let id = Some(transaction.versionstamp);
            self.write(&mut text, "", id, |text| write_json(text, transaction));
        }
        text
    }

    /// All that was committed up to `reached` is told.
    pub(crate) fn bookmark(self, reached: Versionstamp) -> String {
        let mut text = String::new();
        self.write(&mut text, "event: bookmark\n", Some(reached), |text| {
            write!(text, "{{\"bookmark\":\"{reached}\"}}")
        });
        text
    }

    pub(crate) fn end(self, code: &str, message: &str) -> String {
        let mut text = String::new();
        self.write(&mut text, "event: end\n", None, |text| {
            write!(text, "{{\"end\":\"{code}\",\"message\":{}}}", quoted(message))
        });
        text
    }

    /// A string takes all that is written to it: nothing fails here.
    fn write(
        self,
        text: &mut String,
        event: &str,
        id: Option<Versionstamp>,
        json: impl FnOnce(&mut String) -> fmt::Result,
    ) {
        if self == Self::Events {
            text.push_str(event);
            if let Some(id) = id {
                writeln!(text, "id: {id}").ok();
            }
            text.push_str("data: ");
        }
        json(text).ok();
        text.push_str(match self {
            Self::Lines => "\n",
            Self::Events => "\n\n",
        });
    }
}

/// The bytes of a transaction's text, at most.
fn max_text_bytes(transaction: &ChangedTransaction) -> usize {
    let of_change = |change: &Change| match change {
        Change::Set { key, value, .. } => BESIDE_BYTES + (key.len() + value.data.len()) / 3 * 4,
        Change::Deleted { key } | Change::Expired { key } => BESIDE_BYTES + key.len() / 3 * 4,
        Change::DatabaseDropped => BESIDE_BYTES,
    };
    BESIDE_BYTES + transaction.changes.iter().map(of_change).sum::<usize>()
}

fn write_json(text: &mut String, transaction: &ChangedTransaction) -> fmt::Result {
    write!(text, "{{\"versionstamp\":\"{}\",\"changes\":[", transaction.versionstamp)?;
    for (at, change) in transaction.changes.iter().enumerate() {
        text.push_str(if at == 0 { "" } else { "," });
        write_change(text, change)?;
    }
    text.push_str("]}");
    Ok(())
}

fn write_change(text: &mut String, change: &Change) -> fmt::Result {
    let (op, key) = match change {
        Change::Set { key, .. } => ("set", key),
        Change::Deleted { key } => ("delete", key),
        Change::Expired { key } => ("expire", key),
        Change::DatabaseDropped => {
            text.push_str("{\"op\":\"drop\"}");
            return Ok(());
        }
    };
    write!(text, "{{\"op\":\"{op}\",\"key\":\"")?;
    push_base64url(text, key);
    if let Change::Set { value, expire_at_ms, .. } = change {
        let encoding = match value.encoding {
            ValueEncoding::V8 => "V8",
            ValueEncoding::Le64 => "LE64",
            ValueEncoding::Bytes => "BYTES",
        };
        write!(text, "\",\"encoding\":\"{encoding}\",\"value\":\"")?;
        push_base64url(text, &value.data);
        if *expire_at_ms > 0 {
            write!(text, "\",\"expireAt\":{expire_at_ms}}}")?;
            return Ok(());
        }
    }
    text.push_str("\"}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_types::{Epoch, Position, Value};

    use super::*;

    const KEY: Bytes = Bytes::from_static(b"\x02a\0");

    fn stamp() -> Versionstamp {
        Versionstamp::new(Position::new(Epoch(1), 5), 2)
    }

    fn transaction() -> ChangedTransaction {
        let set = |encoding, data: &'static [u8], expire_at_ms| Change::Set {
            key: KEY,
            value: Value { encoding, data: Bytes::from_static(data) },
            expire_at_ms,
        };
        let changes = vec![
            set(ValueEncoding::V8, b"\xff\x0fI\x02", 0),
            set(ValueEncoding::Le64, b"\x05\0\0\0\0\0\0\0", 9),
            set(ValueEncoding::Bytes, b"", 0),
            Change::Deleted { key: KEY },
            Change::Expired { key: KEY },
            Change::DatabaseDropped,
        ];
        ChangedTransaction { versionstamp: stamp(), changes }
    }

    const JSON: &str = "{\"versionstamp\":\"00010000000000050002\",\"changes\":[\
        {\"op\":\"set\",\"key\":\"AmEA\",\"encoding\":\"V8\",\"value\":\"_w9JAg\"},\
        {\"op\":\"set\",\"key\":\"AmEA\",\"encoding\":\"LE64\",\"value\":\"BQAAAAAAAAA\",\"expireAt\":9},\
        {\"op\":\"set\",\"key\":\"AmEA\",\"encoding\":\"BYTES\",\"value\":\"\"},\
        {\"op\":\"delete\",\"key\":\"AmEA\"},{\"op\":\"expire\",\"key\":\"AmEA\"},{\"op\":\"drop\"}]}";

    #[test]
    fn lines_are_golden() {
        let two = [transaction(), transaction()];
        assert_eq!(Form::Lines.transactions(&two), format!("{JSON}\n{JSON}\n"));
        let bookmark = "{\"bookmark\":\"0001000000000005ffff\"}\n";
        assert_eq!(Form::Lines.bookmark(Versionstamp::behind(stamp().position())), bookmark);
        let end = "{\"end\":\"gone\",\"message\":\"the \\\"log\\\"\"}\n";
        assert_eq!(Form::Lines.end("gone", "the \"log\""), end);
        for line in [JSON, bookmark, end] {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn events_have_the_versionstamp_to_go_on_from_as_their_id() {
        let id = "id: 00010000000000050002\n";
        let events = Form::Events.transactions(&[transaction()]);
        assert_eq!(events, format!("{id}data: {JSON}\n\n"));
        assert!(events.len() <= max_text_bytes(&transaction()), "memory is taken once");
        let bookmark = format!("event: bookmark\n{id}data: {{\"bookmark\":\"{}\"}}\n\n", stamp());
        assert_eq!(Form::Events.bookmark(stamp()), bookmark);
        let end = "event: end\ndata: {\"end\":\"gone\",\"message\":\"why\"}\n\n";
        assert_eq!(Form::Events.end("gone", "why"), end);
    }
}
