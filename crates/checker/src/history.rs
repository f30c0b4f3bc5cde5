//! Histories: the operations of clients, their times and answers, one JSON object a line.

use std::io::{self, BufRead, BufWriter, Write as _};

use serde::{Deserialize, Serialize};

mod description;
mod operation;
pub(crate) mod versionstamp_hex;

pub use operation::{
    Check, Entry, Key, Operation, Read, ReadOutcome, Txn, TxnOutcome, Value, Write,
};

/// An operation of a client. Times are nanoseconds of the recording process's monotonic clock, from
/// an origin of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub client: u64,
    /// Not later than the sending of the request.
    pub invoked_ns: u64,
    /// Not earlier than the arrival of the answer. `None`: no answer arrived.
    pub completed_ns: Option<u64>,
    pub operation: Operation,
}

/// The requests of the clients of one database and their answers, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub records: Vec<Record>,
}

/// A history that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("the history cannot be read or written")]
    Io(#[from] io::Error),
    #[error("line {line} of the history is not a record")]
    Line { line: usize, source: serde_json::Error },
}

impl History {
    /// Writes one JSON object a line.
    pub fn write(&self, to: impl io::Write) -> Result<(), HistoryError> {
        let mut to = BufWriter::new(to);
        for (index, record) in self.records.iter().enumerate() {
            serde_json::to_writer(&mut to, record)
                .map_err(|source| HistoryError::Line { line: index + 1, source })?;
            to.write_all(b"\n")?;
        }
        to.flush()?;
        Ok(())
    }

    /// Reads one JSON object a line, skipping empty lines.
    pub fn read(from: impl BufRead) -> Result<Self, HistoryError> {
        let mut records = Vec::new();
        for (index, line) in from.lines().enumerate() {
            let line = line?;
            if !line.trim().is_empty() {
                let record = serde_json::from_str(&line)
                    .map_err(|source| HistoryError::Line { line: index + 1, source })?;
                records.push(record);
            }
        }
        Ok(Self { records })
    }

    /// Every transaction with its index in `records`.
    pub(crate) fn txns(&self) -> impl Iterator<Item = (usize, &Record, &Txn)> {
        self.records.iter().enumerate().filter_map(|(index, record)| match &record.operation {
            Operation::Txn(txn) => Some((index, record, txn)),
            Operation::Read(_) => None,
        })
    }

    /// Every read with its index in `records`.
    pub(crate) fn reads(&self) -> impl Iterator<Item = (usize, &Record, &Read)> {
        self.records.iter().enumerate().filter_map(|(index, record)| match &record.operation {
            Operation::Read(read) => Some((index, record, read)),
            Operation::Txn(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Consistency, Epoch, Position, Versionstamp};

    use super::*;

    #[test]
    fn lines_are_golden_and_come_back() {
        let stamp = Versionstamp::new(Position::new(Epoch(1), 2), 3);
        let history = History {
            records: vec![
                Record {
                    client: 7,
                    invoked_ns: 10,
                    completed_ns: Some(20),
                    operation: Operation::Txn(Txn {
                        id: u64::MAX,
                        checks: vec![
                            Check { key: "l".into(), versionstamp: None },
                            Check { key: "m".into(), versionstamp: Some(stamp) },
                        ],
                        writes: vec![
                            Write::Append { key: "l".into(), element: 1 },
                            Write::SetRegister { key: "r".into(), value: 2 },
                            Write::Delete { key: "m".into() },
                            Write::Sum { key: "c".into(), amount: 3 },
                        ],
                        outcome: TxnOutcome::Committed { versionstamp: stamp },
                    }),
                },
                Record {
                    client: 8,
                    invoked_ns: 30,
                    completed_ns: None,
                    operation: Operation::Read(Read {
                        consistency: Consistency::Eventual,
                        gateway: "g".into(),
                        keys: vec!["l".into(), "m".into()],
                        is_final: false,
                        outcome: ReadOutcome::Entries(vec![
                            Some(Entry { value: Value::List(vec![1]), versionstamp: stamp }),
                            None,
                        ]),
                    }),
                },
            ],
        };
        let mut bytes = Vec::new();
        history.write(&mut bytes).unwrap();
        let expected = concat!(
            r#"{"client":7,"invoked_ns":10,"completed_ns":20,"operation":{"txn":{"id":18446744073709551615,"#,
            r#""checks":[{"key":"l","versionstamp":null},{"key":"m","versionstamp":"00010000000000020003"}],"#,
            r#""writes":[{"append":{"key":"l","element":1}},{"set_register":{"key":"r","value":2}},"#,
            r#"{"delete":{"key":"m"}},{"sum":{"key":"c","amount":3}}],"#,
            r#""outcome":{"committed":{"versionstamp":"00010000000000020003"}}}}}"#,
            "\n",
            r#"{"client":8,"invoked_ns":30,"completed_ns":null,"operation":{"read":{"consistency":"eventual","#,
            r#""gateway":"g","keys":["l","m"],"final":false,"#,
            r#""outcome":{"entries":[{"value":{"list":[1]},"versionstamp":"00010000000000020003"},null]}}}}"#,
            "\n",
        );
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        assert_eq!(History::read(expected.as_bytes()).unwrap(), history);
    }

    #[test]
    fn error_names_the_bad_line() {
        assert!(matches!(
            History::read("\n{}\n".as_bytes()),
            Err(HistoryError::Line { line: 2, .. })
        ));
    }
}
