//! The exempted faults of the reference still exist: a release that mends one is noticed.

use bytes::Bytes;
use meridian_kv_client::message::{mutation, point, set, sum};
use meridian_proto::kv_connect as pb;

use crate::denokv::{Denokv, Theirs, about, converted};
use crate::store::{Refusal, Store, Written};

#[tokio::test]
async fn exempted_faults_of_the_reference_are_still_there() {
    let denokv = Denokv::open();
    let mut theirs = Theirs::new(&denokv);
    let refusal = |message: pb::AtomicWrite| converted(&message).err().map(|error| about(&error));
    let checks = |count| vec![pb::Check { key: "k".into(), versionstamp: Bytes::new() }; count];
    let check = |count| pb::AtomicWrite { checks: checks(count), ..Default::default() };
    assert_eq!(refusal(check(10)), None);
    assert_eq!(refusal(check(11)), Some("The number of checks of one atomic write"));

    let due = |deadline_ms| {
        let enqueues = vec![pb::Enqueue { deadline_ms, ..Default::default() }];
        refusal(pb::AtomicWrite { enqueues, ..Default::default() })
    };
    let year_2100 = 4_102_444_800_000;
    assert_eq!([due(-1), due(0)], [Some("no time"); 2]);
    assert_eq!(due(year_2100), None);

    let keys = vec![pb::WatchKey { key: vec![b'k'; 2049].into() }];
    let refused = theirs.watch(pb::Watch { keys }).await;
    assert_eq!(refused, Err(Refusal::About("The size of a key ")));

    let kind = pb::MutationType::MSetSuffixVersionstampedKey;
    let long = mutation(kind, &[b'k'; 2048], pb::ValueEncoding::VeBytes, b"v");
    let write = |mutations| pb::AtomicWrite { mutations, ..Default::default() };
    assert!(matches!(theirs.write(write(vec![long])).await, Written::Committed(_)));

    // The earlier mutation of a write that failed, without what `Theirs` does about it.
    let failing = write(vec![set(b"text", b"text"), set(b"kept", b"v"), sum(b"text", 1)]);
    let kept = denokv.keeps_of_failed_write(failing).await;
    assert_eq!(kept, ["kept", "text"]);
    let found = theirs.read(pb::SnapshotRead { ranges: vec![point(b"kept")] }).await.unwrap();
    assert_eq!(found[0].len(), 1);
}
