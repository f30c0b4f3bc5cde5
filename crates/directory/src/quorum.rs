//! How many voters there are, and how many of them decide.

/// More voters make each write slower, and no region has so many data centers that matter.
const MAX_VOTERS: usize = 5;

/// How many of `count` voters decide.
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// How many of so many data centers vote: odd numbers, since an even one survives no more losses
/// than the odd one below it. Two are better than one all the same: a commit then lies in both.
pub(crate) fn voting(data_centers: usize) -> usize {
    match data_centers.min(MAX_VOTERS) {
        count if count > 2 && count % 2 == 0 => count - 1,
        count => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_more_than_half_and_two_of_them_share_a_voter() {
        for count in 1..=9 {
            assert!(2 * majority(count) > count && 2 * (majority(count) - 1) <= count, "{count}");
        }
    }

    #[test]
    fn an_odd_number_votes_and_two_rather_than_one() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8].map(voting), [0, 1, 2, 3, 3, 5, 5, 5, 5]);
    }
}
