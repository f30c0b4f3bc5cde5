//! Programs of a client: writes, reads, lists and watches, some of them at fault.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use crate::values::{Data, data, operands};

/// Keys that lie close together in the order of bytes. None of them can lie between two that differ
/// in their versionstamps alone, of which both sides have their own.
pub(crate) const PLAIN: [&[u8]; 8] =
    [b"", b"a", b"a\0", b"a\x02", b"a\x03", b"ab", b"b\0\xff", b"\xff\xff"];

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Key {
    /// Of [`PLAIN`].
    Plain(usize),
    /// Of so many bytes.
    Long(usize),
    /// A plain key with the versionstamp of one of the writes so far behind it.
    Stamped(usize, usize),
}

/// The versionstamp that a check expects.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expected {
    Absent,
    /// The versionstamp that the key has.
    Present,
    /// That of one of the writes so far.
    OfWrite(usize),
    /// A versionstamp that no write has.
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Set(Data),
    SetStamped(Data),
    Delete,
    Sum { operand: Data, min: Option<Data>, max: Option<Data>, clamp: bool },
    Min(Data),
    Max(Data),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mutation {
    pub(crate) key: Key,
    pub(crate) kind: Kind,
    pub(crate) expire_at_ms: i64,
    /// Of V8: what Deno writes from 2.8 on, or what all read.
    pub(crate) format: u8,
}

/// A message for the queue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Enqueue {
    pub(crate) payload: Data,
    pub(crate) format: u8,
    /// It is due so long after the test began.
    pub(crate) delay_ms: i64,
    pub(crate) keys_if_undelivered: Vec<Key>,
    pub(crate) backoff_ms: Vec<u32>,
}

/// A field of a message at its limit, beyond it, or without a meaning. A message has no other that is
/// at fault.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Extreme {
    /// The first of them pass, and the others fail.
    Checks {
        count: usize,
        passing: usize,
    },
    CheckedKey(usize),
    Versionstamp(usize),
    Mutations {
        mutations: usize,
        enqueues: usize,
    },
    WrittenKey(usize),
    Value(usize),
    Total(usize),
    MutationType(i32),
    NoValue(i32),
    ExpireAt(i64),
    Encoding(i32),
    Payload(usize),
    KeysIfUndelivered(usize),
    KeyIfUndelivered(usize),
    Intervals(usize),
    Interval(u32),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    pub(crate) checks: Vec<(Key, Expected)>,
    pub(crate) mutations: Vec<Mutation>,
    pub(crate) enqueues: Vec<Enqueue>,
    pub(crate) extreme: Option<Extreme>,
}

/// A key, and what clients put behind it where a range begins or ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Edge {
    pub(crate) key: Key,
    pub(crate) behind: &'static [u8],
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Range {
    pub(crate) start: Edge,
    pub(crate) end: Edge,
    pub(crate) limit: i32,
    pub(crate) reverse: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Write(Write),
    Read(Vec<Range>),
    /// All of a range, `limit` entries at a time, from the cursor that the last one leaves.
    List(Range),
    /// The first message of a watch.
    Watch(Vec<Key>),
}

fn key() -> impl Strategy<Value = Key> + Clone {
    prop_oneof![
        12 => (0..PLAIN.len()).prop_map(Key::Plain),
        1 => Just(Key::Long(2048)),
        3 => ((0..PLAIN.len()), 0..64_usize).prop_map(|(plain, write)| Key::Stamped(plain, write)),
    ]
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        3 => Just(Expected::Absent),
        8 => Just(Expected::Present),
        2 => (0..64_usize).prop_map(Expected::OfWrite),
        1 => Just(Expected::Unknown),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let u64 = || prop_oneof![8 => any::<u64>().prop_map(Data::U64), 1 => data()];
    prop_oneof![
        5 => data().prop_map(Kind::Set),
        2 => data().prop_map(Kind::SetStamped),
        2 => Just(Kind::Delete),
        6 => (operands(), any::<bool>()).prop_map(|((operand, min, max), clamp)| {
            Kind::Sum { operand, min, max, clamp }
        }),
        1 => u64().prop_map(Kind::Min),
        1 => u64().prop_map(Kind::Max),
    ]
}

/// Of V8: what Deno writes from 2.8 on, or what all read.
fn format() -> impl Strategy<Value = u8> {
    select(vec![14, 15, 15, 16])
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // None, and in 2,100 years.
    let expiry = select(vec![0, 0, 0, -1, 4_102_444_800_000_i64, 4_102_444_800_001]);
    // A plain key for what has a versionstamp behind it: with another, it would be too long.
    let plain = (0..PLAIN.len()).prop_map(Key::Plain);
    (key(), plain, kind(), expiry, format()).prop_map(|(key, plain, kind, expire_at_ms, format)| {
        let key = if matches!(kind, Kind::SetStamped(_)) { plain } else { key };
        Mutation { key, kind, expire_at_ms, format }
    })
}

