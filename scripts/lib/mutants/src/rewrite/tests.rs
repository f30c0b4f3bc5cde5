//! A program with a mutant of each kind is rewritten, compiled, and run with each of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Source;
use crate::mutant::{Form, Mutant, OPAQUE, number};

/// Prints lines, of which each mutant changes one. `/*name*/` stands before the place of a mutant.
const PROGRAM: &str = r#"
use std::cell::Cell;

const PRODUCT: u32 = 2 /*constant*/* 3;

#[derive(Default)]
struct Limits {
    a: u32,
    b: u32,
}

fn number(n: u32) -> u32 {
    n
}

/// Counts how often it is asked.
fn asked(counter: &Cell<u32>, answer: bool) -> bool {
    counter.set(counter.get() + 1);
    answer
}

fn body() -> u32 {
    // It begins with a mutant of an operator.
    /*body*/number(1) /*first operator*/* 5
}

fn no_value(counter: &Cell<u32>) {
    /*no value*/counter.set(7);
}

fn arm(n: u32) -> &'static str {
    match n {
        /*arm*/1 => "one",
        /*guarded arm*/2 if n /*in a guard*/== 2 => "two",
        3 if /*guard*/number(n) > 5 => "three",
        _ => "other",
    }
}

fn chain(a: bool, b: Option<u32>) -> bool {
    if a /*chain*/&& let Some(b) = b && b /*in a chain*/> 1 { true } else { false }
}

fn iterator() -> impl Iterator<Item = u32> {
    /*iterator*/[1].into_iter()
}

fn perhaps() -> Option<impl Iterator<Item = u32>> {
    /*perhaps*/Some(iterator())
}

fn print(name: &str, value: impl std::fmt::Debug) {
    println!("{name} {value:?}");
}

fn main() {
    let (t, f) = (Cell::new(0), Cell::new(0));
    print("body", body());
    print("compare", (t.replace(0) /*less*/< { t.set(t.get() + 1); t.get() }, t.get()));
    print("and", (asked(&t, true) /*and*/&& asked(&f, false), f.replace(0)));
    print("or", (asked(&t, true) /*or*/|| asked(&f, false), f.replace(0)));
    print("groups", number(10) - number(2) /*times*/* number(3));
    print("logic groups", asked(&t, true) /*grouped and*/&& asked(&t, true) && asked(&t, false));
    print("not", /*not*/!asked(&t, true));
    print("negative", /*negative*/-i64::from(number(3)));
    let mut sum = number(3);
    sum /*add*/+= number(2);
    print("sum", sum);
    for n in 1..5 {
        print(arm(n), n);
    }
    let limits = Limits { /*field*/a: number(7), ..Limits::default() };
    print("field", limits.a + limits.b);
    print("cast", number(3) as u8 /*cast*/> 2);
    print("chain", chain(true, Some(2)));
    print("iterator", perhaps().into_iter().flatten().count() + PRODUCT as usize);
    t.set(8);
    no_value(&t);
    print("no value", t.get());
}
"#;

/// Place, kind, replacement, and the line that is printed in the place of another one.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("body", "FnValue", "9", "body 9"),
    ("first operator", "BinaryOperator", "+", "body 6"),
    ("no value", "FnValue", "()", "no value 8"),
    ("less", "BinaryOperator", ">=", "compare (false, 1)"),
    ("and", "BinaryOperator", "||", "and (true, 0)"),
    ("or", "BinaryOperator", "&&", "or (false, 1)"),
    ("times", "BinaryOperator", "+", "groups 11"),
    ("times", "BinaryOperator", "/", "groups 10"),
    ("grouped and", "BinaryOperator", "||", "logic groups true"),
    ("not", "UnaryOperator", "", "not true"),
    ("negative", "UnaryOperator", "", "negative 3"),
    ("add", "BinaryOperator", "-=", "sum 1"),
    ("arm", "MatchArm", "", "other 1"),
    ("guarded arm", "MatchArm", "", "other 2"),
    ("in a guard", "BinaryOperator", "!=", "other 2"),
    ("guard", "MatchArmGuard", "true", "three 3"),
    ("field", "StructField", "", "field 0"),
    ("in a chain", "BinaryOperator", "==", "chain false"),
    ("perhaps", "FnValue", "None", "iterator 6"),
];

