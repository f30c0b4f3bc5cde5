//! Entries of answers in the checker's terms. Entries that this workload never wrote are errors.

use meridian_checker::{Entry, Value};
use meridian_proto::kv_connect as pb;
use meridian_types::{ValueEncoding, Versionstamp};

pub(super) fn entries(output: pb::SnapshotReadOutput) -> Result<Vec<(Vec<u8>, Entry)>, String> {
    output.ranges.into_iter().flat_map(|range| range.values).map(entry).collect()
}

/// The entry of each range of one key.
pub(super) fn points(output: pb::SnapshotReadOutput) -> Result<Vec<Option<Entry>>, String> {
    let first = |range: pb::ReadRangeOutput| range.values.into_iter().next();
    output
        .ranges
        .into_iter()
        .map(|range| Ok(first(range).map(entry).transpose()?.map(|(_, entry)| entry)))
        .collect()
}

fn entry(found: pb::KvEntry) -> Result<(Vec<u8>, Entry), String> {
    let encoding =
        ValueEncoding::from_number(found.encoding).ok_or("an entry of an unknown encoding")?;
    let value = Value::decode(encoding, &found.value).map_err(|error| error.to_string())?;
    let versionstamp = Versionstamp::from_slice(&found.versionstamp)
        .ok_or("a versionstamp that is not ten bytes")?;
    Ok((found.key.to_vec(), Entry { value, versionstamp }))
}
