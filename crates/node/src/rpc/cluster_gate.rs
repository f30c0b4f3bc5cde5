//! Refuses calls that are meant for another cluster, and those whose caller may not make them.
//!
//! An address may be given to another machine, a configuration may hold a wrong one, a copy of a
//! cluster may run beside it with the same names and numbers: a node that is called for another
//! cluster refuses, and both go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use meridian_net::{Caller, Mutual};
use meridian_pki::Holder;
use meridian_proto::CallingNode;
use meridian_proto::admin::admin_server;
use meridian_proto::directory::{directory_server, membership_server};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tower_layer::Layer;

use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::network::identity::meant;
use crate::rpc::authorization::{Judge, Principal};
use crate::rpc::roles::{self, Need};

/// Operators and nodes that join know only an address. The calls open to them say which cluster
/// they concern.
fn is_open(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some(admin_server::SERVICE_NAME | membership_server::SERVICE_NAME), _) => true,
        (Some(directory_server::SERVICE_NAME), Some(method)) => method != "Renew",
        _ => false,
    }
}

/// Why a call of `path` that is meant for the cluster `meant` is not for one of the cluster `own`.
fn refusal(own: Option<&str>, meant: Option<&str>, path: &str) -> Option<String> {
    match (own, meant) {
        _ if own == meant => None,
        (_, None) if is_open(path) => None,
        (Some(own), Some(meant)) => {
            Some(format!("this node is of cluster {own}, the call is for cluster {meant}"))
        }
        (Some(own), None) => {
            Some(format!("this node is of cluster {own}, and the call names none"))
        }
        (None, _) => {
            Some("this node does not know its cluster yet, and the call names one".to_owned())
        }
    }
}

/// Between two looks whether certificates of live connections have expired.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Refuses calls before anything else sees them.
#[derive(Clone)]
pub(crate) struct ClusterGate {
    pub(crate) directory: Arc<Directory>,
    pub(crate) mutual: Arc<Mutual>,
    pub(crate) plain: Arc<PlainCalls>,
}

/// When another node or a gateway called in the clear last.
#[derive(Debug, Default)]
pub(crate) struct PlainCalls(AtomicU64);

impl PlainCalls {
    fn note(&self) {
        self.0.store(wall_ms(), Ordering::Relaxed);
    }

    /// `None`: never.
    pub(crate) fn age_ms(&self) -> Option<u64> {
        let last = Some(self.0.load(Ordering::Relaxed)).filter(|last| *last > 0)?;
        Some(wall_ms().saturating_sub(last))
    }
}

