//! Secrets of access tokens, and where they are read from.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Far longer than any token.
const MAX_BYTES: u64 = 4096;
/// The folder with a service's credentials, as systemd names it.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The place of a secret outside of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// A file of this name among the service's credentials.
    Credential(String),
}

/// A secret that cannot be had. Holds nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableSecret {
    #[error("{source_name} cannot be read: {cause}")]
    Io { source_name: String, cause: std::io::ErrorKind },
    #[error("{source_name} is not set")]
    NotSet { source_name: String },
    #[error("{source_name} is empty")]
    Empty { source_name: String },
    #[error("{source_name} is not UTF-8 text of at most {MAX_BYTES} bytes")]
    NoText { source_name: String },
    #[error("the name of a credential is that of a file, without a folder")]
    CredentialName,
}

/// A secret that cannot be used. Never holds it, nor a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    #[error(transparent)]
    Unreadable(#[from] UnreadableSecret),
    #[error("its `secret` has {characters} characters, fewer than {}", TokenSecret::MIN_CHARACTERS)]
    ShortSecret { characters: usize },
    #[error(
        "its `secret` is still that of the sample, which is public: make one with `openssl rand -hex 32`"
    )]
    Placeholder,
    #[error("its `secret` is not made of visible ASCII characters")]
    SecretCharacters,
    #[error("its `secret_sha256` is not 64 hexadecimal digits")]
    Digest,
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the variable {name} of the environment"),
            Self::Credential(name) => write!(f, "the credential {name} of the service"),
        }
    }
}

impl SecretSource {
    /// The secret, without space around it.
    ///
    /// # Errors
    /// [`UnreadableSecret`].
    pub fn read(&self) -> Result<String, UnreadableSecret> {
        let source_name = self.to_string();
        match self {
            Self::File(path) => of_file(path, source_name),
            Self::Environment(name) => match std::env::var_os(name) {
                None => Err(UnreadableSecret::NotSet { source_name }),
                Some(value) => trimmed(value.into_string().ok(), source_name),
            },
            Self::Credential(name) => {
                of_credential(name, std::env::var_os(CREDENTIALS), source_name)
            }
        }
    }
}

fn of_credential(
    name: &str,
    folder: Option<OsString>,
    source_name: String,
) -> Result<String, UnreadableSecret> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(UnreadableSecret::CredentialName);
    }
    let Some(folder) = folder else {
        let source_name = format!("{CREDENTIALS}, the folder of {source_name},");
        return Err(UnreadableSecret::NotSet { source_name });
    };
    of_file(&PathBuf::from(folder).join(name), source_name)
}

fn of_file(path: &Path, source_name: String) -> Result<String, UnreadableSecret> {
    match std::fs::File::open(path) {
        Ok(file) => read_secret(file, source_name),
        Err(error) => Err(UnreadableSecret::Io { source_name, cause: error.kind() }),
    }
}

/// The secret that `reader` has, without space around it; an error names `source_name`.
///
/// # Errors
/// [`UnreadableSecret`].
pub fn read_secret(reader: impl Read, source_name: String) -> Result<String, UnreadableSecret> {
    let mut bytes = Vec::new();
    match reader.take(MAX_BYTES + 1).read_to_end(&mut bytes) {
        Ok(length) => {
            let is_short = u64::try_from(length).is_ok_and(|length| length <= MAX_BYTES);
            trimmed(is_short.then(|| String::from_utf8(bytes).ok()).flatten(), source_name)
        }
        Err(error) => Err(UnreadableSecret::Io { source_name, cause: error.kind() }),
    }
}

fn trimmed(text: Option<String>, source_name: String) -> Result<String, UnreadableSecret> {
    let Some(text) = text else { return Err(UnreadableSecret::NoText { source_name }) };
    match text.trim() {
        "" => Err(UnreadableSecret::Empty { source_name }),
        secret => Ok(secret.to_owned()),
    }
}

/// The secret that clients must show, or only its digest.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSecret {
    Plain(String),
    Sha256([u8; 32]),
    /// It was read elsewhere, and is not kept.
    Read {
        sha256: [u8; 32],
        source: SecretSource,
    },
}

impl TokenSecret {
    /// The placeholder for a secret in the sample files: it is public.
    pub const PLACEHOLDER: &str = "replace-this-before-you-serve";
    /// Shorter secrets are refused.
    pub const MIN_CHARACTERS: usize = 16;

