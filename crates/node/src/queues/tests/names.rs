//! Named queues of one database at its leader.

use meridian_gateway::{ListFrom, ListedQueue, QueueList};
use meridian_types::{QueueId, QueueName};

use super::*;

fn name(name: &str) -> QueueName {
    name.parse().unwrap()
}

fn of(queue: &str) -> QueueId {
    QueueId { database: DATABASE, name: name(queue) }
}

fn listener_of(queue: &str, number: u8) -> Listener {
    Listener { queue: of(queue), ..listener(number) }
}

fn message_in(queue: &str, payload: &'static str) -> Enqueue {
    Enqueue { queue: name(queue), ..message(payload) }
}

async fn next(parts: &mut Parts) -> Handed {
    let messages = tokio::time::timeout(LONG, handed(parts)).await.expect("a message comes");
    let [handed] = &messages[..] else { panic!("{messages:?}") };
    handed.clone()
}

impl Alone {
    async fn report_in(&self, queue: &str, key: MessageKey, report: Report) -> Answer {
        let (reports, queues) = (vec![(key, report)], self.voter.queues());
        queues.report(of(queue), ListenerId([1; 16]), reports).await.unwrap()[0]
    }

    async fn queues(&self) -> Vec<(String, u64, u64)> {
        let from = ListFrom::Messages { after: None };
        let list = QueueList { queue: of(""), from, limit: 1, whole: false };
        let page = self.voter.queues().list(list).await.unwrap().into_inner();
        let queue = |queue: ListedQueue| (queue.name.to_string(), queue.undelivered, queue.leased);
        page.queues.into_iter().map(queue).collect()
    }

    async fn listed_in(&self, queue: &str) -> (usize, u64, u64) {
        let from = ListFrom::Messages { after: None };
        let list = QueueList { queue: of(queue), from, limit: 9, whole: false };
        let page = self.voter.queues().list(list).await.unwrap().into_inner();
        assert!(page.queues.is_empty() || queue.is_empty());
        (page.messages.len(), page.totals.undelivered, page.totals.leased)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_hears_its_own_queue_and_one_without_listeners_holds_up_none() {
    let alone = Alone::start().await;
    let mut unnamed = alone.listening(listener_of("", 1)).await;
    let mut emails = alone.listening(listener_of("emails", 1)).await;
    // The same listener, since a client may choose its id.
    for payload in ["1", "2", "3"] {
        alone.enqueue(message_in("reports", payload)).await;
    }
    alone.enqueue(message_in("emails", "4")).await;
    alone.enqueue(message_in("", "5")).await;
    let (email, other) = (next(&mut emails).await, next(&mut unnamed).await);
    assert_eq!((&email.message.payload[..], &other.message.payload[..]), (&b"4"[..], &b"5"[..]));
    let expected = [("emails".to_owned(), 1, 1), ("reports".to_owned(), 3, 0)];
    assert_eq!(alone.queues().await, expected);
    assert_eq!(alone.listed_in("").await, (1, 1, 1));
    assert_eq!(alone.listed_in("reports").await, (3, 3, 0));

    // Said of another queue, it is none of its messages.
    let failed = Report::Failed { retry_after: None };
    for wrong in ["", "reports", "none"] {
        assert_eq!(alone.report_in(wrong, email.key, failed).await, Answer::Late);
        assert_eq!(alone.report_in(wrong, email.key, Report::Done).await, Answer::Done);
    }
    assert_eq!(alone.listed_in("emails").await, (1, 1, 1));
    assert_eq!(alone.report_in("emails", email.key, Report::Done).await, Answer::Done);
    assert_eq!(alone.listed_in("emails").await, (0, 0, 0));
    assert_eq!(alone.queues().await, expected[1..], "a name leaves no trace");
    let mut reports = alone.listening(listener_of("reports", 2)).await;
    let mut payloads = Vec::new();
    while payloads.len() < 3 {
        let messages = tokio::time::timeout(LONG, handed(&mut reports)).await.unwrap();
        payloads.extend(messages.into_iter().map(|handed| handed.message.payload));
    }
    assert_eq!(payloads, ["1", "2", "3"], "they have waited for it");
}

/// Also the message of a queue that is named for its death alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_fails_comes_again_in_its_queue_and_is_a_letter_of_it_when_it_dies() {
    let alone = Alone::start().await;
    let mut emails = alone.listening(listener_of("emails", 1)).await;
    let backoff_ms = Some(vec![1]);
    alone.enqueue(Enqueue { backoff_ms, ..message_in("emails", "a") }).await;
    for attempts in 0..2 {
        let Handed { key, message, .. } = next(&mut emails).await;
        assert_eq!(message.attempts, attempts);
        let failed = Report::Failed { retry_after: None };
        assert_eq!(alone.report_in("emails", key, failed).await, Answer::Done);
    }
    for (queue, found) in [("", 1), ("emails", 1), ("reports", 0)] {
        let from = ListFrom::DeadLetters { first: 0 };
        let list = QueueList { queue: of(queue), from, limit: 9, whole: false };
        let page = alone.voter.queues().list(list).await.unwrap().into_inner();
        let queues = page.dead_letters.iter().map(|letter| letter.queue.as_str());
        assert_eq!(queues.collect::<Vec<_>>(), vec!["emails"; found]);
    }
    assert_eq!(alone.queues().await, []);
}
