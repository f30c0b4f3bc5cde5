//! Clients with all kinds of operations, which move on to the next gateway when theirs does not
//! serve.

use std::sync::Arc;
use std::time::Duration;

use meridian_checker::History;
use meridian_drills::workload::{Manner, Profile, Role};
use meridian_types::DatabaseId;

pub use meridian_drills::workload::Gateway;

/// Shorter than most pauses of a node: for requests held by its gateway, the outcome stays unknown
/// to the client.
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_THINK: Duration = Duration::from_millis(8);

/// The history of one database, while it is recorded.
pub struct Workload {
    inner: Arc<meridian_drills::workload::Workload>,
    gateways: Vec<Arc<Gateway>>,
}

impl Workload {
    pub fn new(database: DatabaseId, gateways: Vec<Arc<Gateway>>) -> Arc<Self> {
        Arc::new(Self { inner: meridian_drills::workload::Workload::new(database), gateways })
    }

    /// Runs a client until [`Workload::stop`]. It begins with the gateway of its number.
    pub async fn run_client(self: Arc<Self>, number: u64, seed: u64) {
        let mut gateways = self.gateways.clone();
        let first = usize::try_from(number).unwrap() % gateways.len();
        gateways.rotate_left(first);
        self.run(number, Role::Mixed, gateways, seed).await;
    }

    /// Runs a client that reads strongly, through this gateway only, until [`Workload::stop`]:
    /// after every fault of the gateway's node, it is the first client there.
    pub async fn run_reader(self: Arc<Self>, number: u64, gateway: Arc<Gateway>, seed: u64) {
        self.run(number, Role::StrongReader, vec![gateway], seed).await;
    }

    async fn run(&self, number: u64, role: Role, gateways: Vec<Arc<Gateway>>, seed: u64) {
        let profile = Profile {
            number,
            region: 0,
            role,
            manner: Manner::Impatient,
            gateways,
            timeout: TIMEOUT,
            max_think: MAX_THINK,
            mark_all: false,
            seed,
        };
        Arc::clone(&self.inner).run_client(profile).await;
    }

    pub fn stop(&self) {
        self.inner.stop();
    }

    pub fn operations(&self) -> usize {
        self.inner.operations()
    }

    /// Reads all keys that were ever written, through `gateway`, and returns the history. Call this
    /// when the clients have ended and their abandoned writes have too.
    ///
    /// # Panics
    /// When the gateway does not serve, or a client got an answer that no server should give.
    pub async fn finish(&self, gateway: &Gateway) -> History {
        let oddities = self.inner.oddities();
        assert!(oddities.is_empty(), "{oddities:#?}");
        self.inner.finish(gateway).await.unwrap()
    }
}
