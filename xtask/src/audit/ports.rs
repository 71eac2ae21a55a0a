// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports through which `mem` acts on the machine, by their instructions, and what a switch of guests drops.
//!
//! The trace of the debug el2 says in which order `mem` called them. Here stands what each of them does when it is
//! called: a port that did nothing would have the same trace.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use super::code::{Code, Does, Dsb, Function, plain};
use super::value::Values;

/// Words that no register is part of.
const TLBI_VMID_BROADCAST: u32 = 0xd50c_83df;
pub(super) const TLBI_STAGE1_HERE: u32 = 0xd508_871f;
const DROP_FETCHES_HERE: u32 = 0xd508_751f;
/// And words with a register in the low bits, cleared here.
pub(super) const SET_VTTBR: u32 = 0xd51c_2100;
const READ_VTTBR: u32 = 0xd53c_2100;
const READ_CTR: u32 = 0xd53b_0020;
pub(super) const CLEAN_INVALIDATE: u32 = 0xd50b_7e20;
pub(super) const ZERO_BLOCK: u32 = 0xd50b_7420;
/// `UBFX` of `CTR_EL0.DminLine` and of `IminLine`, without registers.
const DATA_LINE: u32 = 0xd350_4c00;
pub(super) const INSTRUCTION_LINE: u32 = 0xd340_0c00;
/// `MOV` of the size of a word, and `LSL` of a register by a register.
const WORD: u32 = 0x5280_0080;
const SHIFT: u32 = 0x9ac0_2000;
/// `MOV` of the size of a frame.
const FRAME: u32 = 0x5282_0000;
/// `MOV W0, #1`.
pub(super) const MOV_ONE: u32 = 0x5280_0020;
/// `CTR_EL0.DIC`.
const DIC: u32 = 29;

/// How far back the reason for an instruction is looked for.
const NEAR: u64 = 16;

/// One function of the image, and what is wrong with it.
pub(super) struct Port<'c> {
    code: &'c Code,
    pub(super) function: &'c Function,
}

impl<'c> Port<'c> {
    /// The only function whose name ends so.
    pub(super) fn named(code: &'c Code, end: &str) -> Result<Self> {
        let mut all = code.functions().iter().filter(|f| plain(&f.name).ends_with(end));
        let function = all.next().with_context(|| format!("the image has no function {end}"))?;
        ensure!(all.next().is_none(), "the image has several functions {end}");
        Ok(Self { code, function })
    }

    /// Where it has an instruction, whatever the register in its low bits.
    pub(super) fn places(&self, word: u32) -> Vec<u64> {
        self.all().filter(|at| self.is(*at, word)).collect()
    }

    /// Where it calls, or ends in, another one.
    fn calls(&self, other: &Port<'_>) -> Vec<u64> {
        self.all().filter(|at| self.goes(*at, other)).collect()
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        (self.function.start..self.function.end).step_by(4)
    }

    pub(super) fn is(&self, at: u64, word: u32) -> bool {
        // Of a word without a register the low bits are all ones.
        let mask = if word & 31 == 31 { u32::MAX } else { !31 };
        self.code.word(at).is_some_and(|found| found & mask == word)
    }

    pub(super) fn goes(&self, at: u64, other: &Port<'_>) -> bool {
        matches!(self.code.does(at), Some(Does::Call(to) | Does::Jump(to)) if to == other.function.start)
    }

    fn holds(&self, at: u64) -> bool {
        (self.function.start..self.function.end).contains(&at)
    }

    /// What may come next in this function, and whether control may leave it here.
    fn next(&self, at: u64) -> (Vec<u64>, bool) {
        match self.code.does(at) {
            Some(Does::Jump(to)) if self.holds(to) => (vec![to], false),
            Some(Does::Branch(to)) if self.holds(to) => (vec![to, at + 4], false),
            Some(Does::Branch(_)) => (vec![at + 4], true),
            Some(Does::Trap) => (vec![], false),
            Some(Does::Jump(_) | Does::Return | Does::ExceptionReturn | Does::JumpRegister | Does::CallRegister)
            | None => (vec![], true),
            Some(_) => (vec![at + 4], false),
        }
    }

    /// Whether every way from `from` out of this function comes past one that is wanted.
    pub(super) fn always(&self, from: u64, wanted: &dyn Fn(u64) -> bool) -> bool {
        self.always_in_order(from, &[wanted])
    }

