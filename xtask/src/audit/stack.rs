// SPDX-License-Identifier: MIT OR Apache-2.0
//! How deep EL2's stacks can get, on the linked image: the deepest chain of calls from each entry fits.
//!
//! Each function is walked with what its instructions have taken from the stack pointer by then, on every path; what it
//! calls, or goes on to, comes on top of it. Reported is what no number can be given for: a call of itself, or of what a
//! register says; a size that is computed; a place that is reached with more on one path than on another; a return that
//! has not given all back. What stops the machine is left out: it has a stack of its own, or nothing to lose.

#![expect(clippy::wildcard_enum_match_arm, reason = "most instructions are nothing to the question that is asked")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};

use super::code::{Code, Does, Function, plain};
use super::graph;
use super::stops::STOPS;

/// Bytes of a CPU's stack, its guard, and the stack on which it reports a fatal exception (`percpu.rs`).
const STACK: u64 = 16 << 10;
const GUARD: u64 = 4 << 10;
const EMERGENCY: u64 = 4 << 10;
const CPUS: u64 = 32;

/// Who may put another address into the stack pointer, and why nothing is lost.
const BEGIN_ANEW: [(&str, &str); 4] = [
    ("freehold_entry", "the boot's stack begins"),
    ("freehold_secondary", "the CPU's stack begins"),
    ("freehold_el2::wiring::boot::start_host", "the boot's stack is left for good, for the host"),
    ("freehold_el2::wiring::trap::secondary_main", "what brought the CPU up is left for good, for the host"),
];

/// Functions of the boot that call themselves, how often at most, and why.
const RECURSIVE: [(&str, u64, &str); 2] = [
    (
        "core::slice::sort::unstable::quicksort::quicksort",
        16,
        "twice the logarithm of 256; at most 64 ranges of memory are sorted",
    ),
    ("core::slice::sort::shared::pivot::median3_rec", 4, "a third of that logarithm, and the first"),
];
/// What prints, which calls by registers whoever can be printed, and bytes that are allowed for it.
const PRINTS: [&str; 2] = ["4core3fmt5write", "core::fmt::write"];
const PRINTING: u64 = 4 << 10;

/// What an instruction does to the stack pointer. Arm ARM C4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moves {
    /// Takes so many bytes; gives them back where it is less than none.
    By(i64),
    /// Sets it to what a register says, or by what one says.
    Sets,
}

fn moves(word: u32) -> Moves {
    let is = |mask: u32, value: u32| word & mask == value;
    let (to, from) = (word & 31, word >> 5 & 31);
    match () {
        // ADD and SUB of a number, without flags.
        () if is(0x3f80_0000, 0x1100_0000) && to == 31 => {
            let bytes = i64::from(word >> 10 & 0xfff) << (12 * (word >> 22 & 1));
            match (from, word >> 30 & 1) {
                (31, 1) => Moves::By(bytes),
                (31, _) => Moves::By(-bytes),
                _ => Moves::Sets,
            }
        }
        // ADD and SUB of an extended register; AND, ORR and EOR of a number. Without flags, 31 is the stack pointer.
        () if (is(0x3fe0_0000, 0x0b20_0000) || is(0x1f80_0000, 0x1200_0000) && word >> 29 & 3 != 3) && to == 31 => {
            Moves::Sets
        }
        // STP and LDP that move their base, of either width, of vectors too.
        () if is(0x3a80_0000, 0x2880_0000) && from == 31 => {
            let scale = if word >> 26 & 1 == 1 { 2 + (word >> 30) } else { 2 + (word >> 31) };
            Moves::By(-(signed(word >> 15, 7) << scale))
        }
        // STR and LDR that move their base, before or after.
        () if is(0x3b20_0400, 0x3800_0400) && from == 31 => Moves::By(-signed(word >> 12, 9)),
        () => Moves::By(0),
    }
}

/// Whether an instruction takes some of the stack.
pub(super) fn takes(code: &Code, at: u64) -> bool {
    code.word(at).is_some_and(|word| matches!(moves(word), Moves::By(1..)))
}

/// The lowest bits, of which the highest is a sign.
fn signed(bits: u32, width: u32) -> i64 {
    i64::from(bits) << (64 - width) >> (64 - width)
}

/// What is known of the depth of functions, by where they are entered.
struct Depths<'c> {
    code: &'c Code,
    returning: BTreeSet<u64>,
    known: BTreeMap<u64, u64>,
    /// Functions on the way down to the one that is walked.
    open: Vec<u64>,
    /// Bytes that a function has taken where it leaves for a lower level.
    left: BTreeMap<u64, i64>,
    found: BTreeSet<String>,
}

