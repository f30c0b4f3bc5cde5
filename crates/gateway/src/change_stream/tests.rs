//! Feeds whose database answers as a test has planned, and whose clients take what the test takes.

use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_queue::Answer;
use meridian_types::{Epoch, KeyPrefix, Permission, Position, Value, ValueEncoding, WriteOutcome};

use super::*;
use crate::database::{
    Listen, Listened, QueueList, QueuePage, Read, ReadOutput, Reports, Unavailable, Watch,
    Watching, Write, WriteFailure,
};
use crate::room::NoRoom;
use crate::stream_access::revocable::Revocable;
use crate::watched_value::WatchNews;

const DATABASE: DatabaseId = DatabaseId([1; 16]);
const OWN: Holder = Holder { token: 1, shard: None };
const OTHER: Holder = Holder { token: 2, shard: None };
const BETWEEN_BOOKMARKS: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(20);

/// There are changes to come, of which none can be had.
struct Outage {
    asked: Mutex<Vec<usize>>,
}

enum NoWatch {}

impl Watching for NoWatch {
    fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        match *self {}
    }

    fn take_back(&mut self, _: &WatchNews) {
        match *self {}
    }
}

fn outage() -> Unavailable {
    Unavailable { reason: "no leader".to_owned() }
}

impl Database for Outage {
    type Watching = NoWatch;

    async fn read(&self, _: Read) -> Result<ReadOutput, Unavailable> {
        Err(outage())
    }

    async fn watch(self: &Arc<Self>, _: Watch) -> Result<NoWatch, Unavailable> {
        Err(outage())
    }

    async fn changes(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        self.asked.lock().unwrap().push(wanted.max_bytes);
        Err(outage().into())
    }

    async fn write(&self, _: Write) -> Result<WriteOutcome, WriteFailure> {
        Err(outage().into())
    }

    fn listen(self: &Arc<Self>, _: Listen) -> Listened {
        unreachable!("no queue is listened to")
    }

    async fn report(&self, _: Reports) -> Result<Vec<Answer>, Unavailable> {
        Err(outage())
    }

    async fn list_queue(&self, _: QueueList) -> Result<QueuePage, Unavailable> {
        Err(outage())
    }
}

fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::behind(Position::new(Epoch(1), sequence))
}

/// Of one transaction at a sequence; more may be there.
fn changed(sequence: u64, next_bytes: usize) -> Changed {
    let changes = vec![Change::Deleted { key: "key".into() }];
    let versionstamp = Versionstamp::new(Position::new(Epoch(1), sequence), 0);
    let transactions = vec![ChangedTransaction { versionstamp, changes }];
    Changed { transactions, reached: stamp(sequence), next_bytes }
}

struct Stage {
    catalogue: Arc<Revocable>,
    answers: Shares,
    asked: Shares,
    body: ChangeBody<Revocable>,
    database: Arc<Outage>,
}

impl Stage {
    /// A feed behind sequence 1, which begins with `first`, once `others` hold so much of the
    /// answers.
    fn start(first: Changed, others: u64) -> (Self, Option<Share>) {
        Self::within(first, others, &[])
    }

