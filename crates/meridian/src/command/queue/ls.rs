//! `meridian queue ls`.

use anyhow::Result;
use clap::Args;

use super::api::Target;
use super::show;
use super::walk::Walk;
use crate::command::kv::output::{Form, Output};
use crate::command::operator::format;

/// Lists the messages of a queue by the time at which they are due, or its dead letters.
///
/// They are printed as they come, in pages, each of which is read at a time of its own. With --output
/// json each line is a message; times are milliseconds since 1970.
#[derive(Args)]
pub(crate) struct Ls {
    /// List the dead letters, the oldest first.
    #[arg(long)]
    dead: bool,
    /// Number of messages or dead letters at most.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Ls {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        let mut walk = Walk::new(&mut session, self.dead).limit(self.limit);
        let form = output.form();
        let mut is_first = true;
        while !output.is_closed()
            && let Some(page) = walk.next().await?
        {
            if form == Form::Inspect && std::mem::take(&mut is_first) {
                output.line(show::heading(self.dead))?;
            }
            let now_ms = format::now_ms();
            for message in &page.messages {
                output.line(&show::message(message, form, now_ms)?)?;
            }
            for letter in &page.dead_letters {
                output.line(&show::letter(letter, form)?)?;
            }
            output.flush()?;
        }
        Ok(())
    }
}
