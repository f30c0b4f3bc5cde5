//! The metrics of a gateway.

use std::time::Instant;

use hyper::StatusCode;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use meridian_types::Quota;

use crate::audit;
use crate::failed_authentication::Reason;
use crate::refusal::Overload;
use crate::route::Route;

const REQUESTS: &str = "meridian_gateway_requests_total";
const UNAUTHORIZED: &str = "meridian_gateway_authentication_failures_total";
const OVERLOADED: &str = "meridian_gateway_overloads_total";
const OVER_QUOTA: &str = "meridian_gateway_quota_refusals_total";
const EVICTED: &str = "meridian_gateway_evicted_connections_total";
const WATCHES: &str = "meridian_gateway_open_watches";
const FEEDS: &str = "meridian_gateway_open_change_feeds";
const SECONDS: &str = "meridian_gateway_request_duration_seconds";

/// The handles of a gateway's metrics, made once: counting a request costs two atomic additions and
/// a clock reading.
pub(crate) struct Telemetry {
    metadata: Operation,
    snapshot_read: Operation,
    watch: Operation,
    atomic_write: Operation,
    changes: Operation,
    file: Operation,
    queue: Operation,
    unknown: Operation,
    unauthorized: [(Reason, Counter); Reason::EVERY.len()],
    too_many_requests: Counter,
    too_many_metadata: Counter,
    too_many_bodies: Counter,
    too_many_answers: Counter,
    too_many_watches: Counter,
    too_many_listeners: Counter,
    too_many_feeds: Counter,
    evicted: Counter,
    /// Without the quotas on what is stored, which the leaders of shards keep and count.
    over_quota: Vec<(Quota, Counter)>,
    open_watches: Gauge,
    open_feeds: Gauge,
}

struct Operation {
    success: Counter,
    client_error: Counter,
    server_error: Counter,
    unanswered: Counter,
    seconds: Histogram,
}

impl Telemetry {
    /// Registers the metrics with the recorder that is installed at the time of the call.
    pub(crate) fn new() -> Self {
        describe_counter!(REQUESTS, "Requests by operation and class of status.");
        describe_histogram!(SECONDS, Unit::Seconds, "From a request's head to its answer.");
        describe_counter!(
            UNAUTHORIZED,
            "Requests without a token that opens their database, by reason."
        );
        describe_counter!(OVERLOADED, "Requests refused with 503, by what there was too much of.");
        describe_counter!(OVER_QUOTA, "Requests refused since a quota is used up, by quota.");
        describe_counter!(EVICTED, "Connections closed to make room for others.");
        describe_gauge!(FEEDS, "Change feeds whose answers stream at present.");
        describe_gauge!(WATCHES, "Watches whose answers stream at present.");
        // Also where there is no audit log.
        drop(audit::Counters::new());
        let overloaded = |what: Overload| counter!(OVERLOADED, "of" => what.label());
        Self {
            metadata: Operation::new("metadata"),
            snapshot_read: Operation::new("snapshot_read"),
            watch: Operation::new("watch"),
            atomic_write: Operation::new("atomic_write"),
            changes: Operation::new("changes"),
            file: Operation::new("file"),
            queue: Operation::new("queue"),
            unknown: Operation::new("unknown"),
            unauthorized: Reason::EVERY
                .map(|reason| (reason, counter!(UNAUTHORIZED, "reason" => reason.label()))),
            too_many_requests: overloaded(Overload::Requests),
            too_many_metadata: overloaded(Overload::Metadata),
            too_many_bodies: overloaded(Overload::Bodies),
            too_many_answers: overloaded(Overload::Answers),
            too_many_watches: overloaded(Overload::Watches),
            too_many_listeners: overloaded(Overload::Listeners),
            too_many_feeds: overloaded(Overload::ChangeFeeds),
            evicted: counter!(EVICTED),
            over_quota: Quota::EVERY
                .into_iter()
                .filter(|quota| !quota.is_stored())
                .map(|quota| (quota, counter!(OVER_QUOTA, "quota" => quota.name())))
                .collect(),
            open_watches: gauge!(WATCHES),
            open_feeds: gauge!(FEEDS),
        }
    }

    pub(crate) fn unauthorized(&self, reason: Reason) {
        let counter = self.unauthorized.iter().find(|(counted, _)| *counted == reason);
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
    }

    pub(crate) fn overloaded(&self, what: Overload) {
        match what {
            Overload::Requests => &self.too_many_requests,
            Overload::Metadata => &self.too_many_metadata,
            Overload::Bodies => &self.too_many_bodies,
            Overload::Answers => &self.too_many_answers,
            Overload::Watches => &self.too_many_watches,
            Overload::Listeners => &self.too_many_listeners,
            Overload::ChangeFeeds => &self.too_many_feeds,
        }
        .increment(1);
    }

    pub(crate) fn over_quota(&self, quota: Quota) {
        let counter = self.over_quota.iter().find(|(counted, _)| *counted == quota);
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
    }

    pub(crate) fn open_watches(&self) -> &Gauge {
        &self.open_watches
    }

    pub(crate) fn open_feeds(&self) -> &Gauge {
        &self.open_feeds
    }

    pub(crate) fn evicted(&self, connections: u64) {
        self.evicted.increment(connections);
    }

    /// Counts a request that began at `start`; a watch or a change feed when its
    /// answer begins. `status` is `None` for a request that was dropped
    /// unanswered.
    pub(crate) fn record(
        &self,
        route: Option<Route<'_>>,
        status: Option<StatusCode>,
        start: Instant,
    ) {
        let operation = match route {
            Some(Route::Metadata(_)) => &self.metadata,
            Some(Route::SnapshotRead(_)) => &self.snapshot_read,
            Some(Route::Watch(_)) => &self.watch,
            Some(Route::AtomicWrite) => &self.atomic_write,
            Some(Route::Changes) => &self.changes,
            Some(Route::File(_)) => &self.file,
            Some(Route::Queue(_)) => &self.queue,
            None => &self.unknown,
        };
        let class = match status {
            None => &operation.unanswered,
            Some(status) if status.is_server_error() => &operation.server_error,
            Some(status) if status.is_client_error() => &operation.client_error,
            Some(_) => &operation.success,
        };
        class.increment(1);
        operation.seconds.record(start.elapsed().as_secs_f64());
    }
}

impl Operation {
    fn new(operation: &'static str) -> Self {
        let class =
            |status: &'static str| counter!(REQUESTS, "operation" => operation, "status" => status);
        Self {
            success: class("2xx"),
            client_error: class("4xx"),
            server_error: class("5xx"),
            unanswered: class("unanswered"),
            seconds: histogram!(SECONDS, "operation" => operation),
        }
    }
}