impl Depths<'_> {
    /// Bytes that whoever is entered there takes, with all that is called.
    fn of(&mut self, entry: u64) -> u64 {
        if let Some(known) = self.known.get(&entry) {
            return *known;
        }
        let name = self.name(entry);
        if STOPS.contains(&name.as_str()) {
            return 0;
        }
        if PRINTS.iter().any(|who| name.contains(who)) {
            return PRINTING;
        }
        let times = RECURSIVE.iter().find(|(who, ..)| *who == name).map(|(_, times, _)| *times);
        if self.open.contains(&entry) {
            if times.is_none() {
                self.found.insert(format!("{}: comes back to itself by calls", self.code.shown(entry)));
            }
            return 0;
        }
        self.open.push(entry);
        let depth = self.walk(entry, 0) * times.unwrap_or(1);
        self.open.pop();
        self.known.insert(entry, depth);
        depth
    }

    fn name(&self, at: u64) -> String {
        self.code.function(at).map_or_else(String::new, |f| plain(&f.name))
    }

    /// All that the loop takes which begins there: the compiler takes a large frame page by page, and touches each, down to
    /// what it put into X9 right before.
    fn probed(&self, at: u64) -> Option<i64> {
        const PAGE: u32 = 0xd140_07ff; // sub sp, sp, #1, lsl #12
        let before = self.code.word(at.checked_sub(4)?)?;
        let down_to = before & 0xffc0_03ff == 0xd140_03e9; // sub x9, sp, #n, lsl #12
        (self.code.word(at)? == PAGE && down_to).then_some(i64::from(before >> 10 & 0xfff) << 12)
    }

    /// Walks a function from an entry on every path, with so many bytes of its own taken before.
    fn walk(&mut self, entry: u64, taken: i64) -> u64 {
        let Some(function) = self.code.routine(entry) else { return 0 };
        let mut at_depth = BTreeMap::from([(entry, taken)]);
        let (mut todo, mut deepest) = (vec![entry], 0);
        while let Some(at) = todo.pop() {
            let before = at_depth.get(&at).copied().unwrap_or(0);
            let depth = match moves(self.code.word(at).unwrap_or_default()) {
                Moves::By(bytes) => before + self.probed(at).unwrap_or(bytes),
                Moves::Sets if BEGIN_ANEW.iter().any(|(who, _)| *who == self.name(at)) => 0,
                Moves::Sets => {
                    self.found.insert(format!("{}: sets the stack pointer", self.code.shown(at)));
                    before
                }
            };
            deepest = deepest.max(depth);
            let does = self.code.does(at).unwrap_or(Does::Other);
            let (next, below) = self.leads(at, does, &function);
            for to in below {
                let whole = self.of(to);
                deepest = deepest.max(depth + whole.cast_signed());
            }
            if does == Does::ExceptionReturn {
                self.left.insert(at, depth);
            }
            if does == Does::Return && depth != 0 {
                self.found.insert(format!("{}: returns with {depth} bytes of stack", self.code.shown(at)));
            }
            // The loop that takes a large frame is counted as a whole where it begins.
            let next: Vec<u64> = next.into_iter().filter(|to| *to >= at || self.probed(*to).is_none()).collect();
            for to in next {
                match at_depth.insert(to, depth) {
                    None => todo.push(to),
                    Some(other) if other != depth => {
                        let place = self.code.shown(to);
                        self.found.insert(format!("{place}: reached with {other} and with {depth} bytes of stack"));
                    }
                    Some(_) => {}
                }
            }
        }
        deepest.max(0).cast_unsigned()
    }

    /// Where control goes on in the function, and what it goes down to.
    fn leads(&mut self, at: u64, does: Does, function: &Function) -> (Vec<u64>, Vec<u64>) {
        let within = |to: u64| (function.start..function.end).contains(&to);
        let after = (at + 4 < function.end).then_some(at + 4);
        let fork = |to: u64, after: Option<u64>| {
            let mut next: Vec<u64> = after.into_iter().collect();
            let mut below = Vec::new();
            if within(to) {
                next.push(to)
            } else {
                below.push(to)
            }
            (next, below)
        };
        match does {
            Does::Jump(to) => fork(to, None),
            Does::Branch(to) => fork(to, after),
            // Whether it comes back or not: what follows a call that does not is not code.
            Does::Call(to) => (after.filter(|_| self.returning.contains(&to)).into_iter().collect(), vec![to]),
            Does::CallRegister => {
                self.found.insert(format!("{}: a call through a register, of any depth", self.code.shown(at)));
                (after.into_iter().collect(), Vec::new())
            }
            Does::JumpRegister => {
                let cases = self.cases(function);
                if cases.is_empty() {
                    self.found.insert(format!("{}: goes where a register says, of any depth", self.code.shown(at)));
                }
                (cases, Vec::new())
            }
            Does::Return | Does::ExceptionReturn | Does::Trap => (Vec::new(), Vec::new()),
            _ => (after.into_iter().collect(), Vec::new()),
        }
    }

    /// Where a switch may go in its function: to what nothing else leads to.
    fn cases(&self, function: &Function) -> Vec<u64> {
        let places = || (function.start..function.end).step_by(4);
        let mut led: BTreeSet<u64> = BTreeSet::from([function.start]);
        for at in places() {
            let does = self.code.does(at).unwrap_or(Does::Other);
            if let Does::Jump(to) | Does::Branch(to) = does {
                led.insert(to);
            }
            let ends = match does {
                Does::Jump(_) | Does::JumpRegister | Does::Return | Does::ExceptionReturn | Does::Trap => true,
                Does::Call(to) => !self.returning.contains(&to),
                _ => false,
            };
            if !ends {
                led.insert(at + 4);
            }
        }
        places().filter(|at| !led.contains(at)).collect()
    }
}

