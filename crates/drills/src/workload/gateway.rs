//! The gateways of a workload, as a load balancer sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// A gateway that clients use. After a restart it counts as another: it need not know the states
/// that its predecessor has shown.
#[derive(Debug)]
pub struct Gateway {
    pub url: String,
    name: String,
    incarnation: AtomicU64,
    state: watch::Sender<State>,
}

/// The state of a gateway for the load balancer in front of a data center's gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// It gets no new requests; those in flight are finished.
    Draining,
    /// It is lost, and its requests in flight get no answer.
    Lost,
}

impl Gateway {
    pub fn new(name: impl Into<String>, url: String) -> Arc<Self> {
        let state = watch::Sender::new(State::Up);
        Arc::new(Self { url, name: name.into(), incarnation: AtomicU64::new(1), state })
    }

    /// Call this while the gateway is down.
    pub fn restarted(&self) {
        self.incarnation.fetch_add(1, Ordering::Relaxed);
    }

    /// Announces that the gateway will be stopped.
    pub fn drain(&self) {
        self.state.send_replace(State::Draining);
    }

    /// Marks the gateway as lost with its data center.
    pub fn lose(&self) {
        self.state.send_replace(State::Lost);
    }

    pub fn put_up(&self) {
        self.state.send_replace(State::Up);
    }

    pub fn is_up(&self) -> bool {
        *self.state.borrow() == State::Up
    }

    pub fn is_lost(&self) -> bool {
        *self.state.borrow() == State::Lost
    }

    /// Differs for each incarnation.
    pub fn name(&self) -> String {
        format!("{}#{}", self.name, self.incarnation.load(Ordering::Relaxed))
    }

    /// Resolves when the gateway is lost.
    pub(crate) async fn lost(&self) {
        // The sender lives as long as this.
        drop(self.state.subscribe().wait_for(|state| *state == State::Lost).await);
    }
}
