//! Where the mutants of a file are.

use std::cmp::Reverse;
use std::collections::HashMap;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ExprBinary};

use super::{Bytes, Edit, Shape, Switch};
use crate::mutant::{Form, Mutant, OPAQUE};

/// Finds the switches of `mutants` and the form that each begins with.
pub(super) fn find(
    file: &syn::File,
    text: &str,
    mutants: &[&Mutant],
    forms: &mut [Form],
) -> Vec<Switch> {
    let lines: Vec<usize> = std::iter::once(0)
        .chain(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(i, _)| i + 1))
        .collect();
    let mut by_place: HashMap<(&str, usize), Vec<&Mutant>> = HashMap::new();
    for mutant in mutants {
        set(forms, mutant.index, Form::not_tried("its place was not found"));
        if let Some(start) = offset(text, &lines, mutant.start) {
            by_place.entry((&mutant.genre, start)).or_default().push(mutant);
        }
    }
    let mut places =
        Places { text, by_place, forms, switches: Vec::new(), at_compile_time: false, chain: None };
    places.visit_file(file);
    let mut switches = places.switches;
    // Of those with the same bytes, copies of the whole are around what is written with operands.
    switches.sort_by_key(|switch| {
        let is_apart = !matches!(switch.shape, Shape::Whole | Shape::Match | Shape::Function);
        (switch.range.start, !switch.range.is_empty(), Reverse(switch.range.end), is_apart)
    });
    switches
}

/// The byte of a line and a column, both from 1, the column in characters.
fn offset(text: &str, lines: &[usize], (line, column): (usize, usize)) -> Option<usize> {
    let start = *lines.get(line.checked_sub(1)?)?;
    let rest = text.get(start..)?;
    Some(start + rest.char_indices().nth(column.checked_sub(1)?).map_or(rest.len(), |(at, _)| at))
}

fn set(forms: &mut [Form], index: usize, form: Form) {
    if let Some(place) = forms.get_mut(index) {
        *place = form;
    }
}

/// Binary expressions without parentheses between them, which another operator may have the
/// compiler group anew.
#[derive(Clone, Copy)]
struct Chain<'a> {
    /// The outermost, up to where a condition with `let` is taken apart.
    root: &'a ExprBinary,
    /// Whether such a condition is around it.
    has_let: bool,
}

struct Places<'a> {
    text: &'a str,
    by_place: HashMap<(&'a str, usize), Vec<&'a Mutant>>,
    forms: &'a mut [Form],
    switches: Vec<Switch>,
    /// Within a constant, say, where no switch can be asked.
    at_compile_time: bool,
    /// Set for an operand that is a binary expression itself.
    chain: Option<Chain<'a>>,
}

impl<'a> Places<'a> {
    /// The mutants of a kind at a place, unless no switch can be there; their form is set to
    /// `form`.
    fn take(&mut self, genre: &'a str, span: Span, form: Form) -> Vec<&'a Mutant> {
        let found = self.by_place.remove(&(genre, span.byte_range().start)).unwrap_or_default();
        let form = if self.at_compile_time {
            Form::not_tried("it is evaluated by the compiler")
        } else {
            form
        };
        for mutant in &found {
            set(self.forms, mutant.index, form.clone());
        }
        if form.is_built() { found } else { Vec::new() }
    }

    fn push(&mut self, range: Bytes, shape: Shape, edits: Vec<Edit>) {
        if !edits.is_empty() {
            self.switches.push(Switch { range, shape, edits });
        }
    }

    fn slice(&self, range: Bytes) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    fn compile_time(&mut self, is_so: bool, visit: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.at_compile_time, is_so);
        visit(self);
        self.at_compile_time = before;
    }

    fn body(
        &mut self,
        signature: &syn::Signature,
        block: &'a syn::Block,
        visit: impl FnOnce(&mut Self),
    ) {
        self.compile_time(signature.constness.is_some(), |places| {
            places.switches.push(Switch {
                range: block.span().byte_range(),
                shape: Shape::Function,
                edits: Vec::new(),
            });
            if let Some(first) = block.stmts.first() {
                let start = first.span().byte_range().start;
                let mut found = places.take("FnValue", first.span(), Form::Compact);
                found.retain(|mutant| {
                    let is_opaque = mutant.returns.starts_with("-> impl ");
                    if is_opaque {
                        set(places.forms, mutant.index, Form::not_tried(OPAQUE));
                    }
                    !is_opaque
                });
                let edits = found.into_iter().map(|mutant| edit(mutant, start..start)).collect();
                places.push(start..start, Shape::Body, edits);
            }
            visit(places);
        });
    }

