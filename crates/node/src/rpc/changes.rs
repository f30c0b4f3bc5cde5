//! Changes that gateways of other nodes, and those without a node, ask for.

use std::sync::Arc;

use meridian_proto::changes::changes_server::{Changes, ChangesServer};
use meridian_proto::changes::{NextRequest, NextResponse};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::changes::{ChangeLogs, NotGiven, wire};
use crate::read::execution::Reads;
use crate::shard::table::ShardTable;
use crate::time_budget::CHANGES_ROOM;

/// Questions of other processes' gateways at a time, most of which wait for changes.
const MAX_QUESTIONS: usize = 4096;
/// Answers to so many questions may have this size without more ado.
const SMALL_BYTES: usize = 16 << 10;
const MAX_REQUEST_BYTES: usize = 16 << 10;

#[derive(Clone)]
pub(crate) struct ChangesService {
    shards: Arc<ShardTable>,
    logs: Arc<ChangeLogs>,
    /// Larger answers count among them.
    reads: Reads,
    questions: Arc<Semaphore>,
}

impl ChangesService {
    pub(crate) fn new(shards: Arc<ShardTable>, logs: Arc<ChangeLogs>, reads: Reads) -> Self {
        Self { shards, logs, reads, questions: Arc::new(Semaphore::new(MAX_QUESTIONS)) }
    }

    pub(crate) fn into_server(self) -> ChangesServer<Self> {
        ChangesServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl Changes for ChangesService {
    async fn next(&self, request: Request<NextRequest>) -> Result<Response<NextResponse>, Status> {
        let (shard, wanted, min_sequence) =
            wire::wanted(request.into_inner()).map_err(|field| {
                Status::invalid_argument(format!("field `{field}` is out of its range"))
            })?;
        let local = self.shards.get(&shard).ok_or_else(|| {
            Status::not_found(format!("shard {shard} is not on this node at present"))
        })?;
        // No refusal of the shard: its reads are served.
        let refused =
            |reason: String| Ok(Response::new(wire::response(Err(NotGiven::Refused(reason)))));
        let Ok(_question) = self.questions.try_acquire() else {
            return refused("too many change feeds are served here".to_owned());
        };
        let held = match wanted.max_bytes > SMALL_BYTES {
            true => match self.reads.take_within(wanted.max_bytes, CHANGES_ROOM).await {
                Ok(held) => Some(held),
                Err(exhausted) => return refused(exhausted.to_string()),
            },
            false => None,
        };
        let answer = self.logs.next(&local, &wanted, min_sequence).await;
        Ok(Response::new(wire::held_with(wire::response(answer), held)))
    }
}
