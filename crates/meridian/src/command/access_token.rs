//! The access token of a command, from its arguments, the environment or a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use meridian_config::{SecretSource, read_secret};

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
            None => {
                if is_argument() {
                    eprintln!(
                        "warning: every user of this machine can see --access-token: prefer \
                         DENO_KV_ACCESS_TOKEN or --access-token-file"
                    );
                }
                Ok(self.access_token.clone())
            }
        }
    }
}

/// The access token that a file holds; `-` is the standard input. In a unit of systemd `%d/NAME` is
/// the file of a credential.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    let token = if path == Path::new("-") {
        read_secret(std::io::stdin().lock(), "the standard input".to_owned())
    } else {
        SecretSource::File(path.to_owned()).read()
    };
    token.context("there is no access token")
}

/// Whether an argument of this process has the access token in it.
fn is_argument() -> bool {
    std::env::args_os().any(|argument| {
        let argument = argument.to_string_lossy();
        argument == "--access-token" || argument.starts_with("--access-token=")
    })
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
        let refused = || format!("{:#}", of_file().read().unwrap_err());
        let missing = refused();
        assert!(missing.starts_with("there is no access token: the file "), "{missing}");
        std::fs::write(&path, " \n").unwrap();
        assert!(refused().ends_with("token is empty"), "{}", refused());
        std::fs::write(&path, "a-token-of-a-file\n").unwrap();
        assert_eq!(of_file().read().unwrap().as_deref(), Some("a-token-of-a-file"));
        let said = AccessToken { access_token: Some("said".to_owned()), access_token_file: None };
        assert_eq!(said.read().unwrap().as_deref(), Some("said"));
    }
}
