//! Turns of databases, and requests that are given up.

use meridian_types::{
    Check, Enqueue, MessageId, Mutation, MutationKind, QueueName, RequestId, Settlement, SumBounds,
    Transaction, Value, ValueEncoding, Verdict, Versionstamp, WriteOutcome,
};
use tokio::sync::{mpsc, watch};

use super::super::Proposer;
use super::super::logged_time::ShardClock;
use super::*;
use crate::cluster_view::epoch_lease::Fenced;
use crate::time_budget::PATIENCE;
use crate::write::division::{Division, WriteBytes};

fn no_quorum() -> WriteReply {
    WriteReply::NotCommitted(WriteRefusal::NoQuorum)
}

fn request(transaction: Transaction) -> WriteRequest {
    WriteRequest {
        database: DatabaseId([1; 16]),
        request_id: RequestId([1; 16]),
        transaction,
        retry: false,
    }
}

fn bytes(total: usize) -> WriteBytes {
    WriteBytes::new("writes", total)
}

/// A request that is given up then, and takes one byte.
fn queued(budget: &WriteBytes, until: Instant) -> (Queued, oneshot::Receiver<WriteReply>) {
    of_database(1, budget, until)
}

fn of_database(
    number: u8,
    budget: &WriteBytes,
    until: Instant,
) -> (Queued, oneshot::Receiver<WriteReply>) {
    let (reply, answer) = oneshot::channel();
    let database = DatabaseId([number; 16]);
    let Ok(held) = budget.try_take(database, 1) else { panic!("no room") };
    let request = WriteRequest { database, ..request(Transaction::default()) };
    let queued = Queued {
        request,
        since: Instant::now(),
        until,
        departure: Arc::default(),
        reply,
        held: Arc::new(held),
        _place: Division::new(1 << 20).take(database, 1).unwrap(),
    };
    (queued, answer)
}

/// A small request's cost, and that of the largest.
const SMALL: Spent = Spent { units: 2 << 10, logged_bytes: 300 };
const LARGE: Spent = Spent { units: 1 << 20, logged_bytes: 1 << 20 };

/// Databases that write, and the batches that a leader makes of it.
struct World {
    backlog: Backlog,
    budget: WriteBytes,
    now: Instant,
    answers: Vec<oneshot::Receiver<WriteReply>>,
}

impl World {
    fn new() -> Self {
        let (now, budget) = (Instant::now(), bytes(1 << 20));
        Self { backlog: Backlog::new(now), budget, now, answers: Vec::new() }
    }

    fn add(&mut self, number: u8, requests: usize) {
        for _ in 0..requests {
            let (queued, answer) = of_database(number, &self.budget, self.now);
            self.backlog.push(queued);
            self.answers.push(answer);
        }
    }

    /// Whose requests the next batch of so many units has, where the flood's cost `each`.
    fn batch(&mut self, units: i64, each: Spent) -> Vec<u8> {
        let (mut spent, mut batch) = (0, Vec::new());
        self.backlog.begin_batch(self.now);
        while spent < units
            && let Some(queued) = self.backlog.next(self.now)
        {
            let database = queued.request.database;
            let cost = if database.0[0] == 1 { each } else { SMALL };
            self.backlog.charge(database, cost);
            spent += cost.units;
            batch.push(database.0[0]);
        }
        batch
    }
}

const BATCH: i64 = 4 << 20;

#[test]
fn quiet_database_waits_for_one_turn_of_each_flood_however_much_they_have_waiting() {
    let mut world = World::new();
    (1..=4).for_each(|flood| world.add(flood, 2000));
    assert_eq!(world.batch(BATCH, SMALL).len(), 4 * 128);
    world.add(9, 1);
    let batch = world.batch(BATCH, SMALL);
    let waited = batch.iter().position(|number| *number == 9).expect("in the next batch");
    assert!(waited <= 4 * 16, "behind {waited} requests of others");
    // All of them have as much.
    for flood in 1..=4 {
        assert_eq!(batch.iter().filter(|number| **number == flood).count(), 128);
    }
}

#[test]
fn costly_requests_are_paid_with_later_turns() {
    let mut world = World::new();
    world.add(1, 100);
    world.add(2, 2000);
    let mut served = Vec::new();
    for _ in 0..40 {
        served.extend(world.batch(BATCH, LARGE));
    }
    // As much of the first as of the second, to a request.
    let last_of_second = served.iter().rposition(|number| *number == 2).unwrap();
    let of_first = served[..last_of_second].iter().filter(|number| **number == 1).count();
    let each = usize::try_from(2000 * SMALL.units / LARGE.units).unwrap();
    assert!((each - 1..=each + 1).contains(&of_first), "{of_first}");
}

