//! Ids of requests: made here, since the crates below take time and chance as arguments.

use meridian_types::{DatabaseId, RequestId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A new id, a UUIDv7, unique across gateways and leaders.
pub fn new_request_id() -> RequestId {
    RequestId(Uuid::now_v7().into_bytes())
}

/// The id of a write whose client named it: the same for the same bytes to the same database, and
/// for no others, so that an id that was used twice hides no write.
pub(crate) fn request_id_of(database: DatabaseId, body: &[u8]) -> RequestId {
    let hash = Sha256::new().chain_update(database.0).chain_update(body).finalize();
    let mut id = [0; 16];
    id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    RequestId(id)
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

    #[test]
    fn id_of_a_named_write_depends_on_its_database_and_on_all_of_its_bytes() {
        let (database, other) = (DatabaseId([1; 16]), DatabaseId([2; 16]));
        let id = request_id_of(database, b"a write");
        assert_eq!(id, request_id_of(database, b"a write"));
        for different in [request_id_of(other, b"a write"), request_id_of(database, b"a writf")] {
            assert_ne!(id, different);
        }
        // Gateways of different versions have to agree.
        let golden = "1f9eceff-a68e-a946-e15c-1a7914a2ef03";
        assert_eq!(Uuid::from_bytes(id.0).to_string(), golden);
    }
}
