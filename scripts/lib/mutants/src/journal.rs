//! A file of lines of JSON that grows as results come, so that a run that was stopped goes on.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The file, of which one process writes lines.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Opens `path`. Its lines are returned if it is about the same `subject`, and it is begun anew
    /// if it is not.
    pub fn open<T: DeserializeOwned>(path: &Path, subject: u64) -> Result<(Self, Vec<T>)> {
        let subject = format!("{subject:016x}");
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let mut lines = text.lines();
        let is_same = lines.next().is_some_and(|first| first == subject);
        // The last line may be a part of one.
        let known = if is_same {
            lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
        } else {
            Vec::new()
        };
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(!is_same)
            .append(is_same)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        if !is_same {
            writeln!(file, "{subject}")?;
        } else if !text.ends_with('\n') {
            writeln!(file)?;
        }
        Ok((Self { file: Mutex::new(file) }, known))
    }

    /// Appends a line.
    pub fn push<T: Serialize>(&self, entry: &T) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(entry)?);
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())?;
        Ok(())
    }
}
