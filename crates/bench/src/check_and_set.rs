//! Reading a key and setting it if its version is unchanged, again and again until that succeeds:
//! the way in which an application replaces a value with one computed from it.

use std::time::Instant;

use bytes::Bytes;
use meridian_kv_client::Link;
use meridian_kv_client::Target;
use meridian_kv_client::answer::{committed, entries};
use prost::Message;

use crate::bodies::{check_and_set_body, read_body};
use crate::error::BenchError;
use crate::etcd;
use crate::key_space::KeySpace;
use crate::random::Random;
use crate::value::ValueKind;

#[derive(Debug, Clone)]
pub struct CheckAndSet {
    pub store: Store,
    pub read: Target,
    pub write: Target,
    pub keys: KeySpace,
    pub value: NewValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    KvConnect,
    Etcd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewValue {
    /// A new value of so many bytes.
    Fresh(usize, ValueKind),
    /// The old value plus 1, as eight bytes little-endian. An absent value is 0.
    Increment,
}

/// The version that a check compares.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// KV Connect's; empty for an absent key.
    Versionstamp(Bytes),
    /// etcd's; 0 for an absent key.
    ModRevision(i64),
}

/// The end of an operation without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The time was over after conflicts only.
    OutOfTime,
}

impl CheckAndSet {
    /// Adds each attempt that came too late to `conflicts`. Gives up when `end` has passed.
    pub async fn perform(
        &self,
        link: &mut Link,
        random: &mut Random,
        end: Instant,
        conflicts: &mut u64,
    ) -> Result<Outcome, BenchError> {
        let key = self.keys.key(random.below(self.keys.count()));
        loop {
            let answer = link.call(self.read.request(self.read_body(&key))).await?;
            let (version, value) = self.seen(answer)?;
            let value = self.value.after(&value, random)?;
            let answer = link.call(self.write.request(write_body(&key, version, value))).await?;
            let done = match self.store {
                Store::KvConnect => committed(answer)?,
                Store::Etcd => etcd::committed(answer)?,
            };
            if done {
                return Ok(Outcome::Success);
            }
            *conflicts += 1;
            if Instant::now() >= end {
                return Ok(Outcome::OutOfTime);
            }
        }
    }

    fn read_body(&self, key: &Bytes) -> Bytes {
        match self.store {
            Store::KvConnect => read_body(key).encode_to_vec().into(),
            Store::Etcd => etcd::read_body(key.clone(), true),
        }
    }

    fn seen(&self, answer: Bytes) -> Result<(Version, Bytes), BenchError> {
        Ok(match self.store {
            Store::KvConnect => {
                let entry = entries(answer, true)?.into_iter().next().unwrap_or_default();
                (Version::Versionstamp(entry.versionstamp), entry.value)
            }
            Store::Etcd => {
                let entry = etcd::entries(answer)?.into_iter().next().unwrap_or_default();
                (Version::ModRevision(entry.mod_revision), entry.value)
            }
        })
    }
}

fn write_body(key: &Bytes, version: Version, value: Bytes) -> Bytes {
    match version {
        Version::Versionstamp(versionstamp) => {
            check_and_set_body(key.clone(), versionstamp, value).encode_to_vec().into()
        }
        Version::ModRevision(revision) => etcd::check_and_set_body(key.clone(), revision, value),
    }
}

impl NewValue {
    fn after(self, old: &[u8], random: &mut Random) -> Result<Bytes, BenchError> {
        match self {
            Self::Fresh(count, kind) => Ok(kind.bytes(random, count)),
            Self::Increment if old.is_empty() => Ok(Bytes::copy_from_slice(&1_u64.to_le_bytes())),
            Self::Increment => {
                let old = old.try_into().map_err(|_| {
                    BenchError::Unsuccessful(format!(
                        "the key of sums holds no number, but {} bytes",
                        old.len()
                    ))
                })?;
                Ok(Bytes::copy_from_slice(&u64::from_le_bytes(old).wrapping_add(1).to_le_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increment_starts_at_zero_and_refuses_other_values() {
        let mut random = Random::new(1, 1);
        let one = NewValue::Increment.after(b"", &mut random).unwrap();
        let two = NewValue::Increment.after(&one, &mut random).unwrap();
        assert_eq!(
            (one.as_ref(), two.as_ref()),
            (&1_u64.to_le_bytes()[..], &2_u64.to_le_bytes()[..])
        );
        let error = NewValue::Increment.after(b"text", &mut random).unwrap_err().to_string();
        assert_eq!(error, "the key of sums holds no number, but 4 bytes");
        assert_eq!(
            NewValue::Fresh(9, ValueKind::Random).after(&one, &mut random).unwrap().len(),
            9
        );
    }
}
