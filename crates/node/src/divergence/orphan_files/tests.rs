use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, RequestId, ShardId, Value,
    ValueEncoding,
};
use meridian_vault::Folder;
use tonic::Code;

use super::*;

mod encrypted;

pub(crate) const SHARD: ShardId = ShardId(3);
const EPOCH: Epoch = Epoch(2);
const BASE: Position = Position { epoch: Epoch::FIRST, sequence: 10 };
const NAME: &str = "shard-3-epoch-2-base-10-1.orphans";

/// A batch of so many transactions, made at `1000 + sequence` milliseconds.
fn batch(sequence: u64, transactions: u8) -> Vec<u8> {
    batch_at(Position::new(Epoch::FIRST, sequence), transactions)
}

pub(crate) fn batch_at(position: Position, transactions: u8) -> Vec<u8> {
    let transaction = |id| CommittedTransaction {
        request_id: RequestId([id; 16]),
        database: DatabaseId([9; 16]),
        effects: vec![Effect::Put {
            key: "k".into(),
            value: Value { encoding: ValueEncoding::Bytes, data: "v".into() },
            expire_at_ms: 0,
        }],
        refusal: None,
    };
    let transactions = (0..transactions).map(transaction).collect();
    meridian_proto::encode_batch(&Batch {
        position,
        time_ms: 1000 + position.sequence,
        transactions,
    })
    .to_vec()
}

/// Of a failover to an epoch that began behind `base`, of epoch 1.
pub(crate) fn report(epoch: Epoch, base: u64, base_transactions: u64) -> FailoverReport {
    FailoverReport {
        epoch,
        from_region: String::new(),
        to_region: String::new(),
        planned: false,
        cause: String::new(),
        base: Position::new(Epoch::FIRST, base),
        base_transactions,
        base_time_ms: 0,
        sealed_at_ms: 0,
        promoted_at_ms: 0,
        loss: Default::default(),
        old_voters: Default::default(),
        former_voters: Vec::new(),
    }
}

fn writer(data_dir: &Folder) -> OrphanWriter {
    OrphanWriter::create(data_dir, SHARD, EPOCH, BASE).unwrap()
}

fn save(data_dir: &Folder, batches: &[Vec<u8>]) -> OrphanSummary {
    let mut writer = writer(data_dir);
    for (index, batch) in batches.iter().enumerate() {
        writer.push(batch, index == 0).unwrap();
    }
    writer.finish().unwrap()
}

fn listed(data_dir: &Folder) -> Vec<String> {
    list(data_dir).unwrap().iter().map(|stored| stored.name.to_string()).collect()
}

/// In the folder, whatever it is.
fn files(data_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(data_dir.join("orphans")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_saved_is_listed_and_read() {
    let folder = tempfile::tempdir().unwrap();
    assert!(list(&folder.path().into()).unwrap().is_empty());
    let batches = [batch(11, 2), batch(12, 1)];
    let summary = save(&folder.path().into(), &batches);
    let bytes = (batches[0].len() + batches[1].len()) as u64;
    let expected = OrphanSummary {
        batches: 2,
        transactions: 3,
        committed_transactions: 2,
        first_time_ms: 1011,
        last_time_ms: 1012,
        bytes,
        ..OrphanSummary::default()
    };
    assert_eq!(summary, expected);

    let stored = list(&folder.path().into()).unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].name.to_string(), NAME);
    assert_eq!(
        *stored[0].content.as_ref().unwrap(),
        (OrphanHeader { shard: SHARD, epoch: EPOCH, base: BASE }, expected)
    );
    let read: Vec<_> = read(&folder.path().into(), NAME).unwrap().map(Result::unwrap).collect();
    let stored =
        |batch: &Vec<u8>, committed| wire::OrphanBatch { batch: batch.clone().into(), committed };
    assert_eq!(read, [stored(&batches[0], true), stored(&batches[1], false)]);

    let list = list_orphans(&folder.path().into()).unwrap();
    let file = wire::OrphanFile {
        name: NAME.to_owned(),
        shard: 3,
        epoch: 2,
        base_sequence: 10,
        batches: 2,
        transactions: 3,
        first_time_ms: 1011,
        last_time_ms: 1012,
        bytes,
        missing_from: 0,
        missing_through: 0,
    };
    assert_eq!(list.files, [file]);
    assert_eq!(read_orphans(&folder.path().into(), NAME).unwrap().count(), 2);
}

