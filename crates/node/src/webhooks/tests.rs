//! A sender between a queue and an endpoint that are played: each answer, each failure, and how many
//! requests and messages it has at a time.

mod endpoint;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use meridian_memory::ByteBudget;
use meridian_net::post::{Posts, Trust};
use meridian_queue::{ListenerId, Report};
use meridian_types::DatabaseId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::delivery::{Deliveries, REQUEST_BYTES};
use super::request::Destination;
use super::sender::Sender;
use super::signature::Keys;
use super::standing::{Queue, Standings};
use crate::testing::until;
use endpoint::{Endpoint, Reply};
use queue::{PlayedQueue, key};

const LONG: Duration = Duration::from_secs(60);

/// A sender under way.
struct Stage {
    queue: Arc<PlayedQueue>,
    standings: Arc<Standings>,
    stop: CancellationToken,
    sender: JoinHandle<()>,
}

impl Stage {
    /// The sender may report on a message before it looks at what became of it.
    fn warning(&self) -> String {
        self.standings.warnings(u64::MAX).pop().unwrap_or_default()
    }
}

/// Of a queue with this many messages.
fn stage(url: &str, messages: u64, concurrency: u32, timeout: Duration) -> Stage {
    let queue = Arc::new(PlayedQueue::new(messages));
    let (standings, stop) = (Arc::<Standings>::default(), CancellationToken::new());
    let database = DatabaseId([7; 16]);
    let deliveries = Deliveries {
        queue: Arc::clone(&queue),
        listener: ListenerId([1; 16]),
        destination: Destination {
            queue: database.into(),
            name: "orders".to_owned(),
            uri: url.parse().unwrap(),
            keys: Keys::new([&[1; 32][..], &[2; 32]]),
        },
        posts: Posts::new(Trust::none().unwrap(), 4),
        timeout,
        bytes: ByteBudget::new("tests", 8 * REQUEST_BYTES),
    };
    let id: Queue = (database, String::new());
    let sender = Sender::run(deliveries, concurrency, (id, Arc::clone(&standings)), stop.clone());
    Stage { queue, standings, stop, sender: tokio::spawn(sender) }
}

fn failed(retry_after_s: Option<u64>) -> Report {
    Report::Failed { retry_after: retry_after_s.map(Duration::from_secs) }
}

#[tokio::test]
async fn answer_of_2xx_acknowledges_a_message_that_came_signed_with_both_keys() {
    let endpoint = Endpoint::start(|_| Reply::status(204)).await;
    let stage = stage(&endpoint.url, 3, 10, LONG);
    until("all are reported", async || stage.queue.reports().len() == 3).await;
    assert!(stage.queue.reports().iter().all(|(_, report)| *report == Report::Done));
    let seen = endpoint.seen();
    assert_eq!(seen.len(), 3);
    for request in seen {
        let header = |name: &str| request.headers[name].to_str().unwrap();
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        let keys = Keys::new([&[1; 32][..], &[2; 32]]);
        let signed = keys.sign(id, timestamp.parse().unwrap(), &request.body);
        assert_eq!(header("webhook-signature"), signed);
        assert_eq!(header("content-type"), "application/json");
        assert!(request.body.ends_with(b"\"value\":1}"));
    }
    stage.stop.cancel();
    stage.sender.await.unwrap();
}

#[tokio::test]
async fn answer_of_500_fails_a_message_by_its_schedule_and_400_does_not_slow_the_others() {
    let endpoint =
        Endpoint::start(|number| Reply::status(if number < 5 { 400 } else { 500 })).await;
    let stage = stage(&endpoint.url, 6, 1, LONG);
    until("all are reported", async || stage.queue.reports().len() == 6).await;
    assert!(stage.queue.reports().iter().all(|(_, report)| *report == failed(None)));
    until("all have failed", async || stage.warning().ends_with("6 times: status 500")).await;
    assert!(stage.warning().contains("orders"), "{}", stage.warning());
    stage.sender.abort();
}

#[tokio::test]
async fn webhook_is_well_again_when_a_message_is_acknowledged() {
    let endpoint =
        Endpoint::start(|number| Reply::status(if number < 1 { 500 } else { 200 })).await;
    let stage = stage(&endpoint.url, 1, 1, LONG);
    until("it fails", async || stage.standings.warnings(0).len() == 1).await;
    stage.queue.enqueue(key(7));
    until("it is well", async || stage.standings.warnings(0).is_empty()).await;
    assert_eq!(stage.queue.reports(), [(key(0), failed(None)), (key(7), Report::Done)]);
    stage.sender.abort();
}