#[test]
fn each_switch_does_what_its_mutant_does_and_nothing_while_it_is_off() {
    let mutants: Vec<Mutant> = CASES
        .iter()
        .enumerate()
        .map(|(index, case)| mutant(index, case.0, case.1, case.2))
        .collect();
    let all: Vec<&Mutant> = mutants.iter().collect();
    let mut forms = vec![Form::Compact; mutants.len()];
    let source = Source::read("program.rs", PROGRAM.to_owned(), &all, &mut forms).unwrap();
    let folder = std::env::temp_dir().join(format!("meridian-mutants-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let switches = Path::new(env!("CARGO_MANIFEST_DIR")).join("switch/lib.rs");
    compile(&folder, &switches, &["--crate-type=rlib", "--crate-name=mutant_switch"]);

    let original = folder.join("original.rs");
    std::fs::write(&original, PROGRAM).unwrap();
    let expected = run(&compile(&folder, &original, &[]), 0);
    // The second time as the copies that are there for what does not compile otherwise.
    for name in ["compact", "copied"] {
        let rewritten = source.render(&forms).text;
        let file = folder.join(format!("{name}.rs"));
        std::fs::write(&file, &rewritten).unwrap();
        let program = compile(&folder, &file, &[]);
        assert_eq!(run(&program, 0), expected, "{rewritten}");
        for (mutant, (place, _, _, line)) in mutants.iter().zip(CASES) {
            let printed = run(&program, number(mutant.index));
            let changed: Vec<&str> = printed
                .lines()
                .zip(expected.lines())
                .filter(|(one, other)| one != other)
                .map(|(one, _)| one)
                .collect();
            assert_eq!(changed, [*line], "{place}, {name}: {rewritten}");
        }
        for (form, (_, genre, ..)) in forms.iter_mut().zip(CASES) {
            if matches!(*genre, "BinaryOperator" | "UnaryOperator") {
                *form = Form::Copied;
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_no_switch_can_express_is_told() {
    let cases = [
        ("constant", "BinaryOperator", "+"),
        ("iterator", "FnValue", "::std::iter::empty()"),
        ("nowhere", "BinaryOperator", "+"),
        // The text that cargo-mutants writes is no Rust.
        ("chain", "BinaryOperator", "||"),
        ("cast", "BinaryOperator", "<"),
    ];
    let mutants: Vec<Mutant> = cases
        .iter()
        .enumerate()
        .map(|(index, case)| mutant(index, case.0, case.1, case.2))
        .collect();
    let all: Vec<&Mutant> = mutants.iter().collect();
    let mut forms = vec![Form::Compact; mutants.len()];
    let source = Source::read("program.rs", PROGRAM.to_owned(), &all, &mut forms).unwrap();
    let expected = [
        Form::not_tried("it is evaluated by the compiler"),
        Form::not_tried(OPAQUE),
        Form::not_tried("its place was not found"),
        Form::NotCompiled,
        Form::NotCompiled,
    ];
    assert_eq!(forms, expected);
    assert_eq!(source.render(&forms).text, PROGRAM);
}

/// A mutant behind the comment that names its place.
pub(crate) fn mutant(index: usize, place: &str, genre: &str, replacement: &str) -> Mutant {
    let marker = format!("/*{place}*/");
    let offset = PROGRAM.find(&marker).map_or(0, |at| at + marker.len());
    let before = &PROGRAM[..offset];
    let line = before.matches('\n').count() + 1;
    let column = offset - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    Mutant {
        index,
        name: format!("program.rs:{line}:{column}: {genre} with {replacement}"),
        file: "program.rs".to_owned(),
        package: "program".to_owned(),
        function: String::new(),
        returns: match place {
            "iterator" => "-> impl Iterator<Item = u32>".to_owned(),
            "perhaps" => "-> Option<impl Iterator<Item = u32>>".to_owned(),
            _ => String::new(),
        },
        genre: genre.to_owned(),
        replacement: replacement.to_owned(),
        start: (line, column),
    }
}

/// The program with switches for these mutants, for tests of what is made of it.
pub(crate) fn source(mutants: &[Mutant], forms: &mut [Form]) -> Source {
    Source::read("program.rs", PROGRAM.to_owned(), &mutants.iter().collect::<Vec<_>>(), forms)
        .unwrap()
}

fn compile(folder: &Path, source: &Path, arguments: &[&str]) -> PathBuf {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .current_dir(folder)
        .args(["--edition=2024", "-Awarnings", "-L."])
        .args(arguments)
        .arg(source);
    if arguments.is_empty() {
        command.arg("--extern=mutant_switch");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join(source.file_stem().unwrap())
}

fn run(program: &Path, number: u32) -> String {
    let output = Command::new(program).env("MERIDIAN_MUTANT", number.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
