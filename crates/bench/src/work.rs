//! The operation that a worker repeats.

use std::time::Instant;

use bytes::Bytes;
use meridian_kv_client::Link;
use meridian_kv_client::Target;
use prost::Message;

use crate::bodies::{ReadBodies, WriteBodies, range_body, sum_body};
use crate::check_and_set::{CheckAndSet, NewValue, Outcome, Store};
use crate::error::BenchError;
use crate::etcd;
use crate::key_space::KeySpace;
use crate::operation::{Bodies, Expected, Requests};
use crate::options::{HttpVersion, Operation, Options, Protocol, RANGE_KEYS};
use crate::random::Random;
use crate::session::Destination;

#[derive(Debug, Clone)]
pub enum Work {
    Request { target: Target, requests: Requests },
    CheckAndSet(CheckAndSet),
}

impl Work {
    pub fn new(
        operation: Operation,
        options: &Options,
        destination: &Destination,
        http: HttpVersion,
    ) -> Result<Self, BenchError> {
        let target = |method: &str| {
            let target =
                Target::new(&destination.endpoint.method(method), http, &destination.headers)?;
            Ok(target.spread(&destination.more))
        };
        match options.protocol {
            Protocol::KvConnect => Self::of_kv_connect(operation, options, target),
            Protocol::Etcd => Self::of_etcd(operation, options, target),
        }
    }

    fn of_kv_connect(
        operation: Operation,
        options: &Options,
        target: impl Fn(&str) -> Result<Target, BenchError>,
    ) -> Result<Self, BenchError> {
        let space = KeySpace::new(&options.key_prefix, options.keys);
        let (method, bodies, expected) = match operation {
            Operation::Write => (
                "atomic_write",
                Bodies::Write(WriteBodies::new(&space, options.value_bytes, options.value_kind)),
                Expected::Written,
            ),
            Operation::StrongRead | Operation::EventualRead => {
                let strong = operation == Operation::StrongRead;
                (
                    "snapshot_read",
                    Bodies::Read(ReadBodies::new(&space)),
                    Expected::Entries { count: 1, strong },
                )
            }
            Operation::Range => {
                let body =
                    |index| Bytes::from(range_body(&space, index, RANGE_KEYS).encode_to_vec());
                (
                    "snapshot_read",
                    ranges(options, body),
                    Expected::Entries { count: RANGE_KEYS as usize, strong: true },
                )
            }
            Operation::Sum => {
                let body = sum_body(number(options).key(0)).encode_to_vec();
                ("atomic_write", Bodies::Same(body.into()), Expected::Written)
            }
            Operation::Contended => {
                return Ok(Self::CheckAndSet(CheckAndSet {
                    store: Store::KvConnect,
                    read: target("snapshot_read")?,
                    write: target("atomic_write")?,
                    keys: hot(options),
                    value: NewValue::Fresh(options.value_bytes, options.value_kind),
                }));
            }
        };
        Ok(Self::Request { target: target(method)?, requests: Requests { bodies, expected } })
    }

    fn of_etcd(
        operation: Operation,
        options: &Options,
        target: impl Fn(&str) -> Result<Target, BenchError>,
    ) -> Result<Self, BenchError> {
        let space = KeySpace::new(&options.key_prefix, options.keys);
        let check_and_set = |keys, value| {
            let (read, write) = (target(etcd::RANGE)?, target(etcd::TXN)?);
            Ok(Self::CheckAndSet(CheckAndSet { store: Store::Etcd, read, write, keys, value }))
        };
        let (method, bodies, expected) = match operation {
            Operation::Write => {
                let bodies = Bodies::EtcdPut {
                    keys: space,
                    value_bytes: options.value_bytes,
                    kind: options.value_kind,
                };
                (etcd::PUT, bodies, Expected::EtcdWritten)
            }
            Operation::StrongRead | Operation::EventualRead => {
                let strong = operation == Operation::StrongRead;
                let bodies = ReadBodies::encode(space.count(), |index| {
                    etcd::read_body(space.key(index), strong)
                });
                (etcd::RANGE, Bodies::Read(bodies), Expected::EtcdEntries(1))
            }
            Operation::Range => {
                let body = |index| etcd::range_body(space.key(index), space.end(), RANGE_KEYS);
                (etcd::RANGE, ranges(options, body), Expected::EtcdEntries(RANGE_KEYS as usize))
            }
            Operation::Sum => return check_and_set(number(options), NewValue::Increment),
            Operation::Contended => {
                return check_and_set(
                    hot(options),
                    NewValue::Fresh(options.value_bytes, options.value_kind),
                );
            }
        };
        Ok(Self::Request { target: target(method)?, requests: Requests { bodies, expected } })
    }

    /// Performs one operation. An operation with conflicts is repeated until it succeeds, or until
    /// `end` has passed.
    pub async fn perform(
        &mut self,
        link: &mut Link,
        random: &mut Random,
        end: Instant,
        conflicts: &mut u64,
    ) -> Result<Outcome, BenchError> {
        match self {
            Self::Request { target, requests } => {
                let body = requests.next(random);
                let database = any_database(target, random);
                let request = target.request_to(database, body);
                requests.expected.check(link.call(request).await?)?;
                Ok(Outcome::Success)
            }
            Self::CheckAndSet(check_and_set) => {
                check_and_set.perform(link, random, end, conflicts).await
            }
        }
    }
}

/// Reads of the ranges that begin at each key, except keys with too few successors.
fn ranges(options: &Options, body: impl Fn(u32) -> Bytes) -> Bodies {
    Bodies::Read(ReadBodies::encode((options.keys + 1).saturating_sub(RANGE_KEYS), body))
}

/// The key of sums. It is not in the key space, where its value would be in the way.
fn number(options: &Options) -> KeySpace {
    KeySpace::new(&format!("{}-sum", options.key_prefix), 1)
}

fn hot(options: &Options) -> KeySpace {
    KeySpace::new(&format!("{}-hot", options.key_prefix), options.hot_keys)
}

/// One of the databases that the target's requests are for, each as likely.
fn any_database(target: &Target, random: &mut Random) -> usize {
    match u32::try_from(target.databases()) {
        Ok(1) | Err(_) => 0,
        Ok(databases) => usize::try_from(random.below(databases)).unwrap_or(0),
    }
}
