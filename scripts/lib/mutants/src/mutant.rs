//! A mutant as cargo-mutants names it, and the form that it has in the build.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The number of mutants that the switch crate has room for.
const MAX_MUTANTS: usize = 65_535;

/// Why a function's value is not replaced where another one would be of another type.
pub const OPAQUE: &str = "the function returns `impl Trait`, which is one type";

/// One change of the code.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// Its index in the list.
    pub index: usize,
    /// As cargo-mutants prints it, with file, line and column.
    pub name: String,
    /// The file, relative to the root of the tree.
    pub file: String,
    pub package: String,
    /// The function in which it lies, if any.
    pub function: String,
    /// `-> T` of that function.
    pub returns: String,
    /// The kind, in the words of cargo-mutants: `FnValue`, `BinaryOperator` and so on.
    pub genre: String,
    /// The text that replaces the original one.
    pub replacement: String,
    /// Line and column, from 1, the column in characters.
    pub start: (usize, usize),
}

impl Mutant {
    /// Whether it replaces a value of which `impl Trait` is a part.
    pub fn replaces_opaque_value(&self) -> bool {
        self.genre == "FnValue" && self.returns.contains("impl ")
    }
}

/// The number of the mutant at `index`, as its switch has it at run time: 0 is none.
pub fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

/// How a mutant is expressed in the build, or why it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// By a switch on the operator, or the only way that its kind has.
    Compact,
    /// By a copy of the whole expression, changed, beside the expression itself.
    Copied,
    /// The code does not compile with it: what cargo-mutants calls unviable.
    NotCompiled,
    /// No switch can express it, for this reason.
    NotTried(String),
}

impl Form {
    pub fn is_built(&self) -> bool {
        matches!(self, Self::Compact | Self::Copied)
    }

    pub fn not_tried(reason: &str) -> Self {
        Self::NotTried(reason.to_owned())
    }
}

/// The mutants in `file`, which `cargo mutants --list --json` wrote.
pub fn read_list(file: &Path) -> Result<Vec<Mutant>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let listed: Vec<Listed> = serde_json::from_str(&text).context("the list of cargo-mutants")?;
    ensure!(
        listed.len() <= MAX_MUTANTS,
        "{} mutants are more than {MAX_MUTANTS}: try a part, by --shard",
        listed.len()
    );
    Ok(listed.into_iter().enumerate().map(|(index, listed)| listed.mutant(index)).collect())
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    file: String,
    package: String,
    function: Option<Function>,
    genre: String,
    replacement: String,
    span: Span,
}

#[derive(Deserialize)]
struct Function {
    function_name: String,
    return_type: String,
}

#[derive(Deserialize)]
struct Span {
    start: Start,
}

#[derive(Deserialize)]
struct Start {
    line: usize,
    column: usize,
}

impl Listed {
    fn mutant(self, index: usize) -> Mutant {
        let (function, returns) = self
            .function
            .map(|function| (function.function_name, function.return_type))
            .unwrap_or_default();
        Mutant {
            index,
            name: self.name,
            file: self.file,
            package: self.package,
            function,
            returns,
            genre: self.genre,
            replacement: self.replacement,
            start: (self.span.start.line, self.span.start.column),
        }
    }
}
