//! When a batch begins, how many are in flight, and which requests each answers.

use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::write::proposer::recent::Asks;
use crate::write::proposer::session::GATHERING;

/// Requests that wait for a session of the test's own, and their answers.
struct Waiting<'a> {
    leader: &'a Leader,
    backlog: Backlog,
}

impl<'a> Waiting<'a> {
    fn of(leader: &'a Leader) -> Self {
        Self { leader, backlog: Backlog::new(Instant::now()) }
    }

    fn add(&mut self, request_id: RequestId) -> (Instant, oneshot::Receiver<WriteReply>) {
        let (mut queued, answer) = self.leader.queued(set("k", "v"));
        queued.request.request_id = request_id;
        let since = queued.since;
        self.backlog.push(queued);
        (since, answer)
    }

    fn add_bytes(&mut self, database: DatabaseId, bytes: usize) -> oneshot::Receiver<WriteReply> {
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; bytes].into() };
        let (queued, answer) =
            self.leader.queued_for(database, mutation("k", MutationKind::Set(value)));
        self.backlog.push(queued);
        answer
    }
}

/// The term in which the leader goes on leading, with its task out of the way.
async fn left_to_the_test(leader: &Leader) -> (u64, LoggedTime) {
    let term = leader.leave_to_the_test().await;
    (term, LoggedTime::new(leader.state.time_ms(), leader.parts.time.now()))
}

async fn complete_one(session: &mut Session<'_>) {
    let applied = session.oldest().await;
    assert!(session.completed(applied).is_ok());
}

fn is_committed(answer: &WriteReply) -> bool {
    matches!(answer.outcome(), Some(WriteOutcome::Committed(_)))
}

#[tokio::test]
async fn a_batch_begins_at_once_or_with_as_many_requests_as_are_in_flight_or_after_a_moment() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(set("first", "v")).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    let (mut waiting, mut answers) = (Waiting::of(&leader), Vec::new());
    let mut add = |waiting: &mut Waiting<'_>| {
        let (since, answer) = waiting.add(new_request_id());
        answers.push(answer);
        since
    };
    assert_eq!(session.begins_at(&waiting.backlog), None);
    assert_eq!(session.gathering(), *GATHERING.start());
    let first = add(&mut waiting);
    assert_eq!(session.begins_at(&waiting.backlog), Some(first), "nothing is in flight");
    add(&mut waiting);
    engine.hold_syncs();
    session.propose(&mut waiting.backlog).await.unwrap();
    let first = add(&mut waiting);
    let begins_at = session.begins_at(&waiting.backlog).unwrap();
    assert!(begins_at > first && begins_at < first + TICK, "two are in flight, and one waits");
    add(&mut waiting);
    assert_eq!(session.begins_at(&waiting.backlog), Some(first));
    session.propose(&mut waiting.backlog).await.unwrap();
    // However long a disk stands still, a batch does not wait as long for others.
    tokio::time::sleep(Duration::from_millis(300)).await;
    engine.release_syncs();
    complete_one(&mut session).await;
    complete_one(&mut session).await;
    assert_eq!(session.gathering(), *GATHERING.end());
    assert!(
        session.is_idle()
            && answers.into_iter().all(|mut answer| is_committed(&answer.try_recv().unwrap()))
    );
}

#[tokio::test]
async fn four_batches_are_in_flight_at_most_and_none_begins_while_it_is_to_wait() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(set("first", "v")).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let slowed =
        Session::new(&leader.parts, &mut time, term, Instant::now() + Duration::from_secs(3600));
    assert!(slowed.is_slowed() && !slowed.has_room());
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    let (mut waiting, mut answers) = (Waiting::of(&leader), Vec::new());
    engine.hold_syncs();
    for _ in 0..4 {
        assert!(session.has_room());
        answers.push(waiting.add(new_request_id()).1);
        session.propose(&mut waiting.backlog).await.unwrap();
    }
    assert!(!session.has_room());
    engine.release_syncs();
    complete_one(&mut session).await;
    assert!(session.has_room());
    let answered = answers.iter_mut().filter_map(|answer| answer.try_recv().ok());
    assert_eq!(answered.filter(is_committed).count(), 1);
}

