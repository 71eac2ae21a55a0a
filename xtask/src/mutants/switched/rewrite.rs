// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rewrites a source file so that every mutant of it is there and one at a time can be switched on.
//!
//! `x + y` becomes `match (x, y) { (__a, __b) => if on(7) { __a - __b } else { __a + __b } }`, and so on: what is evaluated, how
//! often and in which order stays. A mutant that is read in another way by the grammar (`a & b & c` as `a | b & c`) is
//! written out with the whole expression. What a constant or a pattern is made of can not be switched and is left out,
//! as is what the caller says does not compile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context as _, Result};
use proc_macro2::{LineColumn, Span};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Arm, Block, Expr, ExprBinary, ExprMatch, ExprUnary, Pat};

use super::list::{Genre, Mutant};

/// Number of a mutant: its place in the list.
pub(super) type Id = usize;

/// Rewrites `source`; the second is which of its mutants can be switched there.
///
/// # Errors
/// If it is no Rust.
pub(super) fn rewrite(source: &str, mutants: &[(Id, &Mutant)], but: &BTreeSet<Id>) -> Result<(String, BTreeSet<Id>)> {
    let mut at: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, mutant) in mutants.iter().filter(|(id, mutant)| !but.contains(id) && mutant.switchable()) {
        let start = &mutant.span.start;
        at.entry((start.line, start.column, mutant.genre)).or_default().push((*id, mutant.replacement.as_str()));
    }
    let starts = std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let file = syn::parse_file(source).context("no Rust")?;
    let mut writer = Writer { source, starts, at, ..Writer::default() };
    writer.visit_file(&file);
    let text = writer.text();
    // What stands there counts, not what was meant to.
    let there = writer.done.into_iter().filter(|id| text.contains(&call(*id))).collect();
    Ok((text, there))
}

/// The mutants whose own text, or whose expression, lies around this part of a rewritten file.
pub(super) fn around(text: &str, part: &Range<usize>) -> BTreeSet<Id> {
    let mut best: Option<&str> = None;
    for (start, _) in text.match_indices(OPEN) {
        let Some(name) = text[start + OPEN.len()..].split_once("*/").map(|(name, _)| name) else { continue };
        let Some(len) = text[start..].find(&format!("{CLOSE}{name}*/")) else { continue };
        // What is wrong with a whole expression is said of the parentheses around it too.
        let around = start.saturating_sub(1)..start + len + CLOSE.len() + name.len() + 3;
        if around.start <= part.start && part.end <= around.end && best.is_none_or(|best| len < best.len()) {
            best = Some(&text[start..start + len]);
        }
    }
    let Some(best) = best else { return BTreeSet::new() };
    let own = best[OPEN.len()..].strip_prefix('m').and_then(|rest| rest.split_once("*/")?.0.parse().ok());
    let asked = || best.split(CALL).skip(1).filter_map(|rest| rest.split_once(')')?.0.parse().ok()).collect();
    own.map_or_else(asked, |id| BTreeSet::from([id]))
}

const CALL: &str = "::freehold_switch::on(";
const OPEN: &str = "/*<";
const CLOSE: &str = "/*>";

fn call(id: Id) -> String {
    format!("{CALL}{id})")
}

/// A mutant's own text, so that an error in it is known as its own.
fn own(id: Id, text: &str) -> String {
    format!("if {} {{ {OPEN}m{id}*/ {text} {CLOSE}m{id}*/ }}", call(id))
}

/// How tightly an operator binds.
fn binds(operator: &str) -> u8 {
    match operator {
        "*" | "/" | "%" => 10,
        "+" | "-" => 9,
        "<<" | ">>" => 8,
        "&" => 7,
        "^" => 6,
        "|" => 5,
        "==" | "!=" | "<" | ">" | "<=" | ">=" => 4,
        "&&" => 3,
        "||" => 2,
        _ => 1,
    }
}

