//! `meridian kv du`.

use anyhow::Result;
use clap::Args;
use meridian_proto::kv_connect as pb;
use meridian_values::{Key, inspect, json};

use crate::command::operator::format;

use super::connection::Connection;
use super::get::consistency;
use super::output::{Form, Output};
use super::progress::Progress;
use super::scan::Scan;
use super::selection::Selection;

/// Shows how many keys and bytes there are below each prefix.
///
/// Bytes are those of keys and values as clients send them; what they take on a disk is another
/// matter: compression makes it less, older versions more.
#[derive(Args)]
pub(crate) struct Du {
    #[command(flatten)]
    selection: Selection,
    /// How many parts beyond the prefix are told apart.
    #[arg(long, value_name = "PARTS", default_value_t = 1)]
    depth: usize,
    /// Read from the gateway's own region, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

/// The number and the size of the keys with one prefix.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    keys: u64,
    key_bytes: u64,
    value_bytes: u64,
}

impl Usage {
    fn add(&mut self, entry: &pb::KvEntry) {
        let bytes = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        self.keys += 1;
        self.key_bytes += bytes(entry.key.len());
        self.value_bytes += bytes(entry.value.len());
    }

    /// `prefix`: `None` for the sum of all.
    fn line(&self, prefix: Option<&Key>, form: Form, colours: bool) -> String {
        let Self { keys, key_bytes, value_bytes } = self;
        match form {
            Form::Json => {
                let prefix = prefix.map_or("null".to_owned(), json::key);
                format!(
                    "{{\"prefix\":{prefix},\"keys\":{keys},\"keyBytes\":{key_bytes},\"valueBytes\":{value_bytes}}}"
                )
            }
            Form::Inspect => {
                let prefix =
                    prefix.map_or("in all".to_owned(), |prefix| inspect::key(prefix, colours));
                let (keys_size, values) = (format::size(*key_bytes), format::size(*value_bytes));
                format!("{keys:>12}  {keys_size:>10}  {values:>10}  {prefix}")
            }
        }
    }
}

/// The first parts of a key; a key that is no tuple is below none.
fn group(key: &[u8], parts: usize) -> Key {
    let mut key = Key::decode(key).unwrap_or_default();
    key.0.truncate(parts);
    key
}

impl Du {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let bounds = self.selection.bounds()?;
        let prefix = self.selection.prefix()?.unwrap_or_default();
        let parts = prefix.0.len().saturating_add(self.depth);
        let mut session = connection.open(consistency(self.eventual)).await?;
        let mut scan = Scan::new(&mut session, bounds);
        let (form, colours) = (output.form(), output.colours());
        if form == Form::Inspect {
            output.line(&format!(
                "{:>12}  {:>10}  {:>10}  PREFIX",
                "KEYS", "KEY SIZE", "VALUE SIZE"
            ))?;
        }
        let mut progress = Progress::new();
        let (mut all, mut present): (Usage, Option<(Key, Usage)>) = Default::default();
        loop {
            let entries = scan.next().await?;
            for entry in &entries {
                let group = group(&entry.key, parts);
                all.add(entry);
                // Keys of one prefix follow each other.
                match &mut present {
                    Some((known, usage)) if *known == group => usage.add(entry),
                    _ => {
                        if let Some((known, usage)) = present.take() {
                            output.line(&usage.line(Some(&known), form, colours))?;
                        }
                        let mut usage = Usage::default();
                        usage.add(entry);
                        present = Some((group, usage));
                    }
                }
            }
            output.flush()?;
            if entries.is_empty() || output.is_closed() {
                break;
            }
            progress.show(|| format!("{} so far", format::count(all.keys, "key")));
        }
        if let Some((known, usage)) = present {
            output.line(&usage.line(Some(&known), form, colours))?;
        }
        output.line(&all.line(None, form, colours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_grouped_by_their_first_parts() {
        let text = |key: &[u8], parts| group(key, parts).to_string();
        assert_eq!(text(b"\x02a\0\x27\x26", 2), "[ \"a\", true ]");
        assert_eq!(text(b"\x02a\0", 2), "[ \"a\" ]");
        assert_eq!(text(b"\x02a\0", 0), "[]");
        assert_eq!(text(b"\x99", 1), "[]");
    }

    #[test]
    fn usage_is_a_line_for_people_or_programs() {
        let mut usage = Usage::default();
        usage.add(&pb::KvEntry {
            key: vec![0; 3].into(),
            value: vec![0; 2048].into(),
            ..Default::default()
        });
        let key = group(b"\x02a\0", 1);
        assert_eq!(
            usage.line(Some(&key), Form::Inspect, false),
            "           1         3 B     2.0 KiB  [ \"a\" ]"
        );
        assert_eq!(
            usage.line(None, Form::Json, false),
            r#"{"prefix":null,"keys":1,"keyBytes":3,"valueBytes":2048}"#
        );
    }
}