    /// The same, for these one after the other.
    fn always_in_order(&self, from: u64, wanted: &[&dyn Fn(u64) -> bool]) -> bool {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![(from, 0)]);
        while let Some((at, met)) = todo.pop() {
            let met = met + usize::from(wanted.get(met).is_some_and(|is_next| is_next(at)));
            if met == wanted.len() {
                continue;
            }
            let (next, leaves) = self.next(at);
            if leaves {
                return false;
            }
            todo.extend(next.into_iter().map(|at| (at, met)).filter(|state| seen.insert(*state)));
        }
        true
    }

    /// Whether some way from the begin comes to one that is wanted without having come past `stop`.
    fn reaches(&self, wanted: &dyn Fn(u64) -> bool, stop: &dyn Fn(u64) -> bool) -> bool {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![self.function.start]);
        while let Some(at) = todo.pop() {
            if wanted(at) {
                return true;
            }
            if !stop(at) {
                todo.extend(self.next(at).0.into_iter().filter(|at| seen.insert(*at)));
            }
        }
        false
    }

    /// Where it takes the size of the smallest data cache line out of CTR_EL0, and where words become that line: `4 << n`.
    pub(super) fn line(&self) -> Option<(u64, u64)> {
        let word = |at: u64| self.code.word(at).unwrap_or(0);
        let near = |at: u64| (1..=NEAR).map(move |n| at + 4 * n).filter(|at| self.holds(*at));
        let asks = *self.places(READ_CTR).first()?;
        let field = near(asks).find(|at| word(*at) & !31 == DATA_LINE | (word(asks) & 31) << 5)?;
        let four = near(field).find(|at| word(*at) & !31 == WORD)?;
        let shift = near(four).find(|at| word(*at) & 0xffe0_fc00 == SHIFT)?;
        (word(shift) >> 5 & 31 == word(four) & 31).then_some((field, four))
    }

    fn dsb(&self, enough: &'static [Dsb]) -> impl Fn(u64) -> bool + '_ {
        move |at| matches!(self.code.does(at), Some(Does::Dsb(dsb)) if enough.contains(&dsb))
    }

    fn isb(&self) -> impl Fn(u64) -> bool + '_ {
        |at| self.code.does(at) == Some(Does::Isb)
    }

    /// Whether a call at `at` has `value` for its argument in this register: a `MOV` shortly before.
    fn tells(&self, at: u64, mov: u32, register: u32) -> bool {
        let before = (1..=NEAR).map_while(|n| at.checked_sub(4 * n)).take_while(|at| self.straight(*at));
        let mut writers = before.filter(|at| self.code.word(*at).is_some_and(|word| word & 31 == register));
        writers.next().is_some_and(|at| self.code.word(at) == Some(mov | register))
    }

    /// Whether control comes to an instruction from the one before, and goes on to the next.
    fn straight(&self, at: u64) -> bool {
        self.holds(at)
            && !matches!(
                self.code.does(at),
                None | Some(
                    Does::Jump(_)
                        | Does::Branch(_)
                        | Does::Call(_)
                        | Does::Return
                        | Does::JumpRegister
                        | Does::CallRegister
                        | Does::ExceptionReturn
                        | Does::Trap
                )
            )
    }

    /// The test of one bit on which it hangs that `at` is reached, and whether the bit is set then.
    pub(super) fn test(&self, at: u64) -> Option<Test> {
        let mut first = at;
        while self.holds(first) {
            let mut from = self
                .all()
                .filter(|at| matches!(self.code.does(*at), Some(Does::Jump(to) | Does::Branch(to)) if to == first));
            let before = first.checked_sub(4)?;
            let (onward, _) = self.next(before);
            match (from.next(), from.next()) {
                (None, _) if self.straight(before) => first = before,
                (None, _) => return self.test_at(before, false),
                // Nobody falls into it.
                (Some(at), None) if !onward.contains(&first) => return self.test_at(at, true),
                _ => return None,
            }
        }
        None
    }

    /// What a branch at `at` tests, when it is taken or when it is not.
    fn test_at(&self, at: u64, taken: bool) -> Option<Test> {
        let word = self.code.word(at)?;
        let bit = match word & 0x7e00_0000 {
            0x3400_0000 => 0,
            0x3600_0000 => word >> 31 << 5 | word >> 19 & 31,
            _ => return None,
        };
        let is_set = (word >> 24 & 1 != 0) == taken;
        let before = (1..=NEAR).map_while(|n| at.checked_sub(4 * n)).take_while(|at| self.holds(*at));
        // After a call x0 is what it returned.
        let of_register = |at: &u64| self.code.word(*at).is_some_and(|w| w & 31 == word & 31) && self.straight(*at);
        let source = before.take_while(|at| !self.next(*at).1).find(|at| of_register(at) || !self.straight(*at))?;
        Some(Test { at, bit, is_set, source })
    }
}

