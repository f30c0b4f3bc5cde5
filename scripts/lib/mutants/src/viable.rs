//! Builds the tests with all mutants, and finds out which of them do not compile.
//!
//! Each error of the compiler is laid at the mutants in whose code it is. Those are expressed in
//! another way, or not at all, and the compiler is asked again, until it has no more errors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::mutant::{Form, Mutant, OPAQUE};
use crate::rewrite::{Region, RegionKind, Rewritten, Source};
use crate::say;
use crate::tree::Tree;

/// A program that has tests.
#[derive(Debug)]
pub struct Artifact {
    /// The package and the target, as a person names them.
    pub name: String,
    pub package: String,
    /// Where its tests expect to run.
    pub folder: PathBuf,
    pub program: PathBuf,
}

/// Builds the tree at `tree` with the mutants of `sources`, and changes `forms` until it compiles.
/// `progress` is called with the forms whenever they have changed.
pub fn build(
    tree: &Tree,
    sources: &[Source],
    mutants: &[Mutant],
    forms: &mut [Form],
    programs: bool,
    mut progress: impl FnMut(&[Form]) -> Result<()>,
) -> Result<Vec<Artifact>> {
    // Without tests first: it needs no code to be generated.
    let mut commands = vec![
        vec!["check", "--workspace", "--lib", "--bins", "--keep-going"],
        vec!["test", "--no-run", "--workspace", "--lib", "--bins", "--tests"],
    ];
    if programs {
        commands.push(vec!["build", "--workspace", "--bins"]);
    }
    let mut artifacts = Vec::new();
    let mut step = 0;
    while let Some(arguments) = commands.get(step) {
        let mut files = BTreeMap::new();
        for source in sources {
            let rewritten = source.render(forms);
            tree.write(&source.path, &rewritten.text)?;
            files.insert(source.path.as_str(), rewritten);
        }
        let built = forms.iter().filter(|form| form.is_built()).count();
        say(&format!("cargo {}, with {built} mutants", arguments.first().unwrap_or(&"")));
        let output = cargo(tree, arguments)?;
        if output.succeeded {
            if step == 1 {
                artifacts = output.artifacts;
            }
            step += 1;
            continue;
        }
        let mut blamed = BTreeMap::new();
        let mut unexplained = Vec::new();
        for error in &output.errors {
            let verdicts = blame(error, &files, mutants, forms);
            if verdicts.is_empty() {
                unexplained.push(error.rendered.clone().unwrap_or_else(|| error.message.clone()));
            }
            for (mutant, form) in verdicts {
                // Where two errors name one mutant, the one in its own code counts.
                let known = blamed.entry(mutant).or_insert_with(|| form.clone());
                if form == Form::NotCompiled {
                    *known = form;
                }
            }
        }
        if blamed.is_empty() {
            bail!(
                "the tree does not compile, and no mutant is why:\n{}{}",
                unexplained.concat(),
                output.stderr
            );
        }
        for (mutant, form) in blamed {
            if let Some(place) = forms.get_mut(mutant) {
                *place = form;
            }
        }
        progress(forms)?;
    }
    Ok(artifacts)
}

