//! The table `[encryption]`.

use std::path::PathBuf;

use meridian_vault::KeySource;

use super::*;

fn with_table(fields: &str) -> String {
    with("[gateway]", &format!("[gateway]\n[encryption]\n{fields}"))
}

#[test]
fn files_are_not_encrypted_unless_a_key_is_named() {
    assert!(parse(NODE).unwrap().encryption.is_none());
    assert_eq!(
        refused_text(&with_table("")),
        "[encryption] names no key: key_file, key_credential or key_command is needed"
    );
    assert!(refused_text(&with_table("mode = \"off\"")).contains("names no key"));
    let other = refused_text(&with_table("mode = \"maybe\"\nkey_file = \"k\""));
    assert!(other.contains("expected `on` or `off`"), "{other}");
}

#[test]
fn key_is_read_where_one_field_says_and_files_are_relative_to_the_configuration() {
    let settings = |fields: &str| {
        let config = parse(&with_table(fields)).unwrap();
        // Written and read again.
        let again = parse(&config.to_toml()).unwrap();
        assert_eq!(again.encryption, config.encryption);
        config.encryption.unwrap()
    };
    let on = settings("key_file = \"keys/data\"");
    assert!(on.seals && on.previous.is_none());
    assert_eq!(on.key, KeySource::File(PathBuf::from("/etc/meridian/keys/data")));
    let off = settings("mode = \"off\"\nkey_credential = \"data-key\"\nprevious_key_file = \"/k\"");
    assert!(!off.seals);
    assert_eq!(off.key, KeySource::Credential("data-key".to_owned()));
    assert_eq!(off.previous, Some(KeySource::File(PathBuf::from("/k"))));
    let told = settings("key_command = [\"kms\", \"get\", \"a \\\"b\\\"\"]");
    let words = ["kms", "get", "a \"b\""].map(str::to_owned);
    assert_eq!(told.key, KeySource::Command(words.to_vec()));
}

#[test]
fn key_that_is_named_twice_or_badly_is_refused() {
    let refused = |fields: &str| refused_text(&with_table(fields));
    assert!(
        refused("key_file = \"a\"\nkey_credential = \"b\"")
            .starts_with("[encryption] has several of key_file, key_credential and key_command")
    );
    assert!(
        refused("key_file = \"a\"\nprevious_key_command = [\"b\"]\nprevious_key_file = \"c\"")
            .starts_with("[encryption] has several of previous_key_file")
    );
    for name in ["", ".", "..", "a/b", "/etc/shadow"] {
        let fields = format!("key_credential = \"{name}\"");
        assert!(refused(&fields).starts_with("encryption.key_credential is not"), "{name}");
    }
    assert!(refused("key_command = []").starts_with("encryption.key_command names no program"));
    assert!(refused("key_command = [\"\"]").starts_with("encryption.key_command names no"));
}