#[test]
fn the_bytes_of_a_file_are_golden() {
    let folder = tempfile::tempdir().unwrap();
    let stored = batch(11, 0);
    assert_eq!(stored, b"\x08\x01\x10\x0b\x18\xf3\x07\x70\x01\x7d\x88\x2d\xa9\x54");
    let mut writer = writer(&folder.path().into());
    writer.push(&stored, true).unwrap();
    writer.set_committed_total(12);
    writer.set_missing(5, 10, 1010).unwrap();
    writer.finish().unwrap();

    let record = |payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&length, crc32c::crc32c(payload).to_le_bytes().as_slice(), payload].concat()
    };
    let number = |number: u64| number.to_le_bytes();
    let golden = [
        b"meridian orphans 1\n".to_vec(),
        record(b"\x01\x03\0\0\0\x02\0\x01\0\x0a\0\0\0\0\0\0\0"),
        record(&[b"\x02\x0a\x0e".as_slice(), &stored, b"\x10\x01"].concat()),
    ];
    let counted = [
        b"\x03".as_slice(),
        &number(1),
        &number(0),
        &number(0),
        &number(1011),
        &number(1011),
        &number(14),
    ];
    let counted = counted.concat();
    let end = [counted.as_slice(), &number(5), &number(10), &number(12)].concat();
    let path = folder.path().join("orphans").join(NAME);
    let written = fs::read(&path).unwrap();
    assert_eq!(written, [golden.concat(), record(&end)].concat());
    assert_eq!(
        written[MAGIC.len()..][..RECORD_HEAD],
        *b"\x11\0\0\0\x14\x32\x07\xef",
        "length and crc32c"
    );

    // Of the first version, which did not say what is missing.
    let summary = || list(&folder.path().into()).unwrap()[0].content.as_ref().unwrap().1;
    let whole = summary();
    assert_eq!((whole.missing_from, whole.missing_through, whole.committed_total), (5, 10, 12));
    fs::write(&path, [golden.concat(), record(&counted)].concat()).unwrap();
    assert_eq!(
        summary(),
        OrphanSummary { missing_from: 0, missing_through: 0, committed_total: 0, ..whole }
    );
    assert_eq!(read(&folder.path().into(), NAME).unwrap().map(Result::unwrap).count(), 1);
}

#[test]
fn a_file_may_say_only_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let save = |through| {
        let mut writer = writer(&folder.path().into());
        writer.set_committed_total(through);
        writer.set_missing(11, through, 1000 + through).unwrap();
        writer.finish().unwrap()
    };
    for _ in 0..2 {
        assert_eq!((save(13).batches, listed(&folder.path().into())), (0, vec![NAME.to_owned()]));
    }
    assert_eq!(read(&folder.path().into(), NAME).unwrap().map(Result::unwrap).count(), 0);
    let file = &list_orphans(&folder.path().into()).unwrap().files[0];
    assert_eq!(
        (file.batches, file.missing_from, file.missing_through, file.last_time_ms),
        (0, 11, 13, 1013)
    );
    // A batch that one file lacks and another has is not said to be missing.
    let mut other = writer(&folder.path().into());
    other.push(&batch(11, 1), true).unwrap();
    other.set_committed_total(14);
    other.finish().unwrap();
    assert_eq!((save(12).missing_through, listed(&folder.path().into()).len()), (0, 2));
    assert_eq!((save(15).missing_through, listed(&folder.path().into()).len()), (15, 3));
}