/// A bit of a register that decides.
#[derive(Debug)]
pub(super) struct Test {
    /// The branch.
    pub(super) at: u64,
    bit: u32,
    is_set: bool,
    /// The instruction that the register is from.
    source: u64,
}

const TO_WALKERS: &[Dsb] = &[Dsb::StoresInner, Dsb::Inner, Dsb::System];
const EVERYWHERE: &[Dsb] = &[Dsb::Inner, Dsb::System];
const ANY: &[Dsb] = &[Dsb::Here, Dsb::Inner, Dsb::System];

pub(super) const PUBLISH: &str = "TableMemory$GT$::publish_tables";
pub(super) const SCRUB: &str = "Frames$GT$::scrub";
pub(super) const SETTLE: &str = "Frames$GT$::settle_for_guest";
pub(super) const INSTRUCTIONS: &str = "Frames$GT$::settle_instructions";
pub(super) const HOST: &str = "Tlb$GT$::invalidate_host";
pub(super) const VM: &str = "Tlb$GT$::invalidate_vm";
pub(super) const SETTLER: &str = "cache::clean_invalidate_to_poc";
pub(super) const LINER: &str = "cache::zero_to_poc";
pub(super) const SWITCH: &str = "switch::load_guest";

/// What the ports do not do.
pub(super) fn judge(code: &Code) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    scrubs(code, &mut must)?;
    settles(code, &mut must)?;
    let publish = Port::named(code, PUBLISH)?;
    let in_order = publish.always_in_order(publish.function.start, &[&publish.dsb(TO_WALKERS), &publish.isb()]);
    must(in_order, "publish_tables: no DSB ISHST, or no ISB behind it");
    invalidates(code, &mut must)?;
    drops_siblings(code, &mut must)?;
    Ok(found)
}

