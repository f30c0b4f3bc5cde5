//! A client that follows a feed, and a writer of what it is to hear of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::{
    CallError, Change, ChangeFeed, ChangeLine, ChangesFrom, DEFAULT_DATABASE, client, set,
};
use meridian_tests::{KvClient, poll};
use meridian_values::json::base64url;

use crate::{DEADLINE, START, bytes};

/// A feed that is followed as the documentation says: opened again behind what it told last.
pub(crate) struct Follower {
    pub(crate) clients: Vec<KvClient>,
    feed: Option<ChangeFeed>,
    pub(crate) after: String,
    /// Of each transaction, in the order in which they came.
    pub(crate) told: Vec<(String, Vec<Change>)>,
    pub(crate) opened: usize,
}

impl Follower {
    pub(crate) fn new(urls: &[String]) -> Self {
        let clients = urls.iter().map(|url| client(url, DEFAULT_DATABASE)).collect();
        let (told, after) = (Vec::new(), START.to_owned());
        Self { clients, feed: None, after, told, opened: 0 }
    }

    /// One line further, or another gateway.
    pub(crate) async fn step(&mut self) {
        let Some(feed) = &mut self.feed else {
            let client = &self.clients[self.opened % self.clients.len()];
            self.opened += 1;
            let from = ChangesFrom { prefix: "", after: Some(&self.after), follow: true };
            match client.changes(&from).await {
                Ok(feed) => self.feed = Some(feed),
                Err(CallError::Refused { status, text }) if status != 503 => panic!("{text}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            return;
        };
        match feed.next().await {
            Ok(Some(ChangeLine::Transaction { versionstamp, changes })) => {
                assert!(versionstamp > self.after, "{versionstamp} behind {}", self.after);
                self.after.clone_from(&versionstamp);
                self.told.push((versionstamp, changes));
            }
            Ok(Some(ChangeLine::Bookmark { bookmark })) => {
                assert!(bookmark >= self.after, "{bookmark} behind {}", self.after);
                self.after = bookmark;
            }
            Ok(Some(ChangeLine::End { end, message })) => panic!("{end}: {message}"),
            Ok(None) | Err(_) => self.feed = None,
        }
    }

    /// Until a value was told of the key.
    pub(crate) async fn hears_of(&mut self, key: &[u8], value: &[u8]) {
        let (key, value) = (Some(base64url(key)), Some(base64url(value)));
        let hears = async {
            let is_it = |change: &Change| change.key == key && change.value == value;
            let mut seen = 0;
            loop {
                while let Some((_, changes)) = self.told.get(seen) {
                    if changes.iter().any(is_it) {
                        return;
                    }
                    seen += 1;
                }
                self.step().await;
            }
        };
        tokio::time::timeout(DEADLINE, hears).await.expect("it is told of");
    }

    /// The values of one key, in order.
    pub(crate) fn values(&self, key: &[u8]) -> Vec<u64> {
        let key = Some(base64url(key));
        let changes = self.told.iter().flat_map(|(_, changes)| changes);
        let values = changes.filter(|change| change.key == key);
        values
            .map(|change| String::from_utf8(bytes(&change.value)).unwrap().parse().unwrap())
            .collect()
    }
}

/// Writes 1, 2, 3 and so on to two keys, each time in one transaction, and again what was not
/// answered.
pub(crate) struct Counting {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Counting {
    pub(crate) fn start(url: &str) -> Self {
        let (written, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        // A gateway answers long before the client gives up, so that no write comes late.
        let client = client(url, DEFAULT_DATABASE);
        let (counted, stopped) = (Arc::clone(&written), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let number = counted.load(Ordering::SeqCst) + 1;
                let value = number.to_string();
                let mutations = vec![set(b"a", value.as_bytes()), set(b"b", value.as_bytes())];
                let write = pb::AtomicWrite { mutations, ..Default::default() };
                match client.write(write).await {
                    Ok(_) => counted.store(number, Ordering::SeqCst),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        Self { written, stop, task }
    }

    pub(crate) async fn more_written(&self, more: u64) {
        let until = self.written.load(Ordering::SeqCst) + more;
        poll::until("more is written", DEADLINE, async || {
            let written = self.written.load(Ordering::SeqCst);
            if written >= until { Ok(()) } else { Err((written, until)) }
        })
        .await;
    }

    /// The last number that was written.
    pub(crate) async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        self.written.load(Ordering::SeqCst)
    }
}
