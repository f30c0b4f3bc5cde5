//! Stored keys: their names and layouts are in one registry, and nowhere else.

use std::sync::LazyLock;

use regex::Regex;

use crate::tree::{File, is_test};

/// The registry, with the files of its folder.
const REGISTRY: &str = "crates/storage/src/schema";

/// Crates that store: all of their sources are looked through.
const STORING: &[&str] = &["crates/storage/src/", "crates/consensus/src/"];

/// Names in a source of another crate that show that it stores, or reads stored data.
static STORES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"\b(?:schema::|META_FAMILY|LOG_FAMILY|WriteBatch|GroupLog|put_mark)").ok()
});

/// A byte string, or a byte.
static LITERAL: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?:^|[^\w"'])b(?:"[^"]*"|'\\?[^']+')"#).ok());

/// Literals in code that stores, outside of the registry and of tests.
pub fn unregistered(file: &File) -> Vec<String> {
    let code = file.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let stores = STORING.iter().any(|folder| file.path.starts_with(folder))
        || STORES.as_ref().is_some_and(|names| names.is_match(code));
    if !stores || file.path.starts_with(REGISTRY) || is_test(&file.path) {
        return Vec::new();
    }
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let found = lines.filter_map(|(index, line)| Some((index + 1, LITERAL.as_ref()?.find(line)?)));
    let said = found.map(|(line, found)| {
        let literal = found.as_str().trim_start_matches(|first| first != 'b');
        format!("{}:{line}: {literal} belongs to the registry in {REGISTRY}", file.path)
    });
    said.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        unregistered(&File { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn keys_are_found_outside_of_the_registry_and_of_tests() {
        let (own, other) = ("crates/storage/src/a.rs", "crates/node/src/a.rs");
        for key in [r#"get(b"seal")"#, "mark(b'p')", r#"[b"d".as_slice(), &id]"#, r"tag == b'\n'"] {
            assert_eq!(found(own, key), 1, "{key}");
            assert_eq!(
                found(other, &format!("use meridian_storage::GroupLog;\n{key}")),
                1,
                "{key}"
            );
            assert_eq!(found(other, key), 0, "it does not store: {key}");
            assert_eq!(found("crates/storage/src/schema/meta.rs", key), 0);
            assert_eq!(found("crates/storage/src/a/tests.rs", key), 0);
            assert_eq!(found(own, &format!("#[cfg(test)]\nmod tests {{ {key} }}")), 0);
            assert_eq!(found(own, &format!("// {key}")), 0);
        }
        for none in [r#"join("db")"#, r#"["a", "b"]"#, "'b'", r#"field("mb", 1)"#] {
            assert_eq!(found(own, none), 0, "{none}");
        }
    }
}
