//! `meridian queue count`.

use anyhow::Result;
use clap::Args;
use meridian_types::Consistency;

use super::api::{self, List};
use super::show;
use crate::command::kv::connection::Connection;
use crate::command::kv::output::Output;
use crate::command::operator::format;

/// Shows how many messages a queue has, due or not, for how long the first of them has been due, and
/// how many dead letters there are.
///
/// These are kept as totals: nothing is counted.
#[derive(Args)]
pub(crate) struct Count {}

impl Count {
    pub(super) async fn run(self, connection: &Connection, output: &mut Output) -> Result<()> {
        let mut session = connection.open(Consistency::Strong).await?;
        let list = List { dead: false, after: None, limit: 1, payload: false };
        let page = api::page(&mut session, &list).await?;
        output.line(&show::totals(&page, output.form(), format::now_ms())?)
    }
}
