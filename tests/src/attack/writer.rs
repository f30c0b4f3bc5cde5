//! An attacker with a token for reading and writing one database, whose small requests cause much
//! work. The load that a client may cause in general is another question.

use std::sync::Arc;

use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::{MutationType, ValueEncoding};

use super::{Target, again, stored};
use crate::KvClient;
use crate::kv_connect::mutation;

/// The largest number of mutations in a write.
const MUTATIONS: usize = 1000;
const CHECKS: usize = 100;

/// `1n`, serialized by V8.
const ONE: &[u8] = b"\xff\x0fZ\x02\x01";

pub(super) async fn sums(target: Arc<Target>) {
    let clients: Vec<KvClient> = target.clients(&target.writer).collect();
    again(10, move |at| {
        let client = clients[at % clients.len()].clone();
        let sum = |number| {
            mutation(
                MutationType::MSum,
                &stored::key(stored::BIGINTS, number),
                ValueEncoding::VeV8,
                ONE,
            )
        };
        let write =
            pb::AtomicWrite { mutations: (0..MUTATIONS).map(sum).collect(), ..Default::default() };
        async move { drop(client.write(write).await) }
    })
    .await;
}

pub(super) async fn checks(target: Arc<Target>) {
    let clients: Vec<KvClient> = target.clients(&target.writer).collect();
    again(32, move |at| {
        let client = clients[at % clients.len()].clone();
        // All keys but the last are absent, as the checks say.
        let check = |number| pb::Check {
            key: stored::key(stored::DELETED, number).into(),
            ..Default::default()
        };
        let mut checks: Vec<_> = (0..CHECKS - 1).map(check).collect();
        checks.push(pb::Check { key: stored::large_key(0).into(), ..Default::default() });
        async move { drop(client.write(pb::AtomicWrite { checks, ..Default::default() }).await) }
    })
    .await;
}
