//! The standard output of commands.

use std::io::{ErrorKind, Write};

use anyhow::Result;
use serde::Serialize;

/// Writes to the standard output. A pipe that its reader has closed, as `head` does, is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes indented JSON and a line end.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
