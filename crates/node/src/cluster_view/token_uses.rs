//! The times at which tokens of the directory were last shown to this process, until the directory's
//! leader has heard of them.
//!
//! A token that is used all the time is told once in [`GRAIN_MS`]; requests cost an atomic load.
//! Uses that are not told when the process dies are lost: they are for people.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use meridian_gateway::LastUsed;
use meridian_proto::directory::TokenUse;
use parking_lot::Mutex;

/// Between two uses of a token that are told.
pub(crate) const GRAIN_MS: u64 = 10 * 60 * 1000;
/// Uses in one report; further ones go with the next.
const MAX_REPORTED: usize = 200;
/// Uses at gateways without a node that wait here.
const MAX_FORWARDED: usize = 4096;
/// The latest tokens that ended, which are told from unknown ones.
const MAX_ENDED: usize = 1000;

pub(crate) struct TokenUses {
    /// Tells this process's uses from others'.
    gateway: u64,
    own: Mutex<HashMap<u64, Own>>,
    /// By token and gateway.
    forwarded: Mutex<BTreeMap<(u64, u64), u64>>,
}

#[derive(Default)]
struct Own {
    used: Arc<LastUsed>,
    told_ms: u64,
}

impl TokenUses {
    pub(crate) fn new(gateway: u64) -> Self {
        Self { gateway, own: Mutex::default(), forwarded: Mutex::default() }
    }

    /// The places where uses of these tokens are noted; all others are forgotten.
    pub(crate) fn of(&self, tokens: impl Iterator<Item = u64>) -> HashMap<u64, Arc<LastUsed>> {
        let mut own = self.own.lock();
        let kept = tokens.map(|token| (token, own.remove(&token).unwrap_or_default()));
        let kept: HashMap<_, _> = kept.collect();
        *own = kept;
        own.iter().map(|(token, of)| (*token, Arc::clone(&of.used))).collect()
    }

    /// Of a gateway without a node. Those that are too many are left out: it tells them again.
    pub(crate) fn forward(&self, uses: &[TokenUse]) {
        let mut forwarded = self.forwarded.lock();
        for TokenUse { token_id, time_ms, gateway } in uses.iter().take(MAX_REPORTED) {
            let key = (*token_id, *gateway);
            if forwarded.len() < MAX_FORWARDED || forwarded.contains_key(&key) {
                let known = forwarded.entry(key).or_default();
                *known = (*known).max(*time_ms);
            }
        }
    }

    /// The uses that are to be told.
    pub(crate) fn untold(&self) -> Vec<TokenUse> {
        let own = self.own.lock();
        let news = own.iter().filter_map(|(token, of)| {
            let time_ms = of.used.ms();
            let is_news = time_ms >= of.told_ms.saturating_add(GRAIN_MS);
            is_news.then_some(TokenUse { token_id: *token, time_ms, gateway: self.gateway })
        });
        let forwarded = self.forwarded.lock();
        let forwarded = forwarded.iter().map(|((token_id, gateway), time_ms)| TokenUse {
            token_id: *token_id,
            time_ms: *time_ms,
            gateway: *gateway,
        });
        news.chain(forwarded).take(MAX_REPORTED).collect()
    }

    /// The directory's leader, or the node that tells it, has heard of these.
    pub(crate) fn told(&self, uses: &[TokenUse]) {
        let (mut own, mut forwarded) = (self.own.lock(), self.forwarded.lock());
        for TokenUse { token_id, time_ms, gateway } in uses {
            if *gateway == self.gateway
                && let Some(of) = own.get_mut(token_id)
            {
                of.told_ms = of.told_ms.max(*time_ms);
            }
            let key = (*token_id, *gateway);
            if forwarded.get(&key).is_some_and(|latest| latest <= time_ms) {
                forwarded.remove(&key);
            }
        }
    }
}

/// Digests of secrets that opened something until the cluster changed.
#[derive(Default)]
pub(crate) struct EndedSecrets(Mutex<VecDeque<[u8; 32]>>);

impl EndedSecrets {
    pub(crate) fn add(&self, sha256: [u8; 32]) {
        let mut ended = self.0.lock();
        if ended.len() >= MAX_ENDED {
            ended.pop_front();
        }
        ended.push_back(sha256);
    }

    pub(crate) fn contains(&self, sha256: &[u8; 32]) -> bool {
        self.0.lock().contains(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 7;
    const T: u64 = 1_000_000_000;

    fn of(token_id: u64, time_ms: u64, gateway: u64) -> TokenUse {
        TokenUse { token_id, time_ms, gateway }
    }

    #[test]
    fn use_is_told_until_it_was_heard_and_then_not_for_ten_minutes() {
        let uses = TokenUses::new(HERE);
        let places = uses.of([1, 2].into_iter());
        assert_eq!(uses.untold(), []);
        places[&1].note(T);
        for _ in 0..3 {
            assert_eq!(uses.untold(), [of(1, T, HERE)]);
        }
        uses.told(&uses.untold());
        places[&1].note(T + GRAIN_MS - 1);
        assert_eq!(uses.untold(), [], "a flood of requests is one use");
        places[&1].note(T + 2 * GRAIN_MS);
        assert_eq!(uses.untold(), [of(1, T + 2 * GRAIN_MS, HERE)]);
        // Over a change of the cluster; the token is revoked by the next.
        uses.told(&uses.untold());
        assert_eq!(uses.of([1].into_iter())[&1].ms(), T + 2 * GRAIN_MS);
        assert_eq!(uses.untold(), []);
        assert_eq!(uses.of([2].into_iter())[&2].ms(), 0);
    }

    #[test]
    fn uses_of_other_gateways_are_passed_on_and_bounded() {
        let uses = TokenUses::new(HERE);
        uses.forward(&[of(1, T, 8), of(1, T, 9), of(1, T - 5, 8)]);
        assert_eq!(uses.untold(), [of(1, T, 8), of(1, T, 9)]);
        let told = uses.untold();
        uses.forward(&[of(1, T + 1, 9)]);
        uses.told(&told);
        assert_eq!(uses.untold(), [of(1, T + 1, 9)], "its news were not told yet");
        for page in 0..100 {
            let many: Vec<_> = (0..200).map(|at| of(page * 200 + at, T, 8)).collect();
            uses.forward(&many);
        }
        assert_eq!(uses.forwarded.lock().len(), MAX_FORWARDED);
        assert_eq!(uses.untold().len(), MAX_REPORTED);
    }

    #[test]
    fn number_of_ended_secrets_is_bounded() {
        let ended = EndedSecrets::default();
        for number in 0..2000u16 {
            let mut sha256 = [0; 32];
            sha256[..2].copy_from_slice(&number.to_be_bytes());
            ended.add(sha256);
        }
        assert_eq!(ended.0.lock().len(), MAX_ENDED);
        assert!(!ended.contains(&[0; 32]));
    }
}