#[tokio::test]
async fn database_is_slowed_the_more_the_nearer_replication_lags_to_the_bound() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("first", "v")).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    let mut waiting = Waiting::of(&leader);
    for (lag_ms, slowed_ms) in [(500, 0), (600, 20), (750, 50), (1000, 100)] {
        leader.lag_ms.store(lag_ms, Ordering::Relaxed);
        let (asked, mut answer) = waiting.add(new_request_id());
        session.propose(&mut waiting.backlog).await.unwrap();
        let (least, most) = (asked, Instant::now());
        let slowed = Duration::from_millis(slowed_ms);
        complete_one(&mut session).await;
        assert!(is_committed(&answer.try_recv().unwrap()), "not more than may be lost");
        let (next, mut answer) = waiting.add(new_request_id());
        let until = session.begins_at(&waiting.backlog).unwrap();
        assert!(
            until <= (most + slowed).max(next) && (lag_ms == 500 || until >= least + slowed),
            "{lag_ms} ms: {:?}",
            until - least
        );
        // Nor does a batch of others have it before.
        if Instant::now() < until {
            session.propose(&mut waiting.backlog).await.unwrap();
            // It may have been due by then.
            if Instant::now() < until {
                assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
                assert!(session.is_idle());
            }
        }
        leader.lag_ms.store(0, Ordering::Relaxed);
        tokio::time::sleep_until(until.into()).await;
        session.propose(&mut waiting.backlog).await.unwrap();
        complete_one(&mut session).await;
        assert!(is_committed(&answer.try_recv().unwrap()));
    }
    leader.lag_ms.store(1001, Ordering::Relaxed);
    let (_, mut answer) = waiting.add(new_request_id());
    session.propose(&mut waiting.backlog).await.unwrap();
    assert!(matches!(answer.try_recv(), Ok(WriteReply::NotCommitted(_))) && session.is_idle());
}

/// Another database, in the same shard.
const NEIGHBOUR: DatabaseId = DatabaseId([9; 16]);

fn learn_of_a_neighbour(leader: &Leader) {
    let mut cluster = leader.directory.known().cluster.clone();
    let mut database = cluster.databases[&DATABASE].clone();
    database.name = "neighbour".to_owned();
    cluster.databases.insert(NEIGHBOUR, database);
    cluster.version += 1;
    leader.directory.learn(cluster).unwrap();
}

/// Bounds are 500 and 1000 ms.
#[tokio::test]
async fn lag_slows_and_refuses_the_database_that_writes_beyond_its_share_and_not_its_neighbour() {
    let leader = Leader::start(Arc::default()).await;
    learn_of_a_neighbour(&leader);
    leader.commit(set("first", "v")).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    let mut waiting = Waiting::of(&leader);
    let flood = |waiting: &mut Waiting<'_>| waiting.add_bytes(DATABASE, 50_000);
    let quiet = |waiting: &mut Waiting<'_>| waiting.add_bytes(NEIGHBOUR, 10);
    let answers = [flood(&mut waiting), flood(&mut waiting), quiet(&mut waiting)];
    session.propose(&mut waiting.backlog).await.unwrap();
    complete_one(&mut session).await;
    assert!(answers.into_iter().all(|mut answer| is_committed(&answer.try_recv().unwrap())));
    // Both are in this batch, and in the next one the neighbour alone.
    leader.lag_ms.store(870, Ordering::Relaxed);
    let (mut of_flood, mut of_quiet) = (flood(&mut waiting), quiet(&mut waiting));
    session.propose(&mut waiting.backlog).await.unwrap();
    let slowed_at_least_from = Instant::now();
    let (mut next_of_flood, mut next_of_quiet) = (flood(&mut waiting), quiet(&mut waiting));
    session.propose(&mut waiting.backlog).await.unwrap();
    let took = slowed_at_least_from.elapsed();
    while !session.is_idle() {
        complete_one(&mut session).await;
    }
    for answer in [&mut of_flood, &mut of_quiet, &mut next_of_quiet] {
        assert!(is_committed(&answer.try_recv().unwrap()));
    }
    // 370 of 500 ms make 74 of 100 ms.
    let is_slowed = next_of_flood.try_recv() == Err(TryRecvError::Empty);
    assert!(is_slowed || took > Duration::from_millis(70), "it had a turn after {took:?}");
    // In the last quarter before the bound the database is refused, and its neighbour is not.
    leader.lag_ms.store(900, Ordering::Relaxed);
    let mut refused = flood(&mut waiting);
    let due = session.begins_at(&waiting.backlog).unwrap();
    tokio::time::sleep_until(due.into()).await;
    let mut of_quiet = quiet(&mut waiting);
    session.propose(&mut waiting.backlog).await.unwrap();
    complete_one(&mut session).await;
    assert!(is_committed(&of_quiet.try_recv().unwrap()));
    let by_this = WriteRefusal::ReplicationLagsByThis { lag_ms: 900, max_ms: 1000 };
    assert_eq!(refused.try_recv(), Ok(WriteReply::NotCommitted(by_this)));
}