    /// Whether the chain is read the same with another text in the place of `range`; an error if it
    /// is not read.
    fn keeps_groups(&self, root: &ExprBinary, range: &Bytes, text: &str) -> syn::Result<bool> {
        let whole = root.span().byte_range();
        let changed =
            [self.slice(whole.start..range.start), text, self.slice(range.end..whole.end)]
                .join(" ");
        let changed: Expr = syn::parse_str(&changed)?;
        Ok(groups(&changed) == groups_of(root))
    }

    fn binary(&mut self, expression: &'a ExprBinary, chain: Chain<'a>) {
        let operator = expression.op.span().byte_range();
        let found = self.take("BinaryOperator", expression.op.span(), Form::Compact);
        if found.is_empty() {
            return;
        }
        let is_logic = matches!(expression.op, BinOp::And(_) | BinOp::Or(_));
        let mut in_place = Vec::new();
        let mut regrouped = Vec::new();
        for mutant in found {
            if is_logic && chain.has_let {
                set(self.forms, mutant.index, Form::NotCompiled);
                continue;
            }
            match self.keeps_groups(chain.root, &operator, &mutant.replacement) {
                Ok(true) => in_place.push(edit(mutant, operator.clone())),
                Ok(false) => regrouped.push(edit(mutant, operator.clone())),
                Err(_) => set(self.forms, mutant.index, Form::NotCompiled),
            }
        }
        for edit in &regrouped {
            set(self.forms, edit.mutant, Form::Copied);
        }
        self.push(chain.root.span().byte_range(), Shape::Whole, regrouped);
        let (left, right) =
            (expression.left.span().byte_range(), expression.right.span().byte_range());
        let shape = match expression.op {
            BinOp::And(_) => Shape::Logic { left, right, is_and: true },
            BinOp::Or(_) => Shape::Logic { left, right, is_and: false },
            BinOp::Eq(_)
            | BinOp::Ne(_)
            | BinOp::Lt(_)
            | BinOp::Le(_)
            | BinOp::Gt(_)
            | BinOp::Ge(_) => {
                Shape::Compare { left, right, operator: self.slice(operator).to_owned() }
            }
            _ => Shape::Whole,
        };
        if matches!(shape, Shape::Whole) {
            for edit in &in_place {
                set(self.forms, edit.mutant, Form::Copied);
            }
        }
        self.push(expression.span().byte_range(), shape, in_place);
    }

    fn operand(&mut self, operand: &'a Expr, chain: Option<Chain<'a>>) {
        self.chain = chain.filter(|_| matches!(operand, Expr::Binary(_)));
        self.visit_expr(operand);
    }
}

fn edit(mutant: &Mutant, range: Bytes) -> Edit {
    Edit { mutant: mutant.index, range, text: mutant.replacement.clone() }
}

/// How the operands of binary expressions are grouped, without what they are.
fn groups(expression: &Expr) -> String {
    match expression {
        Expr::Binary(binary) => groups_of(binary),
        _ => "_".to_owned(),
    }
}

fn groups_of(binary: &ExprBinary) -> String {
    format!("({}{})", groups(&binary.left), groups(&binary.right))
}

/// Whether a condition binds names, outside of parentheses.
fn has_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

