//! The paths of the gateway, all of them.

use meridian_types::{Consistency, DatabaseId};

/// The endpoint of strong reads and of writes. Listed in clients' metadata: it never changes.
pub const STRONG_PATH: &str = "/kv/strong";
/// The endpoint of eventual reads. Writes are served here too: clients that were given this path as
/// their strong endpoint use it for everything. Listed in clients' metadata: it never changes.
pub const EVENTUAL_PATH: &str = "/kv/eventual";

/// The operation that a `POST` to a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Metadata(Target<'a>),
    SnapshotRead(Consistency),
    AtomicWrite,
}

/// The database that a metadata exchange opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Default,
    Id(DatabaseId),
    Name(&'a str),
}

impl<'a> Route<'a> {
    /// `None`: nothing is served at `path`.
    pub(crate) fn of(path: &'a str) -> Option<Self> {
        if let Some(operation) = path.strip_prefix(STRONG_PATH) {
            return Self::data(operation, Consistency::Strong);
        }
        if let Some(operation) = path.strip_prefix(EVENTUAL_PATH) {
            return Self::data(operation, Consistency::Eventual);
        }
        if path == "/" {
            return Some(Self::Metadata(Target::Default));
        }
        if let Some(name) = path.strip_prefix("/db/") {
            return (!name.is_empty() && !name.contains('/'))
                .then_some(Self::Metadata(Target::Name(name)));
        }
        let id = path.strip_prefix("/databases/")?.strip_suffix("/connect")?;
        Some(Self::Metadata(Target::Id(id.parse().ok()?)))
    }

    fn data(operation: &str, consistency: Consistency) -> Option<Self> {
        match operation {
            "/snapshot_read" => Some(Self::SnapshotRead(consistency)),
            "/atomic_write" => Some(Self::AtomicWrite),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path() {
        let id = "00112233-4455-6677-8899-aabbccddeeff";
        let connect = format!("/databases/{id}/connect");
        for (path, route) in [
            ("/", Some(Route::Metadata(Target::Default))),
            ("/db/main", Some(Route::Metadata(Target::Name("main")))),
            (connect.as_str(), Some(Route::Metadata(Target::Id(id.parse().unwrap())))),
            ("/kv/strong/snapshot_read", Some(Route::SnapshotRead(Consistency::Strong))),
            ("/kv/eventual/snapshot_read", Some(Route::SnapshotRead(Consistency::Eventual))),
            ("/kv/strong/atomic_write", Some(Route::AtomicWrite)),
            ("/kv/eventual/atomic_write", Some(Route::AtomicWrite)),
            ("", None),
            ("*", None),
            ("//", None),
            ("/db/", None),
            ("/db/a/b", None),
            ("/databases/x/connect", None),
            ("/databases//connect", None),
            ("/kv/strong", None),
            ("/kv/strong/", None),
            ("/kv/strong/watch", None),
            ("/kv/strong/snapshot_read/", None),
            ("/kv/strongest/snapshot_read", None),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn endpoints_do_not_end_in_a_slash() {
        assert!(!STRONG_PATH.ends_with('/') && !EVENTUAL_PATH.ends_with('/'));
    }
}
