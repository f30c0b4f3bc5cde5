use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// A gateway that clients use. A restarted one is another: it need not know what the one before has shown.
#[derive(Debug)]
pub struct Gateway {
    pub url: String,
    name: String,
    incarnation: AtomicU64,
    /// Whether clients may use it, as whatever stands before gateways in a data center knows.
    up: watch::Sender<bool>,
}

impl Gateway {
    pub fn new(name: impl Into<String>, url: String) -> Arc<Self> {
        Arc::new(Self { url, name: name.into(), incarnation: AtomicU64::new(1), up: watch::Sender::new(true) })
    }

    /// Call this while the gateway is down.
    pub fn restarted(&self) {
        self.incarnation.fetch_add(1, Ordering::Relaxed);
    }

    /// It is gone, and those who wait for its answers will have none: with its data center go their
    /// connections to it.
    pub fn take_down(&self) {
        self.up.send_replace(false);
    }

    pub fn put_up(&self) {
        self.up.send_replace(true);
    }

    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Tells one incarnation from another.
    pub fn name(&self) -> String {
        format!("{}#{}", self.name, self.incarnation.load(Ordering::Relaxed))
    }

    /// Resolves when it is taken down.
    pub(super) async fn gone(&self) {
        // The sender lives as long as this.
        drop(self.up.subscribe().wait_for(|up| !up).await);
    }
}
