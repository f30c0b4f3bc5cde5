//! Batches as they are stored and shipped, and rows of queues and requests: what is decoded is
//! encoded and decoded as the same, within the bytes that were counted for it.
#![no_main]

use std::fmt::Debug;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{stable, times, within};
use meridian_proto::shipping::StoredBatches;
use meridian_proto::{
    DecodedBatch, InvalidBatch, batch_header, decode_dead_letter, decode_message,
    decode_queue_totals, decode_request, decode_stored, encode_batch, encode_dead_letter,
    encode_message, encode_queue_totals, encode_request, verify_checksum,
};
use meridian_types::{CommittedTransaction, Versionstamp};

/// The key of a batch's checksum, which its bytes end with.
const CHECKSUM_KEY: u8 = 15 << 3 | 5;
/// Position, time and format of a batch, and its checksum.
const HEAD_BYTES: usize = 48;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    match first % 6 {
        0 => batch(&sealed(data)),
        1 => batches(data),
        2 => row(data, decode_message, encode_message),
        3 => row(data, decode_dead_letter, encode_dead_letter),
        4 => row(data, |bytes| decode_queue_totals(&bytes), |totals| encode_queue_totals(*totals)),
        _ => {
            let encode = |(stamp, refusal): &(Versionstamp, Option<_>)| {
                encode_request(*stamp, refusal.as_ref())
            };
            row(data, |bytes| decode_request(&bytes), encode);
        }
    }
});

/// With the checksum that its leader would have made: no chance finds it.
fn sealed(data: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c(data).to_le_bytes();
    [data, &[CHECKSUM_KEY], &checksum].concat()
}

fn batch(bytes: &[u8]) {
    let given = Bytes::copy_from_slice(bytes);
    let decoded = within(times(2048, bytes.len()), || decode_stored(given));
    let Ok(decoded) = decoded else { return };
    assert_eq!(verify_checksum(bytes).ok(), Some(decoded.checksum));
    assert_eq!(decoded.len, bytes.len());
    let batch = decoded.batch;
    assert_eq!(batch_header(bytes).ok(), Some((batch.position, batch.time_ms)));
    let stamps: Vec<_> = batch.iter().map(|(stamp, _)| stamp).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b) && stamps.len() == batch.transactions.len());
    let encoded = encode_batch(&batch);
    let counted: usize = batch.transactions.iter().map(CommittedTransaction::size).sum();
    assert!(encoded.len() <= HEAD_BYTES + counted, "{} bytes, {counted} counted", encoded.len());
    let again = decode_stored(encoded.clone()).expect("what was encoded is decoded");
    assert_eq!(again.batch, batch);
    assert_eq!(again, DecodedBatch::from(batch));
    assert_eq!(encode_batch(&again.batch), encoded, "one batch has one encoding");
}

/// As a node ships them. A replica refuses those whose encoding has another length.
fn batches(data: &[u8]) {
    let Some(stored) = stable::<StoredBatches>(data) else { return };
    let encoded = prost::Message::encode_to_vec(&stored);
    assert_eq!(encoded.len() == data.len(), encoded == data, "something is beside the batches");
    stored.batches.iter().for_each(|bytes| batch(bytes));
}

fn row<T: PartialEq + Debug>(
    data: &[u8],
    decode: impl Fn(Bytes) -> Result<T, InvalidBatch>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    let given = Bytes::copy_from_slice(data);
    let Ok(row) = within(times(512, data.len()), || decode(given)) else { return };
    let encoded = encode(&row);
    let again = decode(Bytes::from(encoded.clone())).expect("what was encoded is decoded");
    assert_eq!(again, row);
    assert_eq!(encode(&again), encoded, "one row has one encoding");
}
