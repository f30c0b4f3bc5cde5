//! The queues of a group of one: from the log to listeners, and back.

mod names;
mod operator;

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_config::DEV_DEFAULT_DATABASE;
use meridian_consensus::Peers;
use meridian_directory::Change;
use meridian_failover::Lease;
use meridian_gateway::new_request_id;
use meridian_queue::{Incarnation, Report};
use meridian_storage::{Engine, GroupId, MemoryEngine};
use meridian_types::{Enqueue, Epoch, ReadRange, ShardId, Transaction, WriteOutcome};

use super::*;
use crate::read::messages::HeldForMessages;
use crate::shard::voter::Voter;
use crate::testing::{OnlyVoter, until};
use crate::write::proposer::WriteRequest;

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const DATABASE: DatabaseId = DEV_DEFAULT_DATABASE;

type Parts = BoxStream<'static, Result<Part, NotListening>>;

struct Alone {
    only: OnlyVoter,
    voter: Arc<Voter>,
}

impl Alone {
    /// It leads, and holds a lease of the directory's.
    async fn start() -> Self {
        let alone = Self::start_following().await;
        alone.lead().await;
        alone
    }

    async fn lead(&self) {
        let peers: Arc<dyn Peers> = self.only.peers.clone();
        self.voter.group.take_part(&BTreeSet::from([NodeId(1)]), &peers, true).await.unwrap();
        drop(self.listening(Listener { credits: 0, ..listener(200) }).await);
    }

    async fn start_following() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let only = OnlyVoter::start(&engine, GROUP).await;
        let lease =
            Lease { ttl: Duration::from_secs(3600), shards: vec![(GROUP.shard, GROUP.epoch)] };
        only.directory.renewed(only.directory.now(), &lease);
        let voter = Arc::clone(&only.voter);
        Self { only, voter }
    }

    /// A session that has begun.
    async fn listening(&self, listener: Listener) -> Parts {
        let mut session = None;
        until("the queues are led here", async || {
            session = self.voter.queues().listen(listener.clone()).await.ok();
            session.is_some()
        })
        .await;
        session.unwrap().into_parts().boxed()
    }

    async fn enqueue(&self, enqueue: Enqueue) {
        let enqueues = vec![enqueue];
        self.commit(Transaction { enqueues, ..Transaction::default() }).await;
    }

    async fn commit(&self, transaction: Transaction) {
        let mut committed = false;
        until("it is committed", async || {
            let (database, request_id) = (DATABASE, new_request_id());
            let transaction = transaction.clone();
            let request = WriteRequest { database, request_id, transaction, retry: false };
            let reply = self.voter.write_when_led(request, None, Duration::MAX).await;
            committed |= matches!(reply.outcome(), Some(WriteOutcome::Committed(_)));
            committed
        })
        .await;
    }

    async fn report(&self, number: u8, key: MessageKey, report: Report) -> Vec<Answer> {
        let reports = vec![(key, report)];
        self.voter
            .queues()
            .report(DATABASE.into(), ListenerId([number; 16]), reports)
            .await
            .unwrap()
    }

    fn first_row(&self) -> MessageKey {
        let rows =
            self.voter.state.messages_due(&DATABASE.into(), None, u64::MAX, 1, usize::MAX).unwrap();
        MessageKey { due_ms: rows[0].due_ms, id: rows[0].id }
    }

    /// A session of this term, and in place of a dispatcher the test.
    fn session(&self) -> (Outbox, Session) {
        let Listener { queue, listener, credits, lease, held, incarnation, resumed } =
            listener(100);
        let session = SessionId(u64::MAX);
        let opening =
            Opening { queue, listener, session, incarnation, credits, lease, held, resumed };
        let (outbox, inbox) = handouts();
        let queues = self.voter.queues();
        let shown = Arc::clone(&queues.shown);
        let mut session = Session::new(shown, &opening, inbox, &queues.notices);
        session.term = self.voter.group.leadership().unwrap().term;
        (outbox, session)
    }

    fn rows(&self) -> usize {
        self.voter
            .state
            .messages_due(&DATABASE.into(), None, u64::MAX, 100, usize::MAX)
            .unwrap()
            .len()
    }
}

fn listener(number: u8) -> Listener {
    Listener {
        queue: DATABASE.into(),
        listener: ListenerId([number; 16]),
        credits: 10,
        lease: None,
        held: Vec::new(),
        incarnation: Incarnation(number.into()),
        resumed: false,
    }
}

fn message(payload: &'static str) -> Enqueue {
    Enqueue { payload: payload.into(), ..Enqueue::default() }
}

/// The next messages.
async fn handed(parts: &mut Parts) -> Vec<Handed> {
    loop {
        match parts.next().await.expect("the session goes on") {
            Ok(Part::Messages(messages)) => return messages.into_inner(),
            Ok(Part::Alive | Part::Released(_)) => {}
            Err(over) => panic!("{over:?}"),
        }
    }
}

