//! Bounds the memory and the time of requests until they are decoded: a caller may begin many, and
//! end none of them.
//!
//! The calls of other nodes have bounds of their own (the log's), and go on while gateways, operators or
//! strangers take all that is for these.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use hyper::body::{Frame, SizeHint};
use meridian_memory::{ByteBudget, Held};
use meridian_pki::Holder;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tower_layer::Layer;

use crate::rpc::authorization::Principal;
use crate::rpc::roles::{self, Need};

/// From the head of a request to the last of its bytes.
const WHOLE_WITHIN: Duration = Duration::from_secs(10);
/// Requests of callers without a proof that arrive at a time. Each is small.
const STRANGERS: usize = 64;

/// The bounds of all requests that arrive at a node.
#[derive(Clone)]
pub(crate) struct ArrivingRequests {
    bytes: ByteBudget,
    /// The part of each caller; `None`: of all that show no proof.
    held: Arc<Mutex<BTreeMap<Option<Holder>, Arc<AtomicUsize>>>>,
    strangers: Arc<Semaphore>,
    whole_within: Duration,
}

impl ArrivingRequests {
    pub(crate) fn new(bytes: ByteBudget) -> Self {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        Self { bytes, held: Arc::default(), strangers, whole_within: WHOLE_WITHIN }
    }

    /// # Errors
    /// `FAILED_PRECONDITION`, which says that nothing was done.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn bounded(&self, request: Request<Body>) -> Result<Request<Body>, Status> {
        let of_stranger = match roles::of_path(request.uri().path()) {
            // An unknown method is answered before its body is read.
            None | Some(Need::Peer) => return Ok(request),
            Some(Need::Nothing) => {
                let place = Arc::clone(&self.strangers).try_acquire_owned();
                let too_many = |_| Status::failed_precondition("too many requests without a proof");
                Some(place.map_err(too_many)?)
            }
            Some(_) => None,
        };
        let principal = request.extensions().get::<Principal>();
        let holder = principal.and_then(|principal| principal.holder.clone());
        let of_caller = Arc::clone(self.held.lock().entry(holder).or_default());
        Ok(request.map(|body| {
            let (bounds, _of_stranger) = (self.clone(), of_stranger);
            let held = HeldByCaller { of_caller, bytes: 0, held: None };
            Body::new(Arriving { body, bounds, held, late: None, _of_stranger })
        }))
    }
}

/// The bytes of one request, of its caller's part.
struct HeldByCaller {
    of_caller: Arc<AtomicUsize>,
    bytes: usize,
    held: Option<Held>,
}

impl HeldByCaller {
    /// # Errors
    /// Why there is no room for so many more, for people.
    fn grow(&mut self, bytes: usize, of_all: &ByteBudget) -> Result<(), String> {
        let before = self.of_caller.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        // A quarter is left to others, whatever one of them has begun.
        if before + bytes > of_all.total_bytes() / 4 * 3 {
            return Err("this caller has begun as many requests as it may".to_owned());
        }
        let held = match &mut self.held {
            Some(held) => held.try_grow(bytes),
            none => of_all.try_take(bytes).map(|held| *none = Some(held)),
        };
        held.map_err(|exhausted| exhausted.to_string())
    }
}

