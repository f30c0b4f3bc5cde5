//! Words that are not the field's, and names that were given up.

use std::sync::LazyLock;

use regex::Regex;

use crate::tree::File;

/// Pronouns in the place of a noun. A sentence says "the caller" or "the follower".
static PRONOUNS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let words =
        "who|whom|whoever|whomever|nobody|somebody|anybody|everybody|one that|one who|those who";
    Regex::new(&format!(r"(?i)\b(?:{words})\b")).ok()
});

/// The same words inside of a name, such as that of a test.
static IN_NAMES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let words = "who|whom|whoever|nobody|somebody|anybody|everybody|one_that|one_who|those_who";
    Regex::new(&format!(r"\bfn (?:\w*_)?(?:{words})(?:_\w*)?\(")).ok()
});

/// A comment, or a point of a list in it, that begins with a clause in the place of its subject.
static HEADLESS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^\s*//[/!]? (?:- )?What\b").ok());

/// The longest name of a test, in characters.
const MAX_TEST_NAME: usize = 90;

/// Lines with a pronoun in the place of a noun, and names of functions with one. This file, which
/// has to name them, is left out.
pub fn violations(file: &File) -> Vec<String> {
    if file.path == "crates/tidy/src/words.rs" {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for pattern in [&*PRONOUNS, &*IN_NAMES].into_iter().flatten() {
            if let Some(found) = pattern.find(line) {
                let (path, line, word) = (&file.path, index + 1, found.as_str());
                violations.push(format!("{path}:{line}: say a noun in the place of \"{word}\""));
            }
        }
    }
    violations
}

/// Lines of comments that begin with "What" and name nothing: "What a file holds" is "The contents of
/// a file".
pub fn headless(file: &File) -> Vec<String> {
    let Some(pattern) = &*HEADLESS else { return Vec::new() };
    let lines = file.text.lines().zip(1..).filter(|(line, _)| pattern.is_match(line));
    let violation =
        |(_, number)| format!("{}:{number}: name the subject in the place of \"What\"", file.path);
    lines.map(violation).collect()
}

/// Names of functions that are too long to be read at once.
pub fn long_names(file: &File) -> Vec<String> {
    let names = file.text.lines().filter_map(|line| line.trim_start().split_once("fn "));
    let names = names.filter_map(|(_, rest)| rest.split(['(', '<']).next());
    let long = names.filter(|name| name.len() > MAX_TEST_NAME && !name.contains(' '));
    long.map(|name| format!("{}: the name {name} has {} characters", file.path, name.len()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        violations(&File { path: "a.rs".to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn pronouns_for_machines_are_found_in_prose_and_in_names() {
        // Put together here, so that this file does not hold them.
        let who = ["w", "ho"].concat();
        let nobody = ["no", "body"].concat();
        for bad in [
            format!("// {who} is gone asks again"),
            format!("/// To {nobody}."),
            format!("//! {}ever leads", who.to_uppercase()),
            format!("fn {who}_is_slow_is_not_asked() {{"),
            format!("    async fn a_{nobody}_waits() {{"),
            ["// one ", "that leads"].concat(),
        ] {
            assert_eq!(found(&bad), 1, "{bad}");
        }
        for good in
            ["// whose lease is over", "// the whole state", "let whole = 1;", "fn whole() {"]
        {
            assert_eq!(found(good), 0, "{good}");
        }
    }

    #[test]
    fn comments_that_begin_with_a_clause_are_found() {
        let found = |line: &str| {
            headless(&File { path: "a.rs".to_owned(), text: format!("fn a() {{}}\n{line}\n") })
        };
        for marker in ["///", "//!", "    //", "//! -"] {
            let bad = format!("{marker} What a file holds.");
            let place = "a.rs:2: name the subject in the place of \"What\"";
            assert_eq!(found(&bad), [place], "{bad}");
        }
        for good in
            ["/// The contents of a file.", "/// Says what it holds.", "let a = \"// What\";"]
        {
            assert!(found(good).is_empty(), "{good}");
        }
    }

    #[test]
    fn a_name_that_is_a_sentence_of_its_own_is_found() {
        let named = |length: usize| File {
            path: "a.rs".to_owned(),
            text: format!("    async fn {}() {{", "a".repeat(length)),
        };
        assert!(long_names(&named(MAX_TEST_NAME)).is_empty());
        assert_eq!(long_names(&named(MAX_TEST_NAME + 1)).len(), 1);
    }
}
