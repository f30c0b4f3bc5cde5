//! Ids of requests: made here, since the crates below take time and chance as arguments.

use meridian_types::RequestId;
use uuid::Uuid;

/// A new id, a UUIDv7, unique across gateways and leaders.
pub fn new_request_id() -> RequestId {
    RequestId(Uuid::now_v7().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_requests_share_an_id() {
        let ids: BTreeSet<_> = (0..1000).map(|_| new_request_id()).collect();
        assert_eq!(ids.len(), 1000);
        let version = |id: &RequestId| Uuid::from_bytes(id.0).get_version_num();
        assert!(ids.iter().all(|id| version(id) == 7));
    }
}
