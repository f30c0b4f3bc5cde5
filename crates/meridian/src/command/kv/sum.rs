//! `meridian kv sum`.

use anyhow::Result;
use clap::Args;
use meridian_proto::kv_connect as pb;
use meridian_values::graph::Value;
use meridian_values::{Graph, Stored, inspect, json};

use super::connection::Connection;
use super::get::consistency;
use super::output::{Form, Output, stored};
use super::progress::Progress;
use super::scan::Scan;
use super::selection::Selection;
use crate::command::operator::format;

/// Adds up the numbers under all keys, or under those of a prefix or range.
///
/// Deno.KvU64, bigints and numbers have a sum each. Values of other types are counted, and are no
/// error.
#[derive(Args)]
pub(crate) struct Sum {
    #[command(flatten)]
    selection: Selection,
    /// Read from the gateway's own region, which may not have the last writes yet.
    #[arg(long)]
    eventual: bool,
}

#[derive(Debug, Default)]
struct Sums {
    /// 2^64 of the largest fit.
    u64: Option<u128>,
    bigint: Option<Value>,
    number: Option<f64>,
    /// Values that are none of these.
    others: u64,
}

impl Sums {
    fn add(&mut self, entry: &pb::KvEntry) {
        match stored(entry) {
            Ok(Stored::U64(integer)) => {
                self.u64 = Some(self.u64.unwrap_or(0).saturating_add(integer.into()));
            }
            Ok(Stored::V8(graph)) => match (graph.root(), &mut self.bigint) {
                (Value::Number(number), _) => {
                    self.number = Some(self.number.unwrap_or(0.0) + number);
                }
                (Value::BigInt(integer), Some(Value::BigInt(sum))) => *sum += integer,
                (value @ Value::BigInt(_), sum) => *sum = Some(value.clone()),
                _ => self.others += 1,
            },
            _ => self.others += 1,
        }
    }

    /// The sums that there are, each with the name of its type.
    fn parts(&self) -> Vec<(&'static str, Stored)> {
        let v8 = |value| Stored::V8(Graph::primitive(value));
        let u64 = self.u64.map(|sum| ("u64", v8(Value::BigInt(sum.into()))));
        let bigint = self.bigint.clone().map(|sum| ("bigint", v8(sum)));
        let number = self.number.map(|sum| ("number", v8(Value::Number(sum))));
        [u64, bigint, number].into_iter().flatten().collect()
    }

    fn text(&self, form: Form, colours: bool) -> String {
        let parts = self.parts();
        let others = self.others;
        match form {
            Form::Json => {
                let sums = parts
                    .iter()
                    .filter_map(|(name, sum)| Some(format!("\"{name}\":{},", json::value(sum)?)));
                format!("{{{}\"others\":{others}}}", sums.collect::<String>())
            }
            Form::Inspect => {
                let mut lines: Vec<String> = match parts.as_slice() {
                    [] => vec!["no numbers".to_owned()],
                    [(_, sum)] => vec![inspect::stored(sum, colours)],
                    several => several
                        .iter()
                        .map(|(name, sum)| format!("{name:<7} {}", inspect::stored(sum, colours)))
                        .collect(),
                };
                if others > 0 {
                    lines.push(format!("left out: {}", format::count(others, "other value")));
                }
                lines.join("\n")
            }
        }
    }
}

impl Sum {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let bounds = self.selection.bounds()?;
        let mut session = connection.open(consistency(self.eventual)).await?;
        let mut scan = Scan::new(&mut session, bounds);
        let mut progress = Progress::new();
        let (mut sums, mut count) = (Sums::default(), 0);
        loop {
            let entries = scan.next().await?;
            if entries.is_empty() {
                break;
            }
            entries.iter().for_each(|entry| sums.add(entry));
            count += u64::try_from(entries.len())?;
            progress.show(|| format!("{} so far", format::count(count, "key")));
        }
        drop(progress);
        let text = sums.text(output.form(), output.colours());
        output.line(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(values: &[(&[u8], pb::ValueEncoding)]) -> Sums {
        let mut sums = Sums::default();
        for (value, encoding) in values {
            let value = value.to_vec().into();
            sums.add(&pb::KvEntry { value, encoding: (*encoding).into(), ..Default::default() });
        }
        sums
    }

    #[test]
    fn each_type_has_a_sum_of_its_own() {
        let (v8, le64) = (pb::ValueEncoding::VeV8, pb::ValueEncoding::VeLe64);
        let only = sums(&[(&[0xff; 8], le64), (&[1, 0, 0, 0, 0, 0, 0, 0], le64)]);
        assert_eq!(only.text(Form::Inspect, false), "18446744073709551616n");
        let mixed = sums(&[
            (b"\xff\x0fI\x06", v8),
            (b"\xff\x0fN\0\0\0\0\0\0\xf8\x3f", v8),
            (b"\xff\x0fZ\x02\x05", v8),
            (b"\xff\x0fZ\x03\x07", v8),
            (b"\xff\x0f_", v8),
            (b"x", pb::ValueEncoding::VeBytes),
        ]);
        let text = mixed.text(Form::Inspect, false);
        assert_eq!(text, "bigint  -2n\nnumber  4.5\nleft out: 2 other values");
        assert_eq!(
            mixed.text(Form::Json, false),
            r#"{"bigint":{"type":"bigint","value":"-2"},"number":{"type":"number","value":4.5},"others":2}"#
        );
        assert_eq!(sums(&[]).text(Form::Inspect, false), "no numbers");
    }
}
