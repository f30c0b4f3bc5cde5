//! Pages for operators, and messages that operators cancel, move and take out of the dead letters.

use meridian_gateway::{ListFrom, ListedTotals, QueueList, QueuePage};
use meridian_types::{QueueName, Settlement, Verdict};

use super::*;

const ALL: ListFrom = ListFrom::Messages { after: None };
const FAR_MS: u64 = 1 << 60;
const DEAD: ListFrom = ListFrom::DeadLetters { first: 0 };

fn page(from: ListFrom, limit: u32) -> QueueList {
    QueueList { queue: DATABASE.into(), from, limit, whole: false }
}

impl Alone {
    async fn listed(&self, list: QueueList) -> QueuePage {
        self.voter.queues().list(list).await.unwrap().into_inner()
    }

    async fn totals(&self) -> (u64, u64, u64) {
        let ListedTotals { undelivered, leased, dead } = self.listed(page(ALL, 1)).await.totals;
        (undelivered, leased, dead)
    }

    async fn settle(&self, key: MessageKey, verdict: Verdict) {
        let settlements =
            vec![Settlement { queue: QueueName::UNNAMED, id: key.id, due_ms: key.due_ms, verdict }];
        self.commit(Transaction { settlements, ..Transaction::default() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_page_is_read_at_a_time_so_that_other_reads_have_the_other_turns() {
    let alone = Alone::start().await;
    let queues = alone.voter.queues();
    let turn = queues.lists.acquire().await.unwrap();
    let mut waiting = Box::pin(queues.list(page(ALL, 1)));
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    drop(turn);
    drop(waiting.await.unwrap());
}

/// The next messages that are released.
async fn released(parts: &mut Parts) -> Vec<MessageKey> {
    let releasing = async {
        loop {
            match parts.next().await.expect("the session goes on") {
                Ok(Part::Released(keys)) => return keys,
                Ok(Part::Alive) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(LONG, releasing).await.expect("something is released")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_messages_by_due_time_and_which_of_them_listeners_hold() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    let keys_if_undelivered = vec![Bytes::from_static(b"key")];
    alone.enqueue(Enqueue { due_ms: FAR_MS, keys_if_undelivered, ..message("later") }).await;
    alone.enqueue(message("now")).await;
    let held = handed(&mut parts).await[0].key;
    let QueuePage { messages, totals, .. } = alone.listed(page(ALL, 10)).await;
    assert_eq!(totals, ListedTotals { undelivered: 2, leased: 1, dead: 0 });
    assert_eq!((messages.len(), messages[0].key, messages[0].leased), (2, held, true));
    let later = &messages[1];
    assert_eq!((later.key.due_ms, later.leased, later.failed), (FAR_MS, false, 0));
    assert_eq!((later.payload_bytes, later.keys, &later.whole), (5, 1, &None));

    let whole = alone.listed(QueueList { whole: true, ..page(ALL, 1) }).await.messages;
    let [first] = &whole[..] else { panic!("{whole:?}") };
    assert_eq!(first.whole, Some((Bytes::from_static(b"now"), vec![])));
    let behind = |key| page(ListFrom::Messages { after: Some(key) }, 10);
    assert_eq!(alone.listed(behind(held)).await.messages, messages[1..]);
    assert_eq!(alone.listed(behind(later.key)).await.messages, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_those_of_the_leader_and_zeros_elsewhere() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(Listener { credits: 1, ..listener(1) }).await;
    alone.enqueue(message("held")).await;
    handed(&mut parts).await;
    alone.enqueue(message("due")).await;
    until("the second has been due for some time", async || {
        let Figures { leased, due_for } = alone.voter.queues().figures().await;
        assert_eq!(leased, 1);
        due_for > Duration::from_millis(10)
    })
    .await;
    let following = Alone::start_following().await;
    assert_eq!(following.voter.queues().figures().await, Figures::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_with_payloads_is_bounded_in_bytes_and_has_one_message_at_least() {
    let alone = Alone::start().await;
    for _ in 0..8 {
        alone.enqueue(Enqueue { payload: vec![7; 60_000].into(), ..Enqueue::default() }).await;
    }
    let listed = async |whole| alone.listed(QueueList { whole, ..page(ALL, 1000) }).await.messages;
    assert_eq!((listed(true).await.len(), listed(false).await.len()), (5, 8));
}

/// Whatever this node applied: another may lead the shard by now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_listed_under_an_epoch_that_is_sealed() {
    let alone = Alone::start().await;
    alone.enqueue(message("a")).await;
    assert_eq!(alone.listed(page(ALL, 1)).await.messages.len(), 1);
    alone.only.directory.seal(GROUP.shard, GROUP.epoch);
    let refused = alone.voter.queues().list(page(ALL, 1)).await;
    assert_eq!(refused, Err(NotListening::NotLeader(None)));
    let following = Alone::start_following().await;
    let refused = following.voter.queues().list(page(ALL, 1)).await;
    assert_eq!(refused, Err(NotListening::NotLeader(None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_is_cancelled_under_its_listener_is_released_and_gone() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    alone.enqueue(message("a")).await;
    let key = handed(&mut parts).await[0].key;
    alone.settle(key, Verdict::Cancelled).await;
    assert_eq!(released(&mut parts).await, [key]);
    assert_eq!(alone.totals().await, (0, 0, 0));
    let failed = Report::Failed { retry_after: None };
    assert_eq!(alone.report(1, key, failed).await, [Answer::Late]);
    assert_eq!(alone.report(1, key, Report::Done).await, [Answer::Done], "as if it came again");
}

/// Its listener may hang, and have a stream that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_is_run_now_goes_from_its_listener_to_another_and_costs_no_attempt() {
    let alone = Alone::start().await;
    let mut first = alone.listening(Listener { credits: 1, ..listener(1) }).await;
    alone.enqueue(message("a")).await;
    let key = handed(&mut first).await[0].key;
    let mut second = alone.listening(listener(2)).await;
    alone.settle(key, Verdict::Rescheduled { due_ms: key.due_ms + 1 }).await;
    assert_eq!(released(&mut first).await, [key]);
    let again = tokio::time::timeout(LONG, handed(&mut second)).await.unwrap();
    assert_eq!((again[0].key.id, again[0].message.attempts), (key.id, 0));
    assert_eq!(alone.totals().await, (1, 1, 0));
    assert_eq!(alone.report(1, key, Report::Failed { retry_after: None }).await, [Answer::Late]);
    assert_eq!(alone.report(1, key, Report::Done).await, [Answer::Done], "late, and a success");
    assert_eq!(alone.totals().await, (0, 0, 0));
    assert_eq!(released(&mut second).await, [again[0].key]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letter_that_is_redriven_is_delivered_again_and_another_is_discarded() {
    let alone = Alone::start().await;
    let mut parts = alone.listening(listener(1)).await;
    for payload in ["a", "b"] {
        alone.enqueue(Enqueue { backoff_ms: Some(vec![]), ..message(payload) }).await;
        let key = handed(&mut parts).await[0].key;
        let failed = Report::Failed { retry_after: None };
        assert_eq!(alone.report(1, key, failed).await, [Answer::Done]);
    }
    assert_eq!(alone.totals().await, (0, 0, 2));
    let letters = alone.listed(QueueList { whole: true, ..page(DEAD, 10) }).await.dead_letters;
    let [a, b] = &letters[..] else { panic!("{letters:?}") };
    let shown = (a.number, a.failed, a.payload.clone(), b.number);
    assert_eq!(shown, (0, 1, Some(Bytes::from_static(b"a")), 1));
    assert_eq!(alone.listed(page(DEAD, 1)).await.dead_letters.len(), 1);
    let behind = page(ListFrom::DeadLetters { first: 1 }, 9);
    assert_eq!(alone.listed(behind).await.dead_letters[0].number, 1);

    let of = |id| MessageKey { due_ms: 0, id };
    alone.settle(of(a.id), Verdict::Redriven { number: b.number }).await;
    assert_eq!(alone.totals().await, (0, 0, 2), "it has another id");
    alone.settle(of(a.id), Verdict::Redriven { number: a.number }).await;
    let again = handed(&mut parts).await;
    assert_eq!((again[0].key.id, again[0].message.attempts), (a.id, 0));
    assert_eq!(alone.totals().await, (1, 1, 1));
    assert_eq!(alone.report(1, again[0].key, Report::Done).await, [Answer::Done]);
    alone.settle(of(b.id), Verdict::Discarded { number: b.number }).await;
    assert_eq!(alone.totals().await, (0, 0, 0));
    assert_eq!(alone.listed(page(DEAD, 10)).await.dead_letters, []);
}

fn pause(alone: &Alone, paused: bool) {
    let directory = &alone.only.directory;
    let change = Change::SetDatabase {
        id: DATABASE,
        failover: None,
        rpo: None,
        primary_region: None,
        v8_format: None,
        queue_paused: Some(paused),
    };
    directory.learn(directory.known().cluster.after(&change).unwrap()).unwrap();
}

/// The dispatcher knows a message that is due and that no listener gets.
async fn is_kept_back(alone: &Alone) {
    until("a message has been due for some time", async || {
        let Figures { leased, due_for } = alone.voter.queues().figures().await;
        assert_eq!(leased, 0);
        due_for > Duration::from_millis(50)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_that_is_paused_hands_out_nothing_to_any_listener_until_it_is_resumed() {
    let alone = Alone::start().await;
    let mut first = alone.listening(listener(1)).await;
    pause(&alone, true);
    until("the leader knows", async || alone.listed(page(ALL, 1)).await.is_paused).await;
    alone.enqueue(message("a")).await;
    is_kept_back(&alone).await;
    let _second = alone.listening(Listener { credits: 0, ..listener(2) }).await;
    is_kept_back(&alone).await;
    pause(&alone, false);
    let handed = tokio::time::timeout(LONG, handed(&mut first)).await.unwrap();
    assert_eq!((handed.len(), handed[0].message.attempts), (1, 0));
    assert!(!alone.listed(page(ALL, 1)).await.is_paused);
    assert_eq!(alone.report(1, handed[0].key, Report::Done).await, [Answer::Done]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_is_new_knows_which_queues_are_paused_before_it_hands_out_anything() {
    let alone = Alone::start_following().await;
    pause(&alone, true);
    alone.lead().await;
    alone.enqueue(message("a")).await;
    let mut parts = alone.listening(listener(1)).await;
    is_kept_back(&alone).await;
    pause(&alone, false);
    assert_eq!(tokio::time::timeout(LONG, handed(&mut parts)).await.unwrap().len(), 1);
}
