//! One message to its endpoint, and the report of what came of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use meridian_gateway::{Heard, Listen, Listened, QueuedMessage, Reports, Unavailable};
use meridian_memory::{ByteBudget, Held};
use meridian_net::post::Posts;
use meridian_queue::{Answer, ListenerId, MessageKey, Report};
use tokio::sync::mpsc;

use super::request::{Destination, MAX_BODY_BYTES};
use super::verdict::{Verdict, verdict};
use crate::host::clock::boot_time;
use crate::routing::nodes::Nodes;
use crate::routing::router::{Router, Wish};

/// Beside the body of a request: the buffers of its connection and of TLS.
const CONNECTION_BYTES: usize = 48 << 10;
/// One request, until its true size is known.
pub(super) const REQUEST_BYTES: usize = MAX_BODY_BYTES + CONNECTION_BYTES;
/// How long one try to have memory lasts, before the want of it is counted.
const MEMORY_PATIENCE: Duration = Duration::from_secs(60);
/// A report is repeated so often: each try takes as long as a request may. A message that cannot be
/// reported on goes back, and may come to the endpoint again.
const REPORT_TRIES: u32 = 6;
const REPORT_PAUSE: Duration = Duration::from_millis(500);

/// The queue of a database, as a listener of this process has it.
pub(super) trait Attended: Send + Sync + 'static {
    fn attend(&self, listen: Listen) -> (BoxStream<'static, Heard>, mpsc::UnboundedSender<Wish>);

    fn report(
        &self,
        reports: Reports,
    ) -> impl Future<Output = Result<Vec<Answer>, Unavailable>> + Send;
}

impl<N: Nodes, C: crate::host::clock::Clock> Attended for Arc<Router<N, C>> {
    fn attend(&self, listen: Listen) -> (BoxStream<'static, Heard>, mpsc::UnboundedSender<Wish>) {
        let (Listened { heard, enough }, wishes) = Router::attend(self, listen);
        // Of listeners whose messages are leased for a time.
        let heard = futures::StreamExt::map(heard, move |heard| {
            let _until_dropped = &enough;
            heard
        });
        (futures::StreamExt::boxed(heard), wishes)
    }

    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        meridian_gateway::Database::report(&**self, reports).await
    }
}

/// The means of one sender's deliveries.
pub(super) struct Deliveries<Q> {
    pub(super) queue: Arc<Q>,
    pub(super) listener: ListenerId,
    pub(super) destination: Destination,
    pub(super) posts: Posts,
    pub(super) timeout: Duration,
    pub(super) bytes: ByteBudget,
}

/// The end of a request.
pub(super) struct Judged {
    pub(super) key: MessageKey,
    /// When it began.
    pub(super) begun: Duration,
    pub(super) verdict: Verdict,
}

impl<Q: Attended> Deliveries<Q> {
    /// The memory of a request, if there is some now.
    pub(super) fn room(&self) -> Option<Held> {
        self.bytes.take(REQUEST_BYTES, MEMORY_PATIENCE).now_or_never()?.ok()
    }

    /// ... once there is, in the order of asking among all webhooks of this node.
    pub(super) fn next_room(&self) -> BoxFuture<'static, Held> {
        let bytes = self.bytes.clone();
        let taking = async move {
            loop {
                if let Ok(held) = bytes.take(REQUEST_BYTES, MEMORY_PATIENCE).await {
                    return held;
                }
            }
        };
        taking.boxed()
    }

    /// Whether the message is reported on; else it is held still. What came of the request is told
    /// before that. To drop the future closes the connection, and reports nothing.
    pub(super) async fn deliver(
        self: Arc<Self>,
        message: QueuedMessage,
        mut held: Held,
        judged: mpsc::UnboundedSender<Judged>,
    ) -> bool {
        let key = message.key;
        let begun = boot_time();
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let verdict = match self.destination.request(&message, seconds.as_secs()) {
            Err(error) => Verdict::Failed {
                class: "not_sent",
                reason: error.to_string(),
                retry_after: None,
                is_of_endpoint: true,
            },
            Ok(request) => {
                // Its payload is in the body.
                drop(message);
                held.shrink_to(
                    hyper::body::Body::size_hint(request.body())
                        .exact()
                        .map_or(REQUEST_BYTES, |bytes| {
                            usize::try_from(bytes).unwrap_or(MAX_BODY_BYTES) + CONNECTION_BYTES
                        }),
                );
                verdict(&self.posts.post(request, self.timeout).await, SystemTime::now())
            }
        };
        drop(held);
        count(&verdict, boot_time().saturating_sub(begun));
        let report = match &verdict {
            Verdict::Acknowledged => Report::Done,
            Verdict::Failed { retry_after, .. } => Report::Failed { retry_after: *retry_after },
        };
        // A sender that is gone wants no news.
        drop(judged.send(Judged { key, begun, verdict }));
        self.report(key, report).await
    }

    /// Whether it is logged, or known to be of no use.
    async fn report(&self, key: MessageKey, report: Report) -> bool {
        for attempt in 0..REPORT_TRIES {
            if attempt > 0 {
                tokio::time::sleep(REPORT_PAUSE).await;
            }
            let (queue, listener) = (self.destination.queue.clone(), self.listener);
            let reports = Reports { queue, listener, reports: vec![(key, report)] };
            if self.queue.report(reports).await.is_ok() {
                return true;
            }
        }
        false
    }
}

fn count(verdict: &Verdict, took: Duration) {
    let outcome = match verdict {
        Verdict::Acknowledged => "acknowledged",
        Verdict::Failed { class, .. } => class,
    };
    metrics::counter!("meridian_webhook_requests_total", "outcome" => outcome).increment(1);
    metrics::histogram!("meridian_webhook_request_seconds").record(took.as_secs_f64());
}
