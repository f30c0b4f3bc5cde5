//! A question before what cannot be undone.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};

/// Asks whether to do what the `question` says, such as "Delete 3 keys". Without a terminal that is
/// an error, which says what `would` be done.
pub(in crate::command) fn confirm(question: &str, would: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{would}");
    }
    let mut error = std::io::stderr().lock();
    write!(error, "{question}? [y/N] ")?;
    error.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
