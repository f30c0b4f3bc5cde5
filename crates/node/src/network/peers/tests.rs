use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::Stream;
use meridian_config::DevLayout;
use meridian_proto::shipping as wire;
use meridian_proto::shipping::shipping_client::ShippingClient;
use meridian_proto::shipping::shipping_server::{self, ShippingServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// More than the frames of late answers for which a connection is closed where that is bounded,
/// 1024 by default.
const GIVEN_UP: u32 = 1500;

/// A node that answers no call before it may.
struct Slow {
    asked: Arc<AtomicU32>,
    answers: watch::Receiver<bool>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl shipping_server::Shipping for Slow {
    type SubscribeStream = Answers<wire::Shipment>;
    type FetchStateStream = Answers<wire::StateChunk>;

    async fn subscribe(
        &self,
        _: Request<Streaming<wire::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_state(
        &self,
        _: Request<wire::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn announce(
        &self,
        _: Request<Streaming<wire::AnnounceRequest>>,
    ) -> Result<Response<wire::AnnounceResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.answers.clone().wait_for(|may| *may).await);
        Ok(Response::new(wire::AnnounceResponse {}))
    }
}

/// One connection through which nothing that the client sends comes while it is `held`; answers do.
async fn relay(listener: TcpListener, to: String, held: watch::Receiver<bool>) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(to).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    let (mut held, mut buffer) = (held, [0; 4096]);
    while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
        drop(held.wait_for(|held| !held).await);
        to_server.write_all(&buffer[..count]).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_outlives_any_number_of_answers_that_come_too_late() {
    let (asked, answers, held) =
        (Arc::new(AtomicU32::new(0)), watch::Sender::new(false), watch::Sender::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let slow = Slow { asked: Arc::clone(&asked), answers: answers.subscribe() };
    let serve = tonic::transport::Server::builder().max_concurrent_streams(Some(2 * GIVEN_UP));
    tokio::spawn(
        { serve }
            .add_service(ShippingServer::new(slow))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let relayed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = relayed.local_addr().unwrap().to_string();
    tokio::spawn(relay(relayed, server, held.subscribe()));

    let cluster = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap();
    let call = || {
        let mut client = ShippingClient::new(peers.requests(NodeId(1)).unwrap());
        tokio::spawn(async move {
            client.announce(tokio_stream::once(wire::AnnounceRequest::default())).await
        })
    };
    let waiting = call();
    let given_up: Vec<_> = (0..GIVEN_UP).map(|_| call()).collect();
    while asked.load(Ordering::SeqCst) <= GIVEN_UP {
        tokio::task::yield_now().await;
    }
    // They are given up, and the node does not hear of it before it has answered.
    held.send_replace(true);
    for call in given_up {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    answers.send_replace(true);
    waiting.await.unwrap().unwrap();
    held.send_replace(false);
    call().await.unwrap().unwrap();
}