#[test]
fn what_a_node_shows_is_never_less_than_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(EPOCH, 10, 100);
    let anew = |report: &FailoverReport| {
        let mut known = KnownOrphans::default();
        known.refresh(&folder.path().into()).unwrap();
        known.shown(SHARD, report).map(|shown| (shown.transactions, shown.at_most))
    };
    let shown = || anew(&report);
    assert_eq!(shown(), Some((0, 0)));
    // As the first version counted: one of two is decided.
    save(&folder.path().into(), &[batch(11, 2), batch(12, 1)]);
    assert_eq!(shown(), Some((2, 3)));
    fs::remove_file(folder.path().join("orphans").join(NAME)).unwrap();

    // With batches that are missing, and undecided ones.
    let mut writer = writer(&folder.path().into());
    writer.push(&batch(13, 2), true).unwrap();
    writer.push(&batch(14, 1), false).unwrap();
    writer.set_committed_total(107);
    writer.set_missing(11, 12, 0).unwrap();
    writer.finish().unwrap();
    assert_eq!(shown(), Some((7, 8)));
    assert_eq!(anew(&self::report(Epoch(3), 10, 100)), Some((0, 0)));

    // Damage is not taken for nothing.
    let path = folder.path().join("orphans").join(NAME);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(shown(), None);
}

#[test]
fn each_file_is_read_once_whether_or_not_it_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(EPOCH, 10, 100);
    let mut known = KnownOrphans::default();
    let mut shown = || {
        known.refresh(&folder.path().into()).unwrap();
        known.shown(SHARD, &report).map(|shown| (shown.transactions, shown.at_most))
    };
    save(&folder.path().into(), &[batch(11, 2), batch(12, 1)]);
    assert_eq!(shown(), Some((2, 3)));
    // It is not written again: its content now shows whether it is looked at.
    let path = folder.path().join("orphans").join(NAME);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, b"damage").unwrap();
    assert_eq!(shown(), Some((2, 3)));
    fs::remove_file(&path).unwrap();
    assert_eq!(shown(), Some((0, 0)));
    fs::write(&path, b"damage").unwrap();
    assert_eq!(shown(), None);
    fs::write(&path, &whole).unwrap();
    assert_eq!(shown(), None);
}

#[test]
fn damage_is_found_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().into(), &[batch(11, 1), batch(12, 1)]);
    let path = folder.path().join("orphans").join(NAME);
    let whole = fs::read(&path).unwrap();
    let check = |what: &str, bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = match read(&folder.path().into(), NAME) {
            Err(error) => error,
            Ok(reader) => reader.last().unwrap().expect_err(what),
        };
        assert!(matches!(error, StorageError::Corruption { .. }), "{what}: {error}");
        assert!(error.to_string().contains(NAME), "{what}: {error}");
    };
    for index in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[index] ^= 1;
        check(&format!("byte {index}"), &damaged);
        check(&format!("cut at {index}"), &whole[..index]);
    }
    check("more behind the end", &[whole.as_slice(), b"x"].concat());
    // A record that is missing as a whole.
    let first = MAGIC.len() + RECORD_HEAD + 17;
    let length = RECORD_HEAD
        + usize::try_from(u32::from_le_bytes(whole[first..][..4].try_into().unwrap())).unwrap();
    check("a batch is missing", &[&whole[..first], &whole[first + length..]].concat());

    // Listed all the same, without counts.
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(list(&folder.path().into()).unwrap()[0].content.is_err());
    let files = list_orphans(&folder.path().into()).unwrap().files;
    assert_eq!((files[0].name.as_str(), files[0].shard, files[0].batches), (NAME, 3, 0));
    fs::write(&path, b"").unwrap();
    assert_eq!(read_orphans(&folder.path().into(), NAME).err().unwrap().code(), Code::DataLoss);
}

