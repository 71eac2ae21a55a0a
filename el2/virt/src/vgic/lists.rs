// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's list registers: filled before it enters its guest, folded back when it is out.
//!
//! What is pending goes first, by priority, so that a maintenance interrupt for "none pending" is never raised by list
//! registers that are all active: each entry after one brings something pending. Active interrupts take what room is
//! left; the end of one that found none is counted by the CPU and comes out too. An interrupt is in one list register
//! of one vCPU at most, which `held` sees to. Where the guest changed nothing, and nobody is told of anything before it
//! enters again, nothing is folded, and it is loaded with the same.

use super::{At, Candidate, Intid, Kicks, Local, Place, Vgic, Want};
use crate::handle::VcpuIndex;

/// Most list registers that a CPU can have.
pub const MAX_LISTS: usize = 16;

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HARDWARE: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
/// With a software interrupt: the guest comes out when it deactivates it.
const EOI: u64 = 1 << 41;

/// `ICH_HCR_EL2.En`.
const ENABLE: u64 = 1;
/// `LRENPIE`: out when the guest ends what is in no list register.
const MISSING: u64 = 1 << 2;
/// `NPIE`: out when no list register is pending any more.
const NONE_PENDING: u64 = 1 << 3;
/// `VGrp0EIE` and `VGrp1EIE`: out while the guest has that group on. The bit above each: while it has it off.
const GROUP0_ON: u64 = 1 << 4;
const GROUP1_ON: u64 = 1 << 6;

/// What the CPU's virtual interface is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lists {
    entries: [u64; MAX_LISTS],
    used: usize,
    control: u64,
    holds_timer: bool,
    deadline: Option<u64>,
    vmcr: u64,
    ends: u32,
    is_same: bool,
}

impl Lists {
    /// Nothing loaded.
    pub const EMPTY: Self = Self {
        entries: [0; MAX_LISTS],
        used: 0,
        control: 0,
        holds_timer: false,
        deadline: None,
        vmcr: 0,
        ends: 0,
        is_same: false,
    };

    /// The `ICH_LR<n>_EL2` in use. The CPU writes back what became of them.
    pub fn entries(&mut self) -> &mut [u64] {
        self.entries.get_mut(..self.used).unwrap_or_default()
    }

    /// `ICH_HCR_EL2`, as far as the lists decide it.
    #[must_use]
    pub const fn control(&self) -> u64 {
        self.control | ENABLE
    }

    /// Whether the CPU's own interrupt of the virtual timer must be active, so that it is not raised: the guest has
    /// not dealt with it yet, or does not want it.
    #[must_use]
    pub const fn holds_timer(&self) -> bool {
        self.holds_timer
    }

    /// When the guest has to come out at the latest, by the counter: its physical timer fires then.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    pub(crate) fn until(&mut self, deadline: Option<u64>) {
        self.deadline = deadline;
    }

    /// Notes what else the CPU says at an exit: `ICH_VMCR_EL2`, `ICH_HCR_EL2.EOIcount`, and whether each list register is
    /// as it was loaded.
    pub fn note(&mut self, vmcr: u64, ends: u32, is_same: bool) {
        (self.vmcr, self.ends, self.is_same) = (vmcr, ends, is_same);
    }

    /// `ICH_VMCR_EL2` at the last exit.
    #[must_use]
    pub const fn vmcr(&self) -> u64 {
        self.vmcr
    }

    /// Nothing loaded any more; the masks stay known.
    fn clear(&mut self) {
        self.entries().fill(core::hint::black_box(0));
        let Self { entries: _, used, control, holds_timer, deadline, vmcr: _, ends, is_same } = self;
        (*used, *control, *holds_timer, *deadline, *ends, *is_same) = (0, 0, false, None, 0, false);
    }

    /// Whether the guest has changed nothing, and nothing was left over that waits for more.
    const fn may_stay(&self) -> bool {
        self.is_same && self.ends == 0 && self.control == 0
    }

    fn push(&mut self, entry: u64) {
        if let Some(place) = self.entries.get_mut(self.used) {
            *place = entry;
            self.used = self.used.saturating_add(1);
        }
    }
}

