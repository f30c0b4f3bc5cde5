//! Mutation testing out of one build: all mutants that cargo-mutants names are compiled into the
//! tests, each behind a switch that the environment of a process sets. `scripts/mutants` starts
//! this, and docs/mutants.md says why.
//!
//! The steps: a copy of the tree ([`tree`]), switches in its sources ([`rewrite`]), a build without
//! the mutants that do not compile ([`viable`]), each test once to see what it reaches ([`suite`]),
//! each mutant against the tests that reach it ([`trial`]), and what was found ([`report`]). Each
//! step keeps what it found in a file ([`journal`]): a run of the same tree that was stopped goes
//! on where it was.

mod journal;
mod mutant;
mod report;
mod rewrite;
mod suite;
mod tree;
mod trial;
mod viable;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::journal::Journal;
use crate::mutant::{Form, Mutant};
use crate::rewrite::Source;
use crate::tree::Tree;
use crate::trial::Trials;

/// The options, as scripts/mutants passes them on.
struct Options {
    /// The tree to be tested.
    tree: PathBuf,
    /// Where the copy and everything that is found are kept.
    work: PathBuf,
    /// The output of `cargo mutants --list --json`.
    mutants: PathBuf,
    jobs: usize,
    budget: Duration,
    clusters: bool,
}

fn main() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    fs::create_dir_all(&options.work)?;
    // Two runs in one folder would write over each other's sources.
    let lock = File::create(options.work.join("lock"))?;
    lock.try_lock().context("another run is at work in this folder")?;

    let mutants = mutant::read_list(&options.mutants)?;
    let tree = Tree::copy(&options.tree, options.work.join("tree"), &mutants)?;
    let mut forms = vec![Form::Compact; mutants.len()];
    let sources = read_sources(&tree, &mutants, &mut forms)?;
    let artifacts = build(&options, &tree, &sources, &mutants, &mut forms)?;

    let tests = suite::list(artifacts, options.clusters)?;
    suite::limit_memory(options.clusters)?;
    let folder = options.work.join("runs");
    fs::create_dir_all(&folder)?;
    let trials = Trials {
        mutants: &mutants,
        tests: &tests,
        jobs: options.jobs,
        budget: options.budget,
        folder: &folder,
    };
    let (journal, known) =
        Journal::open(&options.work.join("traces.jsonl"), subject(&tree, &mutants, &forms))?;
    let bases = trials.trace(&journal, known)?;
    let (journal, known) = Journal::open(&options.work.join("results.jsonl"), tree.hash)?;
    let built: Vec<usize> = forms
        .iter()
        .enumerate()
        .filter(|(_, form)| form.is_built())
        .map(|(index, _)| index)
        .collect();
    let verdicts = trials.run(&built, &bases, &journal, known)?;
    report::report(&options.work, &mutants, &forms, &verdicts, &bases)
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let (mut tree, mut work, mut mutants, mut clusters) = (None, None, None, false);
    let (mut jobs, mut budget) = (std::thread::available_parallelism()?.get(), 60);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--tree" => tree = Some(PathBuf::from(value()?)),
            "--work" => work = Some(PathBuf::from(value()?)),
            "--mutants" => mutants = Some(PathBuf::from(value()?)),
            "--jobs" => jobs = value()?.parse().context("--jobs")?,
            "--budget" => budget = value()?.parse().context("--budget")?,
            "--clusters" => clusters = true,
            _ => bail!("unknown argument: {argument}"),
        }
    }
    let (Some(tree), Some(work), Some(mutants)) = (tree, work, mutants) else {
        bail!("--tree, --work and --mutants are needed: scripts/mutants passes them")
    };
    Ok(Options { tree, work, mutants, jobs, budget: Duration::from_secs(budget), clusters })
}

fn read_sources(tree: &Tree, mutants: &[Mutant], forms: &mut [Form]) -> Result<Vec<Source>> {
    let mut by_file: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
    for mutant in mutants {
        by_file.entry(&mutant.file).or_default().push(mutant);
    }
    let read = |(path, mutants): (&str, Vec<&Mutant>)| {
        let text = tree
            .sources
            .get(path)
            .cloned()
            .with_context(|| format!("{path} is not in the copy"))?;
        Source::read(path, text, &mutants, forms)
    };
    by_file.into_iter().map(read).collect()
}

/// Builds, beginning with the forms that an earlier run of the same tree came to.
fn build(
    options: &Options,
    tree: &Tree,
    sources: &[Source],
    mutants: &[Mutant],
    forms: &mut [Form],
) -> Result<Vec<viable::Artifact>> {
    let (journal, known) =
        Journal::open::<(String, Form)>(&options.work.join("forms.jsonl"), tree.hash)?;
    let mut last: BTreeMap<String, Form> = known.into_iter().collect();
    for (mutant, form) in mutants.iter().zip(forms.iter_mut()) {
        if let Some(known) = last.get(&mutant.name) {
            form.clone_from(known);
        }
    }
    viable::build(tree, sources, mutants, forms, options.clusters, |forms| {
        for (mutant, form) in mutants.iter().zip(forms) {
            if last.get(&mutant.name) != Some(form) {
                last.insert(mutant.name.clone(), form.clone());
                journal.push(&(&mutant.name, form))?;
            }
        }
        Ok(())
    })
}

/// The subject of the tests' traces: the tree, and the numbers of the mutants in it.
fn subject(tree: &Tree, mutants: &[Mutant], forms: &[Form]) -> u64 {
    let mut hasher = DefaultHasher::new();
    tree.hash.hash(&mut hasher);
    for (mutant, form) in mutants.iter().zip(forms) {
        (&mutant.name, form.is_built()).hash(&mut hasher);
    }
    hasher.finish()
}

/// Tells the user how far it is.
pub(crate) fn say(text: &str) {
    eprintln!("meridian: mutants: {text}");
}