#[test]
fn the_same_is_kept_once_and_something_else_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = save(&folder.path().into(), &[batch(11, 1)]);
    assert_eq!(save(&folder.path().into(), &[batch(11, 1)]), first);
    assert_eq!(listed(&folder.path().into()), [NAME]);
    save(&folder.path().into(), &[batch(11, 1), batch(12, 1)]);
    let second = "shard-3-epoch-2-base-10-2.orphans";
    assert_eq!(listed(&folder.path().into()), [NAME, second]);
    assert_eq!(read(&folder.path().into(), NAME).unwrap().count(), 1);
    assert_eq!(read(&folder.path().into(), second).unwrap().count(), 2);
    save(&folder.path().into(), &[batch(11, 1)]);
    save(&folder.path().into(), &[batch(11, 1), batch(12, 1)]);
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn nothing_pushed_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(save(&folder.path().into(), &[]), OrphanSummary::default());
    let mut abandoned = writer(&folder.path().into());
    abandoned.push(&batch(11, 1), true).unwrap();
    drop(abandoned);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn what_a_crash_cut_short_is_ignored_and_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("orphans")).unwrap();
    let partial = folder.path().join("orphans/shard-3-epoch-2-base-10.partial");
    fs::write(&partial, [b"meridian orphans 1\n".as_slice(), &[7; 10_000]].concat()).unwrap();
    assert!(list(&folder.path().into()).unwrap().is_empty());
    save(&folder.path().into(), &[batch(11, 1)]);
    assert_eq!(files(folder.path()), [NAME]);
    assert_eq!(read(&folder.path().into(), NAME).unwrap().map(Result::unwrap).count(), 1);
}

#[test]
fn two_writers_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let first = writer(&folder.path().into());
    let refused = OrphanWriter::create(&folder.path().into(), SHARD, EPOCH, BASE).unwrap_err();
    assert!(matches!(refused, StorageError::Busy(_)), "{refused}");
    let other = OrphanWriter::create(&folder.path().into(), ShardId(4), EPOCH, BASE).unwrap();
    drop((first, other));
    writer(&folder.path().into());
}

#[test]
fn only_names_of_such_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().into(), &[batch(11, 1)]);
    let tricks = [
        "",
        "..",
        "../node.toml",
        "orphans/shard-3-epoch-2-base-10-1.orphans",
        "/etc/passwd",
        "shard-3-epoch-2-base-10-1.orphans/",
        "shard-3-epoch-2-base-10-1.orphans\0",
        "shard-03-epoch-2-base-10-1.orphans",
        "shard-+3-epoch-2-base-10-1.orphans",
        "shard-3-epoch-2-base-10.partial",
        "shard-3-epoch-99999-base-10-1.orphans",
        "shard-3-epoch-2-base-../x-1.orphans",
    ];
    for name in tricks {
        assert_eq!(
            read_orphans(&folder.path().into(), name).err().unwrap().code(),
            Code::InvalidArgument,
            "{name:?}"
        );
    }
    let away =
        read_orphans(&folder.path().into(), "shard-3-epoch-2-base-10-2.orphans").err().unwrap();
    assert_eq!(away.code(), Code::NotFound, "{away}");
    // Under a name that is not its own.
    let orphans = folder.path().join("orphans");
    fs::rename(orphans.join(NAME), orphans.join("shard-4-epoch-2-base-10-1.orphans")).unwrap();
    let moved = read(&folder.path().into(), "shard-4-epoch-2-base-10-1.orphans").unwrap_err();
    assert!(moved.to_string().contains("under another name"), "{moved}");
}

#[test]
fn what_is_no_batch_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = writer(&folder.path().into()).push(b"\xff", true).unwrap_err();
    assert!(matches!(error, StorageError::Corruption { .. }), "{error}");
}

#[test]
fn temporary_files_go_with_a_start_and_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir: Folder = folder.path().into();
    remove_leftovers(&data_dir);
    save(&data_dir, &[batch(11, 1)]);
    let temporary = [format!("{NAME}.rewritten"), NAME.replace("-1.orphans", ".partial")];
    let kept = [format!("{NAME}.gz"), "a.partial".to_owned()];
    for name in temporary.iter().chain(&kept) {
        fs::write(data_dir.join("orphans").join(name), name).unwrap();
    }
    remove_leftovers(&data_dir);
    let mut left = files(&data_dir);
    left.sort_unstable();
    assert_eq!(left, ["a.partial", NAME, kept[0].as_str()]);
}
