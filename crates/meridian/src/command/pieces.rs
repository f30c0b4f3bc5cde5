//! Work in pieces that one write takes each.

/// All items in their order: `most` of them in a piece at most, and no more than `max_bytes`. A larger
/// item is a piece of its own.
pub(super) fn of<T>(
    all: &[T],
    most: usize,
    max_bytes: u64,
    bytes: impl Fn(&T) -> u64,
) -> Vec<&[T]> {
    let (mut pieces, mut rest) = (Vec::new(), all);
    while !rest.is_empty() {
        let mut sum: u64 = 0;
        let fitting = rest.iter().take(most).take_while(|item| {
            sum = sum.saturating_add(bytes(item));
            sum <= max_bytes
        });
        let (piece, behind) = rest.split_at(fitting.count().max(1));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}
