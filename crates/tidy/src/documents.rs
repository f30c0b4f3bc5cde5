//! Documents: their links lead somewhere, the code that they name is there, the durations that they
//! give are those of the code, and the cases of tests that a table names are in their programs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use crate::tree::File;

static LINK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\]\(([^)\s]+)\)").ok());
static QUOTED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r#""([^"\n]+)""#).ok());
static CODE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"`([^`\n]+)`").ok());
/// "500 ms (`RENEW_INTERVAL`)": a duration and the constant that it is.
static DURATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"([\d,.]+) (ms|s|min) \(`(?:\w+::)*([A-Z][A-Z0-9_]+)`\)").ok());
static CONSTANT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"const ([A-Z][A-Z0-9_]+): Duration = Duration::from_(millis|secs|mins)\(([\d_]+)\)")
        .ok()
});

/// Links to files that are not there, and to headings that a document does not have.
pub fn broken_links(document: &File, root: &Path) -> Vec<String> {
    let Some(link) = LINK.as_ref() else { return Vec::new() };
    let folder = root.join(&document.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut violations = Vec::new();
    for target in link.captures_iter(&document.text).filter_map(|found| found.get(1)) {
        let target = target.as_str();
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (path, heading) = target.split_once('#').unwrap_or((target, ""));
        let text = match path {
            "" => Some(document.text.clone()),
            _ if folder.join(path).is_dir() => continue,
            _ => std::fs::read_to_string(folder.join(path)).ok(),
        };
        match text {
            None => violations.push(format!("{}: there is no {target}", document.path)),
            Some(text) if !heading.is_empty() && !headings(&text).contains(heading) => {
                violations.push(format!("{}: there is no heading for {target}", document.path));
            }
            Some(_) => {}
        }
    }
    violations
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Names of code in a document, in backticks, that no source has: paths (`a::b`), names of several
/// words (`a_b`) and types (`AbCd`). `words` are all words of the sources.
pub fn dangling_names(document: &File, words: &BTreeSet<&str>) -> Vec<String> {
    let Some(code) = CODE.as_ref() else { return Vec::new() };
    let mut violations = Vec::new();
    for name in code.captures_iter(&document.text).filter_map(|found| found.get(1)) {
        let name = name.as_str().trim_end_matches("()");
        let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ':');
        let is_type = name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.chars().any(|c| c.is_ascii_lowercase());
        if !is_name || !(name.contains("::") || name.contains('_') || is_type) {
            continue;
        }
        if let Some(missing) =
            name.split("::").find(|part| !part.is_empty() && !words.contains(part))
        {
            violations.push(format!("{}: no source has {missing} of `{name}`", document.path));
        }
    }
    violations
}

/// All words of the sources, as far as they can be names, and the names of their files.
pub fn words<'a>(files: impl Iterator<Item = &'a File>) -> BTreeSet<&'a str> {
    let split = |text: &'a str| text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    files.flat_map(|file| split(&file.text).chain(split(&file.path))).collect()
}

/// Durations that a document gives for a constant and that are not the constant's, or of none.
pub fn wrong_durations(document: &File, sources: &[File]) -> Vec<String> {
    let (Some(duration), Some(constant)) = (DURATION.as_ref(), CONSTANT.as_ref()) else {
        return Vec::new();
    };
    let mut violations = Vec::new();
    for given in duration.captures_iter(&document.text) {
        let of = |index: usize| given.get(index).map_or("", |found| found.as_str());
        let Some(milliseconds) = milliseconds(of(1), of(2)) else { continue };
        let declared = sources.iter().flat_map(|file| constant.captures_iter(&file.text));
        let same_name =
            declared.filter(|found| found.get(1).map_or("", |name| name.as_str()) == of(3));
        let values: Vec<u64> = same_name
            .filter_map(|found| {
                let unit = match found.get(2)?.as_str() {
                    "millis" => "ms",
                    "secs" => "s",
                    _ => "min",
                };
                self::milliseconds(found.get(3)?.as_str(), unit)
            })
            .collect();
        if !values.contains(&milliseconds) {
            let (given, name) = (of(0), of(3));
            violations.push(format!("{}: {given}, but {name} is {values:?} ms", document.path));
        }
    }
    violations
}

