//! Puts all mutants of a source file behind switches.
//!
//! [`Source::read`] finds the place of each mutant once; [`Source::render`] writes the file with
//! those that are still to be built, and says which bytes of it belong to which mutants, so that an
//! error of the compiler finds them.
//!
//! A mutant is the text that cargo-mutants would write: where another operator binds more or less
//! tightly and the expression around it would be read differently, all of that expression is copied
//! and changed.

mod places;
mod render;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use anyhow::{Context, Result};

use crate::mutant::{Form, Mutant};
pub use render::{Region, RegionKind, Rewritten};

/// Bytes of the file as it is.
type Bytes = Range<usize>;

/// A source file, and where switches go in it.
#[derive(Debug)]
pub struct Source {
    /// Relative to the root of the tree.
    pub path: String,
    text: String,
    /// By where they begin, those that enclose before those that are enclosed.
    switches: Vec<Switch>,
}

/// The mutants of one place.
#[derive(Debug)]
struct Switch {
    range: Bytes,
    shape: Shape,
    edits: Vec<Edit>,
}

/// The change of a text by a mutant.
#[derive(Debug)]
struct Edit {
    /// The index of the mutant.
    mutant: usize,
    range: Bytes,
    text: String,
}

#[derive(Debug)]
enum Shape {
    /// At the beginning of a function's body: another value is returned.
    Body,
    /// A comparison, whose operands are borrowed and evaluated once.
    Compare { left: Bytes, right: Bytes, operator: String },
    /// `&&` or `||`.
    Logic { left: Bytes, right: Bytes, is_and: bool },
    /// `!` or `-` in front of an operand.
    Unary { operand: Bytes, operator: String },
    /// Any expression, which is copied.
    Whole,
    /// The guard of an arm.
    Guard,
    /// Behind the pattern of an arm that has no guard.
    Arm,
    /// A `match`; its edits are those that take out an arm. No switch, but what an error is about.
    Match,
    /// The body of a function, for errors that name nothing closer.
    Function,
}

impl Source {
    /// Finds the places of `mutants`, all of them of the file `path` with this `text`, and sets the
    /// form of each in `forms`, which has one for every mutant of the list.
    pub fn read(path: &str, text: String, mutants: &[&Mutant], forms: &mut [Form]) -> Result<Self> {
        let file = syn::parse_file(&text).with_context(|| format!("{path} is not understood"))?;
        let switches = places::find(&file, &text, mutants, forms);
        Ok(Self { path: path.to_owned(), text, switches })
    }

    /// The file with a switch for each mutant that `forms` says is built.
    pub fn render(&self, forms: &[Form]) -> Rewritten {
        render::render(&self.text, &self.switches, forms)
    }
}
