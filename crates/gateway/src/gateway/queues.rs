//! Queues: listeners that stream or poll, their reports, and messages that come as JSON.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::http::request::Parts;
use meridian_queue::MessageKey;
use meridian_types::{Permission, QueueId, Versionstamp, WriteOutcome};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::lookup::Authorized;
use super::{Failure, Gateway};
use crate::answer::{self, Answer, AnswerBody};
use crate::audit::Noted;
use crate::database::{Database, Heard, Listen, Listened, QueuedMessage, Reports, Write};
use crate::listen_stream::ListenStream;
use crate::refusal::{Overload, Refusal};
use crate::request_id::{new_request_id, request_id_of};
use crate::route::{QueueRoute, Route};
use crate::shares::Share;
use crate::usage::Opened;
use crate::{Catalogue, audit, queue_json, rights};

/// The answer to a poll has no more messages behind so many bytes.
const MAX_POLLED_BYTES: usize = 2 << 20;
/// Messages that are handed out at about the same time as the first are in the answer to a poll.
const TOGETHER: Duration = Duration::from_millis(10);

/// Memory for a message that a listener says it holds.
const HELD_KEY_BYTES: usize = 64;

/// A request about a queue of a database.
struct Asked<'a> {
    authorized: Authorized<'a>,
    body: Bytes,
    /// Of a request in progress, and of its body.
    shares: (Share, Share),
    noted: Noted<'a>,
}

impl<D: Database, C: Catalogue> Gateway<D, C> {
    pub(super) async fn queue<B>(
        &self,
        route: QueueRoute,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let authorized = self.authorize(parts, Route::Queue(route))?;
        let holder = self.holder(authorized.token, Some(authorized.shard));
        let request = match route {
            // A message that was handled is not handed out again for want of a turn.
            QueueRoute::Report => {
                let share = self.in_progress(&authorized)?;
                self.have_turn(&authorized, parts);
                share
            }
            _ => self.begin(&authorized, parts).await?,
        };
        let max_bytes = self.options.max_body_bytes.min(queue_json::MAX_BODY_BYTES);
        let (body, share) = self.body(holder, body, max_bytes).await?;
        let noted = audit::of(parts);
        noted.body(&body);
        let asked = Asked { authorized, body, shares: (request, share), noted };
        match route {
            QueueRoute::Listen => self.listen(asked, parts),
            QueueRoute::Poll => self.poll(asked, parts).await,
            QueueRoute::Report => self.report(asked).await,
            QueueRoute::Enqueue => self.enqueue(asked).await,
            QueueRoute::List => self.list(asked).await,
            QueueRoute::Change => self.change(asked).await,
        }
    }

    /// A share of the listeners that may be open.
    fn listener(&self, token: &str, parts: &Parts) -> Result<Share, Refusal> {
        let share = self.share(Overload::Listeners, self.holder(token, None), 1)?;
        self.count_open(parts, Opened::Listener, share)
    }

    fn listen(&self, asked: Asked<'_>, parts: &Parts) -> Result<Answer, Failure> {
        let Asked { authorized, body, noted, .. } = asked;
        let Authorized { token, database, .. } = authorized;
        let queue_json::ListenRequest { queue: name, listener, credits, held } =
            queue_json::listen(&body).map_err(Refusal::from)?;
        noted.queue(&name)?;
        let share = self.listener(token, parts)?;
        let of_held = (held.len() * HELD_KEY_BYTES) as u64;
        let of_held = self.share(Overload::Answers, self.holder(token, None), of_held)?;
        let incarnation = queue_json::new_incarnation();
        let queue = QueueId { database, name };
        let listen = Listen { queue, listener, credits, lease: None, held, incarnation };
        let listened = self.database.listen(listen);
        let access = self.stream_access(&authorized, Permission::Listen);
        let counted = (self.answers.clone(), self.holder(token, None));
        let shares = [share, of_held];
        let stream = ListenStream::new((listener, listened), access, counted, shares);
        Ok(answer::lines(AnswerBody::Frames(stream.boxed_unsync())))
    }

    /// Messages that the client does not get, since it has left, may not have them any more, or came
    /// too late for them, go back. When the gateway stops, the poll ends with those that are there.
    async fn poll(&self, asked: Asked<'_>, parts: &Parts) -> Result<Answer, Failure> {
        let Asked { authorized, body, shares, noted } = asked;
        let Authorized { token, database, .. } = authorized;
        let queue_json::PollRequest { queue: name, max, wait, lease } =
            queue_json::poll(&body).map_err(Refusal::from)?;
        noted.queue(&name)?;
        let _open = self.listener(token, parts)?;
        // A long poll is no request in progress: it would take their places for as long as it waits.
        drop(shares);
        noted.wait();
        let listener = queue_json::new_listener();
        let (held, lease) = (Vec::new(), Some(lease));
        let incarnation = queue_json::new_incarnation();
        let queue = QueueId { database, name };
        let listen = Listen { queue, listener, credits: max, lease, held, incarnation };
        let listened = self.database.listen(listen);
        let (messages, enough) = polled(listened, max, wait, &self.stopping).await?;
        noted.go_on()?;
        if !self.stream_access(&authorized, Permission::Listen).holds() {
            // Says why.
            self.authorize(parts, Route::Queue(QueueRoute::Poll))?;
        }
        noted.count("messages", messages.len());
        let answer = queue_json::polled(listener, &messages);
        let share = self.share(Overload::Answers, self.holder(token, None), answer.len() as u64)?;
        // A listener that is over by itself keeps nothing.
        drop(enough.send(messages.iter().map(|message| message.key).collect()));
        Ok(answer::json(answer).map(|body| body.map_whole(|bytes| share.held_with(bytes))))
    }

