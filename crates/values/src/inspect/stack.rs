//! The text of an error before its cause: its stack, or its name and message.

use crate::graph::{Error, Object, Value};
use crate::text::Text;

use super::Inspector;
use super::quote::escape_controls;

/// Frames in common with the stack of the cause, from which on they are left out.
const MIN_COMMON: usize = 4;

impl Inspector<'_> {
    pub(super) fn stack(&self, error: &Error) -> String {
        let stack = escape_controls(&stack_text(error));
        let message = error.message.as_ref().map(|text| escape_controls(&text.to_string_lossy()));
        let message = message.filter(|message| !message.is_empty());
        let behind_message = message.and_then(|text| Some(stack.find(&text)? + text.len()));
        let (head, frames) =
            stack.split_at_checked(behind_message.unwrap_or(0)).unwrap_or(("", &stack));
        let shown = match frames.split_once("\n    at") {
            None => format!("[{stack}]"),
            Some((between, frames)) => {
                let frames = format!("    at{frames}");
                let frames = self.without_frames_of_cause(error, &frames);
                format!("{head}{between}\n{frames}")
            }
        };
        match self.indentation {
            0 => shown,
            indentation => shown.replace('\n', &format!("\n{}", " ".repeat(indentation))),
        }
    }

    fn without_frames_of_cause(&self, error: &Error, frames: &str) -> String {
        let Some(Value::Object(cause)) = error.cause else { return frames.to_owned() };
        let Object::Error(cause) = self.graph.object(cause) else { return frames.to_owned() };
        let cause = escape_controls(&stack_text(cause));
        let Some((_, of_cause)) = cause.split_once("\n    at") else { return frames.to_owned() };
        let of_cause = format!("    at{of_cause}");
        let frames: Vec<&str> = frames.split('\n').collect();
        let of_cause: Vec<&str> = of_cause.split('\n').collect();
        let Some((offset, length)) = common(&frames, &of_cause) else { return frames.join("\n") };
        let skipped = length - 2;
        let note = format!("    ... {skipped} lines matching cause stack trace ...");
        let note = self.paint(super::Style::Undefined, &note);
        let (before, rest) = frames.split_at_checked(offset + 1).unwrap_or_default();
        let behind = rest.get(skipped..).unwrap_or_default();
        [before, &[note.as_str()], behind].concat().join("\n")
    }
}

/// The first frames, by offset and length, that are also in the other stack in one piece.
fn common(frames: &[&str], others: &[&str]) -> Option<(usize, usize)> {
    let offsets = 0..frames.len().saturating_sub(MIN_COMMON - 1);
    offsets.into_iter().find_map(|offset| {
        let here = frames.get(offset..)?;
        let first = here.first()?;
        let there = others.get(others.iter().position(|other| other == first)?..)?;
        let length = here.iter().zip(there).take_while(|(a, b)| a == b).count();
        (length >= MIN_COMMON).then_some((offset, length))
    })
}

fn stack_text(error: &Error) -> String {
    let lossy = |text: &Text| text.to_string_lossy();
    if let Some(stack) = error.stack.as_ref().filter(|stack| !stack.is_empty()) {
        return lossy(stack);
    }
    match error.message.as_ref().filter(|message| !message.is_empty()) {
        Some(message) => format!("{}: {}", error.kind.name(), lossy(message)),
        None => error.kind.name().to_owned(),
    }
}
