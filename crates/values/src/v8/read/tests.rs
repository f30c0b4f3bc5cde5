//! Values that are read, refused, printed and written again.

use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::*;
use crate::{inspect, json, v8};

fn refused(data: &[u8]) -> Reason {
    read(data).unwrap_err().reason
}

#[test]
fn broken_values_are_refused_with_the_reason() {
    for (data, reason) in [
        (&b""[..], Reason::Version),
        (b"\xff\x0c_", Reason::Version),
        (b"\xff\x11_", Reason::Version),
        (b"I\x02", Reason::Version),
        (b"\xff\x0f", Reason::Cut),
        (b"\xff\x0fW", Reason::Tag(b'W')),
        (b"\xff\x0f\\\x01", Reason::Cut),
        (b"\xff\x0f\\\x01\x05ab", Reason::Cut),
        (b"\xff\x0f\\\x0e\x01a", Reason::View),
        (b"\xff\x0f\\\x03\x03abc", Reason::View),
        (b"\xff\x0f\"\x05abc", Reason::Cut),
        (b"\xff\x0fc\x03abc", Reason::Text),
        (b"\xff\x0fS\x01\xff", Reason::Text),
        (b"\xff\x0f^\x00", Reason::Reference),
        (b"\xff\x0fo_I\x02{\x01", Reason::Key),
        (b"\xff\x0fo{\x01", Reason::Count),
        (b"\xff\x0fA\x01_$\x00\x02", Reason::Count),
        (b"\xff\x0fa\x02@\x00\x03", Reason::Count),
        (b"\xff\x0f;_:\x01", Reason::Tag(b':')),
        (b"\xff\x0f;__:\x01", Reason::Count),
        (b"\xff\x0f'_,\x02", Reason::Count),
        (b"\xff\x0f~\x02\x01__", Reason::Count),
        (b"\xff\x0fB\x02__Vb\x01\x02\x00", Reason::View),
        (b"\xff\x0fB\x02__Vw\x01\x00\x00", Reason::View),
        (b"\xff\x0fB\x02__Vk\x00\x00\x00", Reason::Tag(b'k')),
        (b"\xff\x0frX.", Reason::Tag(b'X')),
        // Lengths that are only claimed.
        (b"\xff\x0fA\xff\xff\xff\xff\x0f", Reason::Cut),
        (b"\xff\x10B\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Reason::Cut),
    ] {
        assert_eq!(refused(data), reason, "{data:?}");
    }
}

#[test]
fn views_of_format_13_have_no_flags_and_a_repeated_element_holds_last() {
    assert!(read(b"\xff\x0dA\x01B\x01\x07VB\x00\x01$\x00\x01").is_ok());
    let sparse = read(b"\xff\x0fa\x03I\x04TI\x00_I\x04F@\x03\x03").unwrap();
    let Some(Object::Array(array)) = sparse.root_object() else { panic!("no array") };
    assert_eq!(array.elements, [(0, Value::Undefined), (2, Value::Bool(false))]);
}

/// `[new Uint8Array([1, 2]), a date, the same date, new BigInt64Array([-1n]), Buffer.from("x")]`.
#[test]
fn views_as_node_writes_them_are_read_and_written_as_v8_does() {
    let data = b"\xff\x0fA\x05\\\x01\x02\x01\x02D\0\0\0\0\0\0\x14\x40^\x02\
        \\\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\\\x0a\x01x$\x00\x05";
    let graph = read(data).unwrap();
    let standard = b"\xff\x0fA\x05B\x02\x01\x02VB\x00\x02\x00D\0\0\0\0\0\0\x14\x40^\x03\
        B\x08\xff\xff\xff\xff\xff\xff\xff\xffVq\x00\x08\x00B\x01xVB\x00\x01\x00$\x00\x05";
    assert_eq!(v8::write(&graph), standard);
    let shown = inspect::stored(&crate::Stored::V8(graph), false);
    assert!(shown.contains("Uint8Array(2) [ 1, 2 ]"), "{shown}");
    assert!(shown.contains("BigInt64Array(1) [ -1n ]"), "{shown}");
    // Relabelled, as any value whose lengths are those of older formats.
    let newer = [b"\xff\x10", &data[2..]].concat();
    assert_eq!(v8::portable(newer.into()), data.as_slice());
}

#[test]
fn depth_has_a_bound_that_any_thread_can_bear() {
    let nested = |depth: usize| {
        [
            b"\xff\x0f",
            b"A\x01".repeat(depth).as_slice(),
            b"_",
            b"$\x00\x01".repeat(depth).as_slice(),
        ]
        .concat()
    };
    let graph = read(&nested(MAX_DEPTH)).unwrap();
    assert_eq!(v8::write(&graph), nested(MAX_DEPTH));
    assert!(json::value(&crate::Stored::V8(graph)).is_some());
    assert_eq!(refused(&nested(MAX_DEPTH + 1)), Reason::Depth);
    assert_eq!(
        refused(&b"\xff\x0f".iter().chain(&b";".repeat(60_000)).copied().collect::<Vec<_>>()),
        Reason::Depth
    );
}

fn almost_a_value() -> impl Strategy<Value = Vec<u8>> {
    let tags =
        proptest::sample::select(b"_0TFIUNZS\"c^o{A$a@-DyxnzsR;:',B~VrmsET.bBwhF?\\".as_slice());
    let byte = prop_oneof![4 => tags, 2 => 0u8..6, 1 => any::<u8>()];
    let version = proptest::sample::select(vec![13u8, 14, 15, 16]);
    (version, proptest::collection::vec(byte, 0..80))
        .prop_map(|(version, rest)| [&[0xff, version], rest.as_slice()].concat())
}

proptest! {
    #[test]
    fn whatever_is_read_is_printed_and_written_and_read_again(data in almost_a_value()) {
        if let Ok(graph) = read(&data) {
            let stored = crate::Stored::V8(graph);
            inspect::stored(&stored, true);
            json::value(&stored);
            let crate::Stored::V8(graph) = stored else { unreachable!() };
            let written = v8::write(&graph);
            assert_eq!(v8::write(&read(&written).unwrap()), written);
        }
        v8::portable(data.into());
    }
}