fn enqueue() -> impl Strategy<Value = Enqueue> {
    let day = 24 * 60 * 60 * 1000;
    let backoff = vec(select(vec![0, 1, 100, 3_600_000]), 0..=10);
    (data(), format(), select(vec![0, 1, 60_000, 29 * day]), vec(key(), 0..3), backoff).prop_map(
        |(payload, format, delay_ms, keys_if_undelivered, backoff_ms)| Enqueue {
            payload,
            format,
            delay_ms,
            keys_if_undelivered,
            backoff_ms,
        },
    )
}

fn extreme() -> impl Strategy<Value = Extreme> {
    let checks = vec![(10, 9), (11, 11), (99, 0), (100, 50), (100, 100), (101, 101)];
    let mutations = vec![(1000, 0), (1, 999), (500, 501), (1001, 0), (0, 1001)];
    prop_oneof![
        select(checks).prop_map(|(count, passing)| Extreme::Checks { count, passing }),
        select(vec![2049, 2050]).prop_map(Extreme::CheckedKey),
        select(vec![1, 9, 11, 20]).prop_map(Extreme::Versionstamp),
        select(mutations)
            .prop_map(|(mutations, enqueues)| Extreme::Mutations { mutations, enqueues }),
        select(vec![2048, 2049]).prop_map(Extreme::WrittenKey),
        select(vec![65_536, 65_537]).prop_map(Extreme::Value),
        select(vec![819_200, 819_201]).prop_map(Extreme::Total),
        select(vec![0, 6, 7, 8, 10, -1]).prop_map(Extreme::MutationType),
        select(vec![1, 3, 4, 5, 9]).prop_map(Extreme::NoValue),
        select(vec![-2, i64::MIN]).prop_map(Extreme::ExpireAt),
        select(vec![0, 4, -1]).prop_map(Extreme::Encoding),
        select(vec![65_536, 65_537]).prop_map(Extreme::Payload),
        select(vec![10, 11]).prop_map(Extreme::KeysIfUndelivered),
        select(vec![2048, 2049]).prop_map(Extreme::KeyIfUndelivered),
        select(vec![10, 11]).prop_map(Extreme::Intervals),
        select(vec![3_600_000, 3_600_001]).prop_map(Extreme::Interval),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let checks = prop_oneof![3 => vec((key(), expected()), 0..3), 1 => Just(vec![])];
    let mutations = prop_oneof![9 => vec(mutation(), 0..6), 1 => vec(mutation(), 0..40)];
    let enqueues = prop_oneof![3 => Just(vec![]), 1 => vec(enqueue(), 1..4)];
    (checks, mutations, enqueues, weighted(0.08, extreme())).prop_map(
        |(checks, mutations, enqueues, extreme)| Write { checks, mutations, enqueues, extreme },
    )
}

fn range() -> impl Strategy<Value = Range> + Clone {
    let edge = (key(), select(vec![&b""[..], b"\0", b"\xff"]))
        .prop_map(|(key, behind)| Edge { key, behind });
    let limit = prop_oneof![3 => 1..4, 3 => 4..90];
    (edge.clone(), edge, limit, any::<bool>(), any::<bool>()).prop_map(
        |(start, end, limit, reverse, single)| {
            // One key, as clients read it.
            let end = if single { Edge { behind: b"\0", key: start.key.clone() } } else { end };
            let start = if single { Edge { behind: b"", ..start } } else { start };
            Range { start, end, limit, reverse }
        },
    )
}

fn everything(limit: i32, reverse: bool) -> Range {
    let start = Edge { key: Key::Plain(0), behind: b"" };
    Range { start, end: Edge { key: Key::Plain(7), behind: b"\xff" }, limit, reverse }
}

/// All that a program has left.
pub(crate) fn all() -> Range {
    everything(1000, false)
}

fn read() -> impl Strategy<Value = Vec<Range>> {
    let long = |length| Edge { key: Key::Long(length), behind: b"" };
    let of_start = move |length| Range { start: long(length), ..everything(1, false) };
    let flawed = prop_oneof![
        Just(vec![everything(1, false); 11]),
        Just(vec![everything(0, false)]),
        Just(vec![everything(-1, true)]),
        Just(vec![everything(501, false), everything(500, true)]),
        Just(vec![of_start(2050)]),
        Just(vec![Range { end: long(2050), ..everything(1, true) }]),
    ];
    prop_oneof![
        12 => vec(range(), 0..=10),
        1 => Just(vec![everything(1000, true)]),
        1 => Just(vec![of_start(2049)]),
        1 => flawed,
    ]
}

fn watch() -> impl Strategy<Value = Vec<Key>> {
    prop_oneof![
        12 => vec(key(), 0..=10),
        1 => vec(key(), 11),
        1 => Just(vec![Key::Long(2050)]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let list = prop_oneof![
        2 => range(),
        1 => (1..5, any::<bool>()).prop_map(|(limit, reverse)| everything(limit, reverse)),
    ];
    prop_oneof![
        16 => write().prop_map(Step::Write),
        6 => read().prop_map(Step::Read),
        2 => list.prop_map(Step::List),
        3 => watch().prop_map(Step::Watch),
    ]
}

pub(crate) fn program() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..24)
}
