//! A member of etcd in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_bench::etcd::messages::compare::TargetUnion;
use meridian_bench::etcd::messages::request_op::Request as Operation;
use meridian_bench::etcd::messages::{
    CompareTarget, KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
    TxnRequest, TxnResponse,
};
use meridian_bench::etcd::{framed, unframed};
use tokio::net::TcpListener;

#[derive(Debug, Default)]
pub(crate) struct EtcdServer {
    pub(crate) state: Mutex<State>,
    /// Every so many puts, a status of gRPC instead. 0: never.
    pub(crate) refuse_every: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) entries: BTreeMap<Bytes, KeyValue>,
    revision: i64,
    pub(crate) puts: u64,
    pub(crate) refused: u64,
    pub(crate) conflicts: u64,
    pub(crate) linearizable_reads: u64,
    pub(crate) serializable_reads: u64,
}

impl EtcdServer {
    /// Serves until the runtime ends; the URL.
    pub(crate) async fn serve(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let server = Arc::clone(&self);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let server = Arc::clone(&server);
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok()
                });
            }
        });
        url
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut state = self.state.lock().unwrap();
        match head.uri.path() {
            "/etcdserverpb.KV/Range" => success(framed(&state.range(unframed(body).unwrap()))),
            "/etcdserverpb.KV/Put" => {
                state.puts += 1;
                if self.refuse_every > 0 && state.puts.is_multiple_of(self.refuse_every) {
                    state.refused += 1;
                    return no_leader();
                }
                state.revision += 1;
                state.put(unframed(body).unwrap());
                let header = Some(ResponseHeader { revision: state.revision });
                success(framed(&PutResponse { header }))
            }
            "/etcdserverpb.KV/Txn" => success(framed(&state.transaction(unframed(body).unwrap()))),
            path => panic!("no method {path}"),
        }
    }
}

impl State {
    fn range(&mut self, range: RangeRequest) -> RangeResponse {
        if range.serializable {
            self.serializable_reads += 1
        } else {
            self.linearizable_reads += 1
        }
        let limit =
            if range.limit == 0 { usize::MAX } else { usize::try_from(range.limit).unwrap() };
        let kvs = if range.range_end.is_empty() {
            self.entries.get(&range.key).cloned().into_iter().collect()
        } else {
            self.entries
                .range(range.key..range.range_end)
                .take(limit)
                .map(|(_, entry)| entry.clone())
                .collect()
        };
        RangeResponse { kvs }
    }

    fn put(&mut self, put: PutRequest) {
        let entry =
            KeyValue { key: put.key.clone(), mod_revision: self.revision, value: put.value };
        self.entries.insert(put.key, entry);
    }

    fn transaction(&mut self, transaction: TxnRequest) -> TxnResponse {
        let succeeded = transaction.compare.iter().all(|compare| {
            assert_eq!(compare.target(), CompareTarget::Mod);
            let found = self.entries.get(&compare.key).map_or(0, |entry| entry.mod_revision);
            compare.target_union == Some(TargetUnion::ModRevision(found))
        });
        if !succeeded {
            self.conflicts += 1;
            return TxnResponse { succeeded };
        }
        self.revision += 1;
        for one in transaction.success {
            let Some(Operation::RequestPut(put)) = one.request else { panic!("no put") };
            self.put(put);
        }
        TxnResponse { succeeded }
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A message, and the trailers behind it.
fn success(message: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Response::new(Full::new(message).with_trailers(async { Some(Ok(trailers)) }).boxed_unsync())
}

/// Only trailers, which then are the header.
fn no_leader() -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
    response
        .headers_mut()
        .insert("grpc-message", HeaderValue::from_static("etcdserver: no leader"));
    response
}