#[test]
fn flood_has_whole_batches_when_it_is_alone_and_a_part_beside_others() {
    let mut world = World::new();
    world.add(1, 4000);
    assert_eq!(world.batch(BATCH, SMALL).len(), 2048);
    world.add(2, 1);
    let batch = world.batch(BATCH, SMALL);
    assert_eq!(batch.len(), 129);
    // Another has written of late.
    assert_eq!(world.batch(BATCH, SMALL), [1; 128]);
    world.now += Duration::from_secs(2);
    assert!(world.batch(BATCH, SMALL).len() > 1000);
}

#[test]
fn paused_database_waits_and_no_other() {
    let mut world = World::new();
    world.add(1, 10);
    world.add(2, 1);
    world.backlog.pause(DatabaseId([1; 16]), world.now, Duration::from_millis(50));
    assert_eq!(world.batch(BATCH, SMALL), [2]);
    assert!(world.batch(BATCH, SMALL).is_empty());
    let due = world.backlog.waiting_since().unwrap();
    assert_eq!(due, world.now + Duration::from_millis(50));
    world.now = due;
    assert_eq!(world.batch(BATCH, SMALL), [1; 10]);
    assert!(world.backlog.is_empty() && world.batch(BATCH, SMALL).is_empty());
    assert!(world.backlog.lines.is_empty() && world.backlog.order.is_empty());
}

#[test]
fn request_given_up_is_refused_and_frees_its_memory_while_later_ones_wait_on() {
    let (now, budget) = (Instant::now(), bytes(9));
    let mut backlog = Backlog::new(now);
    let mut answers: Vec<_> = [now, now, now + Duration::from_secs(3600)]
        .map(|until| {
            let (queued, answer) = queued(&budget, until);
            backlog.push(queued);
            answer
        })
        .into();
    backlog.give_up();
    let answered: Vec<_> = answers.iter_mut().map(|answer| answer.try_recv().ok()).collect();
    assert_eq!(answered, [Some(no_quorum()), Some(no_quorum()), None]);
    assert_eq!((backlog.len(), budget.used_bytes()), (1, 1));
}

#[test]
fn request_that_waits_while_others_are_served_is_told_that_it_was_not_its_turn() {
    let (now, budget) = (Instant::now(), bytes(9));
    let mut backlog = Backlog::new(now);
    backlog.batch_committed();
    let (queued, mut before) = queued(&budget, now);
    backlog.push(queued);
    backlog.give_up();
    assert_eq!(before.try_recv(), Ok(no_quorum()), "the batch was committed before it came");
    let (queued, mut answer) = of_database(1, &budget, now);
    backlog.push(queued);
    backlog.batch_committed();
    backlog.give_up();
    let refused = WriteReply::NotCommitted(WriteRefusal::NotItsTurn);
    assert_eq!(answer.try_recv(), Ok(refused));
    // The quorum may have been lost behind its last batch.
    let ago = |times| Instant::now().checked_sub(LATELY * times).unwrap();
    *backlog.last_commit.0.lock() = Some(ago(1));
    assert_eq!(backlog.last_commit.refusal(ago(2)), WriteRefusal::NoQuorum);
}

#[test]
fn node_that_does_not_lead_keeps_nothing_of_the_databases_whose_requests_came_to_it() {
    let (mut world, mut answers) = (World::new(), Vec::new());
    for number in 1..=200 {
        world.add(number, 2);
        world.backlog.decline(Some(NodeId(2)));
        answers.append(&mut world.answers);
        assert!(world.backlog.lines.is_empty() && world.backlog.order.is_empty());
    }
    for mut answer in answers {
        assert_eq!(answer.try_recv(), Ok(WriteReply::NotLeader(Some(NodeId(2)))));
    }
    assert!(world.backlog.is_empty() && world.batch(BATCH, SMALL).is_empty());
    world.add(1, 1);
    assert_eq!(world.batch(BATCH, SMALL), [1]);
}

#[test]
fn backlog_is_full_with_as_many_requests_as_may_wait() {
    let (budget, mut backlog) = (bytes(2 * QUEUE_REQUESTS), Backlog::new(Instant::now()));
    let mut answers = Vec::new();
    while backlog.len() < QUEUE_REQUESTS {
        assert!(!backlog.is_full());
        let (queued, answer) = queued(&budget, Instant::now());
        backlog.push(queued);
        answers.push(answer);
    }
    assert!(backlog.is_full());
}

