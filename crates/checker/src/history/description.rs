//! Operations in words, short enough for a report.

use std::fmt;

use meridian_types::Consistency;

use super::{Check, Entry, Operation, Read, ReadOutcome, Record, Txn, TxnOutcome, Value, Write};

/// The number of list elements, or of keys of a read, that are shown: the last ones.
const SHOWN: usize = 8;

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

fn write_tail<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    parts: impl ExactSizeIterator<Item = T>,
) -> fmt::Result {
    let hidden = parts.len().saturating_sub(SHOWN);
    if hidden > 0 {
        write!(f, "({hidden} more), ")?;
    }
    for (index, part) in parts.skip(hidden).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(f, "{comma}{part}")?;
    }
    Ok(())
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} [{} s to ", self.client, Seconds(self.invoked_ns))?;
        match self.completed_ns {
            Some(completed_ns) => write!(f, "{} s] ", Seconds(completed_ns))?,
            None => f.write_str("never] ")?,
        }
        match &self.operation {
            Operation::Read(read) => read.fmt(f),
            Operation::Txn(txn) => txn.fmt(f),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(elements) => {
                f.write_str("[")?;
                write_tail(f, elements.iter())?;
                f.write_str("]")
            }
            Self::Register(value) => write!(f, "{value}"),
            Self::Counter(value) => write!(f, "count {value}"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} @{}", self.value, self.versionstamp)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.versionstamp {
            Some(stamp) => write!(f, "`{}` @{stamp}", self.key),
            None => write!(f, "`{}` absent", self.key),
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { key, element } => write!(f, "append {element} to `{key}`"),
            Self::SetRegister { key, value } => write!(f, "set `{key}` = {value}"),
            Self::Delete { key } => write!(f, "delete `{key}`"),
            Self::Sum { key, amount } => write!(f, "add {amount} to `{key}`"),
        }
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.consistency {
            _ if self.is_final => "final",
            Consistency::Strong => "strong",
            Consistency::Eventual => "eventual",
        };
        write!(f, "{kind} read through {}: ", self.gateway)?;
        match &self.outcome {
            ReadOutcome::Entries(_) => {
                let seen: Vec<String> = self
                    .entries()
                    .map(|(key, entry)| {
                        entry
                            .map_or(format!("`{key}` absent"), |entry| format!("`{key}` = {entry}"))
                    })
                    .collect();
                write_tail(f, seen.iter())
            }
            ReadOutcome::Failed { reason } => write!(f, "failed, {reason}"),
            ReadOutcome::Unanswered => f.write_str("no answer"),
        }
    }
}

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {}: if (", self.id)?;
        write_tail(f, self.checks.iter())?;
        f.write_str(") then (")?;
        write_tail(f, self.writes.iter())?;
        f.write_str("): ")?;
        match &self.outcome {
            TxnOutcome::Committed { versionstamp } => write!(f, "committed @{versionstamp}"),
            TxnOutcome::CheckFailed { failed } => write!(f, "checks {failed:?} failed"),
            TxnOutcome::NotCommitted { reason } => write!(f, "not committed, {reason}"),
            TxnOutcome::Unknown => f.write_str("unknown"),
        }
    }
}
