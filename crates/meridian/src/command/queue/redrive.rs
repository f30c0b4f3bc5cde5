//! `meridian queue redrive`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::api::{self, Buried, Change, Letter, Target};
use super::walk::Walk;
use crate::command::kv::output::{Form, Output};
use crate::command::kv::progress::Progress;
use crate::command::operator::format;

/// Makes messages of dead letters again: due now, with the usual schedule, and as if no delivery had
/// failed. They keep their ids, and come back to their queues.
#[derive(Args)]
pub(crate) struct Redrive {
    /// Numbers of dead letters, as `meridian queue ls --dead` shows them.
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NUMBER")]
    numbers: Vec<u64>,
    /// All dead letters; with --queue those of that queue.
    #[arg(long)]
    all: bool,
}

impl Redrive {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let mut session = target.open().await?;
        let mut walk = Walk::dead_letters(&mut session);
        let mut wanted: BTreeSet<u64> = self.numbers.into_iter().collect();
        let mut found: Vec<Letter> = Vec::new();
        // There are a thousand at most.
        while let Some(page) = walk.next().await? {
            let is_wanted = |letter: &Letter| self.all || wanted.remove(&letter.number);
            found.extend(page.dead_letters.into_iter().filter(is_wanted));
        }
        let (mut progress, mut redriven) = (Progress::new(), 0);
        for piece in api::pieces(&found, |letter| letter.bytes) {
            let redrive = piece.iter().map(Buried::from).collect();
            let so_far = || format!("{redriven} of {} dead letters are redriven", found.len());
            let change = Change { redrive, ..Change::default() };
            api::change(walk.session(), &change).await.with_context(so_far)?;
            redriven += piece.len();
            progress.show(|| format!("{redriven} of {} redriven", found.len()));
        }
        drop(progress);
        output.line(&match output.form() {
            Form::Json => format!("{{\"redriven\":{redriven}}}"),
            Form::Inspect => format!("{} redriven", format::count(redriven as u64, "dead letter")),
        })?;
        if !wanted.is_empty() {
            let numbers: Vec<String> = wanted.iter().map(u64::to_string).collect();
            bail!("there is no dead letter {}", numbers.join(", "));
        }
        Ok(())
    }
}
