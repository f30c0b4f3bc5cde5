//! The access token of a command, from its arguments, the environment or a file.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

/// Far longer than any token.
const MAX_BYTES: u64 = 4096;

/// An access token, from any of its sources.
#[derive(Args)]
pub(crate) struct AccessToken {
    /// Access token for clients; at least 16 characters. Every user of this machine can see
    /// arguments: prefer the environment or a file.
    #[arg(long, value_name = "TOKEN", env = "DENO_KV_ACCESS_TOKEN", hide_env_values = true)]
    access_token: Option<String>,
    /// File that holds the access token; takes precedence over --access-token. `-` for the standard
    /// input.
    #[arg(long, value_name = "FILE")]
    access_token_file: Option<PathBuf>,
}

impl AccessToken {
    /// `None`: no token was given.
    pub(crate) fn read(&self) -> Result<Option<String>> {
        match &self.access_token_file {
            Some(path) => read_file(path).map(Some),
            None => Ok(self.access_token.clone()),
        }
    }
}

/// The access token that a file holds; `-` is the standard input.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    let text = read(path)
        .with_context(|| format!("cannot read the access token from {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        bail!("{} holds no access token", path.display());
    }
    Ok(token.to_owned())
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let of_file = || AccessToken {
            access_token: Some("another".to_owned()),
            access_token_file: Some(path.clone()),
        };
        let missing = of_file().read().unwrap_err().to_string();
        assert!(missing.starts_with("cannot read the access token from "), "{missing}");
        std::fs::write(&path, " \n").unwrap();
        assert!(of_file().read().unwrap_err().to_string().ends_with("holds no access token"));
        std::fs::write(&path, "a-token-of-a-file\n").unwrap();
        assert_eq!(of_file().read().unwrap().as_deref(), Some("a-token-of-a-file"));
        let said = AccessToken { access_token: Some("said".to_owned()), access_token_file: None };
        assert_eq!(said.read().unwrap().as_deref(), Some("said"));
    }
}
