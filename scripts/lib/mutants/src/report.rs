//! The results of a run, for people and for scripts/mutants.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::mutant::{Form, Mutant};
use crate::trial::{Base, Fate, Verdict};

/// Prints what became of each mutant that no test notices or that was not tried, and the counts.
/// The names of all go to files in `folder`, of one fate each, called as cargo-mutants calls them.
pub fn report(
    folder: &Path,
    mutants: &[Mutant],
    forms: &[Form],
    verdicts: &BTreeMap<String, Verdict>,
    bases: &BTreeMap<String, Base>,
) -> Result<()> {
    let mut files: BTreeMap<&str, Vec<String>> =
        ["caught", "timeout", "missed", "unviable", "untried"]
            .into_iter()
            .map(|name| (name, Vec::new()))
            .collect();
    let mut put = |file: &'static str, mutant: &Mutant, reason: Option<String>| {
        if let Some(reason) = reason {
            println!("{}: {reason}", mutant.name);
        }
        files.entry(file).or_default().push(mutant.name.clone());
    };
    let mut out_of_time = 0;
    for (mutant, form) in mutants.iter().zip(forms) {
        match (form, verdicts.get(&mutant.name)) {
            (Form::NotCompiled, _) => put("unviable", mutant, None),
            (Form::NotTried(reason), _) => {
                put("untried", mutant, Some(format!("not tried: {reason}")))
            }
            (_, None) => {
                put("untried", mutant, Some("not tried: the run did not come to it".to_owned()))
            }
            (_, Some(verdict)) => {
                let once = match verdict.once.as_slice() {
                    [] => String::new(),
                    tests => format!(
                        "; one run of these failed, and the next did not: {}",
                        tests.join(", ")
                    ),
                };
                let reaching = verdict.reaching;
                match verdict.fate {
                    Fate::Caught => put("caught", mutant, None),
                    Fate::TimedOut => put("timeout", mutant, None),
                    Fate::Survived => {
                        put(
                            "missed",
                            mutant,
                            Some(format!("survived the {reaching} tests that reach it{once}")),
                        );
                    }
                    Fate::OutOfTime => {
                        out_of_time += 1;
                        let passed = verdict.passed.len();
                        let text = format!(
                            "survived {passed} of {reaching} tests that reach it, then its time was over"
                        );
                        put("missed", mutant, Some(format!("{text}{once}")));
                    }
                    Fate::Unreached => {
                        put("missed", mutant, Some("survived: no test reaches it".to_owned()))
                    }
                }
            }
        }
    }
    for base in bases.values().filter(|base| !base.passed) {
        println!("{}: fails without any mutant, and was left out", base.test);
    }
    let count = |name: &str| files.get(name).map_or(0, Vec::len);
    println!(
        "{} mutants: {} caught, {} by the time limit, {} survived ({out_of_time} of them not against all tests), {} not \
         compiled, {} not tried",
        mutants.len(),
        count("caught"),
        count("timeout"),
        count("missed"),
        count("unviable"),
        count("untried"),
    );
    for (name, lines) in &files {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(folder.join(format!("{name}.txt")), text)?;
    }
    Ok(())
}
