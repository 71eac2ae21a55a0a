// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU does between two runs: exceptions of the guest become an exit, an injection, or nothing.
//!
//! Guarantees D9: of an abort inside the VM's RAM the host learns the guest frame and nothing else; what it answers to
//! an exit enters the guest only where that exit left room for it, cut to the width that was asked for. A request
//! to the host leaves the program counter on the HVC, so that a run without an answer asks again. It knows no frame and
//! no lock; [`Space`] says what stands where. Keeps its half of I4 and I7.

use freehold_mem::{Gfn, Ipa};

use crate::Refused;
use crate::exit::{Crash, Exit, Request, Width, Wish};
use crate::guest_call::{self, Backing, Outcome, Space};
use crate::registers::Registers;
use crate::sysreg::{self, Access, IdView, Verdict};
use crate::timer::Timer;

/// A load outside RAM that the host has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    rt: u8,
    width: Width,
    signed: bool,
    /// The register is 64 bits wide; else the upper half is cleared.
    wide: bool,
}

/// What has to happen before the guest goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    #[default]
    None,
    /// The host's answer goes to a register.
    Load(Load),
    /// The host may accept this; else the guest asks again.
    Request(Request),
    /// The host accepted: the HVC returns this count.
    Accepted {
        /// Which wish.
        wish: Wish,
        /// Guest frames done.
        done: u64,
    },
}

/// The state of a vCPU beside its registers. All of it is plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    pending: Pending,
    /// The guest's `CSSELR_EL1`.
    cache: u64,
    /// The guest's physical timer.
    physical: Timer,
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A synchronous exception.
    Trap(Trap),
    /// A physical interrupt is pending for the host.
    Interrupt,
    /// An interrupt of EL2's own brought the guest out: a timer's, or maintenance of the list registers. Or nothing did
    /// that is there any more.
    Own,
    /// An `SError` came while the guest ran, or the guest's last accesses caused it.
    SError,
    /// The guest runs, or would run, in a state that is not served: `AArch32`, or above EL1.
    BadState,
    /// The host left streaming mode on, which must be off before a guest may run; it was not entered.
    HostBusy,
}

/// A synchronous exception of the guest, as the hardware described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Trap {
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
    /// `HPFAR_EL2`.
    pub hpfar: u64,
}

impl Trap {
    /// The exception class.
    #[must_use]
    pub const fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Where an abort was. `HPFAR_EL2.FIPA` holds bits 51:12 at 43:4; the low bits are FAR's, but for a walk, whose FAR
    /// is the access's.
    #[must_use]
    pub const fn address(self) -> u64 {
        let low = if self.esr & STAGE1_WALK != 0 { 0 } else { self.far & 0xfff };
        (self.hpfar & 0x0fff_ffff_fff0) << 8 | low
    }

    /// Whether the abort is one of a translation: nothing is mapped there.
    #[must_use]
    pub const fn misses(self) -> bool {
        self.esr & FAULT_STATUS < 8
    }

    /// The same without its syndrome if the access goes on behind its page's end: what lies there may be RAM, or shut.
    #[must_use]
    pub const fn across(self) -> Option<Self> {
        let end = (self.address() & 0xfff).saturating_add(Load::of(self.esr).width.bytes());
        if end > 0x1000 { Some(Self { esr: self.esr & !ISV, ..self }) } else { None }
    }

    /// The load that a translation fault stopped, and its address, if the syndrome describes one.
    #[must_use]
    pub const fn load(self) -> Option<(u64, Load)> {
        const WHAT: u64 = 0x3f << 26 | ISV | CACHE_OPERATION | STAGE1_WALK | WRITE | FAULT_STATUS & !3;
        const TRANSLATION: u64 = 4;
        if self.esr & WHAT == class::DATA << 26 | ISV | TRANSLATION {
            Some((self.address(), Load::of(self.esr)))
        } else {
            None
        }
    }
}

/// Answers a trap of a guest that stays where it is, and says whether it goes on at once; `None` if it is another's.
pub trait Answer<R>: FnMut(Trap, &mut R) -> Option<bool> {}

impl<R, T: FnMut(Trap, &mut R) -> Option<bool>> Answer<R> for T {}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Resume,
    /// Go back to the host.
    Leave(Exit),
}

