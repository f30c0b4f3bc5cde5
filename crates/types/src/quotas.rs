//! Quotas: bounds on what a database or an access token may use.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Something that is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quota {
    /// Operations begun in a second.
    RequestsPerSecond,
    /// Bytes of requests and answers in a second.
    BytesPerSecond,
    /// Open connections.
    Connections,
    /// Open watches and change feeds.
    Watches,
    /// Listeners and waiting polls of queues.
    Listeners,
    /// Bytes of keys and values. Of databases alone.
    StoredBytes,
    /// Keys that have a value. Of databases alone.
    Keys,
}

/// No quota has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no quota of this name: known are requests-per-second, bytes-per-second, connections, watches, listeners, stored-bytes and keys"
)]
pub struct UnknownQuota;

impl Quota {
    pub const EVERY: [Self; 7] = [
        Self::RequestsPerSecond,
        Self::BytesPerSecond,
        Self::Connections,
        Self::Watches,
        Self::Listeners,
        Self::StoredBytes,
        Self::Keys,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests-per-second",
            Self::BytesPerSecond => "bytes-per-second",
            Self::Connections => "connections",
            Self::Watches => "watches",
            Self::Listeners => "listeners",
            Self::StoredBytes => "stored-bytes",
            Self::Keys => "keys",
        }
    }

    /// The sentence that ends each refusal for a quota: the operators that can change it, and how.
    /// `command` lists the owners of such quotas: `databases` or `tokens`.
    pub fn remedy(command: &str) -> String {
        format!("An operator of the cluster can change the quota: meridian {command} set-quotas.")
    }

    /// Whether it bounds what is stored, and not what a gateway is asked for.
    pub const fn is_stored(self) -> bool {
        matches!(self, Self::StoredBytes | Self::Keys)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quota {
    type Err = UnknownQuota;

    fn from_str(name: &str) -> Result<Self, UnknownQuota> {
        Self::EVERY.into_iter().find(|known| known.name() == name).ok_or(UnknownQuota)
    }
}

/// The quotas of one database or token. What has none is not bounded. Written as an object of names
/// and numbers; names of later versions are ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<&'static str, u64>")]
pub struct Quotas([Option<NonZeroU64>; Quota::EVERY.len()]);

impl Quotas {
    /// `None`: there is no such bound.
    pub fn get(&self, quota: Quota) -> Option<NonZeroU64> {
        self.0.get(quota as usize).copied().flatten()
    }

    pub fn set(&mut self, quota: Quota, value: Option<NonZeroU64>) {
        self.0.get_mut(quota as usize).into_iter().for_each(|known| *known = value);
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Those that are set.
    pub fn iter(&self) -> impl Iterator<Item = (Quota, NonZeroU64)> {
        Quota::EVERY.into_iter().filter_map(|quota| Some((quota, self.get(quota)?)))
    }
}

impl FromIterator<(Quota, NonZeroU64)> for Quotas {
    fn from_iter<I: IntoIterator<Item = (Quota, NonZeroU64)>>(quotas: I) -> Self {
        let mut all = Self::default();
        quotas.into_iter().for_each(|(quota, value)| all.set(quota, Some(value)));
        all
    }
}

impl From<BTreeMap<String, u64>> for Quotas {
    fn from(named: BTreeMap<String, u64>) -> Self {
        let known =
            |(name, value): (String, u64)| Some((name.parse().ok()?, value.try_into().ok()?));
        named.into_iter().filter_map(known).collect()
    }
}

impl From<Quotas> for BTreeMap<&'static str, u64> {
    fn from(quotas: Quotas) -> Self {
        quotas.iter().map(|(quota, value)| (quota.name(), value.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quota_has_a_name_that_leads_back_to_it() {
        for quota in Quota::EVERY {
            assert_eq!(quota.name().parse(), Ok(quota));
            assert!(UnknownQuota.to_string().contains(quota.name()));
        }
        assert_eq!("moons".parse::<Quota>(), Err(UnknownQuota));
    }
}