#[tokio::test]
async fn endpoint_that_wants_messages_later_gets_none_meanwhile_and_others_may_have_them() {
    let endpoint = Endpoint::start(|_| Reply::status(503).with("retry-after", "30")).await;
    let stage = stage(&endpoint.url, 8, 2, LONG);
    until("no message is wished for", async || stage.queue.credits() == Some(0)).await;
    until("two are reported", async || stage.queue.reports().len() == 2).await;
    assert!(stage.queue.reports().iter().all(|(_, report)| *report == failed(Some(30))));
    until("what came meanwhile is given back", async || stage.queue.held() == 0).await;
    assert_eq!((endpoint.seen().len(), stage.queue.left()), (2, 6));
    stage.stop.cancel();
    stage.sender.await.unwrap();
}

#[tokio::test]
async fn silent_endpoint_fails_a_message_when_its_time_is_over() {
    let endpoint = Endpoint::start(|_| Reply::never()).await;
    let stage = stage(&endpoint.url, 1, 10, Duration::from_millis(100));
    until("it is reported", async || !stage.queue.reports().is_empty()).await;
    assert_eq!(stage.queue.reports(), [(key(0), failed(None))]);
    until("it fails", async || stage.warning().ends_with("no answer within 0.1 s")).await;
    stage.sender.abort();
}

#[tokio::test]
async fn redirect_fails_a_message_and_is_not_followed() {
    let elsewhere = Endpoint::start(|_| Reply::status(200)).await;
    let to = elsewhere.url.clone();
    let endpoint = Endpoint::start(move |_| Reply::status(307).with("location", &to)).await;
    let stage = stage(&endpoint.url, 1, 10, LONG);
    until("it is reported", async || !stage.queue.reports().is_empty()).await;
    assert_eq!(stage.queue.reports(), [(key(0), failed(None))]);
    let is_said = async || stage.warning().ends_with("status 307, which is not followed");
    until("it fails", is_said).await;
    assert!(elsewhere.seen().is_empty());
    stage.sender.abort();
}

/// Also where the queue hands out more than it was asked for.
#[tokio::test]
async fn no_more_requests_than_the_concurrency_are_open_at_a_time() {
    let endpoint = Endpoint::start(|_| Reply::status(200).after_others(3)).await;
    let stage = stage(&endpoint.url, 60, 3, LONG);
    stage.queue.hand_out_beyond_credits(5);
    until("all are acknowledged", async || stage.queue.reports().len() == 60).await;
    assert_eq!(endpoint.most_open(), 3);
    stage.sender.abort();
}

#[tokio::test]
async fn endpoint_that_is_down_costs_few_attempts_and_its_messages_go_back() {
    // Bound, so that no other program listens there, and refused by the system.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let stage = stage(&format!("http://{}/", bound.local_addr().unwrap()), 100, 4, LONG);
    until("no message is wished for", async || stage.queue.credits() == Some(0)).await;
    until("what came meanwhile is given back", async || stage.queue.held() == 0).await;
    let attempts = stage.queue.reports().len();
    assert!((4..12).contains(&attempts), "{attempts}");
    assert!(stage.warning().contains("no connection"), "{}", stage.warning());
    stage.sender.abort();
}

#[tokio::test]
async fn message_that_is_released_ends_its_request_and_makes_room_for_the_next() {
    let endpoint = Endpoint::start(|_| Reply::never()).await;
    let stage = stage(&endpoint.url, 2, 1, LONG);
    until("the first is there", async || endpoint.seen().len() == 1).await;
    stage.queue.release(key(0));
    until("the second is there", async || endpoint.seen().len() == 2).await;
    until("the first is closed", async || endpoint.open() == 1).await;
    assert_eq!(stage.queue.reports(), []);
    stage.sender.abort();
}

/// The next leader's node has a sender by then.
#[tokio::test]
async fn sender_that_is_stopped_takes_nothing_more_reports_on_what_it_has_and_ends() {
    let endpoint = Endpoint::start(|_| Reply::never()).await;
    let stage = stage(&endpoint.url, 9, 2, LONG);
    until("two are there", async || endpoint.seen().len() == 2).await;
    stage.queue.hand_out_beyond_credits(3);
    stage.queue.hand_out_beyond_credits(0);
    stage.stop.cancel();
    until("none is wished for", async || stage.queue.credits() == Some(0)).await;
    until("the others go back", async || stage.queue.held() == 2).await;
    assert!(!stage.sender.is_finished(), "two are under way");
    endpoint.answer(200);
    stage.sender.await.unwrap();
    let reports = stage.queue.reports();
    assert!(reports.len() == 2 && reports.iter().all(|(_, report)| *report == Report::Done));
    assert_eq!((stage.queue.held(), stage.queue.left()), (0, 7));
}

#[tokio::test]
async fn message_that_cannot_be_reported_on_goes_back_and_may_come_again() {
    let endpoint = Endpoint::start(|_| Reply::status(200)).await;
    let stage = stage(&endpoint.url, 1, 1, LONG);
    stage.queue.refuse_reports(true);
    until("it comes again", async || endpoint.seen().len() == 2).await;
    stage.queue.refuse_reports(false);
    until("it is reported", async || stage.queue.reports() == [(key(0), Report::Done)]).await;
    stage.sender.abort();
}
