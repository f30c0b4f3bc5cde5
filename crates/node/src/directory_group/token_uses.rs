//! The last uses of tokens, as the directory's leader gathers them from renewals and stores them
//! beside the cluster: no change of it, and so in no record and sent to no follower.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meridian_directory::Cluster;
use meridian_proto::directory::{TokenLastUse, TokenUse};
use meridian_storage::schema::DIRECTORY_TOKEN_USES_KEY;
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{Mutation, MutationKind, ReadRange, Transaction, Value, ValueEncoding};
use serde::{Deserialize, Serialize};

use crate::cluster_view::directory_shard::DIRECTORY_DATABASE;

/// Between two writes, however often tokens are used.
const WRITE_EVERY: Duration = Duration::from_secs(5 * 60);
/// A gateway counts for so long after the last use that it told.
const COUNTED_MS: u64 = 60 * 60 * 1000;
/// Gateways of one token, and tokens, at most.
const MAX_GATEWAYS: usize = 256;
const MAX_TOKENS: usize = 5000;

/// When a token was last used, and by how many gateways of late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LastUse {
    at_ms: u64,
    gateways: u32,
}

/// The uses that a leader has heard of in its term.
#[derive(Default)]
pub(super) struct TokenUses {
    /// By token and gateway.
    heard: BTreeMap<u64, BTreeMap<u64, u64>>,
    has_news: bool,
    written_at: Option<Duration>,
}

impl TokenUses {
    /// Of tokens of the `cluster`; a use does not lie ahead of the wall clock.
    pub(super) fn hear(&mut self, uses: &[TokenUse], cluster: &Cluster, wall_ms: u64) {
        for TokenUse { token_id, time_ms, gateway } in uses {
            let is_known = self.heard.contains_key(token_id);
            if !cluster.tokens.contains_key(token_id)
                || !(is_known || self.heard.len() < MAX_TOKENS)
            {
                continue;
            }
            let gateways = self.heard.entry(*token_id).or_default();
            if gateways.contains_key(gateway) || gateways.len() < MAX_GATEWAYS {
                let latest = gateways.entry(*gateway).or_default();
                let time_ms = (*time_ms).min(wall_ms);
                self.has_news |= time_ms > *latest;
                *latest = time_ms.max(*latest);
            }
        }
    }

    /// The write that is due, if there are news: what is stored, and what was heard since.
    pub(super) fn due(
        &mut self,
        now: Duration,
        cluster: &Cluster,
        state: &ShardState,
    ) -> Option<Transaction> {
        let is_early = self.written_at.is_some_and(|at| now < at.saturating_add(WRITE_EVERY));
        if is_early || !self.has_news {
            return None;
        }
        (self.has_news, self.written_at) = (false, Some(now));
        self.heard.retain(|token, _| cluster.tokens.contains_key(token));
        let mut uses = stored(state);
        for (token, gateways) in &mut self.heard {
            let at_ms = gateways.values().copied().max().unwrap_or(0);
            gateways.retain(|_, of| at_ms.saturating_sub(*of) < COUNTED_MS);
            let gateways = u32::try_from(gateways.len()).unwrap_or(u32::MAX);
            let known = uses.entry(*token).or_insert(LastUse { at_ms, gateways });
            if at_ms >= known.at_ms {
                *known = LastUse { at_ms, gateways };
            }
        }
        uses.retain(|token, _| cluster.tokens.contains_key(token));
        // Plain data: it always can be written.
        let data = serde_json::to_vec(&uses).unwrap_or_default().into();
        let value = Value { encoding: ValueEncoding::Bytes, data };
        let key = Bytes::from_static(DIRECTORY_TOKEN_USES_KEY);
        let mutation = Mutation { key, kind: MutationKind::Set(value), expire_at_ms: 0 };
        Some(Transaction { mutations: vec![mutation], ..Transaction::default() })
    }
}

