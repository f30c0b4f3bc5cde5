//! Answers that count until they have left: an encoded answer that its caller does not let come takes
//! as much memory as before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::Map;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::{Extensions, Status};
use tower_layer::Layer;

use crate::read::execution::counted;

/// A place that an answer takes until the last of its bytes has left. An extension of the answer.
#[derive(Clone)]
pub(crate) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Place {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }

    /// An answer that takes this place.
    pub(crate) fn of<T>(self, message: T) -> tonic::Response<T> {
        let mut extensions = Extensions::default();
        extensions.insert(self);
        tonic::Response::from_parts(tonic::metadata::MetadataMap::new(), message, extensions)
    }
}

/// The body of an answer with a place.
struct Leaving {
    body: Body,
    place: Place,
}

impl hyper::body::Body for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let placed = |bytes| counted(bytes, this.place.clone());
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(placed))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Holds the places of answers.
#[derive(Clone)]
pub(crate) struct LeavingAnswers;

impl<S> Layer<S> for LeavingAnswers {
    type Service = Holding<S>;

    fn layer(&self, inner: S) -> Holding<S> {
        Holding(inner)
    }
}

#[derive(Clone)]
pub(crate) struct Holding<S>(S);

type Answered<E> = Result<Response<Body>, E>;

fn held<E>(answer: Answered<E>) -> Answered<E> {
    answer.map(|mut answer| match answer.extensions_mut().remove::<Place>() {
        Some(place) => answer.map(|body| Body::new(Leaving { body, place })),
        None => answer,
    })
}

impl<S, B> Service<Request<B>> for Holding<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Map<S::Future, fn(Answered<S::Error>) -> Answered<S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.0.call(request).map(held)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn place_of_an_answer_is_free_once_its_bytes_have_left() {
        let places = Arc::new(Semaphore::new(1));
        let place = Place::new(Arc::clone(&places).try_acquire_owned().unwrap());
        let mut answer = Response::new(Body::new(Full::new(Bytes::from_static(b"answer"))));
        answer.extensions_mut().insert(place);
        let answer: Answered<()> = Ok(answer);
        let mut body = held(answer).unwrap().into_body();
        let frame = body.frame().await.unwrap().unwrap();
        let bytes = frame.into_data().unwrap();
        assert!(body.frame().await.is_none());
        drop(body);
        // A connection that lets nothing come keeps them.
        assert_eq!((places.available_permits(), &bytes[..]), (0, &b"answer"[..]));
        drop(bytes);
        assert_eq!(places.available_permits(), 1);
    }
}
