//! Writes that a client sends one after the other, without waiting for their answers.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::net::TcpStream;

use crate::support::{MAIN_TEXT, Server, WRITER, set};

fn request(write: &pb::AtomicWrite) -> Request<Full<Bytes>> {
    Request::post("http://kv.test:4512/kv/strong/atomic_write")
        .header("authorization", format!("Bearer {WRITER}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", MAIN_TEXT)
        .body(Full::new(write.encode_to_vec().into()))
        .unwrap()
}

/// On one thread, so that the writes leave in this order.
async fn versionstamps(address: std::net::SocketAddr) -> Vec<Vec<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    let mut rounds = Vec::new();
    for _ in 0..50 {
        sender.ready().await.unwrap();
        let sent: Vec<_> = (0..20).map(|_| sender.send_request(request(&set("k", "v")))).collect();
        let mut stamps = Vec::new();
        for response in sent {
            let body = response.await.unwrap().into_body().collect().await.unwrap().to_bytes();
            stamps.push(pb::AtomicWriteOutput::decode(body).unwrap().versionstamp);
        }
        rounds.push(stamps);
    }
    rounds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_of_one_connection_take_effect_in_the_order_of_arrival() {
    let server = Server::start().await;
    let address = server.address;
    let client = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(versionstamps(address))
    });
    let rounds = tokio::task::spawn_blocking(move || client.join().unwrap()).await.unwrap();
    let in_order = rounds.iter().filter(|stamps| stamps.is_sorted()).count();
    assert_eq!(in_order, rounds.len(), "of so many rounds of twenty");
}