/// The new forms of the mutants that an error is about.
fn blame(
    error: &Diagnostic,
    files: &BTreeMap<&str, Rewritten>,
    mutants: &[Mutant],
    forms: &[Form],
) -> Vec<(usize, Form)> {
    let mut places: Vec<(&Rewritten, Range<usize>)> = Vec::new();
    let mut spans: Vec<&Span> = error.spans.iter().collect();
    spans.sort_by_key(|span| !span.is_primary);
    spans.extend(error.children.iter().flat_map(|child| &child.spans));
    for span in spans {
        // Of what a macro wrote, the place where it was called.
        let mut span = Some(span);
        while let Some(at) = span {
            if let Some(file) = files.get(at.file_name.as_str()) {
                places.push((file, at.byte_start..at.byte_end));
                break;
            }
            span = at.expansion.as_ref().map(|expansion| &expansion.span);
        }
    }
    let is_built = |mutant: &usize| forms.get(*mutant).is_some_and(Form::is_built);
    // Missing patterns are said of the whole `match`.
    let is_pattern_missing = error.code.as_ref().is_some_and(|code| code.code == "E0004");
    for (file, place) in &places {
        let is_it = |region: &&Region| {
            let is_match = region.kind == RegionKind::Match;
            let is_other = region.kind == RegionKind::Function;
            !is_other
                && is_match == is_pattern_missing
                && encloses(&region.range, place)
                && !region.mutants.is_empty()
        };
        if let Some(region) = file.regions.iter().find(is_it) {
            let live: Vec<usize> = region.mutants.iter().copied().filter(is_built).collect();
            return live
                .iter()
                .map(|mutant| (*mutant, verdict(region.kind, live.len(), mutants.get(*mutant))))
                .collect();
        }
    }
    for (file, place) in &places {
        let is_it = |region: &&Region| {
            region.kind == RegionKind::Function && encloses(&region.range, place)
        };
        let inner = |outer: &Region| {
            let range = outer.range.clone();
            file.regions.iter().filter(move |region| encloses(&range, &region.range))
        };
        if let Some(function) = file.regions.iter().find(is_it) {
            let live: BTreeSet<usize> = inner(function)
                .flat_map(|region| &region.mutants)
                .copied()
                .filter(is_built)
                .collect();
            let returns_opaque =
                |mutant: &usize| mutants.get(*mutant).is_some_and(Mutant::replaces_opaque_value);
            if live.iter().any(returns_opaque) {
                let opaque = live.into_iter().filter(returns_opaque);
                return opaque.map(|mutant| (mutant, Form::not_tried(OPAQUE))).collect();
            }
            let reason = "its function does not compile with switches";
            let is_compact = |mutant: usize| {
                let of_it = |region: &&Region| region.mutants.contains(&mutant);
                inner(function).find(of_it).is_some_and(|region| region.kind == RegionKind::Compact)
            };
            let next = |mutant| {
                (mutant, if is_compact(mutant) { Form::Copied } else { Form::not_tried(reason) })
            };
            return live.into_iter().map(next).collect();
        }
    }
    Vec::new()
}

fn verdict(kind: RegionKind, mutants: usize, mutant: Option<&Mutant>) -> Form {
    match kind {
        RegionKind::Changed => Form::NotCompiled,
        RegionKind::Value if mutant.is_some_and(Mutant::replaces_opaque_value) => {
            Form::not_tried(OPAQUE)
        }
        RegionKind::Value => Form::NotCompiled,
        RegionKind::Compact => Form::Copied,
        // With one arm behind a guard, patterns are missing that are missing without the arm.
        RegionKind::Match if mutants == 1 => Form::NotCompiled,
        RegionKind::Match => {
            Form::not_tried("no `match` is complete with all its arms behind guards")
        }
        RegionKind::Switch | RegionKind::Function => Form::not_tried("its switch does not compile"),
    }
}

fn encloses(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

struct Output {
    succeeded: bool,
    errors: Vec<Diagnostic>,
    artifacts: Vec<Artifact>,
    stderr: String,
}

fn cargo(tree: &Tree, arguments: &[&str]) -> Result<Output> {
    let output = Command::new("cargo")
        .current_dir(&tree.root)
        .args(arguments)
        .args(["--release", "--message-format=json"])
        .stdin(Stdio::null())
        .output()
        .context("cargo does not run")?;
    let mut errors = Vec::new();
    let mut artifacts = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match serde_json::from_str(line) {
            // The last one has no place, and only counts the others.
            Ok(Line::Message { message })
                if message.level.starts_with("error") && !message.spans.is_empty() =>
            {
                errors.push(message);
            }
            Ok(Line::Artifact { target, profile, executable: Some(program), manifest_path })
                if profile.test =>
            {
                let folder = manifest_path.parent().map(PathBuf::from).unwrap_or_default();
                let package = package_name(&manifest_path)?;
                let name = format!("{package} {}", target.name);
                artifacts.push(Artifact { name, package, folder, program });
            }
            // Warnings, what has no tests, and lines that build scripts print.
            _ => {}
        }
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Output { succeeded: output.status.success(), errors, artifacts, stderr })
}

