//! Writes a file with its switches.

use super::{Bytes, Edit, Shape, Switch};
use crate::mutant::{Form, number};

/// A file with switches in it.
#[derive(Debug)]
pub struct Rewritten {
    pub text: String,
    /// Those that enclose others come behind them.
    pub regions: Vec<Region>,
}

/// Bytes of the file as it was written, and the mutants that they belong to.
#[derive(Debug)]
pub struct Region {
    pub range: Bytes,
    pub kind: RegionKind,
    /// Indices in the list.
    pub mutants: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// The changed code of a mutant alone. What does not compile here does not compile with the
    /// mutant.
    Changed,
    /// The value that a function returns in the place of its own.
    Value,
    /// A switch on an operator, which can also be expressed by a copy.
    Compact,
    /// A switch that can not be expressed otherwise, with the code as it is in it.
    Switch,
    /// A `match` from which arms can be taken out.
    Match,
    /// The body of a function.
    Function,
}

pub(super) fn render(source: &str, switches: &[Switch], forms: &[Form]) -> Rewritten {
    let mut writer = Writer {
        source,
        forms,
        text: String::with_capacity(source.len() * 2),
        regions: Vec::new(),
    };
    let all: Vec<&Switch> = switches.iter().collect();
    writer.range(0..source.len(), &all);
    Rewritten { text: writer.text, regions: writer.regions }
}

struct Writer<'a> {
    source: &'a str,
    forms: &'a [Form],
    text: String,
    regions: Vec<Region>,
}

impl<'a> Writer<'a> {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn source(&mut self, range: Bytes) {
        let text = self.source.get(range).unwrap_or_default();
        self.put(text);
    }

    fn region(&mut self, kind: RegionKind, mutants: Vec<usize>, write: impl FnOnce(&mut Self)) {
        let start = self.text.len();
        write(self);
        self.regions.push(Region { range: start..self.text.len(), kind, mutants });
    }

    /// Writes a part of the file, with the switches that lie in it.
    fn range(&mut self, range: Bytes, switches: &[&Switch]) {
        let mut at = range.start;
        let mut rest = switches;
        while let Some((first, others)) = rest.split_first() {
            let is_below =
                |other: &&&Switch| !first.range.is_empty() && other.range.end <= first.range.end;
            let (below, next) = others.split_at(others.iter().take_while(is_below).count());
            self.source(at..first.range.start);
            self.switch(first, below);
            at = first.range.end;
            rest = next;
        }
        self.source(at..range.end);
    }

    /// Writes an operand, with those of the switches that lie in it.
    fn operand(&mut self, operand: &Bytes, below: &[&Switch]) {
        let is_in = |switch: &&Switch| {
            operand.start <= switch.range.start && switch.range.end <= operand.end
        };
        let inner: Vec<&Switch> = below.iter().copied().filter(is_in).collect();
        self.range(operand.clone(), &inner);
    }