/// Exception classes (Arm ARM, `ESR_ELx.EC`).
mod class {
    pub(super) const WFX: u64 = 0x01;
    pub(super) const HVC: u64 = 0x16;
    pub(super) const SMC: u64 = 0x17;
    pub(super) const SYSREG: u64 = 0x18;
    pub(super) const FETCH: u64 = 0x20;
    pub(super) const DATA: u64 = 0x24;
    pub(super) const ILLEGAL_STATE: u64 = 0x0e;
    /// Traps of `AArch32` instructions.
    pub(super) const AARCH32: [u64; 8] = [0x03, 0x04, 0x05, 0x06, 0x08, 0x0c, 0x11, 0x12];
    /// Traps of instructions that this guest does not have: unknown, PAC, LS64, BTI-less ERET, SVE, SME and more.
    pub(super) const HIDDEN: [u64; 10] = [0x00, 0x07, 0x09, 0x0a, 0x14, 0x19, 0x1a, 0x1b, 0x1d, 0x27];
}

const ISV: u64 = 1 << 24;
const SSE: u64 = 1 << 21;
const SF: u64 = 1 << 15;
const CACHE_OPERATION: u64 = 1 << 8;
const STAGE1_WALK: u64 = 1 << 7;
const WRITE: u64 = 1 << 6;
const FAULT_STATUS: u64 = 0x3f;
/// Of any level.
const PERMISSION: u64 = 0x0c;

/// Whether the exception with this syndrome is an abort whose page HPFAR_EL2 does not name: a permission fault that is
/// not of a stage-1 walk (Arm ARM, HPFAR_EL2).
#[must_use]
pub const fn lacks_page(esr: u64) -> bool {
    /// Aborts of a lower EL, a fetch's and, with bit 2 set, a data access's.
    const ABORT: u64 = 0x20;
    esr >> 26 & 0x3f & !4 == ABORT && esr & (STAGE1_WALK | FAULT_STATUS & !3) == PERMISSION
}

/// HPFAR_EL2 for the address that a translation left in PAR_EL1; `None` if there is none any more.
#[must_use]
pub const fn page_of(par: u64) -> Option<u64> {
    // PA in bits 51:12; FIPA in bits 43:4. F in bit 0: it failed.
    if par & 1 == 0 { Some(par >> 8 & 0x0fff_ffff_fff0) } else { None }
}