/// Whether a `let` that is part of a condition is in it: such a condition is left as it is.
fn binds_names(expression: &Expr) -> bool {
    if let Expr::Binary(both) = expression {
        return binds_names(&both.left) || binds_names(&both.right);
    }
    matches!(expression, Expr::Let(_))
}

fn links<'e>(expression: &'e Expr, all: &mut Vec<&'e ExprBinary>) {
    if let Expr::Binary(both) = expression {
        links(&both.left, all);
        all.push(both);
        links(&both.right, all);
    }
}

/// The mutants of one kind in one place: number and replacement.
type Found<'s> = Vec<(Id, &'s str)>;

#[derive(Default)]
struct Writer<'s> {
    source: &'s str,
    /// Where each line starts.
    starts: Vec<usize>,
    at: BTreeMap<(usize, usize, Genre), Found<'s>>,
    /// Text to insert, by place; at one place what ends comes before what begins.
    ends: Vec<(usize, String)>,
    begins: Vec<(usize, String)>,
    gone: Vec<Range<usize>>,
    done: BTreeSet<Id>,
    /// In a chain of operators, whose first one was seen to.
    chained: bool,
    /// In a match that has an arm for everything.
    total: bool,
    sites: usize,
}

impl<'s> Writer<'s> {
    fn offset(&self, at: LineColumn) -> usize {
        let line = self.starts.get(at.line - 1).copied().unwrap_or(0);
        line + self.source[line..].chars().take(at.column).map(char::len_utf8).sum::<usize>()
    }

    fn range(&self, span: Span) -> Range<usize> {
        self.offset(span.start())..self.offset(span.end())
    }

