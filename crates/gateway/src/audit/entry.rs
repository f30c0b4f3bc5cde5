//! The entry of one request: all that is known of it. The line is written when the last part of the program that knows of
//! the request is done with it: a write whose client has left has its outcome all the same.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::USER_AGENT;
use meridian_types::{Consistency, DatabaseId};

use super::Audit;
use super::line::Line;
use super::queue::{LINE_BYTES, Place, Whose};
use super::stream::AuditedStream;
use crate::access::digest;
use crate::answer::{Answer, AnswerBody};
use crate::failed_authentication::{FailedAuthentication, Fingerprint};
use crate::refusal::Refusal;
use crate::route::{QueueRoute, Route};
use crate::{Catalogue, head};

/// Of texts that clients or operators choose, in characters.
const MAX_TEXT: usize = 100;

/// A request as it came.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) route: Option<Route<'a>>,
    pub(crate) headers: &'a HeaderMap,
    /// Of the client. `None`: there is no connection, as in tests.
    pub(crate) address: Option<IpAddr>,
    pub(crate) began: Instant,
}

pub(crate) struct Entry {
    audit: Audit,
    began: Instant,
    number: u64,
    /// The token that was shown.
    whose: Whose,
    /// It has a line whatever comes of it.
    is_sampled: bool,
    open: Mutex<Open>,
}

struct Open {
    line: Line,
    place: Option<Place>,
    /// The room that was given back while the request waits.
    given_back: usize,
    /// The client has its answer, or will have it if it takes it.
    is_answered: bool,
    /// No token that opens the database was seen.
    is_strangers: bool,
    /// The outcome has a line whatever the sample.
    has_line: bool,
}

/// A request on its way through a gateway, which may have an audit log.
pub(crate) struct Audited<'a, C> {
    audit: Option<&'a Audit>,
    asked: Asked<'a>,
    catalogue: &'a C,
    entry: Option<Arc<Entry>>,
}

impl<'a, C: Catalogue> Audited<'a, C> {
    pub(crate) fn begin(audit: Option<&'a Audit>, asked: Asked<'a>, catalogue: &'a C) -> Self {
        let mut audited = Self { audit, asked, catalogue, entry: None };
        if let Some(audit) = audit {
            let number = audit.next_number();
            let is_sampled = audit.has_line(number);
            // Its outcome may turn out to be unknown when its client, and this, are gone.
            if is_sampled || asked.route.is_some_and(is_write) {
                audited.entry = Some(audited.enter(audit, number, is_sampled));
            }
        }
        audited
    }

    /// The entry of a request that is to have a line whatever comes of it, and of each write.
    pub(crate) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    fn enter(&self, audit: &Audit, number: u64, is_sampled: bool) -> Arc<Entry> {
        let line = begun(&audit.0.gateway, self.asked, self.catalogue);
        let token = head::bearer(self.asked.headers);
        let whose = token.map(|token| Whose::Token(audit.0.choice.hash_one(token)));
        let open = Open::new(line);
        let (began, audit) = (self.asked.began, audit.clone());
        let whose = whose.unwrap_or(Whose::Stranger);
        Arc::new(Entry { audit, began, number, whose, is_sampled, open: Mutex::new(open) })
    }

    /// Of a request that has a line for what came of it.
    fn late_entry(self) -> Option<Arc<Entry>> {
        let enter = |audit: &'a Audit| self.enter(audit, audit.next_number(), true);
        self.entry.clone().or_else(|| self.audit.map(enter))
    }

    /// Notes the answer, which may begin a stream.
    pub(crate) fn answered(self, answer: Answer) -> Answer {
        let Some(entry) = self.entry else { return answer };
        let mut open = entry.open();
        open.is_answered = true;
        open.line.set("status", u64::from(answer.status().as_u16()));
        match answer.body() {
            AnswerBody::Whole(bytes) => {
                open.line.replace("outcome", "abandoned", "ok");
                open.line.set("bytes_out", bytes.len());
            }
            AnswerBody::Frames(_) => open.line.set("outcome", "began"),
        }
        drop(open);
        answer.map(|body| match body {
            AnswerBody::Frames(frames) => {
                let end = entry.end_of_stream();
                AuditedStream::over(frames, move |has_ended, bytes| {
                    end.note(|line| {
                        line.happens();
                        line.set("outcome", if has_ended { "ended" } else { "closed" });
                        line.set("bytes_out", bytes);
                    });
                })
            }
            whole @ AnswerBody::Whole(_) => whole,
        })
    }

    pub(crate) fn refused(self, refusal: &Refusal, failed: Option<FailedAuthentication>) {
        let Some(entry) = self.late_entry() else { return };
        let mut open = entry.open();
        (open.is_answered, open.has_line) = (true, true);
        open.is_strangers = refusal.is_to_a_stranger();
        open.line.set("status", u64::from(refusal.status().as_u16()));
        open.line.set("outcome", "refused");
        open.line.set("reason", failed.map_or(refusal.class(), |failed| failed.reason.label()));
    }

    /// A write has an unknown outcome, so that its client has no answer.
    pub(crate) fn unanswered(self) {
        if let Some(entry) = self.late_entry() {
            let mut open = entry.open();
            (open.is_strangers, open.has_line) = (false, true);
            open.line.set("outcome", "unknown");
        }
    }
}