/// Ends connections whose certificates are believed no more, accepted and dialled, and accepted ones
/// in the clear once the transport asks for TLS, with their streams, until `stop`.
pub(crate) async fn end_refused(
    directory: Arc<Directory>,
    mutual: Arc<Mutual>,
    stop: CancellationToken,
) {
    let mut known = directory.watch();
    loop {
        let (present, own) = (Arc::clone(&known.borrow_and_update()), mutual.own());
        mutual.end_unless(move |claims| {
            Judge::new(&present.cluster, own.as_deref()).may_stay(claims)
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = known.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl ClusterGate {
    /// Judges a call, and tells its connection.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn let_through<I>(&self, request: &Request<I>) -> Result<Principal, Status> {
        // An unknown method is answered as such, by what lies behind.
        let need = roles::of_path(request.uri().path()).unwrap_or(Need::Nothing);
        let judged = self.judge(request, need);
        if let Some(Caller { standing, .. }) = request.extensions().get::<Caller>() {
            match &judged {
                Ok(_) if need == Need::Nothing => standing.note_open_to_all(),
                Ok(_) => standing.note_proven(),
                Err(_) => standing.note_refused(),
            }
        }
        judged
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn judge<I>(&self, request: &Request<I>, need: Need) -> Result<Principal, Status> {
        let (known, uri) = (self.directory.known(), request.uri());
        let cluster = &known.cluster;
        let own = self.mutual.own();
        let judge = Judge::new(cluster, own.as_deref());
        let caller = request.extensions().get::<Caller>();
        let let_through = judge.let_through(caller, request.headers(), need);
        let principal = let_through.inspect_err(|status| {
            metrics::counter!("meridian_refused_calls_total").increment(1);
            let address = caller.and_then(|caller| caller.address);
            tracing::debug!(?address, path = uri.path(), %status, "a call was refused");
        })?;
        if principal.holder.is_none() && matches!(need, Need::Peer | Need::Gateway) {
            self.plain.note();
        }
        let Some(reason) = refusal(cluster.id.as_deref(), meant(uri.authority()), uri.path())
        else {
            return Ok(principal);
        };
        metrics::counter!("meridian_foreign_calls_total").increment(1);
        tracing::debug!(path = uri.path(), reason, "a call for another cluster was refused");
        Err(Status::failed_precondition(reason))
    }
}

impl<S> Layer<S> for ClusterGate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

#[derive(Clone)]
pub(crate) struct Gated<S> {
    gate: ClusterGate,
    inner: S,
}

impl<S, I, O> Service<Request<I>> for Gated<S>
where
    S: Service<Request<I>, Response = Response<O>>,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<I>) -> Self::Future {
        match self.gate.let_through(&request) {
            Ok(principal) => {
                if let Some(Holder::Node(node)) = principal.holder {
                    request.extensions_mut().insert(CallingNode(node));
                }
                request.extensions_mut().insert(principal);
                Either::Right(self.inner.call(request))
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::FutureExt;
    use meridian_directory::Cluster;
    use meridian_gateway::Access;

    use super::*;
    use crate::network::identity::origin;
    use meridian_config::DevLayout;

    /// Counts the calls that come through.
    struct Counting<'a> {
        calls: &'a Cell<usize>,
        is_ready: bool,
    }

    impl Service<Request<()>> for Counting<'_> {
        type Response = Response<()>;
        type Error = std::convert::Infallible;
        type Future = Ready<Result<Response<()>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            if self.is_ready { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            self.calls.set(self.calls.get() + 1);
            ready(Ok(Response::new(())))
        }
    }

    #[test]
    fn a_call_for_another_cluster_does_not_come_through_the_gate() {
        let founded =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let cluster = Cluster { version: 1, id: Some("00aa".to_owned()), ..founded };
        let gate = ClusterGate {
            directory: Arc::new(Directory::new(cluster, Access::default(), None)),
            mutual: Arc::new(Mutual::empty()),
            plain: Arc::default(),
        };
        let calls = Cell::new(0);
        let mut gated = gate.layer(Counting { calls: &calls, is_ready: true });
        let mut call = |cluster: &str| {
            let uri = format!("{}meridian.raft.v1.Raft/Append", origin(cluster).unwrap());
            let answer =
                gated.call(Request::get(uri).body(()).unwrap()).now_or_never().unwrap().unwrap();
            answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
        };
        assert_eq!(call("00bb").as_deref(), Some("9"), "FAILED_PRECONDITION");
        assert_eq!(calls.get(), 0);
        assert_eq!(call("00aa"), None);
        assert_eq!(calls.get(), 1);
    }

    #[test]
    fn the_gate_is_ready_when_what_lies_behind_it_is() {
        let founded =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(founded.clone(), Access::default(), None));
        let (gate, calls) = (
            ClusterGate { directory, mutual: Arc::new(Mutual::empty()), plain: Arc::default() },
            Cell::new(0),
        );
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for is_ready in [false, true] {
            let mut gated = gate.layer(Counting { calls: &calls, is_ready });
            assert_eq!(gated.poll_ready(&mut cx).is_ready(), is_ready);
        }
    }

    #[test]
    fn what_is_meant_for_another_cluster_is_refused() {
        let raft = "/meridian.raft.v1.Raft/Append";
        let (own, other) = (Some("a"), Some("b"));
        assert_eq!(refusal(own, own, raft), None);
        assert!(
            refusal(own, other, raft).unwrap().contains("cluster a, the call is for cluster b")
        );
        assert!(refusal(own, None, raft).is_some());
        // A cluster that is about to be made is told from an existing one.
        assert_eq!(refusal(None, None, raft), None);
        assert!(refusal(None, other, raft).is_some());
    }

    #[test]
    fn operators_and_joining_nodes_need_not_name_it() {
        let directory = |method: &str| format!("/{}/{method}", directory_server::SERVICE_NAME);
        for open in [
            directory("Follow"),
            directory("Inspect"),
            format!("/{}/Status", admin_server::SERVICE_NAME),
        ] {
            assert_eq!(refusal(Some("a"), None, &open), None, "{open}");
            // If they name one, it is meant.
            assert!(refusal(Some("a"), Some("b"), &open).is_some());
        }
        for closed in [directory("Renew"), "/".to_owned(), String::new(), "/x/Status".to_owned()] {
            assert!(refusal(Some("a"), None, &closed).is_some(), "{closed}");
        }
    }
}