const LONG: Duration = Duration::from_secs(20);

/// Why a session is over that hands out nothing more.
async fn end(mut parts: Parts) -> NotListening {
    let ending = async {
        loop {
            match parts.next().await.expect("the session says why it ends") {
                Ok(Part::Alive) => {}
                Ok(part) => panic!("{part:?}"),
                Err(over) => return over,
            }
        }
    };
    tokio::time::timeout(LONG, ending).await.expect("the session ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_is_handed_out_and_gone_when_it_is_acknowledged() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    alone.enqueue(message("a")).await;
    let messages = handed(&mut parts).await;
    let [Handed { key, message, lease: None }] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!((&message.payload[..], message.attempts), (&b"a"[..], 0));
    assert_eq!(alone.report(1, *key, Report::Done).await, [Answer::Done]);
    assert_eq!(alone.rows(), 0);
    assert_eq!(alone.report(1, *key, Report::Done).await, [Answer::Done], "as before");
    let released = tokio::time::timeout(LONG, async {
        // Once for each acknowledgement, all together or apart.
        let is_told = |part: Part| matches!(part, Part::Released(keys) if keys.contains(key));
        while !is_told(parts.next().await.unwrap().unwrap()) {}
    });
    released.await.expect("its gateway hears that it is not held any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_fails_comes_again_by_its_schedule_and_dies_into_its_keys() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    let keys_if_undelivered = vec![Bytes::from_static(b"dead")];
    let backoff_ms = Some(vec![1]);
    alone.enqueue(Enqueue { keys_if_undelivered, backoff_ms, ..message("a") }).await;
    for attempts in [0, 1] {
        let messages = handed(&mut parts).await;
        assert_eq!(messages[0].message.attempts, attempts);
        let failed = Report::Failed { retry_after: None };
        assert_eq!(alone.report(1, messages[0].key, failed).await, [Answer::Done]);
    }
    let range = |start: &'static str, end: &'static str| ReadRange {
        start: start.into(),
        end: end.into(),
        limit: 10,
        reverse: false,
    };
    let view = alone.voter.read_strong(DATABASE, &[range("dead", "deae")]).await.unwrap();
    assert_eq!(view.ranges[0][0].value.data, "a");
    assert_eq!(alone.rows(), 0);
}

/// Each comes to 64 KiB, all together to more than one transaction may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_large_messages_may_fail_at_once() {
    const MESSAGES: usize = 80;
    let alone = Alone::start().await;
    let mut parts = alone.listening(Listener { credits: 100, ..listener(1) }).await;
    let large = || Enqueue { payload: vec![7; 64 << 10].into(), ..Enqueue::default() };
    for _ in 0..MESSAGES {
        alone.enqueue(large()).await;
    }
    let mut keys = Vec::new();
    while keys.len() < MESSAGES {
        let messages = handed(&mut parts).await;
        assert!(messages.len() <= 2, "a part is bounded in bytes");
        keys.extend(messages.into_iter().map(|handed| handed.key));
    }
    let retry_after = Some(Duration::ZERO);
    let failed = keys.iter().map(|key| (*key, Report::Failed { retry_after })).collect();
    let answers = alone.voter.queues().report(DATABASE.into(), ListenerId([1; 16]), failed).await;
    assert_eq!(answers, Ok(vec![Answer::Done; MESSAGES]));
    let mut again = 0;
    while again < MESSAGES {
        let messages = handed(&mut parts).await;
        assert!(messages.iter().all(|handed| handed.message.attempts == 1));
        again += messages.len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_handed_out_when_there_is_memory_for_them_and_count_until_they_have_left() {
    let alone = Alone::start().await;
    let reads = alone.voter.reads().clone();
    let mut parts = alone.listening(listener(1)).await;
    let all = all_for_messages(&reads).await;
    alone.enqueue(message("a")).await;
    for _ in 0..2 {
        assert_eq!(parts.next().await, Some(Ok(Part::Alive)));
    }
    drop(all);
    let messages = handed(&mut parts).await;
    assert!((1..4096).contains(&reads.messages().used_bytes()));
    drop(messages);
    assert_eq!(reads.messages().used_bytes(), 0);
}

/// Without room for another part of a database that has none yet.
async fn all_for_messages(reads: &Reads) -> [HeldForMessages; 2] {
    let half = |number| reads.messages().take(DatabaseId([number; 16]), 2 << 20);
    [half(1).await, half(2).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_another_database_that_are_not_taken_hold_up_none() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    let other = alone.voter.reads().messages().take(DatabaseId([1; 16]), 2 << 20).await;
    alone.enqueue(message("a")).await;
    assert_eq!(handed(&mut parts).await.len(), 1);
    drop(other);
}

/// Another dispatcher gives the same messages to others: its leases are not those of this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_without_its_dispatcher_hands_out_nothing_that_it_was_told() {
    let alone = Alone::start().await;
    alone.enqueue(message("a")).await;
    let (outbox, session) = alone.session();
    assert!(outbox.tell(Handout::Deliver { key: alone.first_row(), until: None }));
    drop(outbox);
    assert_eq!(end(session.into_parts().boxed()).await, NotListening::NotLeader(None));
    let (outbox, session) = alone.session();
    assert!(outbox.tell(Handout::Deliver { key: alone.first_row(), until: None }));
    assert!(outbox.tell(Handout::End(Refused::Replaced)));
    drop(outbox);
    let reason = NotListening::from(Refused::Replaced);
    assert_eq!(end(session.into_parts().boxed()).await, reason, "its last word is heard");
}

/// Its gateway is to say at the next leader what its listeners hold, while that waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_that_waits_for_memory_ends_with_its_dispatcher() {
    let alone = Alone::start().await;
    let all = all_for_messages(alone.voter.reads()).await;
    alone.enqueue(message("a")).await;
    let (outbox, session) = alone.session();
    assert!(outbox.tell(Handout::Deliver { key: alone.first_row(), until: None }));
    let mut parts = session.into_parts().boxed();
    // It has taken what it was told.
    assert_eq!(parts.next().await, Some(Ok(Part::Alive)));
    drop(outbox);
    assert_eq!(end(parts).await, NotListening::NotLeader(None));
    drop(all);
}

/// The directory that is known here may be older than the database; and callers may make them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_begun_for_a_database_that_is_not_known_here_until_it_is() {
    let alone = Alone::start().await;
    let id = DatabaseId([9; 16]);
    let reports = vec![(MessageKey { due_ms: 1, ..MessageKey::FIRST }, Report::Done)];
    let report = || alone.voter.queues().report(id.into(), ListenerId([1; 16]), reports.clone());
    let unknown = NotListening::Unavailable("the database is not known here");
    assert_eq!(report().await, Err(unknown.clone()));
    let listener = Listener { queue: id.into(), ..listener(1) };
    assert_eq!(alone.voter.queues().listen(listener).await.err(), Some(unknown));
    let directory = &alone.only.directory;
    let mut database = directory.known().cluster.databases[&DATABASE].clone();
    database.name = "another".to_owned();
    let created = Change::CreateDatabase { id, database, own_shard: false };
    directory.learn(directory.known().cluster.after(&created).unwrap()).unwrap();
    assert_eq!(report().await, Ok(vec![Answer::Done]));
}

/// The node leads its group still; the message is read, and does not leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_out_under_an_epoch_that_is_sealed() {
    let alone = Alone::start().await;
    alone.enqueue(message("a")).await;
    alone.only.directory.seal(GROUP.shard, GROUP.epoch);
    let parts = alone.listening(listener(1)).await;
    assert_eq!(end(parts).await, NotListening::NotLeader(None));
    assert!(alone.voter.group.leadership().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_that_ends_gives_its_messages_to_another_after_the_grace() {
    let alone = Alone::start().await;
    let mut first = alone.listening(listener(1)).await;
    alone.enqueue(message("a")).await;
    let key = handed(&mut first).await[0].key;
    let mut second = alone.listening(listener(2)).await;
    drop(first);
    let again = tokio::time::timeout(LONG, handed(&mut second)).await.unwrap();
    assert_eq!((again[0].key.id, again[0].message.attempts), (key.id, 1));
    assert_eq!(alone.report(1, key, Report::Failed { retry_after: None }).await, [Answer::Late]);
    assert_eq!(alone.report(1, key, Report::Done).await, [Answer::Done], "late, and a success");
    assert_eq!(alone.rows(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_did_not_reach_its_gateway_goes_out_again_and_costs_no_attempt() {
    let alone = Alone::start().await;
    let mut first = alone.listening(listener(1)).await;
    alone.enqueue(message("a")).await;
    handed(&mut first).await;
    let mut resumed = alone.listening(Listener { resumed: true, ..listener(1) }).await;
    let again = tokio::time::timeout(LONG, handed(&mut resumed)).await.unwrap();
    assert_eq!(again[0].message.attempts, 0);
    assert_eq!(end(first).await, NotListening::from(Refused::Replaced));
}

#[tokio::test]
async fn node_that_does_not_lead_says_so() {
    let alone = Alone::start_following().await;
    let not_leader = NotListening::NotLeader(None);
    let session = alone.voter.queues().listen(listener(1)).await;
    assert_eq!(session.err(), Some(not_leader.clone()));
    let report =
        alone.voter.queues().report(DATABASE.into(), ListenerId([1; 16]), Vec::new()).await;
    assert_eq!(report, Err(not_leader));
}