#[test]
fn request_size_counts_keys_values_bounds_messages_and_each_part() {
    let value = |bytes| Value { encoding: ValueEncoding::Bytes, data: vec![7; bytes].into() };
    let mutation =
        |key_bytes, kind| Mutation { key: vec![1; key_bytes].into(), kind, expire_at_ms: 0 };
    let bounds = SumBounds {
        min: vec![1; 5000].into(),
        max: vec![2; 60_000].into(),
        ..SumBounds::default()
    };
    let empty = size(&request(Transaction::default()));
    assert!((100..1000).contains(&empty), "{empty}");
    for (what, least) in [
        (mutation(3, MutationKind::Delete), 3),
        (mutation(3, MutationKind::Set(value(40))), 43),
        (mutation(3, MutationKind::Sum { operand: value(40), bounds }), 65_043),
    ] {
        let transaction = Transaction { mutations: vec![what], ..Transaction::default() };
        assert_eq!(size(&request(transaction)), least + 2 * empty);
    }
    let checks = vec![Check { key: vec![1; 3].into(), versionstamp: None }; 2];
    let transaction = Transaction { checks, ..Transaction::default() };
    assert_eq!(size(&request(transaction)), 2 * 3 + 3 * empty);
    let queue = QueueName::UNNAMED;
    let enqueue = Enqueue {
        queue: queue.clone(),
        payload: vec![1; 1000].into(),
        due_ms: 1,
        keys_if_undelivered: vec![vec![1; 50].into(); 2],
        backoff_ms: Some(vec![1; 3]),
    };
    let settlement = Settlement {
        queue,
        id: MessageId { enqueued: Versionstamp([1; 10]), index: 0 },
        due_ms: 1,
        verdict: Verdict::Delivered,
    };
    let transaction = Transaction {
        enqueues: vec![enqueue],
        settlements: vec![settlement],
        ..Transaction::default()
    };
    assert_eq!(size(&request(transaction)), 1000 + 2 * (50 + 32) + 3 * 32 + 3 * empty);
}

/// Its task is busy with something else, whatever that is.
#[tokio::test]
async fn request_not_evaluated_in_time_is_refused_and_an_evaluated_one_is_answered() {
    let (queue, mut requests) = mpsc::channel(9);
    let budget = bytes(1 << 20);
    let drained = watch::Sender::new(None).subscribe();
    let (sealed, clock) = (watch::Sender::new(false), ShardClock::default());
    let (places, last_commit) = (Division::new(9), LastCommit::default());
    let proposer =
        Proposer { queue, places, last_commit, sealed, drained, budget: budget.clone(), clock };
    let write = || {
        let proposer = proposer.clone();
        tokio::spawn(async move {
            let request = request(Transaction::default());
            let reserved = proposer.reserve(&request).unwrap();
            proposer.write(request, reserved).await
        })
    };
    let (refused, mut backlog) = (write(), Backlog::new(Instant::now()));
    backlog.push(requests.recv().await.unwrap());
    let refused = tokio::time::timeout(Duration::from_secs(60), refused).await;
    assert_eq!(refused.unwrap().unwrap(), no_quorum());
    assert!(backlog.next(Instant::now()).is_none());
    let refused = write();
    backlog.push(requests.recv().await.unwrap());
    let others_are_served = async {
        loop {
            proposer.last_commit.note_now();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let refused = tokio::select! {
        refused = tokio::time::timeout(Duration::from_secs(60), refused) => refused.unwrap().unwrap(),
        () = others_are_served => unreachable!(),
    };
    assert_eq!(refused, WriteReply::NotCommitted(WriteRefusal::NotItsTurn));
    assert!(backlog.next(Instant::now()).is_none());
    let (answered, taken) = loop {
        let answered = write();
        backlog.push(requests.recv().await.unwrap());
        match backlog.next(Instant::now()) {
            Some(taken) => break (answered, taken),
            // The machine stood still meanwhile.
            None => assert!(matches!(answered.await.unwrap(), WriteReply::NotCommitted(_))),
        }
    };
    tokio::time::sleep(PATIENCE + Duration::from_millis(50)).await;
    assert!(!answered.is_finished());
    // A request that was evaluated for nothing is evaluated again, or refused.
    backlog.put_back(vec![taken]);
    let taken = backlog.next(Instant::now()).unwrap();
    let outcome = WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![1])));
    respond(taken.reply, outcome.clone());
    assert_eq!(answered.await.unwrap(), outcome);
    drop(taken.held);
    assert_eq!(budget.used_bytes(), 0);
}
