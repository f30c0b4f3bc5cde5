use std::sync::Arc;

use bytes::Bytes;
use meridian_storage::{MemoryEngine, ShardState};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, RequestId, ShardId, Value,
    ValueEncoding,
};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use super::*;
use crate::replication::shipped_batch::unpack;

fn at(sequence: u64) -> Position {
    Position::new(Epoch(1), sequence)
}

/// A pair that keeps the window of one stream, on both sides.
fn pair() -> (ByteBudget, Compressor, Decompressor) {
    let memory = ByteBudget::new("streams", 1 << 20);
    let decompressor = Decompressor::new(Some(memory.try_take(DECOMPRESSOR_BYTES).unwrap()));
    (memory.clone(), Compressor::new(Some(memory)), decompressor)
}

/// Like a document, another one for each number.
fn document(number: u64) -> Bytes {
    let mut random = StdRng::seed_from_u64(number);
    let (id, customer) = (random.next_u64(), random.next_u32());
    let text = format!(
        r#"{{"type":"order","id":"{id:016x}","customer":{customer},"status":"paid","city":"Lisbon"}}"#
    );
    Bytes::from(text)
}

fn shipment(batches: Vec<Bytes>) -> StoredBatches {
    StoredBatches { batches }
}

fn stored(sequence: u64) -> Bytes {
    let value = Value { encoding: ValueEncoding::Bytes, data: document(sequence) };
    let key = Bytes::from(format!("orders/{sequence:06}"));
    meridian_proto::encode_batch(&Batch {
        position: at(sequence),
        time_ms: 1_795_000_000_000 + sequence,
        transactions: vec![CommittedTransaction {
            request_id: RequestId([u8::try_from(sequence).unwrap(); 16]),
            database: DatabaseId([7; 16]),
            effects: vec![Effect::Put { key, value, expire_at_ms: 0 }],
            refusal: None,
        }],
    })
}

#[test]
fn what_is_shipped_comes_out_however_much_is_shipped_at_once_and_wherever_frames_end() {
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let (memory, mut compressor, mut decompressor) = pair();
        for number in 0..200 {
            if random.random_ratio(1, 20)
                && let Some(end) = compressor.end_frame(at(number)).unwrap()
            {
                assert_eq!(decompressor.decompress(&end).unwrap(), Vec::<u8>::new());
                assert_eq!(memory.used_bytes(), DECOMPRESSOR_BYTES);
            }
            let count =
                [1, 2, 3, 40, 3000][random.random_range(0..if number % 50 == 0 { 5 } else { 4 })];
            let batches = (0..count).map(|batch| match random.random_range(0..4) {
                0 => {
                    let mut bytes = vec![0; random.random_range(0..1000)];
                    random.fill_bytes(&mut bytes);
                    Bytes::from(bytes)
                }
                1 => Bytes::from(vec![7; random.random_range(0..3000)]),
                _ => document(number * 100 + batch),
            });
            let shipped = shipment(batches.collect());
            let part = compressor.compress(at(number), &shipped).unwrap();
            assert_eq!(
                decompressor.decompress(&part).unwrap(),
                shipped.encode_to_vec(),
                "seed {seed}, part {number}"
            );
        }
    }
}

#[test]
fn a_shipment_refers_back_to_those_before_it() {
    let (_memory, mut compressor, _) = pair();
    let mut sizes = (0..50).map(|number| {
        compressor.compress(at(number), &shipment(vec![document(number)])).unwrap().zstd.len()
    });
    let first = sizes.next().unwrap();
    let last = sizes.last().unwrap();
    assert!(last * 2 < first, "{first} bytes, then {last}");
}

#[test]
fn a_part_that_is_missing_comes_twice_or_too_early_ends_the_stream() {
    for order in [vec![1], vec![0, 2], vec![0, 0], vec![0, 1, 1], vec![0, 2, 1]] {
        let (_memory, mut compressor, mut decompressor) = pair();
        let parts: Vec<_> = (0..4)
            .map(|number| {
                compressor.compress(at(number), &shipment(vec![document(number)])).unwrap()
            })
            .collect();
        let (last, before) = order.split_last().unwrap();
        for (due, part) in before.iter().enumerate() {
            if *part == due {
                decompressor.decompress(&parts[*part]).unwrap();
            }
        }
        let wrong = order
            .iter()
            .enumerate()
            .find(|(due, part)| due != *part)
            .map_or(*last, |(_, part)| *part);
        let refused = decompressor.decompress(&parts[wrong]);
        assert!(matches!(refused, Err(InvalidPart::OutOfOrder { .. })), "{order:?}: {refused:?}");
        for part in &parts {
            assert!(matches!(decompressor.decompress(part), Err(InvalidPart::Broken)), "{order:?}");
        }
    }
}

