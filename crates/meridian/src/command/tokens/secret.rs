//! The secret of a new token: made here or brought along, and printed once at most.

use std::path::Path;

use anyhow::{Context, Result};
use meridian_config::TokenSecret;
use rand::TryRngCore;

use super::listed::Listed;
use crate::command::access_token;
use crate::command::operator::{print, print_json};

pub(super) struct Secret {
    text: String,
    sha256: [u8; 32],
    /// Its bringer knows it.
    was_given: bool,
}

impl Secret {
    /// That of a file, `-` for the standard input; or a new one.
    pub(super) fn new(file: Option<&Path>) -> Result<Self> {
        let text = match file {
            Some(path) => access_token::read_file(path)?,
            None => random()?,
        };
        let sha256 =
            TokenSecret::plain(text.clone()).context("this secret cannot be used")?.sha256();
        Ok(Self { text, sha256, was_given: file.is_some() })
    }

    pub(super) fn sha256_hex(&self) -> String {
        hex(&self.sha256)
    }

    /// Prints the token, and the secret if it was made here: alone on the standard output, so that a
    /// program can take it from there.
    pub(super) fn print<'a>(
        &'a self,
        token: &mut Listed<'a>,
        said: &str,
        json: bool,
    ) -> Result<()> {
        if json {
            token.secret = (!self.was_given).then_some(&self.text);
            return print_json(token);
        }
        if self.was_given {
            return print(&format!("{said}\n"));
        }
        eprintln!("{said} Its secret is shown only now:");
        print(&format!("{}\n", self.text))
    }
}

/// 256 bits from the operating system, in hex.
fn random() -> Result<String> {
    let mut bytes = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .context("the operating system gives no random numbers")?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_only_their_hash_is_sent() {
        let (one, two) = (Secret::new(None).unwrap(), Secret::new(None).unwrap());
        assert_ne!(one.text, two.text);
        assert_eq!((one.text.len(), one.sha256_hex().len()), (64, 64));
        assert_ne!(one.text, one.sha256_hex());
    }

    #[test]
    fn secret_of_a_file_is_taken_if_it_is_long_enough_and_no_error_holds_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a-long-enough-secret\n").unwrap();
        let given = Secret::new(Some(file.path())).unwrap();
        assert_eq!(
            given.sha256_hex(),
            "1d9bc28f4f099e188e634f27555e6a435b9c6f6d2c490175eee22ff2a5790b9a"
        );
        std::fs::write(file.path(), "short-secret").unwrap();
        let refused = Secret::new(Some(file.path())).err().unwrap();
        let text = format!("{refused:#} {refused:?}");
        assert!(text.contains("fewer than 16") && !text.contains("short-secret"), "{text}");
    }
}
