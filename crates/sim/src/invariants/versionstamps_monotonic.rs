//! An operation that begins after an answer has a later position than the answer, and a strong read
//! sees it. Only a failover's loss takes anything back, and then the epoch is a later one.

use super::{Answered, Observer};
use crate::message::Operation;

const NAME: &str = "versionstamps_monotonic";

pub(super) fn answered(observer: &mut Observer, answered: Answered) {
    let Answered { node, epoch, operation, position, floor } = answered;
    let is_late = match operation {
        // A retry is answered with the position that the first try got.
        Operation::Write { .. } => position > floor,
        // An earlier epoch's end may have been lost.
        Operation::Read => floor.epoch < epoch || position >= floor,
    };
    if !is_late {
        observer.violated(
            NAME,
            format!("{node} answered {operation:?} with {position}, which is not behind {floor}"),
        );
    }
}
