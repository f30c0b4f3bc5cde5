//! Modules of a crate: no circle among those of one folder, no import from a room to one above it,
//! and every module in the list at the head of its crate.
//!
//! An import counts from the module beside another: `crate::a::b::f` in `a/c.rs` is an arrow from
//! `b`'s neighbour `c` to `b` in the folder `a`, and in `d/e.rs` one from `d` to `a` in the crate.
//! Uses in tests alone do not count.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::sources::declared_module;
use crate::tree::{File, is_test};

/// The path of a module in its crate, from its root.
type Module = Vec<String>;

/// For each folder of modules (the crate's root is the empty one), what imports what, and from where.
pub type Arrows = BTreeMap<Module, BTreeMap<(String, String), BTreeSet<String>>>;

/// The imports among the modules of one crate, whose sources are in `folder`.
pub fn arrows(folder: &str, files: &[File]) -> Arrows {
    let of_crate = files.iter().filter(|file| !is_test(&file.path));
    let modules: Vec<(Module, &File)> =
        of_crate.filter_map(|file| Some((module_of(folder, &file.path)?, file))).collect();
    let known: BTreeSet<&[String]> = modules.iter().map(|(module, _)| module.as_slice()).collect();
    let mut arrows = Arrows::new();
    for (module, file) in &modules {
        let Ok(tokens) = file.text.parse::<TokenStream>() else { continue };
        let mut paths = Vec::new();
        imports(tokens, module, &mut paths);
        for path in paths {
            let prefixes = (0..=path.len()).rev().filter_map(|end| path.get(..end));
            let Some(target) = prefixes.into_iter().find(|prefix| known.contains(prefix)) else {
                continue;
            };
            let shared = module.iter().zip(target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(shared), target.get(shared)) {
                let folder = module.iter().take(shared).cloned().collect();
                let folder = arrows.entry(folder).or_default();
                folder.entry((from.clone(), to.clone())).or_default().insert(file.path.clone());
            }
        }
    }
    arrows
}

/// The module that a file is, or `None` outside of the folder, and for a program.
fn module_of(folder: &str, path: &str) -> Option<Module> {
    let path = path.strip_prefix(folder)?.strip_prefix('/')?.strip_suffix(".rs")?;
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    (module != ["main"]).then_some(module)
}

/// Every path that begins with `crate` or `super`, from the crate's root.
fn imports(tokens: TokenStream, module: &[String], paths: &mut Vec<Module>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut rest = tokens.as_slice();
    while let [token, behind @ ..] = rest {
        rest = behind;
        match token {
            TokenTree::Punct(hash) if hash.as_char() == '#' && is_for_tests(behind) => {
                rest = behind.get(item_length(behind)..).unwrap_or_default();
            }
            TokenTree::Ident(word) if *word == "crate" => {
                if let Some(path) = behind_separator(behind) {
                    tree(path, Vec::new(), paths);
                }
            }
            TokenTree::Ident(word) if *word == "super" => {
                let mut parent = module.to_vec();
                parent.pop();
                while let Some(path) = behind_separator(rest) {
                    rest = path;
                    match path {
                        [TokenTree::Ident(word), further @ ..] if *word == "super" => {
                            parent.pop();
                            rest = further;
                        }
                        _ => {
                            tree(path, parent, paths);
                            break;
                        }
                    }
                }
            }
            TokenTree::Group(group) => imports(group.stream(), module, paths),
            _ => {}
        }
    }
}

/// One path of a use tree, or several: `a::{b::C, d}`.
fn tree(tokens: &[TokenTree], prefix: Module, paths: &mut Vec<Module>) {
    match tokens {
        [TokenTree::Ident(name), behind @ ..] => {
            let mut path = prefix;
            if *name != "self" {
                path.push(name.to_string());
            }
            match behind_separator(behind) {
                Some(behind) => tree(behind, path, paths),
                None => paths.push(path),
            }
        }
        [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let branches =
                inner.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','));
            for branch in branches.filter(|branch| !branch.is_empty()) {
                tree(branch, prefix.clone(), paths);
            }
        }
        _ => paths.push(prefix),
    }
}

/// The tokens behind a `::`, if they begin with one.
fn behind_separator(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    match tokens {
        [TokenTree::Punct(first), TokenTree::Punct(second), behind @ ..]
            if first.as_char() == ':' && second.as_char() == ':' =>
        {
            Some(behind)
        }
        _ => None,
    }
}

/// Whether this is the attribute of an item that is compiled for tests alone, behind its `#`.
fn is_for_tests(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Group(attribute), ..]
        if attribute.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// To the end of the item: its block, or its semicolon.
fn item_length(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// Modules of one folder that import each other in a circle.
pub fn circles(name: &str, arrows: &Arrows) -> Vec<String> {
    let mut violations = Vec::new();
    for (folder, imports) in arrows {
        let names: BTreeSet<&str> =
            imports.keys().flat_map(|(a, b)| [a.as_str(), b.as_str()]).collect();
        let reach: BTreeMap<&str, BTreeSet<&str>> =
            names.iter().map(|name| (*name, reached(imports, name))).collect();
        let both = |a: &str, b: &str| reach.get(a).is_some_and(|seen| seen.contains(b));
        let mut told = BTreeSet::new();
        for module in &names {
            let circle: Vec<&str> = names
                .iter()
                .copied()
                .filter(|other| both(module, other) && both(other, module))
                .collect();
            if circle.len() > 1 && told.insert(circle.clone()) {
                let path = [&[name.to_owned()], folder.as_slice()].concat().join("::");
                violations
                    .push(format!("in {path} these import each other: {}", circle.join(", ")));
            }
        }
    }
    violations
}

/// All modules that a module imports, and those that they import in turn.
fn reached<'a>(
    imports: &'a BTreeMap<(String, String), BTreeSet<String>>,
    from: &'a str,
) -> BTreeSet<&'a str> {
    let (mut seen, mut pending) = (BTreeSet::new(), vec![from]);
    while let Some(next) = pending.pop() {
        let targets = imports.keys().filter(|(source, _)| source == next);
        pending.extend(targets.map(|(_, to)| to.as_str()).filter(|to| seen.insert(*to)));
    }
    seen
}

