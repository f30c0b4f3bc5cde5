//! Settings of the HTTP server that clients use.

use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;

/// Of a connection over HTTP/1.1, for the head of a request and for the part of its body that is
/// not taken yet. hyper's own bound is 400 KiB, which clients without a token could make each
/// connection hold.
pub const HTTP1_BUFFER_BYTES: usize = 32 * 1024;

/// Between probes of an HTTP/2 connection, and how long each may go unanswered.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Room for the largest atomic write, so that it comes in one go.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;

/// HTTP/1.1, and HTTP/2 with prior knowledge, told apart by the first bytes of each connection.
///
/// Idle connections and slow heads are the caller's business for both versions: hyper's own timeout
/// for HTTP/1.1 sets up and drops a timer for every request.
#[must_use]
pub fn server(max_streams_per_connection: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams_per_connection)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_INTERVAL);
    builder
}
