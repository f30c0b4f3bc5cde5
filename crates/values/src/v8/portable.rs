//! Values in the format that every client reads.
//!
//! Deno writes format 16 from 2.8 on; Node, Python and older versions of Deno read up to 15, and
//! refuse the rest by the byte of the version alone. The formats differ in the lengths of buffers
//! and views: 16 writes them in up to 64 bits, 15 in 32. The lengths of present bytes are far below
//! that in any value that fits under a key. The limit of a resizable buffer's growth need not be: a
//! value in which it is 4 GiB or more can only be written in 16.

use bytes::Bytes;

use crate::graph::Object;

use super::{NEWEST_VERSION, WRITTEN_VERSION, read, tag};

/// The same value in format 15, if it is one in format 16 that can be said so. Everything else is
/// left as it is, also bytes that are no value.
pub fn portable(data: Bytes) -> Bytes {
    let [tag::VERSION, version, rest @ ..] = data.as_ref() else { return data };
    // A value without this byte has no buffer that can grow.
    let may_grow = rest.contains(&tag::RESIZABLE_BUFFER);
    if u32::from(*version) != NEWEST_VERSION || (may_grow && !fits(&data)) {
        return data;
    }
    [&[tag::VERSION, WRITTEN_VERSION], rest].concat().into()
}

/// Whether all lengths fit 32 bits.
fn fits(data: &[u8]) -> bool {
    let Ok(graph) = read(data) else { return false };
    graph.objects().all(fits_portable)
}

/// Whether format 15 can say the length up to which a buffer may grow.
pub(super) fn fits_portable(object: &Object) -> bool {
    let Object::Buffer(buffer) = object else { return true };
    buffer.max_length.is_none_or(|length| u32::try_from(length).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_format_16_become_those_of_15_and_others_stay() {
        for (data, expected) in [
            (&b"\xff\x10I\x02"[..], &b"\xff\x0fI\x02"[..]),
            (b"\xff\x10\"\x01~", b"\xff\x0f\"\x01~"),
            (b"\xff\x0fI\x02", b"\xff\x0fI\x02"),
            (b"\xff\x11I\x02", b"\xff\x11I\x02"),
            (b"\xff\x10", b"\xff\x0f"),
            (b"\xff", b"\xff"),
            (b"", b""),
            (b"\x10\xff", b"\x10\xff"),
        ] {
            assert_eq!(portable(Bytes::from_static(data)), expected, "{data:?}");
        }
    }

    #[test]
    fn buffer_that_may_grow_beyond_4_gib_stays_in_format_16() {
        let growing = |max: &[u8]| [b"\xff\x10A\x01~\x01", max, b"\x07$\x00\x01"].concat();
        let (small, largest, beyond) =
            (growing(b"\x10"), growing(b"\xff\xff\xff\xff\x0f"), growing(b"\x80\x80\x80\x80\x10"));
        for data in [small, largest] {
            let portable = portable(data.clone().into());
            assert_eq!((portable[1], &portable[2..]), (15, &data[2..]));
            assert_eq!(read(&portable).unwrap(), read(&data).unwrap());
        }
        assert_eq!(portable(beyond.clone().into()), beyond);
        // In 15 the length would be another: 0.
        let relabelled = [b"\xff\x0f", &beyond[2..]].concat();
        assert_ne!(read(&relabelled).ok(), read(&beyond).ok());
        // Bytes that cannot be read are not touched.
        let cut = b"\xff\x10A\x01~\x05";
        assert_eq!(portable(Bytes::from_static(cut)), &cut[..]);
    }
}