    fn of_form<'s>(&self, switch: &'s Switch, form: &Form) -> Vec<&'s Edit> {
        switch.edits.iter().filter(|edit| self.forms.get(edit.mutant) == Some(form)).collect()
    }

    fn switch(&mut self, switch: &Switch, below: &[&Switch]) {
        let compact = self.of_form(switch, &Form::Compact);
        match &switch.shape {
            Shape::Body => {
                for edit in compact {
                    self.region(RegionKind::Value, vec![edit.mutant], |writer| {
                        writer.put(&format!(
                            "if ::mutant_switch::on({}) {{ return {}; }} ",
                            number(edit.mutant),
                            edit.text
                        ));
                    });
                }
            }
            Shape::Match => {
                self.region(RegionKind::Match, indices(&compact), |writer| {
                    writer.range(switch.range.clone(), below)
                });
            }
            Shape::Function => {
                self.region(RegionKind::Function, Vec::new(), |writer| {
                    writer.range(switch.range.clone(), below)
                });
            }
            Shape::Arm => {
                for edit in compact {
                    self.region(RegionKind::Switch, vec![edit.mutant], |writer| {
                        writer.put(&format!(" if !::mutant_switch::on({})", number(edit.mutant)));
                    });
                }
            }
            Shape::Guard => self.guard(switch, &compact, below),
            _ => self.expression(switch, &compact, below),
        }
    }

    fn guard(&mut self, switch: &Switch, edits: &[&Edit], below: &[&Switch]) {
        if edits.is_empty() {
            return self.range(switch.range.clone(), below);
        }
        self.region(RegionKind::Switch, indices(edits), |writer| {
            for edit in edits {
                let number = number(edit.mutant);
                writer.put(&match edit.text.as_str() {
                    "true" => format!("(::mutant_switch::on({number}) || "),
                    _ => format!("(!::mutant_switch::on({number}) && "),
                });
            }
            writer.put("(");
            writer.range(switch.range.clone(), below);
            writer.put(&")".repeat(edits.len() + 1));
        });
    }

    fn expression(&mut self, switch: &Switch, compact: &[&Edit], below: &[&Switch]) {
        let copied = self.of_form(switch, &Form::Copied);
        if copied.is_empty() {
            return self.compact(switch, compact, below);
        }
        self.region(RegionKind::Switch, indices(&copied), |writer| {
            // The original comes first, so that the compiler takes the type from it.
            let numbers: Vec<String> =
                copied.iter().map(|edit| number(edit.mutant).to_string()).collect();
            writer.put(&format!("(if ::mutant_switch::off([{}]) {{ (", numbers.join(", ")));
            writer.compact(switch, compact, below);
            writer.put(") }");
            for (nth, edit) in copied.iter().enumerate() {
                let is_last = nth + 1 == copied.len();
                writer.put(&if is_last {
                    " else { (".to_owned()
                } else {
                    format!(" else if ::mutant_switch::on({}) {{ (", number(edit.mutant))
                });
                writer.region(RegionKind::Changed, vec![edit.mutant], |writer| {
                    writer.source(switch.range.start..edit.range.start);
                    // Spaces, so that no other token comes of it.
                    writer.put(&format!(" {} ", edit.text));
                    writer.source(edit.range.end..switch.range.end);
                });
                writer.put(") }");
            }
            writer.put(")");
        });
    }

    fn compact(&mut self, switch: &Switch, edits: &[&Edit], below: &[&Switch]) {
        if edits.is_empty() {
            return self.range(switch.range.clone(), below);
        }
        self.region(RegionKind::Compact, indices(edits), |writer| match &switch.shape {
            Shape::Compare { left, right, operator } => {
                writer.put("(match (&(");
                writer.operand(left, below);
                writer.put("), &(");
                writer.operand(right, below);
                writer.put(")) { (left__, right__) => ");
                for edit in edits {
                    let number = number(edit.mutant);
                    writer.put(&format!("if ::mutant_switch::on({number}) {{ left__ {} right__ }} else ", edit.text));
                }
                writer.put(&format!("{{ left__ {operator} right__ }} }})"));
            }
            Shape::Logic { left, right, is_and } => {
                writer.put("(match (");
                writer.operand(left, below);
                // `&&` asks the right side where the left one is true, and `||` where it is false.
                let number = edits.first().map_or(0, |edit| number(edit.mutant));
                let negation = if *is_and { "" } else { "!" };
                writer.put(&format!(
                    ") {{ left__ => if {negation}::mutant_switch::flip(left__, {number}) {{ "
                ));
                writer.operand(right, below);
                writer.put(" } else { left__ } })");
            }
            Shape::Unary { operand, operator } => {
                let number = edits.first().map_or(0, |edit| number(edit.mutant));
                writer.put("(match (");
                writer.operand(operand, below);
                writer.put(&format!(
                    ") {{ operand__ => if ::mutant_switch::on({number}) {{ operand__ }} else {{ {operator}operand__ }} }})"
                ));
            }
            _ => writer.range(switch.range.clone(), below),
        });
    }
}

fn indices(edits: &[&Edit]) -> Vec<usize> {
    edits.iter().map(|edit| edit.mutant).collect()
}