impl Vgic {
    /// Fills the `lists` of a vCPU that enters its guest on CPU number `cpu`, which has `room` of them, unless it has kept
    /// what it needs. Whoever causes something for it from here on gets that CPU as a kick.
    ///
    /// What is of a group that the guest has switched off in its CPU interface comes last, by the masks of the last exit:
    /// it would wait in a list register for ever. If these are others by now and something is left over, the guest comes
    /// out.
    #[inline]
    pub fn load(&mut self, vcpu: VcpuIndex, cpu: u8, room: usize, lists: &mut Lists) {
        let room = room.min(MAX_LISTS);
        // Lists that were reset meanwhile hold nothing of what was kept: it is taken back and given anew.
        let may_stay = lists.is_same && lists.used <= room;
        match self.locals.get_mut(vcpu.index()) {
            Some(local) if local.place == Place::Kept && may_stay => local.place = Place::In(cpu),
            _ => self.fill(vcpu.index(), cpu, room, lists),
        }
    }

    /// Fills the lists anew. Not in line: an entry that keeps what it has needs none of the stack.
    #[inline(never)]
    fn fill(&mut self, me: usize, cpu: u8, room: usize, lists: &mut Lists) {
        lists.clear();
        self.put(me, Place::In(cpu));
        let switched = GROUP0_ON << (lists.vmcr & 1) | GROUP1_ON << (lists.vmcr >> 1 & 1);
        for (want, full) in [(Want::Ready, NONE_PENDING | switched), (Want::Stranded, MISSING)] {
            let mut left =
                self.banks(me).any(|bank| if want == Want::Ready { bank.is_busy() } else { bank.stranded() != 0 });
            while left && let Some((candidate, is_last)) = self.first(me, want, lists.vmcr) {
                if lists.used == room {
                    lists.control |= full;
                    break;
                }
                self.hold(me, candidate, lists);
                left = !is_last;
            }
        }
        let timer = Intid::VIRTUAL_TIMER.bit();
        lists.holds_timer =
            self.locals.get(me).is_some_and(|l| (l.bank.line | l.bank.active | l.bank.held) & timer != 0);
    }

    /// Folds the list registers back, as the CPU left them, or keeps them. The vCPU is out. What it gives up may be
    /// another one's by now.
    #[inline]
    pub fn save(&mut self, vcpu: VcpuIndex, lists: &mut Lists) -> Kicks {
        if let Some(Local { place: place @ Place::In(_), .. }) = self.locals.get_mut(vcpu.index())
            && lists.may_stay()
        {
            *place = Place::Kept;
            return Kicks::NONE;
        }
        self.fold(vcpu, lists)
    }

    /// Folds them back. Not in line, as [`Self::fill`].
    #[inline(never)]
    fn fold(&mut self, vcpu: VcpuIndex, lists: &mut Lists) -> Kicks {
        let me = vcpu.index();
        let mut kicks = Kicks::NONE;
        self.put(me, Place::Out);
        // Only these can have been ended without a list register. The last one acknowledged is the first one ended.
        for _ in 0..lists.ends.min(31) {
            let Some((ended, _)) = self.first(me, Want::Stranded, lists.vmcr) else { break };
            kicks = kicks.and(self.deactivate(vcpu, ended.intid.number().into()));
        }
        for entry in lists.entries() {
            let Some(intid) = Intid::of_register(*entry) else { continue };
            let (pending, active) = (*entry & PENDING != 0, *entry & ACTIVE != 0);
            kicks = kicks.and(self.change(At::of(me, intid), 0, |bank| bank.release(intid.bit(), pending, active)));
        }
        lists.clear();
        kicks
    }

    /// Moves a candidate to a list register: what is active of it, and what is pending if the CPU may signal that.
    fn hold(&mut self, me: usize, candidate: Candidate, lists: &mut Lists) {
        let Candidate { priority, intid, group1, .. } = candidate;
        let bit = intid.bit();
        let mut entry = u64::from(intid.number()) | u64::from(priority) << 48;
        entry |= if group1 { GROUP1 } else { 0 };
        entry |= if candidate.pending { PENDING } else { 0 };
        let Some(bank) = self.bank_mut(At::of(me, intid)) else { return };
        entry |= if bank.active & bit != 0 { ACTIVE } else { 0 };
        if intid == Intid::VIRTUAL_TIMER {
            entry |= HARDWARE | u64::from(intid.number()) << 32;
        } else if bank.pending() & bit != 0 && (!candidate.pending || bank.edge & bit == 0) {
            // It is pending, or is to be looked at again, when this is over.
            entry |= EOI;
        }
        bank.hold(bit, candidate.pending);
        if let At::Shared(n) = At::of(me, intid)
            && let Some(mine) = self.locals.get_mut(me).and_then(|local| local.mine.get_mut(n))
        {
            *mine |= bit;
        }
        lists.push(entry);
    }
}
