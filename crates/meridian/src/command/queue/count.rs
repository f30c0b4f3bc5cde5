//! `meridian queue count`.

use anyhow::Result;
use clap::Args;

use super::api::{self, List, Target};
use super::show;
use crate::command::kv::output::Output;
use crate::command::operator::format;

/// Shows how many messages a queue has, due or not, for how long the first of them has been due, and
/// how many dead letters the database has. Without --queue the named queues that have messages follow,
/// each with its own.
///
/// These are kept as totals: nothing is counted.
#[derive(Args)]
pub(crate) struct Count {}

impl Count {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        let list = List { dead: false, after: None, limit: 1, payload: false };
        let page = api::page(&mut session, &list).await?;
        output.line(&show::totals(&page, output.form(), format::now_ms())?)
    }
}