    /// For a token with these prefixes.
    fn within(first: Changed, others: u64, prefixes: &[&'static [u8]]) -> (Self, Option<Share>) {
        let catalogue = Revocable::new(DATABASE);
        let prefixes = prefixes.iter().map(|key| KeyPrefix::new(*key).unwrap());
        let grant = catalogue.grant().within(prefixes);
        let (answers, asked) = (Shares::new(1000), Shares::new(4 << 20));
        let held = answers.take(OTHER, others);
        let database = Arc::new(Outage { asked: Mutex::default() });
        let open = Shares::new(9).take(OWN, 1).unwrap();
        let feed = ChangeFeed {
            database: Arc::clone(&database),
            id: DATABASE,
            prefix: Bytes::new(),
            form: Form::Lines,
            after: Some(stamp(1)),
            through: None,
            rooms: Rooms { answers: answers.clone(), asked: asked.clone(), holder: OWN },
            grant,
            _open: (open, Open::new(&Gauge::noop())),
        };
        let access = access(&catalogue);
        let body = feed.at_pace(first, access, BETWEEN_BOOKMARKS);
        (Self { catalogue, answers, asked, body, database }, held)
    }

    async fn next(&mut self) -> Option<String> {
        next(&mut self.body).await
    }
}

fn access(catalogue: &Arc<Revocable>) -> StreamAccess<Revocable> {
    let (grant, needs) = (catalogue.grant(), Permission::Read);
    let (catalogue, token) = (Arc::clone(catalogue), "token".into());
    StreamAccess { catalogue, token, database: DATABASE, needs, grant }
}

async fn next(body: &mut ChangeBody<Revocable>) -> Option<String> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
    let frame = tokio::time::timeout(LONG, frame).await.expect("a frame")?;
    let bytes = frame.unwrap().into_data().unwrap();
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn piece_that_waited_for_its_client_is_not_sent_once_the_token_is_revoked() {
    let catalogue = Revocable::new(DATABASE);
    let (out, pieces) = mpsc::channel(2);
    let (access, form) = (access(&catalogue), Form::Lines);
    let mut body = ChangeBody { pieces, access, form, is_over: false };
    out.send("open\n".into()).await.unwrap();
    out.send("a secret\n".into()).await.unwrap();
    assert_eq!(next(&mut body).await.as_deref(), Some("open\n"));
    catalogue.is_revoked.store(true, Ordering::SeqCst);
    let end = next(&mut body).await.unwrap();
    assert!(end.contains("\"end\":\"no_access\""), "{end}");
    assert_eq!(next(&mut body).await, None);
    assert!(out.is_closed(), "the feed goes on without a client");
}

#[tokio::test]
async fn feed_that_waits_for_room_says_that_it_is_alive_and_ends_with_its_token() {
    let (mut stage, held) = Stage::start(changed(2, 0), 750);
    let bookmark = Form::Lines.bookmark(stamp(1));
    for _ in 0..3 {
        assert_eq!(stage.next().await, Some(bookmark.clone()), "nothing else is told yet");
    }
    drop(held);
    let told = loop {
        let line = stage.next().await.unwrap();
        if line != bookmark {
            break line;
        }
    };
    assert!(told.contains("\"versionstamp\":\"00010000000000020000\""), "{told}");
    assert_eq!(stage.next().await, Some(Form::Lines.bookmark(stamp(2))));

    let (mut stage, held) = Stage::start(changed(2, 0), 750);
    assert_eq!(stage.next().await, Some(bookmark));
    stage.catalogue.is_revoked.store(true, Ordering::SeqCst);
    assert!(stage.next().await.unwrap().contains("no_access"));
    assert_eq!(stage.next().await, None);
    drop(held);
}

#[tokio::test]
async fn quiet_feed_tells_bookmarks_and_ends_with_its_token_or_database_at_one() {
    for is_deleted in [false, true] {
        let (mut stage, _) = Stage::start(changed(2, 0), 0);
        assert!(stage.next().await.unwrap().contains("versionstamp"));
        for _ in 0..3 {
            assert_eq!(stage.next().await, Some(Form::Lines.bookmark(stamp(2))));
        }
        let gone = match is_deleted {
            true => &stage.catalogue.is_deleted,
            false => &stage.catalogue.is_revoked,
        };
        gone.store(true, Ordering::SeqCst);
        assert!(stage.next().await.unwrap().contains("no_access"));
        assert_eq!(stage.next().await, None);
    }
}

#[tokio::test]
async fn room_for_changes_that_cannot_be_had_now_is_given_back() {
    let (mut stage, _) = Stage::start(changed(2, 600 << 10), 0);
    let free = async {
        loop {
            tokio::select! {
                line = stage.next() => assert!(line.is_some()),
                () = sleep(Duration::from_millis(2)) => {}
            }
            let asked = stage.database.asked.lock().unwrap().last() == Some(&(600 << 10));
            // A question has room of almost half.
            if asked && stage.asked.take(OTHER, 3 << 20).is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, free).await.expect("the room is given back");
    assert!(stage.answers.take(OTHER, 750).is_some(), "nothing is kept of what was taken");
}

/// Their bytes begin as those of the prefix do.
#[tokio::test]
async fn feed_of_a_prefix_leaves_out_keys_whose_text_only_begins_as_that_of_the_prefix() {
    let set = |key: &'static [u8]| Change::Set {
        key: key.into(),
        value: Value { encoding: ValueEncoding::Bytes, data: "secret".into() },
        expire_at_ms: 0,
    };
    let beside = [b"\x02a\x00\xff\x00", &b"\x02a\x00\xffb\x00"[..]];
    let mut mixed = changed(2, 0);
    mixed.transactions[0].changes = vec![
        set(b"\x02a\x00\x27"),
        set(beside[0]),
        Change::Deleted { key: beside[1].into() },
        Change::Expired { key: beside[0].into() },
        Change::DatabaseDropped,
    ];
    let (mut stage, _) = Stage::within(mixed, 0, &[b"\x02a\x00"]);
    let told = stage.next().await.unwrap();
    assert_eq!(told.matches("\"key\"").count(), 1, "{told}");
    // Nothing is told of a transaction that is beside the prefix altogether.
    let mut other = changed(2, 0);
    other.transactions[0].changes = vec![set(beside[0])];
    let (mut stage, _) = Stage::within(other, 0, &[b"\x02a\x00"]);
    assert_eq!(stage.next().await, Some(Form::Lines.bookmark(stamp(2))));
}
