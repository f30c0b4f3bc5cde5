use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::Stream;
use meridian_config::DevLayout;
use meridian_pki::Holder;
use meridian_proto::queue::{self, queue_client::QueueClient, queue_server};
use meridian_proto::shipping as wire;
use meridian_proto::shipping::shipping_client::ShippingClient;
use meridian_proto::shipping::shipping_server::{self, ShippingServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::testing::{CLUSTER, authority, mutual};

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

/// A leader that has parts for its listeners without end: how many it has made for each.
#[derive(Default)]
struct Endless {
    made: Arc<RwLock<Vec<Arc<AtomicU32>>>>,
}

const PART_BYTES: usize = 128 << 10;

#[tonic::async_trait]
impl queue_server::Queue for Endless {
    type ListenStream = Answers<queue::ListenPart>;

    async fn listen(
        &self,
        _: Request<queue::ListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        let made = Arc::<AtomicU32>::default();
        self.made.write().push(Arc::clone(&made));
        let part = queue::listen_part::Part::Unavailable("x".repeat(PART_BYTES));
        let parts = std::iter::repeat_with(move || {
            made.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Status>(queue::ListenPart { part: Some(part.clone()) })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn report(
        &self,
        _: Request<queue::ReportRequest>,
    ) -> Result<Response<queue::ReportResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list(
        &self,
        _: Request<queue::ListRequest>,
    ) -> Result<Response<queue::ListResponse>, Status> {
        Err(Status::unimplemented("not here"))
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

/// One connection has the streams of all listeners of a gateway.
#[tokio::test]
async fn streams_of_listeners_that_are_not_read_have_little_on_the_way_and_hold_up_no_other() {
    const UNREAD: usize = 20;
    let endless = Endless::default();
    let made = Arc::clone(&endless.made);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut server = meridian_net::grpc::server();
    let server = server.add_service(queue_server::QueueServer::new(endless));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap();
    let listen = async || {
        let (channel, open) = peers.listeners(NodeId(2)).unwrap();
        let parts = QueueClient::new(channel).listen(queue::ListenRequest::default()).await;
        (parts.unwrap().into_inner(), open)
    };
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(listen().await);
    }
    let (mut read, _open) = listen().await;
    let reading = async {
        for _ in 0..500 {
            read.message().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("its parts come");
    for made in &made.read()[..UNREAD] {
        let bytes = made.load(Ordering::SeqCst) as usize * PART_BYTES;
        assert!(bytes <= 1 << 20, "{bytes} bytes left for a listener that reads nothing");
    }
}

#[tokio::test]
async fn node_is_dialled_in_the_clear_only_until_the_transport_asks_for_tls() {
    let cluster = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let mutual = mutual(&authority(), Holder::Node(NodeId(1)));
    let peers = PeerChannels::with_control(&cluster, Arc::new(|_| None), None, mutual).unwrap();
    let node_2 = Expected { cluster: Some(CLUSTER.to_owned()), node: Some(NodeId(2)) };
    for (transport, tls) in [
        (Transport::Off, None),
        (Transport::Allow, None),
        (Transport::Prefer, Some((node_2.clone(), true))),
        (Transport::Require, Some((node_2, false))),
    ] {
        let dialled = match peers.way(transport, NodeId(2)) {
            Way::Plain => None,
            Way::Tls { expected, or_plain, .. } => Some((expected, or_plain)),
        };
        assert_eq!(dialled, tls, "{transport}");
    }
}
