//! `meridian kv`: the data of a database, for people and for scripts.
//!
//! | module | contents |
//! |---|---|
//! | `connection` | the gateway and database that a command asks |
//! | `session` | requests, and what is sent again |
//! | `selection` | keys and ranges from the command line |
//! | `scan` | a range in batches |
//! | `output` | entries and results, as `Deno.inspect` shows them or as lines of JSON |
//! | `progress` | a line about long work |
//! | `confirm` | a question before what cannot be undone |
//! | `get`, `set`, `list`, `changes`, `delete`, `count`, `du`, `sum`, `watch` | the commands |

mod changes;
mod confirm;
pub(super) mod connection;
mod count;
mod delete;
mod du;
mod get;
mod list;
pub(super) mod output;
pub(super) mod progress;
mod scan;
mod selection;
pub(super) mod session;
mod set;
mod sum;
mod watch;

use anyhow::Result;
use clap::{Args, Subcommand};

pub(super) use self::confirm::confirm;
pub(super) use self::selection::of_option as key_of_text;

use self::connection::Connection;
use self::output::{Form, Output};

/// Shows and changes the data of a database.
///
/// A KEY is an array in Deno's own syntax, such as '["users", 42n, true, new Uint8Array([1, 2])]', or
/// its parts as words: users 42n true. A word is a number, bigint or boolean if JavaScript prints one
/// so, and a string otherwise; quotes make any word a string: '"42"'.
///
/// The access token comes from DENO_KV_ACCESS_TOKEN or --token-file.
#[derive(Args)]
pub(crate) struct Kv {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output. Default: `inspect` on a terminal, `json` into a pipe or file.
    #[arg(long, short, global = true, value_enum, value_name = "FORM")]
    output: Option<Form>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Get(get::Get),
    Set(set::Set),
    List(list::List),
    Changes(changes::Changes),
    Delete(delete::Delete),
    Count(count::Count),
    Du(du::Du),
    Sum(sum::Sum),
    Watch(watch::Watch),
}

impl Kv {
    pub(crate) async fn run(self) -> Result<()> {
        let mut output = Output::new(self.output);
        let connection = &self.connection;
        match self.command {
            Command::Get(get) => get.run(connection, &mut output).await,
            Command::Set(set) => set.run(connection, &mut output).await,
            Command::List(list) => list.run(connection, &mut output).await,
            Command::Changes(changes) => changes.run(connection, &mut output).await,
            Command::Delete(delete) => delete.run(connection, &mut output).await,
            Command::Count(count) => count.run(connection, &mut output).await,
            Command::Du(du) => du.run(connection, &mut output).await,
            Command::Sum(sum) => sum.run(connection, &mut output).await,
            Command::Watch(watch) => watch.run(connection, &mut output).await,
        }?;
        output.end()
    }
}
