//! Stores with a bug: random programs have to find each of them.

use bytes::Bytes;
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::MutationType;
use meridian_types::limits::MAX_READ_KEY_BYTES;

use crate::meridian::Ours;
use crate::messages::Stamps;
use crate::store::{Hidden, Read, Refusal, Store, Watched, Written};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bug {
    LimitIsOneMore,
    EndOfARangeIsIncluded,
    ReverseIsIgnored,
    CheckOfAnAbsentKeyIsIgnored,
    OnlyTheFirstFailedCheckIsTold,
    SumOfAnotherTypeIsAccepted,
    ClampIsIgnored,
    StampedKeyNeverExpires,
    FailedWriteKeepsItsEarlierMutations,
    FailedCheckKeepsTheMessages,
    EmptyScheduleIsNotTheDefault,
    WatchLeavesOutAbsentKeys,
}

impl Bug {
    pub(crate) const ALL: [Self; 12] = [
        Self::LimitIsOneMore,
        Self::EndOfARangeIsIncluded,
        Self::ReverseIsIgnored,
        Self::CheckOfAnAbsentKeyIsIgnored,
        Self::OnlyTheFirstFailedCheckIsTold,
        Self::SumOfAnotherTypeIsAccepted,
        Self::ClampIsIgnored,
        Self::StampedKeyNeverExpires,
        Self::FailedWriteKeepsItsEarlierMutations,
        Self::FailedCheckKeepsTheMessages,
        Self::EmptyScheduleIsNotTheDefault,
        Self::WatchLeavesOutAbsentKeys,
    ];
}

/// A store without a bug, between which and the programs the bug stands.
pub(crate) struct Planted<'a> {
    ours: Ours<'a>,
    bug: Bug,
}

impl<'a> Planted<'a> {
    pub(crate) fn new(ours: Ours<'a>, bug: Bug) -> Self {
        Self { ours, bug }
    }

    fn ask(&self, message: &mut pb::AtomicWrite) {
        match self.bug {
            Bug::CheckOfAnAbsentKeyIsIgnored => {
                message.checks.retain(|check| !check.versionstamp.is_empty());
            }
            Bug::ClampIsIgnored => {
                message.mutations.iter_mut().for_each(|mutation| mutation.sum_clamp = false);
            }
            Bug::StampedKeyNeverExpires => {
                let kind = MutationType::MSetSuffixVersionstampedKey;
                let stamped = message.mutations.iter_mut().filter(|m| m.mutation_type() == kind);
                stamped.for_each(|mutation| mutation.expire_at_ms = 0);
            }
            Bug::EmptyScheduleIsNotTheDefault => {
                let without = |enqueue: &&mut pb::Enqueue| enqueue.backoff_schedule.is_empty();
                let enqueues = message.enqueues.iter_mut().filter(without);
                enqueues.for_each(|enqueue| enqueue.backoff_schedule = vec![0]);
            }
            _ => {}
        }
    }

    /// Every mutation as an atomic write of its own, until one fails.
    async fn one_by_one(&mut self, message: &pb::AtomicWrite) {
        for mutation in &message.mutations {
            let one = pb::AtomicWrite { mutations: vec![mutation.clone()], ..Default::default() };
            if matches!(self.ours.write(one).await, Written::Refused(_)) {
                return;
            }
        }
    }

    async fn after(&mut self, message: pb::AtomicWrite, written: Written) -> Written {
        match (self.bug, written) {
            (Bug::OnlyTheFirstFailedCheckIsTold, Written::CheckFailed(mut failed)) => {
                failed.truncate(1);
                Written::CheckFailed(failed)
            }
            (Bug::FailedCheckKeepsTheMessages, Written::CheckFailed(failed)) => {
                let enqueues = message.enqueues;
                self.ours.write(pb::AtomicWrite { enqueues, ..Default::default() }).await;
                Written::CheckFailed(failed)
            }
            (Bug::SumOfAnotherTypeIsAccepted, Written::Refused(Refusal::Text(text)))
                if text.starts_with("Cannot sum") =>
            {
                self.ours.write(pb::AtomicWrite::default()).await
            }
            (Bug::FailedWriteKeepsItsEarlierMutations, Written::Refused(Refusal::Text(text)))
                if text.starts_with("Cannot sum") =>
            {
                self.one_by_one(&message).await;
                Written::Refused(Refusal::Text(text))
            }
            (_, written) => written,
        }
    }
}

impl Store for Planted<'_> {
    fn stamps(&self) -> &Stamps {
        self.ours.stamps()
    }

    fn committed(&mut self, stamp: Bytes) {
        self.ours.committed(stamp);
    }

    async fn write(&mut self, mut message: pb::AtomicWrite) -> Written {
        self.ask(&mut message);
        let written = self.ours.write(message.clone()).await;
        self.after(message, written).await
    }

    async fn read(&mut self, mut message: pb::SnapshotRead) -> Read {
        for range in &mut message.ranges {
            match self.bug {
                Bug::LimitIsOneMore if range.limit > 1 => range.limit += 1,
                Bug::EndOfARangeIsIncluded if range.end.len() < MAX_READ_KEY_BYTES => {
                    range.end = [range.end.as_ref(), &[0]].concat().into();
                }
                Bug::ReverseIsIgnored => range.reverse = false,
                _ => {}
            }
        }
        self.ours.read(message).await
    }

    async fn watch(&mut self, message: pb::Watch) -> Result<Watched, Refusal> {
        let mut watched = self.ours.watch(message).await;
        if let (Bug::WatchLeavesOutAbsentKeys, Ok(watched)) = (self.bug, &mut watched) {
            watched.retain(Option::is_some);
        }
        watched
    }

    async fn hidden(&mut self) -> Hidden {
        self.ours.hidden().await
    }
}
