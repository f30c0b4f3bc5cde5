//! A pipelined stream of appends to one member, over one gRPC stream, whose transport keeps the
//! order.
//!
//! A response that is due and does not come in time ends the stream; an idle stream stays open.
//! Dropped at any await, the stream is closed: what was sent and is not answered is sent again over
//! the next one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use meridian_proto::raft;
use meridian_types::NodeId;
use openraft::OptionalSend;
use openraft::errors::{RPCError, Timeout};
use openraft::network::RPCTypes;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use parking_lot::Mutex;
use prost::Message;
use tonic::Streaming;

use super::{Network, RECONNECT_PAUSE, failed, stream_result};
use crate::commit_carrier::{CARRIED_WITHIN, carry_commits};
use crate::lease_trust::{LeaseTrust, Telling};
use crate::member_marks::MemberMarks;
use crate::type_config::TypeConfig;

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// The longest time that so many bytes may take to a healthy, busy member.
fn transfer_time(bytes: usize) -> Duration {
    const BYTES_PER_SECOND: u64 = 4 << 20;
    Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND)
}

/// A request that is not answered yet.
#[derive(Debug, Clone, Copy)]
struct Unanswered {
    sent: Instant,
    /// Until when its answer is waited for: it has the time that its bytes may take, behind those
    /// before it.
    until: Instant,
}

/// The requests on their way. Answers come in the same order.
struct InFlight {
    within: Duration,
    unanswered: Mutex<VecDeque<Unanswered>>,
    /// Of the newest request.
    term: AtomicU64,
}

impl InFlight {
    fn new(within: Duration) -> Self {
        Self { within, unanswered: Mutex::default(), term: AtomicU64::new(0) }
    }

    /// A request of so many bytes goes out now.
    fn send(&self, term: u64, bytes: usize) {
        self.term.store(term, Ordering::Relaxed);
        let (sent, mut unanswered) = (Instant::now(), self.unanswered.lock());
        let behind = unanswered.back().map_or(sent, |before| before.until);
        let until = behind.max(sent + self.within) + transfer_time(bytes);
        unanswered.push_back(Unanswered { sent, until });
    }

    /// The oldest request was answered; when it was sent.
    fn answered(&self) -> Option<Instant> {
        self.unanswered.lock().pop_front().map(|oldest| oldest.sent)
    }

    /// How long the next answer is waited for, before it is looked at whether it is late.
    fn wait(&self) -> Duration {
        let oldest = self.unanswered.lock().front().copied();
        oldest.map_or(self.within, |oldest| oldest.until.saturating_duration_since(Instant::now()))
    }

    /// Whether an answer is due and has not come. Where nothing was sent, none is.
    fn is_late(&self) -> bool {
        self.unanswered.lock().front().is_some_and(|oldest| Instant::now() >= oldest.until)
    }
}

/// The answers to a stream of appends, in order.
pub(super) struct AppendStream {
    target: NodeId,
    in_flight: Arc<InFlight>,
    lease_trust: Arc<LeaseTrust>,
    marks: Arc<MemberMarks>,
    late: Timeout<TypeConfig>,
    /// `None` once the stream has ended.
    responses: Option<Streaming<raft::AppendResponse>>,
    /// Of the answer that openraft was given last.
    telling: Option<Telling>,
}

impl AppendStream {
    /// Opens the stream that sends what comes of `input`.
    pub(super) async fn open<S>(network: &Network, input: S) -> Result<Self, RPCError<TypeConfig>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (factory, target) = (network.factory.clone(), network.target);
        let within = factory.append_timeout;
        let (lease_trust, marks) = (Arc::clone(&factory.lease_trust), Arc::clone(&factory.marks));
        let in_flight = Arc::new(InFlight::new(within));
        let sending = Arc::clone(&in_flight);
        let requests = carry_commits(input, CARRIED_WITHIN).map(move |request| {
            let term = request.vote.leader_id.term;
            let request = factory.append_request(target, &request);
            sending.send(term, request.encoded_len());
            request
        });
        let late = network.timeout(RPCTypes::AppendEntries, within);
        let mut client = network.client()?;
        let responses = match tokio::time::timeout(within, client.stream_append(requests)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                // openraft backs off only once a stream is open, and would call again at once.
                tokio::time::sleep(RECONNECT_PAUSE).await;
                return Err(failed(&status));
            }
            Err(_) => return Err(late.into()),
        };
        let responses = Some(responses);
        Ok(Self { target, in_flight, lease_trust, marks, late, responses, telling: None })
    }

    /// The result for openraft of each answer, up to the first that ends the stream.
    pub(super) fn results(self) -> impl Stream<Item = AppendResult> {
        futures::stream::unfold(self, Self::next)
    }

    async fn next(mut self) -> Option<(AppendResult, Self)> {
        // openraft asks for the next one when it has noted the one before.
        self.telling = None;
        let mut responses = self.responses.take()?;
        let response = loop {
            match tokio::time::timeout(self.in_flight.wait(), responses.next()).await {
                Ok(response) => break response?,
                Err(_) if self.in_flight.is_late() => {
                    return Some((Err(self.late.clone().into()), self));
                }
                Err(_) => {}
            }
        };
        let result = match response {
            Ok(response) => self.answered(response),
            Err(status) => Err(failed(&status)),
        };
        // A member that rejects what it is sent hears no more of this stream.
        if matches!(result, Ok(Ok(_))) {
            self.responses = Some(responses);
        }
        Some((result, self))
    }

    fn answered(&mut self, response: raft::AppendResponse) -> AppendResult {
        self.telling = self.in_flight.answered().map(|sent| self.lease_trust.answered(sent));
        let term = self.in_flight.term.load(Ordering::Relaxed);
        stream_result(&self.marks, self.target, term, response)
    }
}
