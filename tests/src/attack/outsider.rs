//! An attacker that reaches the ports of nodes for each other, and has no certificate: frames of
//! HTTP/2 as no client would send them.

use std::sync::Arc;

use super::wire::{converse, hold};
use super::{Target, again};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The first bytes of a connection of control.
const MARK: &[u8] = b"MRDc";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `POST path`, of gRPC.
fn head(path: &str) -> Vec<u8> {
    let text =
        |text: &str| [&[u8::try_from(text.len()).unwrap_or_default()], text.as_bytes()].concat();
    // Of HPACK's static table: the method, the scheme, and the names of the path and of the content's
    // type.
    [&[0x83, 0x86, 0x04][..], &text(path), &[0x0f, 0x10], &text("application/grpc")].concat()
}

/// The bytes of a connection with so many calls of `path`, behind the `first` ones: whole and empty,
/// or each with these bytes of a message of 16,000.
pub fn calls(first: &[u8], count: u32, path: &str, message: Option<&[u8]>) -> Arc<Vec<u8>> {
    let mut bytes = [first, PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let head = head(path);
    for stream in (1..2 * count).step_by(2) {
        match message {
            None => bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)),
            Some(part) => {
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &head));
                let length = &16_000_u32.to_be_bytes()[..];
                bytes.extend(frame(DATA, 0, stream, &[&[0], length, part].concat()));
            }
        }
    }
    Arc::new(bytes)
}

async fn refused_calls(target: Arc<Target>, first: &'static [u8]) {
    let calls = calls(first, 4000, "/meridian.raft.v1.Raft/Vote", None);
    again(2 * target.nodes.len(), move |at| {
        let (_, address) = target.nodes[at % target.nodes.len()].clone();
        let calls = Arc::clone(&calls);
        async move { converse(&address, &calls).await }
    })
    .await;
}

/// As many calls as possible, each of which is refused.
pub(super) async fn refusals(target: Arc<Target>) {
    refused_calls(target, b"").await;
}

/// The same on the threads that keep leases.
pub(super) async fn marked_refusals(target: Arc<Target>) {
    refused_calls(target, MARK).await;
}

/// Requests to join of which the last byte never comes.
pub(super) async fn half_joins(target: Arc<Target>) {
    let path = "/meridian.directory.v1.Membership/Join";
    let calls = calls(b"", 1000, path, Some(&[0; 15_000]));
    again(3 * target.nodes.len(), move |at| {
        let (_, address) = target.nodes[at % target.nodes.len()].clone();
        let calls = Arc::clone(&calls);
        async move { hold(&address, &calls).await }
    })
    .await;
}