pub(super) fn begun(gateway: &str, asked: Asked<'_>, catalogue: &impl Catalogue) -> Line {
    let Asked { route, headers, address, began } = asked;
    let (operation, consistency) = names(route);
    let mut line = Line::begun_before(gateway, began.elapsed());
    line.set("operation", operation);
    line.set("outcome", "abandoned");
    if let Some(consistency) = consistency {
        line.set("consistency", consistency_word(consistency));
    }
    if let Some(address) = address {
        line.set("address", address.to_string());
    }
    if let Ok(token) = head::bearer(headers) {
        let digest = digest(token);
        line.set("token", Fingerprint::of(digest).to_string());
        if let Some(name) = catalogue.token_name(&digest) {
            line.set("token_id", name.id);
            line.set("token_label", shortened(&name.label));
        }
    }
    // The path of a metadata exchange says which database, once it is known.
    if let Ok(database) = head::database_id(headers) {
        named(&mut line, database, catalogue);
    }
    if let Some(agent) = headers.get(USER_AGENT) {
        line.set("user_agent", shortened(&String::from_utf8_lossy(agent.as_bytes())));
    }
    line
}

/// The database of a request, which may not be there.
pub(super) fn named(line: &mut Line, id: DatabaseId, catalogue: &impl Catalogue) {
    if let Some(name) = catalogue.name(id) {
        line.set("database", name);
    }
    line.set("database_id", id.to_string());
}

pub(super) fn consistency_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Strong => "strong",
        Consistency::Eventual => "eventual",
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn names(route: Option<Route<'_>>) -> (&'static str, Option<Consistency>) {
    match route {
        None => ("unknown", None),
        Some(Route::Metadata(_)) => ("metadata", None),
        Some(Route::SnapshotRead(consistency)) => ("snapshot_read", Some(consistency)),
        Some(Route::Watch(consistency)) => ("watch", Some(consistency)),
        Some(Route::AtomicWrite) => ("atomic_write", None),
        Some(Route::Changes) => ("changes", None),
        Some(Route::File(_)) => ("file", None),
        Some(Route::Queue(route)) => {
            let name = match route {
                QueueRoute::Listen => "listen",
                QueueRoute::Poll => "poll",
                QueueRoute::Report => "report",
                QueueRoute::Enqueue => "enqueue",
                QueueRoute::List => "list_queue",
                QueueRoute::Change => "change_queue",
            };
            (name, None)
        }
    }
}

fn is_write(route: Route<'_>) -> bool {
    matches!(route, Route::AtomicWrite | Route::Queue(QueueRoute::Enqueue | QueueRoute::Change))
}

impl Open {
    fn new(line: Line) -> Self {
        let (place, given_back) = (None, 0);
        Self { line, place, given_back, is_answered: false, is_strangers: true, has_line: false }
    }
}

impl Entry {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// Notes what came of the request, which has a line whatever the sample.
    pub(super) fn note_for_certain(&self, note: impl FnOnce(&mut Line)) {
        let mut open = self.open();
        open.has_line = true;
        note(&mut open.line);
    }

    pub(super) fn note(&self, note: impl FnOnce(&mut Line)) {
        note(&mut self.open().line);
    }

    /// The token opens the database: takes room for the line. Refuses the request if there is none,
    /// and operators want no operation without. A request that most likely has no line takes none.
    pub(super) fn admit(&self) -> Result<(), Refusal> {
        let mut open = self.open();
        open.is_strangers = false;
        if self.is_sampled { self.take(&mut open, LINE_BYTES) } else { Ok(()) }
    }

    fn take(&self, open: &mut Open, bytes: usize) -> Result<(), Refusal> {
        if open.place.is_none() {
            open.place = self.audit.place(self.whose, bytes);
        }
        if self.audit.refuses(open.place.as_ref()) { Err(Refusal::Unaudited) } else { Ok(()) }
    }

    /// Gives the room back, for as long as the request waits.
    pub(super) fn wait(&self) {
        let mut open = self.open();
        open.given_back = open.place.take().map_or(LINE_BYTES, |place| place.bytes());
    }

    /// Takes the room again that was given back.
    pub(super) fn go_on(&self) -> Result<(), Refusal> {
        let mut open = self.open();
        let bytes = open.given_back;
        self.take(&mut open, bytes)
    }

    /// Takes room for so many bytes more. `false`: they have no place in the line.
    pub(super) fn has_room(&self, bytes: usize) -> Result<bool, Refusal> {
        let has_room = self.open().place.as_mut().is_some_and(|place| place.grow(bytes));
        if !has_room && self.audit.refuses(None) { Err(Refusal::Unaudited) } else { Ok(has_room) }
    }

    /// The entry of the end of a stream that has begun.
    fn end_of_stream(&self) -> Arc<Entry> {
        let mut open = self.open();
        open.line.set("stream", self.number);
        let line = open.line.without(&["bytes_in", "parts", "parts_left_out"]);
        let Open { is_strangers, .. } = *open;
        let open = Mutex::new(Open { is_answered: true, is_strangers, ..Open::new(line) });
        let Self { began, number, whose, is_sampled, .. } = *self;
        Arc::new(Self { audit: self.audit.clone(), began, number, whose, is_sampled, open })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !self.is_sampled && !open.has_line {
            return;
        }
        let micros = self.began.elapsed().as_micros();
        open.line.set("duration_us", u64::try_from(micros).unwrap_or(u64::MAX));
        if !open.is_answered {
            open.line.set("answered", false);
        }
        let (place, whose) = match open.is_strangers {
            true => (None, Whose::Stranger),
            false => (open.place.take(), self.whose),
        };
        self.audit.push(&open.line, place, whose);
    }
}