impl Vcpu {
    /// A vCPU that has asked for nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { pending: Pending::None, cache: 0, physical: Timer::new() }
    }

    /// The guest's physical timer, which is emulated.
    pub const fn physical_timer(&mut self) -> &mut Timer {
        &mut self.physical
    }

    /// What the vCPU waits for.
    #[must_use]
    pub const fn pending(&self) -> Pending {
        self.pending
    }

    /// The request that the host may accept `count` frames of.
    ///
    /// # Errors
    /// `NoRequest`, and `ZeroCount` or `CountTooLarge` for a count that the request does not have.
    pub fn request(&self, count: u64) -> Result<Request, Refused> {
        match self.pending {
            Pending::Request(_) if count == 0 => Err(Refused::Memory(freehold_mem::Refused::ZeroCount)),
            Pending::Request(request) if count > request.count => {
                Err(Refused::Memory(freehold_mem::Refused::CountTooLarge))
            }
            Pending::Request(request) => Ok(Request { count, ..request }),
            Pending::None | Pending::Load(_) | Pending::Accepted { .. } => Err(Refused::NoRequest),
        }
    }

    /// Notes that `done` frames of the pending request were moved.
    pub fn accept(&mut self, done: u64) {
        if let Pending::Request(Request { wish, .. }) = self.pending {
            self.pending = Pending::Accepted { wish, done };
        }
    }

    /// Completes what the last exit left open. `answer` is what the host says; it counts for a load only.
    pub fn complete(&mut self, answer: u64, registers: &mut impl Registers) {
        match core::mem::take(&mut self.pending) {
            // A request that was not accepted is made again: the program counter is still on the HVC.
            Pending::None | Pending::Request(_) => {}
            Pending::Load(load) => load.complete(answer, registers),
            Pending::Accepted { wish, done } => {
                let done = match wish {
                    Wish::Share | Wish::Unshare => done,
                    Wish::Relinquish => 0,
                };
                registers.answer([0, done, 0, 0]);
                registers.advance();
            }
        }
    }

    /// Decides a synchronous exception.
    pub fn handle(&mut self, trap: Trap, registers: &mut impl Registers, space: &impl Space, ids: &IdView<'_>) -> Next {
        match trap.class() {
            // TI: 0 WFI, 1 WFE; 2 and 3, the same with a time, are hidden. An event never has to be waited for.
            class::WFX if trap.esr & 2 == 0 => {
                registers.advance();
                if trap.esr & 1 == 0 { Next::Leave(Exit::Wfi(0)) } else { Next::Resume }
            }
            class::HVC => self.hypercall(trap.esr, registers, space),
            class::SMC => {
                registers.answer([freehold_uapi::guest::NOT_SUPPORTED.cast_unsigned(), 0, 0, 0]);
                registers.advance();
                Next::Resume
            }
            class::SYSREG => self.system_register(trap.esr, registers, ids),
            class::FETCH | class::DATA => self.abort(trap, registers, space),
            ec if ec == class::WFX || class::HIDDEN.contains(&ec) => {
                registers.inject_undefined();
                Next::Resume
            }
            class::ILLEGAL_STATE => crash(Crash::BadState),
            ec if class::AARCH32.contains(&ec) => crash(Crash::BadState),
            _ => crash(Crash::Abort),
        }
    }

    fn hypercall(&mut self, esr: u64, registers: &mut impl Registers, space: &impl Space) -> Next {
        let imm = (esr & 0xffff) as u16;
        let arguments = [registers.x(0), registers.x(1), registers.x(2), registers.x(3)];
        let exit = match guest_call::serve(imm, arguments, space) {
            Outcome::Return(results) => {
                registers.answer(results);
                return Next::Resume;
            }
            Outcome::Attest(said) => {
                let nonce = [1, 2, 3, 4].map(|n| registers.x(n));
                let report = [freehold_uapi::guest::OK.cast_unsigned()].into_iter().chain(said).chain(nonce);
                (0u8..).zip(report).for_each(|(n, word)| registers.set_x(n, word));
                return Next::Resume;
            }
            Outcome::Ask(request) => {
                self.pending = Pending::Request(request);
                Exit::Request(request)
            }
            Outcome::Back(gfn) => Exit::MemFault(gfn),
        };
        // The program counter is behind the HVC; whoever runs the vCPU without an answer meets it again.
        registers.rewind();
        Next::Leave(exit)
    }

    fn system_register(&mut self, esr: u64, registers: &mut impl Registers, ids: &IdView<'_>) -> Next {
        let access = Access::decode(esr);
        let written = if access.read { 0 } else { registers.x(access.rt) };
        match sysreg::decide(access, written, self.cache, ids) {
            Verdict::Read(value) => registers.set_x(access.rt, value),
            Verdict::Ignore => {}
            Verdict::SelectCache(level) => self.cache = level,
            Verdict::Undefined => {
                registers.inject_undefined();
                return Next::Resume;
            }
        }
        registers.advance();
        Next::Resume
    }

    /// Decides an abort, as [`Self::handle`] does.
    #[inline(always)]
    pub fn abort(&mut self, trap: Trap, registers: &mut impl Registers, space: &impl Space) -> Next {
        let status = trap.esr & FAULT_STATUS;
        let denied = status & !3 == PERMISSION;
        // Address size, translation and permission faults only: our tables cause no others.
        if !trap.misses() && !denied {
            return crash(Crash::Abort);
        }
        let (walk, address) = (trap.esr & STAGE1_WALK != 0, trap.address());
        let backing = Ipa::new(address)
            .and_then(Ipa::gfn)
            .map_or((Backing::Outside, None), |gfn| (space.backing(gfn), Some(gfn)));
        match backing {
            (Backing::Empty, Some(gfn)) => Next::Leave(Exit::MemFault(gfn)),
            // What the host lent, but not for this.
            (Backing::Private | Backing::Shared, Some(gfn)) if denied && !space.is_protected() => {
                Next::Leave(Exit::MemFault(gfn))
            }
            (Backing::Private | Backing::Shared | Backing::Outside, _) if denied => crash(Crash::Abort),
            // Another vCPU's fault brought it meanwhile.
            (Backing::Private | Backing::Shared, _) => Next::Resume,
            (Backing::Poisoned, _) => crash(Crash::Poisoned),
            (Backing::Outside | Backing::Empty, _) if walk => crash(Crash::Walk),
            (Backing::Outside | Backing::Empty, _) if trap.class() == class::FETCH => crash(Crash::NoSyndrome),
            (Backing::Outside | Backing::Empty, _) => self.mmio(trap.esr, address, registers),
        }
    }

    #[inline(always)]
    fn mmio(&mut self, esr: u64, ipa: u64, registers: &mut impl Registers) -> Next {
        if esr & CACHE_OPERATION != 0 {
            // There is no cache of what is not memory.
            registers.advance();
            return Next::Resume;
        }
        if esr & ISV == 0 {
            return crash(Crash::NoSyndrome);
        }
        let load @ Load { rt, width, .. } = Load::of(esr);
        if esr & WRITE != 0 {
            let data = width.cut(registers.x(rt));
            registers.advance();
            Next::Leave(Exit::MmioStore { ipa, width, data })
        } else {
            self.pending = Pending::Load(load);
            Next::Leave(Exit::MmioLoad { ipa, width })
        }
    }
}

