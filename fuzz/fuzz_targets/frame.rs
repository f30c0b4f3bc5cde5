//! Messages between processes: of Raft, of shipping, of gateways to leaders, of the directory; and
//! what clients of a gateway get. What is decoded is encoded and decoded as the same, and so are
//! the types that it stands for.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use meridian_fuzz::{stable, times, within};
use meridian_gateway::WatchedValue;
use meridian_kv_client::{Endpoint, Metadata, answer};
use meridian_proto::{
    admin, changes, directory, entry, entry_to_wire, kv_connect as pb, log, queue, raft,
    read_range, read_range_to_wire, shard, shard_report, shard_report_to_wire, shipping,
    transaction, transaction_to_wire,
};

/// A parser of each kind of message.
macro_rules! messages {
    ($($message:ty),* $(,)?) => {
        [$(|data: &[u8]| {
            stable::<$message>(data);
        }),*]
    };
}

const MESSAGES: &[fn(&[u8])] = &messages![
    raft::AppendRequest,
    raft::AppendResponse,
    raft::VoteRequest,
    raft::VoteResponse,
    raft::TransferLeaderRequest,
    raft::TransferLeaderResponse,
    raft::InstallSnapshotRequest,
    raft::JoinRequest,
    raft::JoinResponse,
    log::Entry,
    log::Applied,
    shipping::SubscribeRequest,
    shipping::Shipment,
    shipping::AnnounceRequest,
    shipping::FetchStateRequest,
    shipping::StateChunk,
    shipping::StateRows,
    shard::WriteResponse,
    shard::ReadRequest,
    shard::ReadPart,
    shard::WatchRequest,
    shard::ReadPositionResponse,
    queue::ListenRequest,
    queue::ListenPart,
    queue::ReportRequest,
    queue::ReportResponse,
    changes::NextRequest,
    changes::NextResponse,
    directory::RenewRequest,
    directory::RenewResponse,
    directory::ExecuteRequest,
    directory::InspectResponse,
    directory::SealResponse,
    directory::ReadLogResponse,
    admin::StatusResponse,
    pb::SnapshotReadOutput,
    pb::AtomicWriteOutput,
    pb::WatchOutput,
];

const CONVERSIONS: &[fn(&[u8])] =
    &[writes, reads, entries, news, reports, answers, endpoints, metadata];

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let first = usize::from(*first);
    // Every other one, since these are those that say more.
    let parsers = if first % 2 == 0 { MESSAGES } else { CONVERSIONS };
    parsers[first / 2 % parsers.len()](data);
});

fn writes(data: &[u8]) {
    let Some(request) = stable::<shard::WriteRequest>(data) else { return };
    let Ok(transaction) = transaction(request.transaction) else { return };
    let wire = transaction_to_wire(&transaction);
    let again = meridian_proto::transaction(Some(wire.clone())).expect("it was made here");
    assert_eq!(again, transaction);
    assert_eq!(transaction_to_wire(&again), wire);
}

fn reads(data: &[u8]) {
    let Some(request) = stable::<shard::ReadRequest>(data) else { return };
    for wire in request.ranges {
        if let Ok(range) = read_range(wire.clone()) {
            assert_eq!(read_range_to_wire(&range), wire);
        }
    }
}

fn entries(data: &[u8]) {
    let Some(entries) = stable::<shard::ReadEntries>(data) else { return };
    for wire in entries.values {
        if let Ok(entry) = entry(wire.clone()) {
            assert_eq!(entry_to_wire(entry), wire);
        }
    }
}

fn news(data: &[u8]) {
    let Some(news) = stable::<shard::WatchNews>(data) else { return };
    for wire in news.keys {
        let Ok(value) = WatchedValue::from_wire(wire.clone()) else { continue };
        let told = WatchedValue::to_wire(value.as_ref());
        assert_eq!(told, if wire.changed { wire } else { pb::WatchKeyOutput::default() });
        assert_eq!(WatchedValue::from_wire(told), Ok(value));
    }
}

fn reports(data: &[u8]) {
    let Some(wire) = stable::<directory::ShardReport>(data) else { return };
    let Some(report) = shard_report(wire) else { return };
    let again = shard_report(shard_report_to_wire(&report));
    assert_eq!(again, Some(report));
}

fn answers(data: &[u8]) {
    let bytes = || Bytes::copy_from_slice(data);
    let bound = times(512, data.len());
    let written = within(bound, || answer::written(bytes()));
    if let Ok(committed) = answer::committed(bytes()) {
        assert_eq!(committed, written.is_ok());
    }
    let weak = within(bound, || answer::entries(bytes(), false));
    if let Ok(strong) = answer::entries(bytes(), true) {
        assert_eq!(weak.ok(), Some(strong), "a strong answer is one");
    }
}

/// A base, and a reference behind a space.
fn endpoints(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (base, reference) = text.split_once(' ').unwrap_or((text, ""));
    let bound = times(64, data.len());
    let Ok(base) = within(bound, || Endpoint::parse(base)) else { return };
    is_endpoint(&base);
    if let Ok(resolved) = within(bound, || base.resolve(reference)) {
        is_endpoint(&resolved);
    }
}

fn is_endpoint(endpoint: &Endpoint) {
    let again = Endpoint::parse(&endpoint.to_string()).expect("it is a URL");
    assert_eq!(&again, endpoint);
    assert!(!endpoint.method("snapshot_read").path_and_query().ends_with("//snapshot_read"));
}

fn metadata(data: &[u8]) {
    let base = Endpoint::parse("http://gateway:4512/db/main").expect("a URL");
    let Ok(metadata) = within(times(64, data.len()), || Metadata::parse(&base, data)) else {
        return;
    };
    assert!((1..=3).contains(&metadata.version));
    let found = [metadata.first, metadata.strong, metadata.eventual];
    found.iter().flatten().for_each(is_endpoint);
}