#[test]
fn a_stream_begins_anew_with_a_subscription_and_belongs_to_no_other() {
    let (_memory, mut older, mut decompressor) = pair();
    decompressor.decompress(&older.compress(at(0), &shipment(vec![document(0)])).unwrap()).unwrap();
    let (_memory, mut newer, mut fresh) = pair();
    let first = newer.compress(at(1), &shipment(vec![document(1)])).unwrap();
    assert!(decompressor.decompress(&first).is_err());
    fresh.decompress(&first).unwrap();
    // A part that was compressed and did not arrive: the next one cannot be read.
    let lost = newer.compress(at(2), &shipment(vec![document(2)])).unwrap();
    let next = newer.compress(at(3), &shipment(vec![document(3)])).unwrap();
    assert_eq!(lost.part + 1, next.part);
    assert!(matches!(fresh.decompress(&next), Err(InvalidPart::OutOfOrder { found: 2, due: 1 })));
}

/// By one bit each: in what is compressed, where it refers to, in what frames it.
#[test]
fn whatever_is_damaged_on_the_way_no_other_batch_comes_out() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
    let (_memory, mut compressor, _) = pair();
    let parts = (1..=6).map(|sequence| {
        compressor.compress(at(sequence - 1), &shipment(vec![stored(sequence)])).unwrap()
    });
    let parts = parts.collect::<Vec<_>>();
    let (mut refused, mut bits) = (0, 0);
    for damaged in 0..3 {
        for bit in 0..parts[damaged].zstd.len() * 8 {
            bits += 1;
            let (memory, ..) = pair();
            let mut decompressor = Decompressor::new(memory.try_take(DECOMPRESSOR_BYTES).ok());
            for (number, part) in parts.iter().enumerate() {
                let mut part = part.clone();
                if number == damaged {
                    let mut bytes = part.zstd.to_vec();
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    part.zstd = bytes.into();
                }
                match unpack(&state, &mut decompressor, &part) {
                    Ok((previous, batches)) => {
                        let sequence = u64::try_from(number).unwrap() + 1;
                        let batches: Vec<_> =
                            batches.into_iter().map(|batch| batch.bytes).collect();
                        assert_eq!(
                            (previous, batches),
                            (at(sequence - 1), vec![stored(sequence)]),
                            "bit {bit}"
                        );
                    }
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
    }
    assert!(refused * 10 > bits * 9, "{refused} of {bits}");
}

/// A frame as an attacker would make it.
fn frame(window_log: u32, content: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), LEVEL).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn part(zstd: Vec<u8>, stored_bytes: u32) -> Batches {
    Batches { previous: Some(position_to_wire(at(0))), zstd: zstd.into(), part: 0, stored_bytes }
}

#[test]
fn a_part_holds_what_it_says_and_no_more_than_it_may() {
    let decompress = |part: &Batches| pair().2.decompress(part);
    let honest = decompress(&part(frame(WINDOW_LOG, &[7; 1000]), 1000)).unwrap();
    assert_eq!(
        (honest.len(), honest.capacity()),
        (1000, 1001),
        "it takes memory for what there is"
    );
    let bomb = frame(WINDOW_LOG, &vec![0; 10 << 20]);
    assert!(bomb.len() < 2000);
    for said in [0, 1, 1000, (10 << 20) - 1, (10 << 20) + 1] {
        let refused = decompress(&part(bomb.clone(), said));
        assert!(
            matches!(refused, Err(InvalidPart::OtherSize(of)) if of == said),
            "{said}: {refused:?}"
        );
    }
    let refused = decompress(&part(bomb, MAX_STORED_BYTES + 1));
    assert!(matches!(refused, Err(InvalidPart::TooLarge(_))), "{refused:?}");
    // More than it may, and it says so little that what is left over would come out with the next
    // part.
    let (_memory, mut compressor, mut decompressor) = pair();
    let mut lies =
        compressor.compress(at(0), &shipment(vec![Bytes::from(vec![1; 300_000])])).unwrap();
    lies.stored_bytes -= 1;
    assert!(matches!(decompressor.decompress(&lies), Err(InvalidPart::OtherSize(_))));
    let cut = compressor.compress(at(1), &shipment(vec![document(1)])).unwrap();
    assert!(matches!(decompressor.decompress(&cut), Err(InvalidPart::Broken)));
}

#[test]
fn a_part_that_lacks_its_end_is_refused() {
    let (_memory, mut compressor, _) = pair();
    let whole = compressor.compress(at(0), &shipment(vec![document(0)])).unwrap();
    for length in 0..whole.zstd.len() {
        let cut = Batches { zstd: whole.zstd.slice(..length), ..whole.clone() };
        assert!(pair().2.decompress(&cut).is_err(), "{length} bytes");
    }
}

#[test]
fn a_frame_that_wants_a_larger_window_than_it_may_have_is_refused() {
    let content = vec![7; 3 << 20];
    let bytes = u32::try_from(content.len()).unwrap();
    pair().2.decompress(&part(frame(WINDOW_LOG, &content), bytes)).unwrap();
    for window_log in [WINDOW_LOG + 1, 19, 24, 27] {
        let refused = pair().2.decompress(&part(frame(window_log, &content), bytes));
        assert!(matches!(refused, Err(InvalidPart::Zstd(_))), "2^{window_log}: {refused:?}");
    }
    // Of zstd 0.5 to 0.7: their windows have no bound. And a frame that is to be skipped.
    for magic in [0xFD2F_B525_u32, 0xFD2F_B526, 0xFD2F_B527, 0x184D_2A50] {
        let mut old = frame(WINDOW_LOG, b"what");
        old[..4].copy_from_slice(&magic.to_le_bytes());
        assert!(
            matches!(pair().2.decompress(&part(old, 4)), Err(InvalidPart::NoFrame)),
            "{magic:x}"
        );
    }
    for short in [&b""[..], b"\x28", b"\x28\xB5\x2F"] {
        assert!(matches!(pair().2.decompress(&part(short.to_vec(), 0)), Err(InvalidPart::NoFrame)));
    }
}

#[test]
fn nothing_lies_behind_the_end_of_a_frame() {
    let mut two = frame(WINDOW_LOG, b"one");
    two.extend(frame(WINDOW_LOG, b"two"));
    for said in [3, 6] {
        assert!(
            matches!(pair().2.decompress(&part(two.clone(), said)), Err(InvalidPart::BehindTheEnd)),
            "{said}"
        );
    }
}

#[test]
fn where_one_side_has_no_memory_each_part_is_a_frame_of_its_own() {
    let none = ByteBudget::new("streams", COMPRESSOR_BYTES - 1);
    for memory in [None, Some(none)] {
        let (mut compressor, mut decompressor) = (Compressor::new(memory), Decompressor::new(None));
        for number in 0..5 {
            let shipped = shipment(vec![document(number)]);
            let part = compressor.compress(at(number), &shipped).unwrap();
            assert_eq!(decompressor.decompress(&part).unwrap(), shipped.encode_to_vec());
            assert!(compressor.end_frame(at(number)).unwrap().is_none());
        }
    }
    let (_memory, mut compressor, _) = pair();
    let goes_on = compressor.compress(at(0), &shipment(vec![document(0)])).unwrap();
    let refused = Decompressor::new(None).decompress(&goes_on);
    assert!(matches!(refused, Err(InvalidPart::Unended)), "{refused:?}");
}

#[test]
fn a_stream_takes_the_memory_that_it_counts_and_gives_it_back() {
    let (memory, mut compressor, decompressor) = pair();
    compressor.compress(at(0), &shipment(vec![document(0)])).unwrap();
    assert_eq!(memory.used_bytes(), COMPRESSOR_BYTES + DECOMPRESSOR_BYTES);
    assert!(
        compressor.end_frame(at(1)).unwrap().is_some()
            && compressor.end_frame(at(1)).unwrap().is_none()
    );
    assert_eq!(memory.used_bytes(), DECOMPRESSOR_BYTES);
    drop(decompressor);
    compressor.compress(at(1), &shipment(vec![document(1)])).unwrap();
    drop(compressor);
    assert_eq!(memory.used_bytes(), 0);
    // The contexts by themselves, of a stream that has gone on for a while.
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(LEVEL)).unwrap();
    context.set_parameter(CParameter::WindowLog(WINDOW_LOG)).unwrap();
    let mut other = DCtx::create();
    for number in 0..40 {
        let content: Vec<u8> = (0..600).flat_map(|at| document(number * 1000 + at)).collect();
        let (mut compressed, mut back) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 20));
        let (mut input, mut output) =
            (InBuffer::around(&content), OutBuffer::around(&mut compressed));
        assert_eq!(
            context
                .compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
                .unwrap(),
            0
        );
        let (mut input, mut output) = (InBuffer::around(&compressed), OutBuffer::around(&mut back));
        other.decompress_stream(&mut output, &mut input).unwrap();
        assert_eq!(back, content);
    }
    // Beside it an encoder has a buffer of 32 KiB.
    assert!(context.sizeof() + (32 << 10) <= COMPRESSOR_BYTES, "{}", context.sizeof());
    assert!(other.sizeof() <= DECOMPRESSOR_BYTES, "{}", other.sizeof());
}
