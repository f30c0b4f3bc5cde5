//! A message as a request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, USER_AGENT};
use hyper::{Request, Uri};
use meridian_gateway::QueuedMessage;
use meridian_net::post::Body;
use meridian_types::{QueueId, limits};
use meridian_values::{json, plain, v8};

use super::signature::Keys;

/// The JSON of a value, at most: a string in which each character is escaped has six times its
/// length. What is longer is there as V8 wrote it alone.
const MAX_VALUE_BYTES: usize = 256 << 10;
/// The rest of a body, beside the value.
const BESIDE_BYTES: usize = 4 << 10;
/// A body, at most.
pub(super) const MAX_BODY_BYTES: usize =
    MAX_VALUE_BYTES + limits::MAX_VALUE_BYTES.div_ceil(3) * 4 + BESIDE_BYTES;

/// Where messages of a queue go, and how.
#[derive(Clone)]
pub(super) struct Destination {
    pub(super) queue: QueueId,
    /// Of the database.
    pub(super) name: String,
    pub(super) uri: Uri,
    pub(super) keys: Keys,
}

impl Destination {
    /// `seconds`: the time of the attempt, since 1970.
    ///
    /// # Errors
    /// The URL is none for HTTP, though it was taken.
    pub(super) fn request(
        &self,
        message: &QueuedMessage,
        seconds: u64,
    ) -> Result<Request<Body>, hyper::http::Error> {
        let id = self.id(message);
        let body = self.body(message);
        let signature = self.keys.sign(&id, seconds, body.as_bytes());
        Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("meridian/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(Body::new(Bytes::from(body)))
    }

    /// The message's name over all its attempts, and over all databases.
    fn id(&self, message: &QueuedMessage) -> String {
        format!("{}_{}", self.queue.database, message.key.id)
    }

    /// The value, and, where JSON does not have all of it, the payload from which V8 reads it.
    fn body(&self, message: &QueuedMessage) -> String {
        let QueuedMessage { key, attempt, payload, enqueued_ms, .. } = message;
        let mut body = format!(
            "{{\"id\":\"{}\",\"attempt\":{attempt},\"enqueued\":{enqueued_ms},\"database\":{},\
             \"databaseId\":\"{}\"",
            key.id,
            json::quoted(&self.name),
            self.queue.database
        );
        if !self.queue.name.is_default() {
            body.push_str(",\"queue\":");
            body.push_str(&json::quoted(self.queue.name.as_str()));
        }
        let value = v8::read(payload).ok();
        let value = value.and_then(|graph| plain::value(&graph, MAX_VALUE_BYTES));
        if let Some(value) = &value {
            body.push_str(",\"value\":");
            body.push_str(&value.json);
        }
        if value.is_none_or(|value| !value.is_exact) {
            body.push_str(",\"payload\":\"");
            STANDARD.encode_string(payload, &mut body);
            body.push('"');
        }
        body.push('}');
        body
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use meridian_queue::MessageKey;
    use meridian_types::{DatabaseId, MessageId, Versionstamp};

    use super::*;

    fn destination() -> Destination {
        Destination {
            queue: DatabaseId([7; 16]).into(),
            name: "or\"ders".to_owned(),
            uri: "https://example.com/hook?a=b".parse().unwrap(),
            keys: Keys::new([&[1; 32][..], &[2; 32]]),
        }
    }

    fn message(payload: &'static [u8], attempt: u32) -> QueuedMessage {
        let id = MessageId { enqueued: Versionstamp([0, 1, 0, 0, 0, 0, 0, 2, 0, 0]), index: 3 };
        let (key, payload) = (MessageKey { due_ms: 9, id }, Bytes::from_static(payload));
        QueuedMessage { key, attempt, payload, enqueued_ms: 1234, lease: None }
    }

    async fn parts(request: Request<Body>) -> (hyper::http::request::Parts, String) {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn request_names_its_message_alike_over_attempts_and_is_signed_with_each_key() {
        let destination = destination();
        let request = destination.request(&message(b"\xff\x0fI\x02", 1), 77).unwrap();
        let (first, body) = parts(request).await;
        let database = "07070707-0707-0707-0707-070707070707";
        let id = "000100000000000200000003";
        assert_eq!(
            body,
            format!(
                "{{\"id\":\"{id}\",\"attempt\":1,\"enqueued\":1234,\"database\":\"or\\\"ders\",\
                 \"databaseId\":\"{database}\",\"value\":1}}"
            )
        );
        let header = |parts: &hyper::http::request::Parts, name: &str| {
            parts.headers[name].to_str().unwrap().to_owned()
        };
        assert_eq!(header(&first, "webhook-id"), format!("{database}_{id}"));
        assert_eq!(header(&first, "webhook-timestamp"), "77");
        let signature = header(&first, "webhook-signature");
        assert_eq!(
            signature,
            destination.keys.sign(&format!("{database}_{id}"), 77, body.as_bytes())
        );
        assert_eq!(signature.split(' ').count(), 2);
        assert_eq!(first.uri, destination.uri);
        let (second, body) =
            parts(destination.request(&message(b"\xff\x0fI\x02", 2), 99).unwrap()).await;
        assert_eq!(header(&second, "webhook-id"), header(&first, "webhook-id"));
        assert!(body.contains("\"attempt\":2"), "{body}");
        let name = "e\"mails".parse().unwrap();
        let named = Destination { queue: QueueId { name, ..destination.queue }, ..destination };
        let (_, body) = parts(named.request(&message(b"\xff\x0fI\x02", 1), 77).unwrap()).await;
        assert!(body.contains(r#","queue":"e\"mails","value":1"#), "{body}");
    }

    #[test]
    fn value_that_json_has_not_all_of_comes_with_its_payload_and_no_body_is_too_long() {
        let body = |payload| destination().body(&message(payload, 1));
        // undefined, a date, no V8, a long string of controls.
        assert!(body(b"\xff\x0f_").ends_with(",\"value\":null,\"payload\":\"/w9f\"}"));
        let date = body(b"\xff\x0fD\0\0\0\0\0\0\0\0");
        assert!(
            date.contains("\"value\":\"1970-01-01T00:00:00.000Z\",\"payload\":\"/w9E"),
            "{date}"
        );
        assert!(body(b"no").ends_with(",\"payload\":\"bm8=\"}"));
        let mut long = b"\xff\x0f\"".to_vec();
        long.extend([0xf9, 0xff, 0x03]);
        long.resize(limits::MAX_VALUE_BYTES - 1, 1);
        let long = body(Vec::leak(long));
        assert!(!long.contains("\"value\"") && long.len() <= MAX_BODY_BYTES, "{}", long.len());
    }
}