    /// Of the secret, in either form.
    pub fn sha256(&self) -> [u8; 32] {
        match self {
            Self::Plain(secret) => Sha256::digest(secret.as_bytes()).into(),
            Self::Sha256(sha256) | Self::Read { sha256, .. } => *sha256,
        }
    }

    /// A secret as it is.
    ///
    /// # Errors
    /// [`InvalidSecret`]: it is too short, that of the sample, or other than visible ASCII.
    pub fn plain(secret: String) -> Result<Self, InvalidSecret> {
        let characters = secret.chars().count();
        if characters < Self::MIN_CHARACTERS {
            return Err(InvalidSecret::ShortSecret { characters });
        }
        if secret == Self::PLACEHOLDER {
            return Err(InvalidSecret::Placeholder);
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidSecret::SecretCharacters);
        }
        Ok(Self::Plain(secret))
    }

    /// Of the source, which is read now and not again.
    pub(crate) fn read(source: SecretSource) -> Result<Self, InvalidSecret> {
        let sha256 = Self::plain(source.read()?)?.sha256();
        Ok(Self::Read { sha256, source })
    }

    /// The SHA-256 of a secret, as 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidSecret::Digest`], for any other text.
    pub fn digest(hex: &str) -> Result<Self, InvalidSecret> {
        let digits: Option<Vec<u8>> = hex
            .chars()
            .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let bytes: Vec<u8> = digits
            .filter(|digits| digits.len() == 64)
            .ok_or(InvalidSecret::Digest)?
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect();
        bytes.try_into().map(Self::Sha256).map_err(|_| InvalidSecret::Digest)
    }
}

impl fmt::Debug for TokenSecret {
    /// Says only which it is, so that a configuration may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain(..)",
            Self::Sha256(_) => "Sha256(..)",
            Self::Read { .. } => "Read(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a-long-enough-secret";

    #[test]
    fn secret_is_read_from_a_file_without_space_around_it_and_no_error_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let source = SecretSource::File(path.clone());
        let missing = source.read().unwrap_err().to_string();
        assert!(missing.ends_with("cannot be read: entity not found"), "{missing}");
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert_eq!(source.read().as_deref(), Ok(SECRET));
        let secret = TokenSecret::read(source.clone()).unwrap();
        assert_eq!(secret.sha256(), TokenSecret::Plain(SECRET.to_owned()).sha256());
        assert!(!format!("{secret:?}").contains(SECRET));
        let large = SECRET.repeat(300).into_bytes();
        for (content, expected) in [
            (b" \n".to_vec(), "is empty"),
            ([SECRET.as_bytes(), b"\xff"].concat(), "is not UTF-8 text of at most 4096 bytes"),
            (large, "is not UTF-8 text of at most 4096 bytes"),
            (format!("{SECRET}\n{SECRET}").into(), "is not made of visible ASCII characters"),
            (b"short".to_vec(), "has 5 characters, fewer than 16"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = TokenSecret::read(source.clone()).unwrap_err();
            assert!(error.to_string().ends_with(expected), "{error}");
            assert!(!format!("{error:?}{error}").contains(SECRET));
        }
    }

    #[test]
    fn variable_and_credential_are_read_and_named_where_they_are_not_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kv"), SECRET).unwrap();
        let credential =
            |folder: Option<OsString>| of_credential("kv", folder, "the credential kv".to_owned());
        assert_eq!(credential(Some(folder.path().into())).as_deref(), Ok(SECRET));
        assert_eq!(
            credential(None).unwrap_err().to_string(),
            "CREDENTIALS_DIRECTORY, the folder of the credential kv, is not set"
        );
        assert!(SecretSource::Environment("PATH".to_owned()).read().is_ok());
        let unset = SecretSource::Environment("MERIDIAN_NO_SUCH_VARIABLE".to_owned());
        assert_eq!(
            unset.read().unwrap_err().to_string(),
            "the variable MERIDIAN_NO_SUCH_VARIABLE of the environment is not set"
        );
        for name in ["", "..", "../token", "/etc/passwd"] {
            let credential = SecretSource::Credential(name.to_owned());
            assert_eq!(credential.read(), Err(UnreadableSecret::CredentialName), "{name}");
        }
    }
}