/// Bytes that cannot be read are no uses: these are for people.
fn stored(state: &ShardState) -> BTreeMap<u64, LastUse> {
    let end = [DIRECTORY_TOKEN_USES_KEY, &[0]].concat().into();
    let start = Bytes::from_static(DIRECTORY_TOKEN_USES_KEY);
    let range = ReadRange { start, end, limit: 1, reverse: false };
    let view = or_fatal(state.read(DIRECTORY_DATABASE, &[range], 0));
    let entry = view.ranges.into_iter().flatten().next();
    let read = entry.and_then(|entry| serde_json::from_slice(&entry.value.data).ok());
    read.unwrap_or_default()
}

/// As far as they are stored here.
pub(super) fn read(state: &ShardState) -> Vec<TokenLastUse> {
    let last = |(token_id, LastUse { at_ms: time_ms, gateways }): (u64, LastUse)| TokenLastUse {
        token_id,
        time_ms,
        gateways,
    };
    stored(state).into_iter().map(last).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meridian_directory::{Token, TokenScope};
    use meridian_storage::MemoryEngine;
    use meridian_types::{Permissions, ShardId};

    use super::*;

    const T: u64 = 1_000_000_000;

    fn cluster(tokens: impl Iterator<Item = u64>) -> Cluster {
        let founded = meridian_config::DevLayout::new(&[3])
            .found(|node| format!("127.0.0.1:{node}"), |_| None)
            .unwrap();
        let token = || Token::new(String::new(), String::new(), TokenScope::All, Permissions::ALL);
        Cluster { tokens: tokens.map(|id| (id, token())).collect(), ..founded }
    }

    fn of(token_id: u64, time_ms: u64, gateway: u64) -> TokenUse {
        TokenUse { token_id, time_ms, gateway }
    }

    fn written(transaction: &Transaction) -> String {
        let [Mutation { kind: MutationKind::Set(value), .. }] = &transaction.mutations[..] else {
            panic!("one value is set")
        };
        String::from_utf8(value.data.to_vec()).unwrap()
    }

    #[test]
    fn flood_of_uses_is_written_once_in_five_minutes_and_no_use_not_at_all() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let (mut uses, cluster) = (TokenUses::default(), cluster(1..=2));
        let at = Duration::from_secs;
        assert!(uses.due(at(1), &cluster, &state).is_none());
        uses.hear(&[of(1, T, 7), of(1, T + 5, 8), of(1, T - 2 * COUNTED_MS, 9)], &cluster, T + 9);
        let first = uses.due(at(2), &cluster, &state).unwrap();
        assert_eq!(written(&first), format!(r#"{{"1":{{"at_ms":{},"gateways":2}}}}"#, T + 5));
        for second in 3..302 {
            uses.hear(&[of(1, T + second, 7), of(2, T + second, 7)], &cluster, T + 500);
            assert!(uses.due(at(second), &cluster, &state).is_none(), "{second} s");
        }
        assert!(uses.due(at(302), &cluster, &state).is_some());
        uses.hear(&[of(1, T, 7)], &cluster, T + 500);
        assert!(uses.due(at(9999), &cluster, &state).is_none(), "it is no news");
    }

    #[test]
    fn uses_of_unknown_tokens_and_of_times_to_come_are_not_believed_and_all_is_bounded() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let (mut uses, cluster) = (TokenUses::default(), cluster(1..=6000));
        uses.hear(&[of(0, T, 7), of(1, u64::MAX, 7)], &cluster, T);
        let text = written(&uses.due(Duration::ZERO, &cluster, &state).unwrap());
        assert_eq!(text, format!(r#"{{"1":{{"at_ms":{T},"gateways":1}}}}"#));
        for id in 1..=6000 {
            uses.hear(&[of(id, T, 7)], &cluster, T);
            uses.hear(&[of(1, T, id)], &cluster, T);
        }
        assert_eq!((uses.heard.len(), uses.heard[&1].len()), (MAX_TOKENS, MAX_GATEWAYS));
    }
}