impl<'a> Visit<'a> for Places<'a> {
    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.body(&function.sig, &function.block, |places| visit::visit_item_fn(places, function));
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.body(&function.sig, &function.block, |places| {
            visit::visit_impl_item_fn(places, function)
        });
    }

    fn visit_trait_item_fn(&mut self, function: &'a syn::TraitItemFn) {
        match &function.default {
            Some(block) => self
                .body(&function.sig, block, |places| visit::visit_trait_item_fn(places, function)),
            None => visit::visit_trait_item_fn(self, function),
        }
    }

    fn visit_item_const(&mut self, item: &'a syn::ItemConst) {
        self.compile_time(true, |places| visit::visit_item_const(places, item));
    }

    fn visit_item_static(&mut self, item: &'a syn::ItemStatic) {
        self.compile_time(true, |places| visit::visit_item_static(places, item));
    }

    fn visit_impl_item_const(&mut self, item: &'a syn::ImplItemConst) {
        self.compile_time(true, |places| visit::visit_impl_item_const(places, item));
    }

    fn visit_trait_item_const(&mut self, item: &'a syn::TraitItemConst) {
        self.compile_time(true, |places| visit::visit_trait_item_const(places, item));
    }

    fn visit_variant(&mut self, variant: &'a syn::Variant) {
        self.compile_time(true, |places| visit::visit_variant(places, variant));
    }

    fn visit_type(&mut self, written: &'a syn::Type) {
        // The length of an array.
        self.compile_time(true, |places| visit::visit_type(places, written));
    }

    fn visit_generic_argument(&mut self, argument: &'a syn::GenericArgument) {
        self.compile_time(true, |places| visit::visit_generic_argument(places, argument));
    }

    fn visit_expr_closure(&mut self, closure: &'a syn::ExprClosure) {
        // Also that of a static runs when it is called.
        self.compile_time(false, |places| visit::visit_expr_closure(places, closure));
    }

    fn visit_expr_const(&mut self, block: &'a syn::ExprConst) {
        self.compile_time(true, |places| visit::visit_expr_const(places, block));
    }

    fn visit_expr_repeat(&mut self, array: &'a syn::ExprRepeat) {
        self.visit_expr(&array.expr);
        self.compile_time(true, |places| places.visit_expr(&array.len));
    }

    fn visit_expr_binary(&mut self, expression: &'a ExprBinary) {
        let binds = has_let(&expression.left) || has_let(&expression.right);
        let chain = self.chain.take().unwrap_or(Chain { root: expression, has_let: binds });
        self.binary(expression, chain);
        // An assignment ends a chain, and so does an operand of a condition with `let`, which no
        // copy can hold.
        let inner = if is_assignment(&expression.op) { None } else { Some(chain) };
        for operand in [&*expression.left, &*expression.right] {
            let inner = match operand {
                Expr::Binary(binary) if binds => Some(Chain { root: binary, has_let: true }),
                _ => inner,
            };
            self.operand(operand, inner);
        }
    }

    fn visit_expr(&mut self, expression: &'a Expr) {
        // Whatever is not a binary expression itself ends a chain.
        if !matches!(expression, Expr::Binary(_)) {
            self.chain = None;
        }
        visit::visit_expr(self, expression);
    }

    fn visit_expr_unary(&mut self, expression: &'a syn::ExprUnary) {
        let operator = expression.op.span().byte_range();
        let found = self.take("UnaryOperator", expression.op.span(), Form::Compact);
        let edits = found.into_iter().map(|mutant| edit(mutant, operator.clone())).collect();
        let shape = Shape::Unary {
            operand: expression.expr.span().byte_range(),
            operator: self.slice(operator.clone()).to_owned(),
        };
        self.push(expression.span().byte_range(), shape, edits);
        visit::visit_expr_unary(self, expression);
    }

    fn visit_expr_match(&mut self, expression: &'a syn::ExprMatch) {
        let at = self.switches.len();
        let mut deleted = Vec::new();
        self.visit_expr(&expression.expr);
        for arm in &expression.arms {
            // In the place of a guard, or as one.
            let guard = arm.guard.as_ref().map(|(_, guard)| &**guard);
            let end = arm.pat.span().byte_range().end;
            let place = guard.map_or(end..end, |guard| guard.span().byte_range());
            let shape = if guard.is_some() { Shape::Guard } else { Shape::Arm };
            let gone = self.take("MatchArm", arm.span(), Form::Compact);
            let always = guard
                .map(|guard| self.take("MatchArmGuard", guard.span(), Form::Compact))
                .unwrap_or_default();
            if guard.is_some_and(has_let) {
                for mutant in gone.iter().chain(&always) {
                    set(self.forms, mutant.index, Form::not_tried("the guard binds names"));
                }
            } else {
                let without = |mutant: &&Mutant| Edit {
                    mutant: mutant.index,
                    range: place.clone(),
                    text: "false".into(),
                };
                let mut edits: Vec<Edit> = gone.iter().map(without).collect();
                deleted.extend(gone.iter().map(without));
                edits.extend(always.into_iter().map(|mutant| edit(mutant, place.clone())));
                self.push(place, shape, edits);
            }
            self.visit_arm(arm);
        }
        if !deleted.is_empty() {
            let range = expression.span().byte_range();
            self.switches.insert(at, Switch { range, shape: Shape::Match, edits: deleted });
        }
    }

    fn visit_expr_struct(&mut self, expression: &'a syn::ExprStruct) {
        let mut edits = Vec::new();
        for pair in expression.fields.pairs() {
            let field = pair.value();
            let start = field.span().byte_range().start;
            let end = pair
                .punct()
                .map_or(field.span().byte_range().end, |comma| comma.span().byte_range().end);
            edits.extend(
                self.take("StructField", field.span(), Form::Copied)
                    .into_iter()
                    .map(|m| edit(m, start..end)),
            );
        }
        self.push(expression.span().byte_range(), Shape::Whole, edits);
        visit::visit_expr_struct(self, expression);
    }
}

fn is_assignment(operator: &BinOp) -> bool {
    matches!(
        operator,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}
