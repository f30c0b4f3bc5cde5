//! Values as people type them, and what is refused.

use super::*;
use crate::inspect;

fn shown(text: &str) -> String {
    match parse(text) {
        Ok(value) => inspect::stored(&value, false),
        Err(error) => error.to_string(),
    }
}

#[test]
fn values_are_read_as_javascript_reads_them() {
    for (text, expected) in [
        ("null", "null"),
        ("undefined", "undefined"),
        (" true // yes", "true"),
        ("-0", "-0"),
        ("+1_000.5e2", "100050"),
        ("0xff", "255"),
        ("0b101", "5"),
        (".5", "0.5"),
        ("-Infinity", "-Infinity"),
        ("NaN", "NaN"),
        ("-12n", "-12n"),
        ("0xffn", "255n"),
        (r#""a\n\x41\u0042\u{1f995}""#, r#""a\nAB🦕""#),
        ("'it\\'s'", "\"it's\""),
        ("`two\nlines`", "\"two\\nlines\""),
        ("[1, 'two', [3,],]", "[ 1, \"two\", [ 3 ] ]"),
        ("[1,,3]", "[ 1, <1 empty item>, 3 ]"),
        ("[,]", "[ <1 empty item> ]"),
        (
            "{ b: 1, 'a b': 2, 2: 3, 1: 4, [\"c\"]: 5, b: 6, }",
            "{ \"1\": 4, \"2\": 3, b: 6, \"a b\": 2, c: 5 }",
        ),
        ("/* a */ {}", "{}"),
        ("new Date('2024-05-01')", "2024-05-01T00:00:00.000Z"),
        ("new Date(0)", "1970-01-01T00:00:00.000Z"),
        ("new Map([['a', 1], [{}, new Set([2])]])", "Map(2) { \"a\" => 1, {} => Set(1) { 2 } }"),
        ("new Uint8Array([1, 255])", "Uint8Array(2) [ 1, 255 ]"),
        ("Uint8Array(2) [ 1, 2 ]", "Uint8Array(2) [ 1, 2 ]"),
        ("[new Int16Array([-1])]", "[ Int16Array(1) [ -1 ] ]"),
        ("new Float16Array([0.5])", "Float16Array(1) [ 0.5 ]"),
        ("new BigUint64Array(1)", "BigUint64Array(1) [ 0n ]"),
        ("new ArrayBuffer(1)", "ArrayBuffer { [Uint8Contents]: <00>, byteLength: 1 }"),
        ("new Deno.KvU64(5n)", "[Deno.KvU64: 5n]"),
        ("/a\\/[/]b/gi", "/a\\/[/]b/gi"),
        ("new RegExp('x', 'v')", "/x/v"),
        ("new TypeError('m', { cause: 1 })", "[TypeError: m] { [cause]: 1 }"),
        ("new String('s')", "[String: \"s\"]"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
}

#[test]
fn a_uint8array_by_itself_is_bytes_and_any_other_value_is_not() {
    assert_eq!(parse("new Uint8Array([7])"), Ok(Stored::Bytes(vec![7])));
    assert!(matches!(parse("[new Uint8Array([7])]"), Ok(Stored::V8(_))));
    assert!(matches!(parse("new Int8Array([7])"), Ok(Stored::V8(_))));
    assert_eq!(parse("new Deno.KvU64(18446744073709551615n)"), Ok(Stored::U64(u64::MAX)));
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    for (text, expected) in [
        ("", "character 1: expected a value, and the text ends"),
        (
            "users",
            "character 1: `users` is no value: strings stand in quotes, constructors behind `new`",
        ),
        ("[1 2]", "character 4: expected `,` or `]`, found `2`"),
        ("{a 1}", "character 4: expected `:`, found `1`"),
        ("{a: 1", "character 6: expected `,` or `}`, and the text ends"),
        ("\"abc", "character 1: the string has no end"),
        ("'a\nb'", "character 3: the string ends with the line: write \\n, or use `"),
        ("1 2", "character 3: expected the end, found `2`"),
        ("12abc", "character 1: `12abc` is no number"),
        ("007", "character 1: `007` is no number"),
        ("1.5n", "character 1: `1.5n` is no number"),
        ("-'a'", "character 2: expected a value, found `'`"),
        ("new Date()", "character 5: the present time is not known here: name a time"),
        (
            "new Date('tomorrow')",
            "character 5: a date is written as 2024-05-01 or 2024-05-01T12:30:00Z",
        ),
        ("new Deno.KvU64(-1n)", "character 5: a Deno.KvU64 is from 0n to 18446744073709551615n"),
        (
            "[new Deno.KvU64(1n)]",
            "character 6: a Deno.KvU64 is a value by itself, and cannot be within another",
        ),
        ("new Uint8Array([256])", "character 5: Uint8Array has no such element"),
        (
            "new Uint8Array(65537)",
            "character 5: lengths are from 0 to 65536 bytes, all of them together",
        ),
        ("new BigInt64Array([1])", "character 5: the elements of a BigInt64Array are bigints"),
        ("Uint8Array(3) [ 1 ]", "character 15: 1 elements, and not as many as before"),
        ("new Foo(1)", "character 5: there is no `new Foo` here, or none with these arguments"),
        ("`${a}`", "character 3: `${` is not read: there are no variables"),
        ("/a/gg", "character 6: `g` is no flag of a regular expression, or comes twice"),
        ("/* a", "character 1: the comment has no end"),
        ("'\\u00zz'", "character 4: expected 4 hex digits"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
    // A short text would come to any number of bytes.
    assert!(parse("[new ArrayBuffer(65528), new Float64Array(1)]").is_ok());
    let too_many = shown("[new ArrayBuffer(65528), new Float64Array(1), new ArrayBuffer(1)]");
    assert!(too_many.contains("all of them together"), "{too_many}");
    let deep = "[".repeat(100_000);
    assert!(shown(&deep).contains("more than 400 values within each other"));
}

fn key(text: &str) -> String {
    match parse_key(text) {
        Ok(key) => key.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn keys_are_arrays_of_parts() {
    for (text, expected) in [
        ("[]", "[]"),
        (
            r#"["users", 42n, true, new Uint8Array([1,2])]"#,
            "[ \"users\", 42n, true, Uint8Array(2) [ 1, 2 ] ]",
        ),
        ("[ \"users\", Uint8Array(0) [] ]", "[ \"users\", Uint8Array(0) [] ]"),
        ("[-0, NaN]", "[ -0, NaN ]"),
        ("{}", "character 1: a key is an array, such as [\"users\", 42]"),
        ("42", "character 1: a key is an array, such as [\"users\", 42]"),
        ("[,1]", "character 1: a key has no empty parts"),
        (
            "['a', null]",
            "character 1: part 2 of the key is none: a part is a string, number, bigint, boolean or Uint8Array",
        ),
        ("['a'", "character 5: expected `,` or `]`, and the text ends"),
    ] {
        assert_eq!(key(text), expected, "{text}");
    }
}

#[test]
fn words_are_numbers_only_as_javascript_prints_them() {
    let text = |text: &str| KeyPart::Text(text.to_owned());
    for (word, part) in [
        ("users", text("users")),
        ("42", KeyPart::Number(42.0)),
        ("-1.5", KeyPart::Number(-1.5)),
        ("42n", KeyPart::BigInt(42.into())),
        ("true", KeyPart::Bool(true)),
        ("\"42\"", text("42")),
        ("'a b'", text("a b")),
        ("new Uint8Array([1])", KeyPart::Bytes(vec![1])),
        ("Uint8Array(1) [ 1 ]", KeyPart::Bytes(vec![1])),
        ("007", text("007")),
        ("1e5", text("1e5")),
        ("1.0", text("1.0")),
        ("550e8400", text("550e8400")),
        ("550e8400-e29b-41d4-a716-446655440000", text("550e8400-e29b-41d4-a716-446655440000")),
        ("null", text("null")),
        ("a/b", text("a/b")),
        ("{}", text("{}")),
        ("", text("")),
    ] {
        assert_eq!(parse_key_word(word), Ok(part), "{word}");
    }
    assert!(parse_key_word("\"open").is_err());
    assert!(parse_key_word("new Uint8Array([x])").is_err());
}
