//! Streaming answers over real sockets, under the rules for idle connections and slow clients.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::Interrupted;

const IDLE: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);
const REQUEST: &[u8] = b"POST /stream HTTP/1.1\r\nhost: kv.test\r\ncontent-length: 0\r\n\r\n";

struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        self.0.poll_recv(context).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

/// Answers its first request with the frames of a channel.
struct Streaming {
    options: Options,
    frames: Mutex<Option<mpsc::Receiver<Bytes>>>,
}

impl Handle for Streaming {
    async fn handle(&self, _: Request<Incoming>) -> Result<Answer, Unanswered> {
        let frames = self.frames.lock().unwrap().take().expect("one request");
        Ok(Answer::new(AnswerBody::Frames(Frames(frames).boxed_unsync())))
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn caller(&self, _: &HeaderMap) -> Caller {
        Caller::Known(1)
    }
}

/// A connection whose client has asked for the stream.
struct Served {
    client: TcpStream,
    frames: mpsc::Sender<Bytes>,
    stop: watch::Sender<()>,
    serving: JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        let options =
            Options { idle_timeout: IDLE, first_request_timeout: IDLE, ..Options::default() };
        let (frames, receiver) = mpsc::channel(1);
        let streaming = Arc::new(Streaming { options, frames: Mutex::new(Some(receiver)) });
        let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_address().unwrap();
        // A small buffer, so that a client that does not read is soon noticed.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        let (client, accepted) = tokio::join!(socket.connect(address), listener.accept());
        let (stop, stopping) = watch::channel(());
        let connection = Connection {
            shared: Arc::new(Shared::new(
                http::server(streaming.options().max_streams_per_connection),
                Arc::clone(&streaming),
            )),
            peer: address.ip(),
            origin: Origin::of(address.ip()),
            activity: Arc::new(Activity::new(Instant::now())),
            evicted: CancellationToken::new(),
            metered: Arc::default(),
        };
        let stream = accepted.0;
        let serving = tokio::spawn(async move { connection.serve(stream, stopping).await });
        let mut client = client.unwrap();
        client.write_all(REQUEST).await.unwrap();
        Self { client, frames, stop, serving }
    }

    /// Reads until `text` has come.
    async fn receives(&mut self, text: &str) {
        let mut received = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&received).contains(text) {
                let read = self.client.read_buf(&mut received).await.unwrap();
                assert!(read > 0, "the connection ended before `{text}`");
            }
        };
        timeout(LONG, reading).await.expect(text);
    }

    async fn ends(self) {
        timeout(LONG, self.serving).await.expect("the connection ends").unwrap();
        timeout(LONG, self.frames.closed()).await.expect("the stream is dropped");
    }
}

#[tokio::test]
async fn quiet_stream_keeps_its_connection_and_frames_arrive_as_they_come() {
    let mut served = Served::start().await;
    served.receives("200 OK").await;
    for text in ["first frame", "second frame"] {
        sleep(IDLE * 3).await;
        served.frames.send(Bytes::from_static(text.as_bytes())).await.unwrap();
        served.receives(text).await;
    }
    let (frames, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut served.frames, frames));
    served.receives("0\r\n\r\n").await;
    // Idle from then on.
    served.ends().await;
}

#[tokio::test]
async fn client_that_takes_no_frame_loses_its_connection_and_its_stream() {
    let served = Served::start().await;
    let frame = Bytes::from(vec![7; 64 << 10]);
    let sending = async { while served.frames.send(frame.clone()).await.is_ok() {} };
    timeout(LONG, sending).await.expect("the stream is given up");
    served.ends().await;
}

#[tokio::test]
async fn stream_ends_between_frames_when_the_server_stops() {
    let mut served = Served::start().await;
    served.frames.send(Bytes::from_static(b"a frame")).await.unwrap();
    served.receives("a frame").await;
    served.stop.send_replace(());
    served.receives("0\r\n\r\n").await;
    served.ends().await;
}