    async fn report(&self, asked: Asked<'_>) -> Result<Answer, Failure> {
        let Asked { authorized: Authorized { database, .. }, body, noted, .. } = &asked;
        let queue_json::ReportRequest { queue: name, listener, reports } =
            queue_json::reports(body).map_err(Refusal::from)?;
        noted.count("messages", reports.len());
        noted.queue(&name)?;
        let queue = QueueId { database: *database, name };
        let reports = Reports { queue, listener, reports };
        let answers = self.database.report(reports).await.map_err(Refusal::from)?;
        Ok(answer::json(queue_json::answers(&answers)))
    }

    /// Has room for the largest page before it is asked for: so pages are bounded in number, too.
    async fn list(&self, asked: Asked<'_>) -> Result<Answer, Failure> {
        let Asked { authorized, body, shares: _shares, noted } = asked;
        let Authorized { token, database, .. } = authorized;
        let list = queue_json::list(database, &body).map_err(Refusal::from)?;
        noted.queue(&list.queue.name)?;
        let share = self.answers.take(self.holder(token, None), queue_json::MAX_PAGE_BYTES as u64);
        let mut share = share.ok_or_else(|| self.overloaded(Overload::Answers))?;
        let page = self.database.list_queue(list).await.map_err(Refusal::from)?;
        noted.count("messages", page.messages.len() + page.dead_letters.len());
        let answer = queue_json::page(&page);
        share.resize(answer.len() as u64);
        Ok(answer::json(answer).map(|body| body.map_whole(|bytes| share.held_with(bytes))))
    }

    async fn change(&self, asked: Asked<'_>) -> Result<Answer, Failure> {
        let Asked { authorized: Authorized { database, .. }, body, shares, noted } = asked;
        let transaction = queue_json::change(&body).map_err(Refusal::from)?;
        noted.write(&transaction)?;
        let (request_id, may_come_again) = (new_request_id(), false);
        let write = Write { database, request_id, may_come_again, transaction };
        let versionstamp = committed(self.carry_out(write, None, shares, noted).await?)?;
        Ok(answer::json(queue_json::changed(versionstamp)))
    }

    async fn enqueue(&self, asked: Asked<'_>) -> Result<Answer, Failure> {
        let Asked { authorized: Authorized { database, grant, .. }, body, shares, noted } = asked;
        let format = self.catalogue.v8_format(database);
        let enqueue = queue_json::enqueue(&body, format, super::now_ms()).map_err(Refusal::from)?;
        let queue_json::EnqueueRequest { transaction, id } = enqueue.map_err(Refusal::from)?;
        noted.write(&transaction)?;
        rights::check_write(&grant, &transaction).map_err(Refusal::from)?;
        let may_come_again = id.is_some();
        let request_id = id.map_or_else(new_request_id, |id| request_id_of(database, &id));
        let write = Write { database, request_id, may_come_again, transaction };
        let versionstamp = committed(self.carry_out(write, None, shares, noted).await?)?;
        Ok(answer::json(queue_json::enqueued(versionstamp)))
    }
}

/// Of a write without checks.
fn committed(outcome: WriteOutcome) -> Result<Versionstamp, Refusal> {
    match outcome {
        WriteOutcome::Committed(versionstamp) => Ok(versionstamp),
        WriteOutcome::Rejected(text) => Err(Refusal::Rejected(text)),
        WriteOutcome::CheckFailed(_) => {
            Err(Refusal::Rejected("The id is that of another write.".to_owned()))
        }
    }
}

/// Up to `max` messages: the first, for which it waits, and those that come with it, until they
/// have [`MAX_POLLED_BYTES`]. Those that are there when the gateway is `stopping`.
async fn polled(
    listened: Listened,
    max: u32,
    wait: Duration,
    stopping: &CancellationToken,
) -> Result<(Vec<QueuedMessage>, oneshot::Sender<Vec<MessageKey>>), Refusal> {
    let Listened { mut heard, enough } = listened;
    let mut messages: Vec<QueuedMessage> = Vec::new();
    let mut until = Instant::now() + wait;
    let mut bytes = 0;
    while messages.len() < max as usize && bytes < MAX_POLLED_BYTES {
        let next = tokio::select! {
            biased;
            next = timeout_at(until, heard.next()) => next,
            () = stopping.cancelled() => break,
        };
        match next {
            Ok(Some(Heard::Messages(more))) => {
                until = until.min(Instant::now() + TOGETHER);
                bytes += more.iter().map(|message| message.payload.len()).sum::<usize>();
                messages.extend(more);
            }
            Ok(Some(Heard::Released(keys))) => {
                messages.retain(|message| !keys.contains(&message.key));
            }
            Ok(Some(Heard::Ended(reason))) if messages.is_empty() => {
                return Err(Refusal::Unavailable(reason));
            }
            Ok(Some(Heard::Ended(_)) | None) | Err(_) => break,
        }
    }
    Ok((messages, enough))
}