/// Imports from a room to one above it, where `stair` has the rooms from the lowest, and rooms that it
/// does not have.
pub fn upward(name: &str, stair: &[&str], arrows: &Arrows) -> Vec<String> {
    let floor = |room: &str| stair.iter().position(|known| *known == room);
    let Some(imports) = arrows.get(&Module::new()) else { return Vec::new() };
    let mut violations = Vec::new();
    for ((from, to), files) in imports {
        let files = || files.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match (floor(from), floor(to)) {
            (Some(lower), Some(upper)) if lower < upper => {
                violations
                    .push(format!("{name}: {from} is below {to} and imports it ({})", files()));
            }
            (Some(_), Some(_)) => {}
            (None, _) => violations.push(format!("{name}: the room {from} has no floor")),
            (_, None) => violations.push(format!("{name}: the room {to} has no floor")),
        }
    }
    violations
}

/// Modules of a crate that the head of its `lib.rs` does not name, and names there that no module has.
/// A crate without a table of modules has nothing to be checked.
pub fn unlisted(lib: &File) -> Vec<String> {
    let head: Vec<&str> = lib.text.lines().take_while(|line| line.starts_with("//!")).collect();
    let rows = head.iter().filter(|line| line.starts_with("//! | "));
    let listed: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|name| name.split("::").next().unwrap_or(name))
        .filter(|name| {
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    if listed.is_empty() {
        return Vec::new();
    }
    let mut for_tests = false;
    let mut declared = BTreeSet::new();
    for line in lib.text.lines() {
        match declared_module(line) {
            Some(module) if !for_tests && !is_test(module) => drop(declared.insert(module)),
            _ => {}
        }
        for_tests = line.trim() == "#[cfg(test)]";
    }
    let missing =
        declared.difference(&listed).map(|name| format!("{}: the list lacks {name}", lib.path));
    let dangling = listed.difference(&declared);
    let dangling =
        dangling.map(|name| format!("{}: the list has {name}, which is no module", lib.path));
    missing.chain(dangling).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: format!("crates/x/src/{path}"), text: text.to_owned() }
    }

    fn of(files: &[(&str, &str)]) -> Arrows {
        let files: Vec<File> = files.iter().map(|(path, text)| file(path, text)).collect();
        arrows("crates/x/src", &files)
    }

    #[test]
    fn modules_that_import_each_other_are_found_in_any_folder() {
        let flat =
            of(&[("a.rs", "use crate::b::C;"), ("b.rs", "fn f() { crate::a::g() }"), ("c.rs", "")]);
        assert_eq!(circles("x", &flat), ["in x these import each other: a, b"]);
        let nested = of(&[
            ("r.rs", "mod a; mod b;"),
            ("r/a.rs", "use super::b::C;"),
            ("r/b.rs", "fn f() { select! { _ = crate::r::a::g() => {} } }"),
        ]);
        assert_eq!(circles("x", &nested), ["in x::r these import each other: a, b"]);
        let long = of(&[
            ("a.rs", "use crate::{b::{C, D}, lib};"),
            ("b.rs", "use crate::c;"),
            ("c/d.rs", "use super::super::a::E;"),
            ("c.rs", ""),
        ]);
        assert_eq!(circles("x", &long), ["in x these import each other: a, b, c"]);
    }

    #[test]
    fn imports_of_tests_comments_and_parents_are_no_arrows_to_a_neighbour() {
        let arrows = of(&[
            ("a.rs", "// use crate::b;\nuse std::fmt; #[cfg(test)] mod tests { use crate::b::C; }"),
            ("b.rs", "use crate::a::A; const TEXT: &str = \"crate::c\";"),
            ("b/tests.rs", "use crate::c;"),
            ("b/inner.rs", "use super::B; use crate::R;"),
            ("c.rs", "use crate::b;"),
            ("lib.rs", "mod a; pub use a::A;"),
        ]);
        assert_eq!(circles("x", &arrows), Vec::<String>::new());
        assert_eq!(upward("x", &["a", "b", "c"], &arrows), Vec::<String>::new());
    }

    #[test]
    fn an_import_upward_and_a_room_without_a_floor_are_found() {
        let arrows = of(&[("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "")]);
        assert_eq!(
            upward("x", &["a", "b"], &arrows),
            ["x: a is below b and imports it (crates/x/src/a.rs)", "x: the room c has no floor"]
        );
    }

    #[test]
    fn a_module_that_the_list_lacks_and_one_too_many_are_found() {
        let lib = file(
            "lib.rs",
            "//! | module | what |\n//! | `a`, `b::c` | x |\n\nmod a;\npub mod d;\n#[cfg(test)]\nmod t;\n",
        );
        assert_eq!(
            unlisted(&lib),
            [
                "crates/x/src/lib.rs: the list lacks d",
                "crates/x/src/lib.rs: the list has b, which is no module"
            ]
        );
    }
}
