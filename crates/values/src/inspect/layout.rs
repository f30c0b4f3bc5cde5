//! The parts of an object on one line, in columns, or on a line each.
//!
//! Lengths count units of UTF-16, as JavaScript counts them, and include colours where Deno's do;
//! columns count the cells of a terminal.

use super::MAX_ELEMENTS;
use super::style::unpainted;

pub(super) const BREAK_LENGTH: usize = 80;
/// Levels that may stand on one line.
const COMPACT: usize = 3;
const MAX_COLUMNS: usize = 15;
/// Lists up to here have no columns.
const MAX_UNGROUPED: usize = 6;
/// A comma and a space.
const SEPARATOR: usize = 2;

pub(super) struct Layout<'a> {
    /// The text before the opening bracket.
    pub(super) base: &'a str,
    pub(super) open: &'a str,
    pub(super) close: &'a str,
    pub(super) indentation: usize,
    /// Levels of objects within this one, as far as the last one goes.
    pub(super) levels_within: usize,
    pub(super) is_list: bool,
    pub(super) are_numbers: bool,
}

impl Layout<'_> {
    pub(super) fn text(&self, parts: Vec<String>) -> String {
        let count = parts.len();
        let parts = if self.is_list && count > MAX_UNGROUPED { self.grouped(parts) } else { parts };
        let Self { open, close, indentation, .. } = self;
        let base = if self.base.is_empty() { String::new() } else { format!("{} ", self.base) };
        if self.levels_within < COMPACT && count == parts.len() && self.fits(&parts) {
            let joined = parts.join(", ");
            if !joined.contains('\n') {
                return format!("{base}{open} {joined} {close}");
            }
        }
        let line = format!("\n{}", " ".repeat(*indentation));
        let joined = parts.join(&format!(",{line}  "));
        format!("{base}{open}{line}  {joined}{line}{close}")
    }

    /// Whether all parts fit one line.
    fn fits(&self, parts: &[String]) -> bool {
        let around = self.indentation + units(self.open) + units(self.base) + 10;
        let separators = 2 * parts.len();
        let lengths = parts.iter().map(|part| units(&unpainted(part)));
        let total = lengths.fold(separators + around, usize::saturating_add);
        total <= BREAK_LENGTH
            && separators + parts.len() + around <= BREAK_LENGTH
            && !self.base.contains('\n')
    }

    /// The parts of a list in columns of a width, if at least two of them fit.
    fn grouped(&self, parts: Vec<String>) -> Vec<String> {
        // The last part says how many more there are.
        let shown = if parts.len() > MAX_ELEMENTS { parts.len() - 1 } else { parts.len() };
        let widths: Vec<usize> =
            parts.iter().take(shown).map(|part| cells(&unpainted(part))).collect();
        let Some(columns) = self.columns(&widths, parts.len()) else { return parts };
        let column_widths: Vec<usize> = (0..columns)
            .map(|column| {
                widths.iter().skip(column).step_by(columns).max().map_or(0, |w| w + SEPARATOR)
            })
            .collect();
        let mut parts = parts;
        let more = parts.split_off(shown);
        let mut lines = Vec::new();
        for (line, widths) in parts.chunks(columns).zip(widths.chunks(columns)) {
            let mut text = String::new();
            for (at, (part, (width, column))) in
                line.iter().zip(widths.iter().zip(&column_widths)).enumerate()
            {
                let is_last = at + 1 == line.len();
                let padding = " ".repeat(column.saturating_sub(width + SEPARATOR));
                match (self.are_numbers, is_last) {
                    (true, true) => text.extend([&padding, part.as_str()]),
                    (true, false) => text.extend([&padding, part.as_str(), ", "]),
                    (false, true) => text.push_str(part),
                    (false, false) => text.extend([part.as_str(), ", ", &padding]),
                }
            }
            lines.push(text);
        }
        lines.extend(more);
        lines
    }

    /// How many columns look well: about a square, where a character is 2.5 times as high as wide.
    fn columns(&self, widths: &[usize], parts: usize) -> Option<usize> {
        let total: usize = widths.iter().map(|width| width + SEPARATOR).sum();
        let longest = widths.iter().copied().max().unwrap_or(0);
        let widest = longest + SEPARATOR;
        #[allow(clippy::cast_precision_loss, reason = "lengths of a few thousand")]
        let float = |count: usize| count as f64;
        let are_alike = float(total) / float(widest) > 5.0 || longest <= 6;
        if widest * 3 + self.indentation >= BREAK_LENGTH || !are_alike {
            return None;
        }
        let bias = (float(widest) - float(total) / float(parts)).sqrt();
        let biased = (float(widest) - 3.0 - bias).max(1.0);
        let square = ((2.5 * biased * float(widths.len())).sqrt() / biased + 0.5).floor();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number below the bounds beside it"
        )]
        let square = square.min(float(MAX_COLUMNS)) as usize;
        let fitting = (BREAK_LENGTH - self.indentation) / widest;
        let columns = square.min(fitting).min(COMPACT * 4).min(MAX_COLUMNS);
        (columns > 1).then_some(columns)
    }
}

/// The length of a string in JavaScript.
pub(super) fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// The cells that a text takes in a terminal.
fn cells(text: &str) -> usize {
    text.chars().map(|character| cells_of(u32::from(character))).sum()
}

fn cells_of(code: u32) -> usize {
    match code {
        0..=0x1f
        | 0x7f..=0x9f
        | 0x300..=0x36f
        | 0x200b..=0x200f
        | 0x20d0..=0x20ff
        | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f
        | 0xe_0100..=0xe_01ef => 0,
        0x1100..=0x115f
        | 0x2329
        | 0x232a
        | 0x2e80..=0x303e
        | 0x3040..=0x3247
        | 0x3250..=0x4dbf
        | 0x4e00..=0xa4c6
        | 0xa960..=0xa97c
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe10..=0xfe19
        | 0xfe30..=0xfe6b
        | 0xff01..=0xff60
        | 0xffe0..=0xffe6
        | 0x1_b000
        | 0x1_b001
        | 0x1_f200..=0x1_f251
        | 0x1_f300..=0x1_f64f
        | 0x2_0000..=0x3_fffd => 2,
        _ => 1,
    }
}