/// Cases, in quotes in the rows of a table, that none of the row's programs has; of a row that names
/// no program, those that no program has.
pub fn missing_cases(table: &File, programs: &[File]) -> Vec<String> {
    let (Some(quoted), Some(code)) = (QUOTED.as_ref(), CODE.as_ref()) else { return Vec::new() };
    let named = |row: &str| -> Vec<String> {
        let names = code.captures_iter(row).filter_map(|found| found.get(1));
        names.map(|name| format!("/{}", name.as_str())).collect()
    };
    let mut violations = Vec::new();
    for row in table.text.lines().filter(|line| line.starts_with('|')) {
        let names = named(row);
        for case in quoted.captures_iter(row).filter_map(|found| found.get(1)) {
            let case = case.as_str();
            let has = |program: &File| {
                (names.is_empty() || names.iter().any(|name| program.path.ends_with(name)))
                    && ['"', '`'].iter().any(|q| program.text.contains(&format!("{q}{case}{q}")))
            };
            if !programs.iter().any(has) {
                violations.push(format!("{}: no program has \"{case}\"", table.path));
            }
        }
    }
    violations
}

fn milliseconds(number: &str, unit: &str) -> Option<u64> {
    let number: u64 = number.replace([',', '_'], "").parse().ok()?;
    match unit {
        "ms" => Some(number),
        "s" => Some(number * 1000),
        _ => Some(number * 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn links_to_nowhere_are_found() {
        let root = crate::tree::root();
        let text = "# A title\n[a](README.md) [b](nowhere.md) [c](#a-title) [d](#other) [e](https://x.y/z) [f](docs)";
        assert_eq!(
            broken_links(&file("ARCHITECTURE.md", text), &root),
            [
                "ARCHITECTURE.md: there is no nowhere.md",
                "ARCHITECTURE.md: there is no heading for #other"
            ]
        );
    }

    #[test]
    fn names_that_no_source_has_are_found() {
        let sources = [file("crates/a/src/keeper.rs", "struct Sender; fn send_all() {}")];
        let words = words(sources.iter());
        let text = "`keeper::Sender`, `send_all()`, `other::Sender`, `send_none`, `Receiver`, `x`, `a b_c`";
        assert_eq!(
            dangling_names(&file("A.md", text), &words),
            [
                "A.md: no source has other of `other::Sender`",
                "A.md: no source has send_none of `send_none`",
                "A.md: no source has Receiver of `Receiver`"
            ]
        );
    }

    #[test]
    fn cases_that_no_program_has_are_found() {
        let text = |case| format!("test(\"{case}\"); test(`one of ${{all}}`);");
        let programs = [file("t/a.ts", &text("first")), file("t/b.ts", &text("second"))];
        let table = "| `a.ts`: \"first\" |\n| `b.ts`: \"first\" |\n| \"second\", \"one of ${all}\" |\n\
                     | none \"secon\" |\nno row: \"third\"";
        assert_eq!(
            missing_cases(&file("t/table.md", table), &programs),
            ["t/table.md: no program has \"first\"", "t/table.md: no program has \"secon\""]
        );
    }

    #[test]
    fn durations_that_are_not_those_of_the_code_are_found() {
        let sources = [file("a.rs", "pub const RENEW: Duration = Duration::from_millis(500);")];
        let text = "500 ms (`RENEW`), 1 s (`a::RENEW`), 2 s (`GONE`), 7 ms";
        assert_eq!(
            wrong_durations(&file("A.md", text), &sources),
            [
                "A.md: 1 s (`a::RENEW`), but RENEW is [500] ms",
                "A.md: 2 s (`GONE`), but GONE is [] ms"
            ]
        );
    }
}
