//! V8's serialization: `ff`, the version of the format, then a tag and a payload for each value.
//!
//! The crate `v8_valueserializer`, which the reference implementation uses, is not used here: it
//! reserves memory for every length that the bytes claim (up to 256 levels deep), and has undefined
//! behaviour on an empty ArrayBuffer (a zero-sized allocation). All of it is within the reach of any
//! client.
//!
//! | module | what it holds |
//! |---|---|
//! | `input` | bytes to tags, varints and numbers |
//! | `numeric` | numbers and bigints alone, as sums need them |
//! | `read`, `write` | whole values |
//! | `portable` | values in the format that every client reads |

mod input;
mod numeric;
mod portable;
mod read;
mod write;

use crate::graph::ViewKind;

pub use numeric::{DecodeError, Numeric, decode, encode};
pub use portable::portable;
pub use read::{MAX_DEPTH, ReadError, read};
pub use write::write;

/// Deno's V8 has written 15 since before there was Deno KV, and 16 since V8 14.9.
const NEWEST_VERSION: u32 = 16;
/// Every V8 in use reads 15, only the newest ones read 16.
const WRITTEN_VERSION: u8 = 15;
/// For values that 15 cannot say.
const WIDE_VERSION: u8 = 16;

mod tag {
    pub(super) const VERSION: u8 = 0xff;
    pub(super) const PADDING: u8 = 0x00;
    pub(super) const VERIFY_OBJECT_COUNT: u8 = b'?';
    pub(super) const HOLE: u8 = b'-';
    pub(super) const UNDEFINED: u8 = b'_';
    pub(super) const NULL: u8 = b'0';
    pub(super) const TRUE: u8 = b'T';
    pub(super) const FALSE: u8 = b'F';
    pub(super) const INT32: u8 = b'I';
    pub(super) const UINT32: u8 = b'U';
    pub(super) const DOUBLE: u8 = b'N';
    pub(super) const BIGINT: u8 = b'Z';
    pub(super) const UTF8: u8 = b'S';
    pub(super) const ONE_BYTE: u8 = b'"';
    pub(super) const TWO_BYTE: u8 = b'c';
    pub(super) const REFERENCE: u8 = b'^';
    pub(super) const OBJECT: u8 = b'o';
    pub(super) const END_OBJECT: u8 = b'{';
    pub(super) const DENSE_ARRAY: u8 = b'A';
    pub(super) const END_DENSE_ARRAY: u8 = b'$';
    pub(super) const SPARSE_ARRAY: u8 = b'a';
    pub(super) const END_SPARSE_ARRAY: u8 = b'@';
    pub(super) const DATE: u8 = b'D';
    pub(super) const BOXED_TRUE: u8 = b'y';
    pub(super) const BOXED_FALSE: u8 = b'x';
    pub(super) const BOXED_NUMBER: u8 = b'n';
    pub(super) const BOXED_BIGINT: u8 = b'z';
    pub(super) const BOXED_STRING: u8 = b's';
    pub(super) const REGEXP: u8 = b'R';
    pub(super) const MAP: u8 = b';';
    pub(super) const END_MAP: u8 = b':';
    pub(super) const SET: u8 = b'\'';
    pub(super) const END_SET: u8 = b',';
    pub(super) const BUFFER: u8 = b'B';
    pub(super) const RESIZABLE_BUFFER: u8 = b'~';
    pub(super) const VIEW: u8 = b'V';
    /// Of an object of V8's host, which is Node here.
    pub(super) const NODE_VIEW: u8 = b'\\';
    pub(super) const ERROR: u8 = b'r';
}

/// Tags of an error's parts, which follow its own tag until `END`.
mod error_tag {
    pub(super) const MESSAGE: u8 = b'm';
    pub(super) const CAUSE: u8 = b'c';
    pub(super) const STACK: u8 = b's';
    pub(super) const END: u8 = b'.';
    /// The kinds, in the order of `ErrorKind::ALL`; an error of the first kind has none.
    pub(super) const KINDS: [u8; 7] = [0, b'E', b'R', b'F', b'S', b'T', b'U'];
}

/// In the order of `ViewKind::ALL`.
const VIEW_TAGS: [u8; 13] = *b"bBCwWdDhfFqQ?";

/// By Node's numbers. The eleventh is its `Buffer`.
const NODE_VIEWS: [ViewKind; 14] = [
    ViewKind::Int8,
    ViewKind::Uint8,
    ViewKind::Uint8Clamped,
    ViewKind::Int16,
    ViewKind::Uint16,
    ViewKind::Int32,
    ViewKind::Uint32,
    ViewKind::Float32,
    ViewKind::Float64,
    ViewKind::DataView,
    ViewKind::Uint8,
    ViewKind::BigInt64,
    ViewKind::BigUint64,
    ViewKind::Float16,
];
