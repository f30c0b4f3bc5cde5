//! Checks of this tree beyond those of the compiler and its lints, as functions that a test runs.
//!
//! | module | what it checks |
//! |---|---|
//! | [`packages`] | which crate may depend on which, the owner of a library, which crates are pure |
//! | [`modules`] | the order of a crate's modules, circles among them, their heads and their lists |
//! | [`sources`] | the length of files, the names of modules, clocks and files in pure crates |
//! | [`stored_keys`] | literals of stored keys outside of their registry |
//! | [`words`] | words, names and comments that are not the field's |
//! | [`documents`] | links, names of code, and durations in documents |
//! | [`tree`] | the files of this tree |
//!
//! Every check returns its violations, one sentence each: `tests/tree.rs` runs them on this tree, and
//! the tests beside each check plant what it has to find. The length of functions is checked by
//! clippy (`too_many_lines`).

pub mod documents;
pub mod modules;
pub mod packages;
pub mod sources;
pub mod stored_keys;
pub mod tree;
pub mod words;