impl Load {
    /// The access that a syndrome describes, as far as a load's answer depends on it.
    const fn of(esr: u64) -> Self {
        let (rt, width) = ((esr >> 16 & 31) as u8, Width::of_sas(esr >> 22));
        Self { rt, width, signed: esr & SSE != 0, wide: esr & SF != 0 }
    }

    /// How wide it is.
    #[must_use]
    pub const fn width(self) -> Width {
        self.width
    }

    /// Gives the guest what it loads, and goes on behind the load.
    pub fn complete(self, answer: u64, registers: &mut impl Registers) {
        registers.set_x(self.rt, self.extend(answer));
        registers.advance();
    }

    fn extend(self, answer: u64) -> u64 {
        let value = self.width.cut(answer);
        let value = if self.signed { self.width.sign_extend(value) } else { value };
        if self.wide { value } else { Width::Word.cut(value) }
    }
}

const fn crash(why: Crash) -> Next {
    Next::Leave(Exit::Crash(why))
}

/// A register of a vCPU that the host may name. Of a protected VM's it gets to those that a vCPU starts with, all of which
/// are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRegister {
    /// x0–x30.
    X(u8),
    /// Program counter.
    Pc,
    /// PSTATE.
    Pstate,
    /// `MPIDR_EL1`, which nobody sets.
    Mpidr,
    /// Whether it is on: to say so of an ordinary VM's vCPU sets all of it back.
    Power,
    /// A word of [`Registers::kept`].
    Kept(usize),
}

/// EL1h with DAIF masked: the only state that a vCPU of a protected VM starts in.
const START_PSTATE: u64 = 0x3c5;

impl HostRegister {
    /// Names a register of the ABI.
    ///
    /// # Errors
    /// `BadArgument` for a number that names none.
    pub fn decode(word: u64) -> Result<Self, Refused> {
        use freehold_uapi::hvc;
        match word {
            hvc::REG_X0..=hvc::REG_X30 => Ok(Self::X(word as u8 & 31)),
            hvc::REG_PC => Ok(Self::Pc),
            hvc::REG_PSTATE => Ok(Self::Pstate),
            hvc::REG_MPIDR => Ok(Self::Mpidr),
            hvc::REG_POWER => Ok(Self::Power),
            hvc::REG_EL1..=hvc::REG_EXIT_FAR => Ok(Self::Kept(word as usize & 127)),
            _ => Err(Refused::BadArgument),
        }
    }

    /// Sets the register of a vCPU of an ordinary VM, or of another one that is about to start. A PSTATE in which no guest
    /// can run ends the next run.
    ///
    /// # Errors
    /// `Denied` for `MPIDR`. Where the VM is not `ordinary` also for what it is not started with and for another PSTATE
    /// than a start's, and `Unaligned` for a program counter.
    pub fn set(self, value: u64, ordinary: bool, registers: &mut impl Registers) -> Result<(), Refused> {
        match self {
            Self::Pc if !ordinary && !value.is_multiple_of(4) => return Err(Refused::Unaligned),
            Self::Pc => registers.set_pc(value),
            Self::Pstate if ordinary || value == START_PSTATE => registers.set_pstate(value),
            Self::X(n) if ordinary || n < 4 => registers.set_x(n, value),
            Self::Kept(n) if ordinary => registers.kept(n).into_iter().for_each(|word| *word = value),
            Self::X(_) | Self::Kept(_) | Self::Pstate | Self::Mpidr | Self::Power => return Err(Refused::Denied),
        }
        Ok(())
    }

    /// Reads the register of such a vCPU.
    ///
    /// # Errors
    /// `Denied` for what no VM that is not `ordinary` is started with.
    pub fn get(self, ordinary: bool, registers: &mut impl Registers) -> Result<u64, Refused> {
        match self {
            Self::Pc => Ok(registers.pc()),
            Self::Pstate => Ok(registers.pstate()),
            Self::X(n) if ordinary || n < 4 => Ok(registers.x(n)),
            Self::Kept(n) if ordinary => registers.kept(n).copied().ok_or(Refused::BadArgument),
            Self::X(_) | Self::Kept(_) | Self::Mpidr | Self::Power => Err(Refused::Denied),
        }
    }
}

/// The guest frame numbers of a request, in order.
pub fn frames(request: Request) -> impl Iterator<Item = Gfn> {
    (0..request.count).filter_map(move |offset| request.first.raw().checked_add(offset).and_then(Gfn::new))
}

#[cfg(test)]
mod tests;