/// The name that the manifest of a package gives it.
fn package_name(manifest: &std::path::Path) -> Result<String> {
    let text = std::fs::read_to_string(manifest)
        .with_context(|| format!("reading {}", manifest.display()))?;
    let name =
        text.lines().find_map(|line| line.trim().strip_prefix("name = \"")?.strip_suffix('"'));
    Ok(name.with_context(|| format!("{} has no name", manifest.display()))?.to_owned())
}

#[derive(Deserialize)]
#[serde(tag = "reason")]
enum Line {
    #[serde(rename = "compiler-message")]
    Message { message: Diagnostic },
    #[serde(rename = "compiler-artifact")]
    Artifact {
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Debug, Deserialize)]
struct Diagnostic {
    message: String,
    #[serde(default)]
    level: String,
    code: Option<Code>,
    spans: Vec<Span>,
    #[serde(default)]
    children: Vec<Diagnostic>,
    rendered: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Code {
    code: String,
}

#[derive(Debug, Deserialize)]
struct Span {
    file_name: String,
    byte_start: usize,
    byte_end: usize,
    is_primary: bool,
    expansion: Option<Box<Expansion>>,
}

#[derive(Debug, Deserialize)]
struct Expansion {
    span: Span,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::tests::{mutant, source};

    /// The blame for an error at `place`, a text of the rewritten file.
    fn blamed(place: &str, code: &str, mutants: &[Mutant]) -> Vec<(usize, Form)> {
        let mut forms = vec![Form::Compact; mutants.len()];
        let rewritten = source(mutants, &mut forms).render(&forms);
        let start = rewritten
            .text
            .find(place)
            .unwrap_or_else(|| panic!("no {place} in {}", rewritten.text));
        let error = serde_json::json!({
            "message": "", "level": "error", "code": { "code": code }, "rendered": null,
            "spans": [{
                "file_name": "program.rs", "byte_start": start, "byte_end": start + place.len(), "is_primary": true,
                "expansion": null,
            }],
        });
        blame(
            &serde_json::from_value(error).unwrap(),
            &BTreeMap::from([("program.rs", rewritten)]),
            mutants,
            &forms,
        )
    }

    #[test]
    fn an_error_is_laid_at_the_closest_mutants() {
        let mutants = [
            mutant(0, "less", "BinaryOperator", ">="),
            mutant(1, "times", "BinaryOperator", "/"),
            mutant(2, "body", "FnValue", "\"text\""),
            mutant(3, "perhaps", "FnValue", "None"),
            mutant(4, "arm", "MatchArm", ""),
            mutant(5, "first operator", "BinaryOperator", "/"),
        ];
        // A comparison is tried again as a copy.
        assert_eq!(blamed("left__ >= right__", "E0369", &mutants), [(0, Form::Copied)]);
        assert_eq!(
            blamed("number(2) /*times*/ /  number(3)", "E0369", &mutants),
            [(1, Form::NotCompiled)]
        );
        assert_eq!(blamed("\"text\"", "E0308", &mutants), [(2, Form::NotCompiled)]);
        assert_eq!(blamed("None; }", "E0308", &mutants), [(3, Form::not_tried(OPAQUE))]);
        assert_eq!(blamed("match n", "E0004", &mutants), [(4, Form::NotCompiled)]);
        // Of nothing closer, all of the function; and none where there are none.
        let of_function = blamed("// It begins", "E0000", &mutants);
        assert!(
            matches!(of_function[..], [(2, Form::NotTried(_)), (5, Form::NotTried(_))]),
            "{of_function:?}"
        );
        assert_eq!(blamed("struct Limits", "E0000", &mutants), []);
    }
}