impl Drop for HeldByCaller {
    fn drop(&mut self) {
        self.of_caller.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body, and what it takes until it is decoded.
struct Arriving {
    body: Body,
    bounds: ArrivingRequests,
    held: HeldByCaller,
    /// Only where more was waited for.
    late: Option<Pin<Box<Sleep>>>,
    _of_stranger: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let within = this.bounds.whole_within;
            let late = this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
            let refused = || Some(Err(Status::failed_precondition("the request came too slowly")));
            return late.as_mut().poll(context).map(|()| refused());
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(why) = this.held.grow(data.len(), &this.bounds.bytes)
        {
            return Poll::Ready(Some(Err(Status::failed_precondition(why))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S> Layer<S> for ArrivingRequests {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { bounds: self.clone(), inner }
    }
}

#[derive(Clone)]
pub(crate) struct Bounded<S> {
    bounds: ArrivingRequests,
    inner: S,
}

impl<S, O> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<O>>,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.bounds.bounded(request) {
            Ok(request) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    const JOIN: &str = "/meridian.directory.v1.Membership/Join";
    const WRITE: &str = "/meridian.shard.v1.Shard/Write";
    const APPEND: &str = "/meridian.raft.v1.Raft/Append";

    type Sender = mpsc::UnboundedSender<Bytes>;

    /// A request whose body comes as it is sent, and ends with its sender.
    fn request(path: &str) -> (Sender, Request<Body>) {
        let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
        let frames = stream::unfold(receiver, |mut receiver| async {
            let data = receiver.recv().await?;
            Some((Ok::<_, Status>(Frame::data(data)), receiver))
        });
        (sender, Request::post(path).body(Body::new(StreamBody::new(Box::pin(frames)))).unwrap())
    }

    fn arriving(bytes: usize) -> ArrivingRequests {
        ArrivingRequests::new(ByteBudget::new("tests", bytes))
    }

    fn of(holder: Holder, mut request: Request<Body>) -> Request<Body> {
        request.extensions_mut().insert(Principal::for_test(holder, None));
        request
    }

    #[tokio::test]
    async fn requests_that_arrive_hold_no_more_than_the_budget_and_give_it_back() {
        let arriving = arriving(1000);
        let gateway = |name: &str| Holder::Gateway(name.to_owned());
        let begin = async |holder, bytes: &'static [u8]| {
            let (sender, request) = request(WRITE);
            sender.send(Bytes::from_static(bytes)).unwrap();
            let mut body = arriving.bounded(of(holder, request)).unwrap().into_body();
            let began = body.frame().await.unwrap();
            began.map(|_| (sender, body)).map_err(|refused| refused.code())
        };
        let half = begin(gateway("a"), &[1; 600]).await.unwrap();
        // A caller has no more than three quarters, and all together no more than all.
        let refused = tonic::Code::FailedPrecondition;
        assert_eq!(begin(gateway("a"), &[1; 200]).await.map(drop), Err(refused));
        let other = begin(gateway("b"), &[1; 300]).await.unwrap();
        assert_eq!(begin(gateway("c"), &[1; 200]).await.map(drop), Err(refused));
        // Nodes are served all the same.
        let (sender, of_node) = request(APPEND);
        sender.send(Bytes::from_static(&[1; 600])).unwrap();
        drop(sender);
        let whole = arriving.bounded(of_node).unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(whole.len(), 600);
        drop((half, other));
        drop(begin(gateway("a"), &[1; 700]).await.unwrap());
        assert_eq!(arriving.bytes.used_bytes(), 0);
    }

    #[tokio::test]
    async fn request_that_does_not_end_is_refused() {
        let whole_within = Duration::from_millis(50);
        let arriving = ArrivingRequests { whole_within, ..arriving(1000) };
        let (sender, half) = request(WRITE);
        let mut half = arriving.bounded(half).unwrap().into_body();
        sender.send(Bytes::from_static(b"half")).unwrap();
        half.frame().await.unwrap().unwrap();
        let refused = half.frame().await.unwrap().unwrap_err();
        assert!(refused.message().contains("too slowly"), "{refused}");
    }

    #[test]
    fn strangers_have_a_bounded_number_of_requests_and_others_go_on() {
        let arriving = arriving(1000);
        let begun: Vec<_> =
            (0..STRANGERS).map(|_| arriving.bounded(request(JOIN).1).unwrap()).collect();
        assert!(arriving.bounded(request(JOIN).1).is_err());
        assert!(arriving.bounded(request(WRITE).1).is_ok());
        drop(begun);
        assert!(arriving.bounded(request(JOIN).1).is_ok());
    }
}