    /// Takes the mutants of a kind that start here.
    fn take(&mut self, span: Span, genre: Genre) -> Found<'s> {
        let start = span.start();
        let found = self.at.remove(&(start.line, start.column + 1, genre)).unwrap_or_default();
        self.done.extend(found.iter().map(|(id, _)| *id));
        found
    }

    fn begin(&mut self, at: usize, text: String) {
        self.begins.push((at, text));
    }

    fn end(&mut self, at: usize, text: String) {
        self.ends.push((at, text));
    }

    /// Marks around an expression that is rewritten.
    fn site(&mut self) -> (String, String) {
        self.sites += 1;
        (format!("{OPEN}s{}*/", self.sites), format!("{CLOSE}s{}*/", self.sites))
    }

    fn text(&mut self) -> String {
        let edits = std::mem::take(&mut self.ends).into_iter().map(|(at, text)| (at, 0, text));
        let begins = std::mem::take(&mut self.begins).into_iter().map(|(at, text)| (at, 1, text));
        let mut edits: Vec<_> = edits.chain(begins).collect();
        // Stable: the rest of the order is that in which they were said.
        edits.sort_by_key(|(at, kind, _)| (*at, *kind));
        let (mut text, mut from) = (String::new(), 0);
        for (at, _, more) in edits {
            text.push_str(&self.kept(from..at));
            text.push_str(&more);
            from = at;
        }
        text + &self.kept(from..self.source.len())
    }

    /// What is left of a part.
    fn kept(&self, part: Range<usize>) -> String {
        let gone = |at: usize| self.gone.iter().any(|gone| gone.contains(&at));
        self.source[part.clone()].char_indices().filter(|(at, _)| !gone(part.start + at)).map(|(_, c)| c).collect()
    }

    /// A function that returns something else at once.
    fn body(&mut self, block: &Block) {
        let Some(first) = block.stmts.first() else { return };
        let (at, found) = (self.range(first.span()).start, self.take(first.span(), Genre::FnValue));
        let returns = found.iter().map(|(id, value)| own(*id, &format!("return {value};")) + " ");
        let text = returns.collect();
        self.begin(at, text);
    }

    /// Writes out, before the whole chain, what the grammar would read in another way.
    fn chain(&mut self, whole: &ExprBinary, all: &[&ExprBinary]) -> String {
        let around = self.range(whole.span());
        let mut rest = String::new();
        for link in all {
            let operator = self.range(link.op.span());
            let (before, was) = (&self.source[around.start..operator.start], &self.source[operator.clone()]);
            let after = &self.source[operator.end..around.end];
            let start = link.op.span().start();
            let key = (start.line, start.column + 1, Genre::BinaryOperator);
            let other = |(_, by): &(Id, &str)| binds(by) != binds(was) && binds(was) > 1;
            let found: Vec<_> =
                self.at.get_mut(&key).map(|all| all.extract_if(.., |m| other(m)).collect()).unwrap_or_default();
            for (id, by) in found {
                self.done.insert(id);
                // A line of its own behind it, for it may end with a comment.
                self.begin(around.start, format!("({} else {{", own(id, &format!("{before}{by}{after}\n"))));
                rest.push_str("})");
            }
        }
        rest
    }

    fn operator(&mut self, both: &ExprBinary) {
        let found = self.take(both.op.span(), Genre::BinaryOperator);
        let (left, right) = (self.range(both.left.span()), self.range(both.right.span()));
        let operator = self.source[self.range(both.op.span())].to_owned();
        if found.is_empty() {
            return visit::visit_expr_binary(self, both);
        }
        let (open, close) = self.site();
        let choice = |a: &str, b: &str| {
            let others = found.iter().map(|(id, by)| own(*id, &format!("{a} {by} {b}")) + " else ");
            format!("{}{{ {a} {operator} {b} }}", others.collect::<String>())
        };
        let (first, between, last) = match binds(&operator) {
            2 | 3 => {
                // Whether the second is looked at is all that differs.
                let same = if operator == "&&" { "!=" } else { "==" };
                let (id, _) = found[0];
                let between = format!(") {{ __a => if __a {same} {} {{ (", call(id));
                (format!("({open}match ("), between, format!(") }} else {{ __a }} }}{close})"))
            }
            4 => (
                format!("({open}match (&("),
                "), &(".to_owned(),
                format!(")) {{ (__a, __b) => {} }}{close})", choice("*__a", "*__b")),
            ),
            1 => {
                let place = self.source[left.clone()].to_owned();
                self.gone.push(left.start..right.start);
                self.begin(left.start, format!("({open}match ("));
                self.visit_expr(&both.right);
                return self.end(right.end, format!(") {{ __b => {} }}{close})", choice(&place, "__b")));
            }
            _ => (
                format!("({open}match (("),
                "), (".to_owned(),
                format!(")) {{ (__a, __b) => {} }}{close})", choice("__a", "__b")),
            ),
        };
        self.begin(left.start, first);
        self.visit_expr(&both.left);
        self.gone.push(left.end..right.start);
        self.end(left.end, between);
        self.visit_expr(&both.right);
        self.end(right.end, last);
    }
}

