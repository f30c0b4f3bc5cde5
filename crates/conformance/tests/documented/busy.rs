//! Answers of a gateway that has no room, or no time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::poll;
use http_body_util::Full;
use hyper::Request;
use hyper::body::{Body, Frame};
use meridian_conformance::{Catalogue, DATABASE, Meridian, WRITER_TOKEN, whole};
use meridian_gateway::{Answer, Audit, AuditSettings, Options, Sample, Unanswered, WhenFull};
use meridian_kv_client::message::{range, set};
use meridian_proto::kv_connect as pb;
use meridian_types::{Quota, Quotas};
use prost::Message;

use crate::server::{Answered, READ, WATCH, WRITE};

/// A body that begins with these bytes, and never ends.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

fn request(path: &str, begin: &Bytes) -> Request<Endless> {
    Request::post(path)
        .version(hyper::Version::HTTP_2)
        .header("authorization", format!("Bearer {WRITER_TOKEN}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DATABASE.to_string())
        .body(Endless(Some(begin.clone())))
        .unwrap()
}

fn answered(case: &'static str, answer: Result<Answer, Unanswered>) -> Answered {
    let (status, text) = whole(answer.unwrap());
    Answered { case, status: status.as_u16(), text: String::from_utf8(text.to_vec()).unwrap() }
}

fn meridian() -> Meridian {
    let options = Options { max_answers_bytes: 16 << 20, ..Options::default() };
    Meridian::new(options, Catalogue::default()).unwrap()
}

async fn first_refusal(case: &'static str, path: &str, begin: Bytes) -> Answered {
    first_refusal_of(meridian(), case, path, begin).await
}

/// Begins such requests until one is refused, while the others wait for their bodies.
async fn first_refusal_of(
    meridian: Meridian,
    case: &'static str,
    path: &str,
    begin: Bytes,
) -> Answered {
    let mut waiting = Vec::new();
    for _ in 0..20_000 {
        let mut handling = Box::pin(meridian.gateway.handle(request(path, &begin)));
        match poll!(&mut handling) {
            Poll::Ready(answer) => return answered(case, answer),
            Poll::Pending => waiting.push(handling),
        }
    }
    panic!("{case}: {} requests are in progress", waiting.len());
}

pub(crate) async fn answers() -> Vec<Answered> {
    let requests = "more requests than the gateway takes, or than this token's part";
    let none = Bytes::new();
    let megabyte = Bytes::from(vec![0; 1 << 20]);
    // As many requests that watches come to their own bound before.
    let many = Options { max_concurrent_requests: 100_000, ..Options::default() };
    let many = Meridian::new(many, Catalogue::default()).unwrap();
    vec![
        first_refusal_of(many, "more watches", WATCH, none.clone()).await,
        first_refusal(requests, READ, none.clone()).await,
        first_refusal(requests, WRITE, none.clone()).await,
        first_refusal("more metadata requests", "/", none).await,
        first_refusal("more bytes of bodies", WRITE, megabyte).await,
        listeners().await,
        database_quota().await,
        token_quota().await,
        unread_answers().await,
        stopping().await,
        full_audit_log().await,
        late_body().await,
    ]
}

async fn listeners() -> Answered {
    let meridian = meridian();
    let listen = || {
        let request = request("/kv/queue/listen", &Bytes::new());
        meridian.gateway.handle(request.map(|_| Full::<Bytes>::default()))
    };
    let mut open = Vec::new();
    for _ in 0..20_000 {
        let answer = listen().await;
        if answer.as_ref().is_ok_and(|answer| answer.status() != 200) {
            return answered("more listeners", answer);
        }
        open.push(answer);
    }
    panic!("{} listeners are open", open.len());
}

fn quota(quota: Quota, value: u64) -> Quotas {
    [(quota, value.try_into().unwrap())].into_iter().collect()
}

async fn database_quota() -> Answered {
    let quotas = quota(Quota::RequestsPerSecond, 100);
    let catalogue = Catalogue { quotas, ..Catalogue::default() };
    let meridian = Meridian::new(Options::default(), catalogue).unwrap();
    let case = "a quota of the database is used up, beyond what may wait for a second (`retry-after` says when to come again)";
    first_refusal_of(meridian, case, READ, Bytes::new()).await
}

async fn token_quota() -> Answered {
    let token_quotas = quota(Quota::Watches, 20);
    let catalogue = Catalogue { token_quotas, ..Catalogue::default() };
    let meridian = Meridian::new(Options::default(), catalogue).unwrap();
    first_refusal_of(meridian, "a quota of the token is used up", WATCH, Bytes::new()).await
}

async fn unread_answers() -> Answered {
    let meridian = meridian();
    let post =
        async |path, body: Vec<u8>| meridian.post(path, DATABASE, body.into()).await.unwrap();
    for number in 0..4u8 {
        let mutations =
            (0..10).map(|key| set(&[number, key], &vec![0; 65_536])).collect::<Vec<_>>();
        let write = pb::AtomicWrite { mutations, ..Default::default() };
        assert_eq!(post(WRITE, write.encode_to_vec()).await.0, 200);
    }
    let read = pb::SnapshotRead { ranges: vec![range(b"", b"\xff", 1000)] }.encode_to_vec();
    let mut unread = Vec::new();
    for _ in 0..100 {
        let (status, body) = post(READ, read.clone()).await;
        if status != 200 {
            let text = String::from_utf8(body.to_vec()).unwrap();
            return Answered { case: "more bytes of answers", status: status.as_u16(), text };
        }
        unread.push(body);
    }
    panic!("{} answers are not read", unread.len());
}

async fn stopping() -> Answered {
    let meridian = meridian();
    let mut in_progress = Box::pin(meridian.gateway.handle(request(READ, &Bytes::new())));
    assert!(poll!(&mut in_progress).is_pending());
    let mut draining = Box::pin(meridian.gateway.drained());
    assert!(poll!(&mut draining).is_pending());
    let answer = meridian.gateway.handle(request(READ, &Bytes::new())).await;
    drop(in_progress);
    draining.await;
    answered("a gateway that is stopping", answer)
}

async fn full_audit_log() -> Answered {
    let settings = AuditSettings {
        file: "/dev/full".into(),
        sample: Sample::ALL,
        keys: false,
        values: false,
        when_full: WhenFull::Refuse,
    };
    let audit = Audit::open(settings, "a").unwrap();
    while audit.warning().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let options = Options { audit: Some(audit), ..Options::default() };
    let meridian = Meridian::new(options, Catalogue::default()).unwrap();
    let answer = meridian.gateway.handle(request(READ, &Bytes::new())).await;
    answered(
        "an audit log without which nothing is to be done has no room, or cannot be written",
        answer,
    )
}

async fn late_body() -> Answered {
    assert_eq!(Options::default().body_timeout, Duration::from_secs(30));
    let options = Options { body_timeout: Duration::from_millis(20), ..Options::default() };
    let meridian = Meridian::new(options, Catalogue::default()).unwrap();
    let answer = meridian.gateway.handle(request(WRITE, &Bytes::new())).await;
    answered("a body that stays away for 30 s", answer)
}