#[tokio::test]
async fn a_request_that_comes_again_while_it_is_in_flight_is_answered_with_it() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(set("first", "v")).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    let mut waiting = Waiting::of(&leader);
    engine.hold_syncs();
    let id = new_request_id();
    let (_, mut first) = waiting.add(id);
    let (_, mut twin) = waiting.add(id);
    session.propose(&mut waiting.backlog).await.unwrap();
    assert_eq!(twin.try_recv(), Err(TryRecvError::Empty), "one batch answers both");
    let (_, mut other) = waiting.add(new_request_id());
    session.propose(&mut waiting.backlog).await.unwrap();
    let (_, mut again) = waiting.add(id);
    session.propose(&mut waiting.backlog).await.unwrap();
    assert_eq!(
        [first.try_recv(), again.try_recv()],
        [Err(TryRecvError::Empty), Err(TryRecvError::Empty)]
    );
    engine.release_syncs();
    complete_one(&mut session).await;
    let answer = first.try_recv().unwrap();
    assert!(is_committed(&answer), "{answer:?}");
    assert_eq!(twin.try_recv(), Ok(answer.clone()));
    assert_eq!((again.try_recv(), other.try_recv()), (Ok(answer), Err(TryRecvError::Empty)));
    complete_one(&mut session).await;
    assert!(session.is_idle());
}

#[tokio::test]
async fn one_sweep_is_in_flight_at_a_time_and_charged_and_none_where_nothing_may_be_written() {
    const HOUR_MS: u64 = 3_600_000;
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    leader.commit(expiring("k", HOUR_MS)).await;
    let (term, mut time) = left_to_the_test(&leader).await;
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    leader.skip(2 * HOUR_MS);
    let mut expiry = Expiry::new(Instant::now());
    assert!(session.admits(&expiry));
    engine.hold_syncs();
    let mut waiting = Waiting::of(&leader);
    let neighbour = DatabaseId([9; 16]);
    assert_eq!(waiting.backlog.asks(neighbour), Asks::ItsShare);
    session.propose_internal(&mut expiry, &mut waiting.backlog).await.unwrap();
    // The database that is swept has written, for all that its neighbours are asked.
    assert_eq!(waiting.backlog.asks(neighbour), Asks::Less);
    assert!(
        !session.is_idle() && !session.admits(&expiry),
        "the expired value is there still, and would be found again"
    );
    engine.release_syncs();
    complete_one(&mut session).await;
    assert!(leader.value("k").is_none() && session.admits(&expiry));
    leader.directory.seal(ShardId(1), Epoch(1));
    assert!(!session.admits(&expiry));
}