impl<'e> Visit<'e> for Writer<'_> {
    // What the compiler computes, and what is no expression.
    fn visit_item_const(&mut self, _: &'e syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'e syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'e syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'e syn::TraitItemConst) {}
    fn visit_item_enum(&mut self, _: &'e syn::ItemEnum) {}
    fn visit_expr_const(&mut self, _: &'e syn::ExprConst) {}
    fn visit_type(&mut self, _: &'e syn::Type) {}
    fn visit_pat(&mut self, _: &'e Pat) {}
    fn visit_generic_argument(&mut self, _: &'e syn::GenericArgument) {}

    fn visit_expr_repeat(&mut self, repeat: &'e syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_item_fn(&mut self, function: &'e syn::ItemFn) {
        self.body(&function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'e syn::ImplItemFn) {
        self.body(&function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'e syn::TraitItemFn) {
        function.default.iter().for_each(|block| self.body(block));
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_expr(&mut self, expression: &'e Expr) {
        let inner = matches!(expression, Expr::Binary(_)) && self.chained;
        let was = std::mem::replace(&mut self.chained, matches!(expression, Expr::Binary(_)));
        let mut all = Vec::new();
        links(expression, &mut all);
        let mut rest = String::new();
        if let Expr::Binary(whole) = expression
            && !inner
            && all.len() > 1
            && !binds_names(expression)
        {
            rest = self.chain(whole, &all);
        }
        visit::visit_expr(self, expression);
        if !rest.is_empty() {
            self.end(self.range(expression.span()).end, rest);
        }
        self.chained = was;
    }

    fn visit_expr_binary(&mut self, both: &'e ExprBinary) {
        if matches!(both.op, syn::BinOp::And(_) | syn::BinOp::Or(_))
            && (binds_names(&both.left) || binds_names(&both.right))
        {
            return visit::visit_expr_binary(self, both);
        }
        self.operator(both);
    }

    fn visit_expr_unary(&mut self, unary: &'e ExprUnary) {
        let Some((id, _)) = self.take(unary.op.span(), Genre::UnaryOperator).pop() else {
            return visit::visit_expr_unary(self, unary);
        };
        let (operator, of) = (self.range(unary.op.span()), self.range(unary.expr.span()));
        let (open, close) = self.site();
        let was = &self.source[operator.clone()];
        let choice = format!("{} else {{ {was}__a }}", own(id, "__a"));
        self.gone.push(operator.start..of.start);
        self.begin(operator.start, format!("({open}match ("));
        self.visit_expr(&unary.expr);
        self.end(of.end, format!(") {{ __a => {choice} }}{close})"));
    }

    fn visit_expr_match(&mut self, of: &'e ExprMatch) {
        self.visit_expr(&of.expr);
        for arm in &of.arms {
            // Again for each: the match in an arm has its own.
            self.total = of
                .arms
                .last()
                .is_some_and(|arm| arm.guard.is_none() && matches!(arm.pat, Pat::Wild(_) | Pat::Ident(_)));
            self.visit_arm(arm);
        }
    }

    fn visit_arm(&mut self, arm: &'e Arm) {
        let guarded = arm.guard.as_ref().map(|(_, guard)| guard.as_ref());
        if guarded.is_some_and(binds_names) {
            return visit::visit_arm(self, arm);
        }
        let arm_gone = if self.total { self.take(arm.span(), Genre::MatchArm) } else { Vec::new() };
        let stays: String = arm_gone.iter().map(|(id, _)| format!("!{} && ", call(*id))).collect();
        if let Some(guard) = guarded {
            let found = self.take(guard.span(), Genre::MatchArmGuard);
            let whether =
                |text| found.iter().find(|(_, by)| *by == text).map_or("false".to_owned(), |(id, _)| call(*id));
            let around = self.range(guard.span());
            self.begin(around.start, format!("({stays}({} || (!{} && (", whether("true"), whether("false")));
            self.visit_expr(guard);
            self.end(around.end, "))))".to_owned());
        } else if let Some(stays) = stays.strip_suffix(" && ") {
            let at = self.range(arm.pat.span()).end;
            self.end(at, format!(" if {stays}"));
        }
        self.visit_expr(&arm.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mutants of a line of source: column, kind, replacement.
    fn mutants(all: &[(usize, &str, &str)]) -> Vec<Mutant> {
        let one = |(column, genre, by): &(usize, &str, &str)| {
            serde_json::json!({
                "file": "a.rs", "genre": genre, "name": "", "replacement": by, "function": null,
                "span": { "start": { "line": 1, "column": column } },
            })
        };
        all.iter().map(|mutant| serde_json::from_value(one(mutant)).unwrap()).collect()
    }

    fn rewritten(source: &str, all: &[(usize, &str, &str)], but: &[Id]) -> (String, Vec<Id>) {
        let all = mutants(all);
        let numbered: Vec<_> = all.iter().enumerate().collect();
        let (text, there) = rewrite(source, &numbered, &but.iter().copied().collect()).unwrap();
        syn::parse_file(&text).expect("it is Rust again");
        let plain = [OPEN, CLOSE].iter().fold(text, |text, mark| {
            let mut parts = text.split(mark);
            let first = parts.next().unwrap().to_owned();
            parts.fold(first, |all, part| all + part.split_once("*/").unwrap().1)
        });
        (plain.replace("::freehold_switch::", "").split_whitespace().collect(), there.into_iter().collect())
    }

    #[test]
    fn operands_are_evaluated_once_and_in_their_order() {
        let (text, there) = rewritten("fn f() { a() + b() }", &[(14, "BinaryOperator", "-")], &[]);
        assert_eq!(text, "fnf(){(match((a()),(b())){(__a,__b)=>ifon(0){__a-__b}else{__a+__b}})}");
        assert_eq!(there, [0]);
        let (text, _) = rewritten("fn f() { a() && b() }", &[(14, "BinaryOperator", "||")], &[]);
        assert_eq!(text, "fnf(){(match(a()){__a=>if__a!=on(0){(b())}else{__a}})}");
        let (text, _) = rewritten("fn f() { *p += b() }", &[(13, "BinaryOperator", "-=")], &[]);
        assert_eq!(text, "fnf(){(match(b()){__b=>ifon(0){*p-=__b}else{*p+=__b}})}");
    }

    #[test]
    fn what_the_grammar_reads_in_another_way_is_written_out() {
        let (text, there) = rewritten("fn f() { a & b & c }", &[(12, "BinaryOperator", "|")], &[]);
        assert_eq!((text.as_str(), there.as_slice()), ("fnf(){(ifon(0){a|b&c}else{a&b&c})}", [0].as_slice()));
    }

    #[test]
    fn arms_guards_and_values_are_switched() {
        let source = "fn f() -> u8 { match x { 1 if y => 2, _ => 3 } }";
        let all =
            [(16, "FnValue", "7"), (26, "MatchArm", ""), (31, "MatchArmGuard", "true"), (31, "MatchArmGuard", "false")];
        let (text, there) = rewritten(source, &all, &[]);
        assert_eq!(text, "fnf()->u8{ifon(0){return7;}matchx{1if(!on(1)&&(on(2)||(!on(3)&&(y))))=>2,_=>3}}");
        assert_eq!(there, [0, 1, 2, 3]);
    }

    #[test]
    fn what_a_compiler_computes_and_what_does_not_compile_is_left_out() {
        let (text, there) = rewritten("const A: u8 = 1 + 2;", &[(17, "BinaryOperator", "-")], &[]);
        assert_eq!((text.as_str(), there.len()), ("constA:u8=1+2;", 0));
        let (text, there) = rewritten("fn f() { a + b }", &[(12, "BinaryOperator", "-")], &[0]);
        assert_eq!((text.as_str(), there.len()), ("fnf(){a+b}", 0));
        // Without an arm for everything else, an arm that goes is no program.
        assert!(rewritten("fn f() { match x { E::A => 1, E::B => 2 } }", &[(20, "MatchArm", "")], &[]).1.is_empty());
    }

    #[test]
    fn an_error_is_that_of_the_innermost_mutant_around_it() {
        let all = mutants(&[(12, "BinaryOperator", "-"), (12, "BinaryOperator", "*")]);
        let numbered: Vec<_> = all.iter().enumerate().collect();
        let (text, _) = rewrite("fn f() { a + b }", &numbered, &BTreeSet::new()).unwrap();
        let place = |part: &str| text.find(part).map(|at| at..at + part.len()).unwrap();
        assert_eq!(around(&text, &place("__a - __b")), BTreeSet::from([0]));
        assert_eq!(around(&text, &place("__a * __b")), BTreeSet::from([1]));
        assert_eq!(around(&text, &place("__a + __b")), BTreeSet::from([0, 1]), "the whole expression");
        assert_eq!(around(&text, &place("fn f")), BTreeSet::new());
    }
}
