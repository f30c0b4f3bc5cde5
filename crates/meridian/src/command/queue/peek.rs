//! `meridian queue peek`.

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_types::MessageId;
use serde_json::{Value, json};

use super::api::{self, Letter, List, Message, QueueSession, Target};
use super::show;
use super::walk::{Walk, find};
use crate::command::kv::output::Output;
use crate::command::operator::format;

/// Shows messages with their payloads: the next that is due, or those with these ids.
///
/// Nothing is taken out of the queue, and no attempt is counted. A message is looked for by its id
/// from the front of the queue on.
#[derive(Args)]
pub(crate) struct Peek {
    /// Ids of messages; with --dead, numbers of dead letters.
    #[arg(value_name = "ID", conflicts_with = "limit")]
    ids: Vec<String>,
    /// Show dead letters.
    #[arg(long)]
    dead: bool,
    /// Number of messages or dead letters at most, from the front on. Default: 1.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

impl Peek {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let Self { ids, dead, limit } = self;
        if ids.is_empty() {
            let mut session = target.open().await?;
            return first(&mut session, dead, limit.unwrap_or(1), output).await;
        }
        if dead {
            let number = |text: &String| {
                let number = text.parse::<u64>();
                number.with_context(|| format!("`{text}` is not the number of a dead letter"))
            };
            let numbers = ids.iter().map(number).collect::<Result<Vec<u64>>>()?;
            let mut session = target.open().await?;
            return of_numbers(&mut session, &numbers, output).await;
        }
        let ids: Vec<MessageId> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let mut session = target.open().await?;
        of_ids(&mut session, &ids, output).await
    }
}

async fn first(
    session: &mut QueueSession,
    dead: bool,
    limit: u64,
    output: &mut Output,
) -> Result<()> {
    let mut walk = Walk::new(session, dead).limit(Some(limit)).with_payloads();
    while !output.is_closed()
        && let Some(page) = walk.next().await?
    {
        for message in &page.messages {
            output.line(&show::whole_message(message, output, format::now_ms())?)?;
        }
        for letter in &page.dead_letters {
            output.line(&show::whole_letter(letter, output)?)?;
        }
        output.flush()?;
    }
    Ok(())
}

async fn of_ids(session: &mut QueueSession, ids: &[MessageId], output: &mut Output) -> Result<()> {
    let (found, mut missing) = find(&mut Walk::messages(session), ids).await?;
    for message in found {
        match whole(session, &message).await? {
            Some(whole) => {
                output.line(&show::whole_message(&whole, output, format::now_ms())?)?;
            }
            None => missing.push(message.id),
        }
    }
    if !missing.is_empty() {
        bail!("there is no message {}: delivered, cancelled or dead", missing.join(", "));
    }
    Ok(())
}

/// A message with its payload, if it has not moved since it was found.
async fn whole(session: &mut QueueSession, found: &Message) -> Result<Option<Message>> {
    let list = List { dead: false, after: Some(before(found)?), limit: 1, payload: true };
    let whole = api::page(session, &list).await?.messages.into_iter().next();
    Ok(whole.filter(|whole| whole.id == found.id))
}

/// The place right before a message.
fn before(message: &Message) -> Result<Value> {
    let id = u128::from_str_radix(&message.id, 16)?.saturating_sub(1);
    Ok(json!({ "id": format!("{id:024x}"), "due": message.due }))
}

async fn of_numbers(
    session: &mut QueueSession,
    numbers: &[u64],
    output: &mut Output,
) -> Result<()> {
    for number in numbers {
        let letter = letter(session, *number).await?;
        let letter = letter.with_context(|| format!("there is no dead letter {number}"))?;
        output.line(&show::whole_letter(&letter, output)?)?;
    }
    Ok(())
}

/// With its payload, if it is there.
async fn letter(session: &mut QueueSession, number: u64) -> Result<Option<Letter>> {
    let after = number.checked_sub(1).map(Into::into);
    let list = List { dead: true, after, limit: 1, payload: true };
    let found = api::page(session, &list).await?.dead_letters.into_iter().next();
    Ok(found.filter(|letter| letter.number == number))
}
