//! The paths of the gateway, all of them.

use meridian_types::{Consistency, DatabaseId};

use crate::answer::{self, Answer, ToStranger};

/// The endpoint of strong reads and of writes. Listed in clients' metadata: it never changes.
pub const STRONG_PATH: &str = "/kv/strong";
/// The endpoint of eventual reads. Writes are served here too: clients that were given this path as
/// their strong endpoint use it for everything. Listed in clients' metadata: it never changes.
pub const EVENTUAL_PATH: &str = "/kv/eventual";
/// Queues, which are beside the protocol and so beside its endpoints.
const QUEUE_PATH: &str = "/kv/queue";

/// The feed of a database's changes, which is beside the protocol and so beside its endpoints.
/// Programs name it: it never changes.
const CHANGES_PATH: &str = "/kv/changes";

/// The path of the files that a gateway serves beside KV Connect, with `GET` and without a token.
/// Programs name these paths: they never change.
const FILES_PATH: &str = "/.meridian/v1/";

/// A file that is the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StaticFile {
    /// Says that this is Meridian.
    Server,
    /// The module that completes Deno's native client.
    DenoModule,
}

impl StaticFile {
    /// `None`: there is no such file.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix(FILES_PATH)? {
            "server" => Some(Self::Server),
            "deno.js" => Some(Self::DenoModule),
            _ => None,
        }
    }

    /// The file, which shows no valid token of the client that asks.
    pub(crate) fn answer(self) -> Answer {
        let mut answer = match self {
            Self::Server => answer::json(br#"{"server":"meridian"}"#.to_vec()),
            Self::DenoModule => answer::javascript(DENO_MODULE.as_bytes()),
        };
        answer.extensions_mut().insert(ToStranger::File);
        answer
    }
}

const DENO_MODULE: &str = include_str!("../../../deploy/deno/meridian.js");

/// The operation that a request asks for, by `POST` where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Metadata(Target<'a>),
    SnapshotRead(Consistency),
    Watch(Consistency),
    AtomicWrite,
    Queue(QueueRoute),
    /// By `GET`.
    Changes,
    /// By `GET`.
    File(StaticFile),
}

/// The operation on a queue that a `POST` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueRoute {
    Listen,
    Poll,
    Report,
    Enqueue,
    List,
    Change,
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
        if let Some(operation) = path.strip_prefix(QUEUE_PATH) {
            return QueueRoute::of(operation).map(Self::Queue);
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

    /// As [`Route::of`], of a `GET`.
    pub(crate) fn of_get(path: &'a str) -> Option<Self> {
        if path == CHANGES_PATH {
            return Some(Self::Changes);
        }
        StaticFile::of(path).map(Self::File)
    }

    fn data(operation: &str, consistency: Consistency) -> Option<Self> {
        match operation {
            "/snapshot_read" => Some(Self::SnapshotRead(consistency)),
            "/watch" => Some(Self::Watch(consistency)),
            "/atomic_write" => Some(Self::AtomicWrite),
            _ => None,
        }
    }
}

impl QueueRoute {
    fn of(operation: &str) -> Option<Self> {
        match operation {
            "/listen" => Some(Self::Listen),
            "/poll" => Some(Self::Poll),
            "/report" => Some(Self::Report),
            "/enqueue" => Some(Self::Enqueue),
            "/list" => Some(Self::List),
            "/change" => Some(Self::Change),
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
            ("/kv/queue/listen", Some(Route::Queue(QueueRoute::Listen))),
            ("/kv/queue/poll", Some(Route::Queue(QueueRoute::Poll))),
            ("/kv/queue/report", Some(Route::Queue(QueueRoute::Report))),
            ("/kv/queue/enqueue", Some(Route::Queue(QueueRoute::Enqueue))),
            ("/kv/queue/list", Some(Route::Queue(QueueRoute::List))),
            ("/kv/queue/change", Some(Route::Queue(QueueRoute::Change))),
            ("/kv/queue", None),
            ("/kv/queue/", None),
            ("/kv/queue/listen/", None),
            ("", None),
            ("*", None),
            ("//", None),
            ("/db/", None),
            ("/db/a/b", None),
            ("/databases/x/connect", None),
            ("/databases//connect", None),
            ("/kv/strong", None),
            ("/kv/strong/", None),
            ("/kv/strong/watch", Some(Route::Watch(Consistency::Strong))),
            ("/kv/eventual/watch", Some(Route::Watch(Consistency::Eventual))),
            ("/kv/strong/watch_channel", None),
            ("/kv/strong/snapshot_read/", None),
            ("/kv/strongest/snapshot_read", None),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn every_path_of_a_get() {
        assert_eq!(Route::of_get("/kv/changes"), Some(Route::Changes));
        let server = Some(Route::File(StaticFile::Server));
        assert_eq!(Route::of_get("/.meridian/v1/server"), server);
        for path in ["", "/", "/kv/changes/", "/kv/strong/changes", "/kv/strong/watch"] {
            assert_eq!(Route::of_get(path), None, "{path}");
        }
        assert_eq!(Route::of("/kv/changes"), None, "by POST");
    }

    #[test]
    fn endpoints_do_not_end_in_a_slash() {
        assert!(!STRONG_PATH.ends_with('/') && !EVENTUAL_PATH.ends_with('/'));
    }
}
