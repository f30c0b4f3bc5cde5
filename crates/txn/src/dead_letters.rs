//! The dead letters of a database, as the transaction at hand leaves them.

use std::collections::BTreeMap;

use meridian_types::limits::{DEAD_LETTER_RETENTION_MS, MAX_DEAD_LETTERS, MAX_DEAD_NUMBERS};
use meridian_types::{DatabaseId, DeadLetter, MessageId, QueueEffect, QueueTotals};

use crate::view::View;

/// Dead letters that are too old go by so many with each that is added, at most: faster than they
/// come, and bounded.
const OLD_LETTERS_AT_ONCE: usize = 2;

/// The first number of the totals is that of a letter, if there are any.
pub(crate) struct DeadLetters<'a, V> {
    view: &'a V,
    database: DatabaseId,
    /// By number, with the letter's end as `None`.
    changed: BTreeMap<u64, Option<DeadLetter>>,
}

impl<'a, V: View> DeadLetters<'a, V> {
    pub(crate) fn new(view: &'a V, database: DatabaseId) -> Self {
        Self { view, database, changed: BTreeMap::new() }
    }

    /// Keeps a dead letter, and removes those that are too many or too old.
    pub(crate) fn bury(
        &mut self,
        letter: DeadLetter,
        totals: &mut QueueTotals,
    ) -> Result<(), V::Error> {
        let kept_since = letter.died_ms.saturating_sub(DEAD_LETTER_RETENTION_MS);
        self.changed.insert(totals.next_dead, Some(letter));
        totals.next_dead = totals.next_dead.saturating_add(1);
        let mut removed = 0;
        while is_too_much(totals) {
            self.remove_first(totals)?;
            removed += 1;
        }
        while removed < OLD_LETTERS_AT_ONCE
            && let Some(first) = self.get(totals.first_dead)?
            && first.died_ms < kept_since
        {
            self.remove_first(totals)?;
            removed += 1;
        }
        Ok(())
    }

    /// Takes the letter of this number and id out. `None`: there is none.
    pub(crate) fn take(
        &mut self,
        number: u64,
        id: MessageId,
        totals: impl FnOnce() -> Result<QueueTotals, V::Error>,
    ) -> Result<Option<(DeadLetter, QueueTotals)>, V::Error> {
        let letter = self.get(number)?.filter(|letter| letter.id == id);
        let Some(letter) = letter else { return Ok(None) };
        let mut totals = totals()?;
        self.changed.insert(number, None);
        totals.removed_dead = totals.removed_dead.saturating_add(1);
        self.pass_over(&mut totals)?;
        Ok(Some((letter, totals)))
    }

    pub(crate) fn into_effects(self) -> impl Iterator<Item = QueueEffect> {
        self.changed.into_iter().map(|(number, letter)| match letter {
            Some(letter) => QueueEffect::PutDeadLetter { number, letter },
            None => QueueEffect::DeleteDeadLetter { number },
        })
    }

    fn get(&self, number: u64) -> Result<Option<DeadLetter>, V::Error> {
        match self.changed.get(&number) {
            Some(changed) => Ok(changed.clone()),
            None => self.view.dead_letter(self.database, number),
        }
    }

    fn remove_first(&mut self, totals: &mut QueueTotals) -> Result<(), V::Error> {
        self.changed.insert(totals.first_dead, None);
        totals.first_dead = totals.first_dead.saturating_add(1);
        self.pass_over(totals)
    }

    /// The first number becomes that of the first letter. Each number is passed over once.
    fn pass_over(&self, totals: &mut QueueTotals) -> Result<(), V::Error> {
        while totals.removed_dead > 0 && self.get(totals.first_dead)?.is_none() {
            totals.first_dead = totals.first_dead.saturating_add(1);
            totals.removed_dead -= 1;
        }
        Ok(())
    }
}

fn is_too_much(totals: &QueueTotals) -> bool {
    let numbers = totals.next_dead.saturating_sub(totals.first_dead);
    totals.dead() > MAX_DEAD_LETTERS || numbers > MAX_DEAD_NUMBERS
}
