//! The table `[encryption]`: where the master key of a node is read.

use std::path::{Path, PathBuf};

use meridian_vault::{EncryptionSettings, KeySource};
use serde::Deserialize;

use crate::InvalidConfig;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EncryptionTable {
    #[serde(default)]
    mode: Mode,
    key_file: Option<PathBuf>,
    key_credential: Option<String>,
    key_command: Option<Vec<String>>,
    previous_key_file: Option<PathBuf>,
    previous_key_credential: Option<String>,
    previous_key_command: Option<Vec<String>>,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    On,
    Off,
}

/// `folder`: where relative paths begin.
pub(crate) fn check(
    table: EncryptionTable,
    folder: &Path,
) -> Result<EncryptionSettings, InvalidConfig> {
    let key = source(table.key_file, table.key_credential, table.key_command, folder, "key_")?;
    let previous = source(
        table.previous_key_file,
        table.previous_key_credential,
        table.previous_key_command,
        folder,
        "previous_key_",
    )?;
    let key = key.ok_or(InvalidConfig::NoKey)?;
    Ok(EncryptionSettings { seals: table.mode == Mode::On, key, previous })
}

fn source(
    file: Option<PathBuf>,
    credential: Option<String>,
    command: Option<Vec<String>>,
    folder: &Path,
    prefix: &'static str,
) -> Result<Option<KeySource>, InvalidConfig> {
    let given = [
        file.map(|path| KeySource::File(folder.join(path))),
        credential.map(KeySource::Credential),
        command.map(KeySource::Command),
    ];
    let mut given = given.into_iter().flatten();
    let source = given.next();
    if given.next().is_some() {
        return Err(InvalidConfig::TwoKeys { prefix });
    }
    match &source {
        Some(KeySource::Credential(name)) if !is_file_name(name) => {
            Err(InvalidConfig::KeyCredential { prefix })
        }
        Some(KeySource::Command(words)) if words.first().is_none_or(String::is_empty) => {
            Err(InvalidConfig::KeyCommand { prefix })
        }
        _ => Ok(source),
    }
}

/// One name in a folder, as systemd wants it of a credential.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}
