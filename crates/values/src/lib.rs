//! Keys and values as Deno KV's clients mean them: tuples, and JavaScript values.
//!
//! To the rest of Meridian both are bytes. Here they are read for people and for arithmetic, and
//! written from what people type.
//!
//! Invariants:
//! - no bytes can make this crate panic, recurse without a bound, or hold more memory than a fixed
//!   multiple of those bytes; no length that bytes only claim reserves memory;
//! - work is linear in the bytes that were given, and the length of what is printed has a bound;
//! - bytes are written as Deno writes them, which the corpus `tests/deno.jsonl` shows.
//!
//! Absent on purpose: clocks, I/O, the limits on sizes of keys and values (the gateway checks
//! those), and whatever V8 writes that Deno KV does not store: shared memory, WebAssembly, host
//! objects.
//!
//! | module | what it holds |
//! |---|---|
//! | [`key`] | tuples to bytes in their order, and back |
//! | [`graph`] | JavaScript values, as a graph of objects |
//! | [`v8`] | V8's serialization of them: reading, writing, and the format that all clients read |
//! | [`literal`] | values as they are written in a program |
//! | [`inspect`] | values as `Deno.inspect` shows them |
//! | [`json`] | values as lines of JSON, as the module `@deno/kv-utils` writes them |
//! | [`plain`] | values as the JSON that programs of other languages expect |
//! | [`text`] | strings of UTF-16 |
//! | `number`, `date` | numbers and dates as JavaScript prints them |

mod date;
pub mod graph;
pub mod inspect;
pub mod json;
pub mod key;
pub mod literal;
mod number;
pub mod plain;
pub mod text;
pub mod v8;

pub use graph::{Graph, Stored};
pub use key::{Key, KeyPart};
pub use text::Text;
