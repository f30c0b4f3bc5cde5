//! An attacker with a token for reading one database, which reads no answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::wire::{connect, head, hold, http2, largest_read, request, whole};
use super::{Target, again};

const READ: &str = "/kv/strong/snapshot_read";
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) async fn unread(target: Arc<Target>) {
    again(100, move |at| {
        let target = Arc::clone(&target);
        async move {
            let address = &target.gateways[at % target.gateways.len()];
            let body = largest_read();
            hold(address, &[head(READ, &target.reader, body.len()).as_bytes(), &body].concat())
                .await;
        }
    })
    .await;
}

pub(super) async fn unread_streams(target: Arc<Target>) {
    again(6, move |at| {
        let target = Arc::clone(&target);
        async move {
            let address = &target.gateways[at % target.gateways.len()];
            let Some(mut requests) = http2(address).await else { return };
            let mut answers = Vec::new();
            for _ in 0..20 {
                let Some(request) =
                    request(address, READ, Some(&target.reader), whole(largest_read()))
                else {
                    return;
                };
                if requests.ready().await.is_err() {
                    break;
                }
                answers.extend(requests.send_request(request).await);
            }
            tokio::time::sleep(PATIENCE).await;
            drop(answers);
        }
    })
    .await;
}

pub(super) async fn pipeline(target: Arc<Target>) {
    again(30, move |at| {
        let target = Arc::clone(&target);
        async move {
            let Some(mut stream) = connect(&target.gateways[at % target.gateways.len()]).await
            else {
                return;
            };
            // Requests of empty reads. Once the gateway stops reading them, this waits for the end
            // of the connection.
            let requests = head(READ, &target.reader, 0).repeat(100);
            while stream.write_all(requests.as_bytes()).await.is_ok() {}
        }
    })
    .await;
}