/// A loop over a frame that stands in a function of its own, or in line in the port.
enum Loop<'c> {
    Own(Port<'c>),
    InLine(Port<'c>),
}

impl<'c> Loop<'c> {
    fn of(code: &'c Code, name: &str, port: &str) -> Result<Self> {
        if code.functions().iter().any(|f| plain(&f.name).ends_with(name)) {
            return Ok(Self::Own(Port::named(code, name)?));
        }
        Ok(Self::InLine(Port::named(code, port)?))
    }

    fn has(&self, word: u32) -> bool {
        let (Self::Own(function) | Self::InLine(function)) = self;
        !function.places(word).is_empty()
    }

    pub(super) fn line(&self) -> Option<(u64, u64)> {
        let (Self::Own(function) | Self::InLine(function)) = self;
        function.line()
    }

    /// Whether this instruction of the port begins it. In line, it begins by reading how long a line or a block is.
    fn begins(&self, port: &Port<'_>, at: u64, asks: u32) -> bool {
        match self {
            Self::Own(function) => port.goes(at, function),
            Self::InLine(_) => port.is(at, asks),
        }
    }

    /// Whether each call is for a whole frame.
    fn is_whole(&self, port: &Port<'_>) -> bool {
        match self {
            Self::Own(function) => port.calls(function).iter().all(|at| port.tells(*at, FRAME, 1)),
            Self::InLine(_) => true,
        }
    }

    /// Whether the port ends only when what it cleaned has reached memory.
    fn is_waited_for(&self, port: &Port<'_>) -> bool {
        match self {
            Self::Own(function) => function.always(function.function.start, &function.dsb(&[Dsb::System])),
            Self::InLine(_) => {
                port.always_in_order(port.function.start, &[&|at| port.is(at, READ_CTR), &port.dsb(&[Dsb::System])])
            }
        }
    }
}

/// A scrubbed frame is zeros in memory, all of it: zeroed and cleaned line by line, or else by bytes and then cleaned.
fn scrubs(code: &Code, must: &mut dyn FnMut(bool, &str)) -> Result<()> {
    let (scrub, memset, lines) = (Port::named(code, SCRUB)?, Port::named(code, "memset")?, Port::named(code, LINER)?);
    let clean = Loop::of(code, SETTLER, SCRUB)?;
    let by_lines = scrub.calls(&lines);
    must(scrub.always(scrub.function.start, &|at| by_lines.contains(&at)), "scrub: not zeroed by lines");
    must(by_lines.iter().all(|at| scrub.tells(*at, FRAME, 1)), "scrub: not of a whole frame");

    let (zeroed, cleaned) = (lines.places(ZERO_BLOCK), lines.places(CLEAN_INVALIDATE));
    let pairs = zeroed.iter().zip(&cleaned).all(|(zero, clean)| {
        let register = |at: u64| code.word(at).map(|word| word & 31);
        *clean == zero + 4 && register(*clean) == register(*zero)
    });
    must(!zeroed.is_empty() && zeroed.len() == cleaned.len() && pairs, "scrub: a line is not zeroed, then cleaned");
    let waits = lines.dsb(&[Dsb::System]);
    must(cleaned.iter().all(|at| lines.always(*at, &waits)), "scrub: nobody waits for the lines");
    must(lines.line().is_some(), "scrub: a line is not as long as CTR_EL0.DminLine says");
    let claims = |at: u64| code.word(at) == Some(MOV_ONE);
    must(lines.all().any(claims) && !lines.reaches(&claims, &waits), "scrub: said to be done when it is not");

    let bytes = scrub.calls(&memset);
    let all = !bytes.is_empty() && bytes.iter().all(|at| scrub.tells(*at, FRAME, 2));
    must(all, "scrub: not zeroed by bytes, all of it");
    let test = bytes.first().and_then(|at| scrub.test(*at));
    let otherwise = test.is_some_and(|test| !test.is_set && test.bit == 0 && by_lines.contains(&test.source));
    must(otherwise, "scrub: not zeroed by bytes where it can not be by lines");
    let to_clean = |at: u64| clean.begins(&scrub, at, READ_CTR);
    must(bytes.iter().all(|at| scrub.always(*at, &to_clean)), "scrub: not zeroed by bytes, then cleaned");
    must(clean.is_whole(&scrub), "scrub: what is zeroed by bytes is not cleaned as a whole");
    Ok(())
}

/// What a guest gets is in memory, and no older line of the cache comes over it; nor is an older instruction executed.
fn settles(code: &Code, must: &mut dyn FnMut(bool, &str)) -> Result<()> {
    let (settle, clean) = (Port::named(code, SETTLE)?, Loop::of(code, SETTLER, SETTLE)?);
    let to_clean = |at: u64| clean.begins(&settle, at, READ_CTR);
    must(settle.always(settle.function.start, &to_clean), "settle_for_guest: not cleaned");
    must(clean.is_whole(&settle), "settle_for_guest: not of a whole frame");
    must(clean.line().is_some(), "settle_for_guest: a line is not as long as CTR_EL0.DminLine says");
    must(clean.has(CLEAN_INVALIDATE), "settle_for_guest: no line is cleaned and invalidated");
    must(clean.is_waited_for(&settle), "settle_for_guest: nobody waits for the clean");

    let fetches = Port::named(code, INSTRUCTIONS)?;
    let drops: Vec<u64> = fetches.all().filter(|at| code.does(*at) == Some(Does::DropFetches)).collect();
    let [drop] = drops[..] else {
        must(false, "settle_instructions: not one IC IALLUIS");
        return Ok(());
    };
    let waits = fetches.always_in_order(drop, &[&fetches.dsb(EVERYWHERE), &fetches.isb()]);
    must(waits, "settle_instructions: no DSB ISH, or no ISB behind it");
    let test = fetches.test(drop);
    let asks = test.is_some_and(|test| test.bit == DIC && !test.is_set && fetches.is(test.source, READ_CTR));
    must(asks, "settle_instructions: not where CTR_EL0.DIC is clear");
    Ok(())
}

/// Broadcasts for a VMID are the two ports' alone: the host's under the VTTBR_EL2 in force, a VM's under one of its own.
fn invalidates(code: &Code, must: &mut dyn FnMut(bool, &str)) -> Result<()> {
    let (host, vm) = (Port::named(code, HOST)?, Port::named(code, VM)?);
    let broadcasts: Vec<u64> =
        code.all().map(|(at, _)| at).filter(|at| code.word(*at) == Some(TLBI_VMID_BROADCAST)).collect();
    let elsewhere = broadcasts.iter().find(|at| !host.holds(**at) && !vm.holds(**at));
    must(elsewhere.is_none(), "a broadcast for a VMID that is no port's");
    let order: [&dyn Fn(u64) -> bool; 3] = [&|at| host.is(at, TLBI_VMID_BROADCAST), &host.dsb(EVERYWHERE), &host.isb()];
    must(
        host.always_in_order(host.function.start, &order),
        "invalidate_host: no broadcast, or no DSB and ISB behind it",
    );
    must(host.places(SET_VTTBR).is_empty(), "invalidate_host: not under the tables in force");

    let straight = vm.all().all(|at| vm.straight(at) || code.does(at) == Some(Does::Return));
    let ([load, restore], [broadcast]) = (&vm.places(SET_VTTBR)[..], &vm.places(TLBI_VMID_BROADCAST)[..]) else {
        must(false, "invalidate_vm: not one broadcast between a VTTBR_EL2 and the next");
        return Ok(());
    };
    let order: [&dyn Fn(u64) -> bool; 8] = [
        &vm.dsb(ANY),
        &|at| at == *load,
        &vm.isb(),
        &|at| at == *broadcast,
        &vm.dsb(EVERYWHERE),
        &vm.isb(),
        &|at| at == *restore,
        &vm.isb(),
    ];
    must(straight && vm.always_in_order(vm.function.start, &order), "invalidate_vm: not in its order");
    let loaded = |vmid: u64| {
        // Behind the port itself, which has nothing in it and may be left out.
        let mut values = Values::called_with(vmid, vmid);
        vm.all().take_while(|at| at != load).for_each(|at| values.step(at, code.word(at).unwrap_or(0)));
        values.get(code.word(*load)? & 31)
    };
    let root = |vmid| loaded(vmid).filter(|value| value >> 48 == vmid).map(|value| value << 16);
    must(root(1).is_some() && root(1) == root(0x2a), "invalidate_vm: not for the VMID that it is called with");
    let hosts = vm.places(READ_VTTBR).first().and_then(|at| code.word(*at)).map(|word| word & 31);
    let kept = hosts.is_some_and(|register| {
        code.word(*restore) == Some(SET_VTTBR | register)
            && vm
                .all()
                .filter(|at| code.word(*at).is_some_and(|w| w & 31 == register && w & 0xffe0_0000 != 0xd500_0000))
                .count()
                == 1
    });
    must(kept, "invalidate_vm: what it puts back is not what was there");
    Ok(())
}

/// Where another vCPU of a VM ran on this CPU before, what it left goes before the next one runs, under its tables.
fn drops_siblings(code: &Code, must: &mut dyn FnMut(bool, &str)) -> Result<()> {
    let switch = Port::named(code, SWITCH)?;
    let all: Vec<u64> = code.all().map(|(at, _)| at).filter(|at| code.word(*at) == Some(TLBI_STAGE1_HERE)).collect();
    let [drop] = all[..] else {
        must(false, "not one TLBI VMALLE1");
        return Ok(());
    };
    must(switch.holds(drop), "what a sibling left is not dropped in the switch");
    let waits: [&dyn Fn(u64) -> bool; 3] = [&|at| switch.is(at, DROP_FETCHES_HERE), &switch.dsb(ANY), &switch.isb()];
    must(switch.always_in_order(drop, &waits), "what a sibling left: no IC IALLU, DSB and ISB behind the TLBI");
    let Some(test) = switch.test(drop) else {
        must(false, "what a sibling left is dropped for no reason that can be seen");
        return Ok(());
    };
    // LDRB.
    let is_flag = code.word(test.source).is_some_and(|word| word & 0xffc0_0000 == 0x3940_0000);
    must(is_flag && test.is_set && test.bit == 0, "what a sibling left stays where it must go");
    let before = |at: u64| (1..=NEAR).map(move |n| at - 4 * n);
    let loaded = before(test.at).find(|at| switch.is(*at, SET_VTTBR));
    let ready = loaded.is_some_and(|load| (load..test.at).step_by(4).any(switch.isb()));
    must(ready, "what a sibling left is dropped before the tables of its VM are in force");
    Ok(())
}