/// Whose stack could be too small, and what no number can be given for.
pub(super) fn judge(code: &Code) -> Result<Vec<String>> {
    let stacks = code.linker("__stacks_end")? - code.linker("__stacks_start")?;
    ensure!(stacks == CPUS * (STACK + EMERGENCY + 2 * GUARD), "{stacks} bytes of stacks: another size than here");
    let boot_stack = code.linker("__boot_stack_end")? - code.linker("__boot_stack_start")?;
    let mut depths = Depths {
        code,
        returning: graph::returning(code),
        known: BTreeMap::new(),
        open: Vec::new(),
        left: BTreeMap::new(),
        found: BTreeSet::new(),
    };
    let entries = super::exceptions(code)?;
    let (host, guest) = entries.split_at(super::HOSTS);
    let host = host.iter().map(|at| depths.of(*at)).max().context("no vectors")?;
    // A guest leaves onto the stack of the host's call that has entered it, where that left for the guest.
    let run = code.label("freehold_run_guest")?;
    let left = depths.left.range(run..).next().map_or(0, |(_, left)| *left);
    let exit = guest.iter().map(|at| depths.walk(*at, left)).max().context("no vectors")?;
    let served = host + exit.saturating_sub(left.cast_unsigned());
    let woken = depths.of(code.label("freehold_secondary")?);
    let boot = depths.of(code.label("freehold_entry")?);
    let mut found: Vec<String> = depths.found.into_iter().collect();
    let counted = host > 1000 && left > 0 && boot > 4000;
    ensure!(counted || !found.is_empty(), "{host}, {left}, {boot} bytes of stack only: what was counted?");
    for (who, takes, has) in [
        ("a host's call, and a guest's exit in it", served, STACK),
        ("a CPU that comes up", woken, STACK),
        ("the boot", boot, boot_stack),
    ] {
        if takes > has {
            found.push(format!("{who} may take {takes} bytes of a stack of {has}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_stack_pointer_is_decoded() {
        let takes = |word: u32, bytes: i64| assert_eq!(moves(word), Moves::By(bytes), "{word:#x}");
        takes(0xd101_03ff, 64); // sub sp, sp, #64
        takes(0xd140_07ff, 4096); // sub sp, sp, #1, lsl #12
        takes(0xa9bf_7bfd, 16); // stp x29, x30, [sp, #-16]!
        takes(0xf81f_0ffe, 16); // str x30, [sp, #-16]!
        takes(0xadbf_07e0, 32); // stp q0, q1, [sp, #-32]!
        takes(0x9101_03ff, -64); // add sp, sp, #64
        takes(0xa8c1_7bfd, -16); // ldp x29, x30, [sp], #16
        takes(0xf841_07fe, -16); // ldr x30, [sp], #16
        for nothing in [
            0xa901_7bfd_u32, // stp x29, x30, [sp, #16]
            0xf900_07fe,     // str x30, [sp, #8]
            0x9100_03fd,     // mov x29, sp
            0xf100_003f,     // cmp x1, #0
            0xeb02_003f,     // cmp x1, x2
            0xf240_001f,     // tst x0, #1
            0xa9bf_7801,     // stp x1, x30, [x0, #-16]!
        ] {
            takes(nothing, 0);
        }
        for sets in [
            0x9100_001f_u32, // mov sp, x0
            0x927a_e53f,     // and sp, x9, #-64
            0x8b21_63ff,     // add sp, sp, x1
            0xcb21_63ff,     // sub sp, sp, x1
        ] {
            assert_eq!(moves(sets), Moves::Sets, "{sets:#x}");
        }
    }
}
