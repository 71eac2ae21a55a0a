// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controller of a VM: a GICv3 distributor and a redistributor per vCPU, as plain data (D10).
//!
//! One security state, affinity routing always on, no LPIs, no 1-of-N delivery, 224 SPIs. All of it lies under the VM's
//! lock: a vCPU's list registers are filled from it before each entry and folded back after each exit, or kept, as they
//! were loaded, until somebody is to tell it something: then they are known without it. What a vCPU in its guest has in
//! its list registers is known as it was loaded; who reads or changes it makes that vCPU come out, so that it takes effect
//! in finite time, as the architecture asks. Nothing that becomes deliverable waits for an accident: whoever causes it
//! gets [`Kicks`], and gives them before the lock is let go. The host raises SPIs only, and reads nothing. It knows no
//! register of a CPU.
//! Keeps I7: all of it is bounded by arrays. Source: Arm IHI 0069 (`GICv3`).

mod bank;
mod intid;
mod lists;
mod registers;
mod window;

pub use intid::Intid;
pub use lists::{Lists, MAX_LISTS};
pub use registers::Frame;
pub use window::Window;

use crate::handle::{MAX_VCPUS, VcpuIndex};
use bank::{Bank, Field};
use intid::Bits;

/// Banks of 32 SPIs.
const SPI_BANKS: usize = 7;
/// SGIs are edge-triggered, PPIs level-sensitive, both for ever.
const SGIS: u32 = 0xffff;
const TIMERS: u32 = Intid::VIRTUAL_TIMER.bit() | Intid::PHYSICAL_TIMER.bit();

/// Where a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Not in its guest: who enters looks first.
    Out,
    /// Not in its guest, and nothing is new since it was: its list registers, taken off, hold what they were loaded with.
    Kept,
    /// Its thread sleeps in the host until it is woken.
    Asleep,
    /// In its guest on this CPU.
    In(u8),
    /// There, and somebody has made it come out.
    Leaving,
}

/// Whom to tell that something changed for them, while the lock is held.
#[must_use = "a vCPU that is not told misses an interrupt"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kicks {
    /// CPUs, by number, that get an interrupt of EL2's own so that their guest comes out.
    pub cpus: u32,
    /// vCPUs, by index, whose thread the host has to wake.
    pub sleepers: u8,
}

impl Kicks {
    /// Nobody.
    pub const NONE: Self = Self { cpus: 0, sleepers: 0 };

    /// These, and those.
    pub const fn and(self, other: Self) -> Self {
        Self { cpus: self.cpus | other.cpus, sleepers: self.sleepers | other.sleepers }
    }
}

/// What belongs to one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Local {
    bank: Bank,
    /// `GICR_WAKER.ProcessorSleep`: nothing is forwarded.
    sleeps: bool,
    place: Place,
    /// SPIs in its list registers, and those that it has acknowledged and not deactivated.
    mine: [u32; SPI_BANKS],
}

impl Local {
    const NONE: Self = Self { bank: Bank::new(0), sleeps: false, place: Place::Out, mine: [0; SPI_BANKS] };
}

/// One of the banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// SGIs and PPIs of this vCPU.
    Local(usize),
    /// SPIs.
    Shared(usize),
}

impl At {
    /// Where an interrupt is, as this vCPU sees it.
    fn of(vcpu: usize, intid: Intid) -> Self {
        intid.bank().checked_sub(1).map_or(Self::Local(vcpu), Self::Shared)
    }
}

/// The interrupt controller of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vgic {
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    groups: u32,
    spis: [Bank; SPI_BANKS],
    /// Aff2, Aff1 and Aff0 of each SPI.
    routes: [[u32; 32]; SPI_BANKS],
    locals: [Local; MAX_VCPUS],
}

impl Default for Vgic {
    fn default() -> Self {
        Self::new()
    }
}

impl Vgic {
    /// Of no VM: all zero, for what an image need not carry.
    pub const NONE: Self = Self {
        groups: 0,
        spis: [Bank::new(0); SPI_BANKS],
        routes: [[0; 32]; SPI_BANKS],
        locals: [Local::NONE; MAX_VCPUS],
    };

    /// After reset: nothing enabled, every redistributor asleep.
    #[must_use]
    pub const fn new() -> Self {
        Self { locals: [Local { bank: Bank::new(SGIS), sleeps: true, ..Local::NONE }; MAX_VCPUS], ..Self::NONE }
    }

    /// Sets the wire of an SPI, as the host says. Of a private interrupt nothing happens.
    pub fn set_spi(&mut self, spi: Intid, high: bool) -> Kicks {
        let Some(n) = spi.bank().checked_sub(1) else { return Kicks::NONE };
        self.change(At::Shared(n), spi.bit(), |bank| bank.set_line(spi.bit(), high))
    }

    /// Says whether the host wants to hear when the guest has deactivated an SPI whose wire is still high.
    pub fn resample(&mut self, spi: Intid, wanted: bool) {
        if let Some(bank) = spi.bank().checked_sub(1).and_then(|n| self.spis.get_mut(n)) {
            bank.resample = if wanted { bank.resample | spi.bit() } else { bank.resample & !spi.bit() };
            bank.ended &= bank.resample;
        }
    }

    /// One SPI that [`Self::resample`] asked for and that the guest is done with.
    #[inline]
    pub fn take_ended(&mut self) -> Option<Intid> {
        if self.spis.iter().fold(0, |all, bank| all | bank.ended) == 0 { None } else { self.first_ended() }
    }

    #[inline(never)]
    fn first_ended(&mut self) -> Option<Intid> {
        (1u32..8).zip(&mut self.spis).find_map(|(n, bank)| {
            let bit = Bits(bank.ended).next()?;
            bank.ended &= bank.ended.wrapping_sub(1);
            Some(Intid::in_bank(n, bit))
        })
    }

    /// Sets the wire of a PPI of a vCPU that is out: a timer's, for EL2 knows no other.
    pub fn set_timer(&mut self, vcpu: VcpuIndex, timer: Intid, high: bool) {
        let Some(local) = self.locals.get_mut(vcpu.index()) else { return };
        if (local.bank.line & timer.bit() != 0) != high {
            local.bank.set_line(timer.bit(), high);
            self.take_back(vcpu.index());
        }
    }

    /// Whether the guest could take a timer's interrupt at all.
    #[must_use]
    pub fn wants_timer(&self, vcpu: VcpuIndex, timer: Intid) -> bool {
        self.locals.get(vcpu.index()).is_some_and(|local| {
            let mut asserted = local.bank;
            asserted.set_line(timer.bit(), true);
            !local.sleeps && asserted.ready(self.groups) & timer.bit() != 0
        })
    }

    /// Sends the SGI that a vCPU wrote to `ICC_SGI1R_EL1`; with `group0` to `ICC_SGI0R_EL1` or `ICC_ASGI1R_EL1`, which
    /// reach interrupts of group 0 only.
    pub fn send_sgi(&mut self, from: VcpuIndex, value: u64, group0: bool) -> Kicks {
        const OTHERS: u64 = 1 << 40;
        /// Aff3, range selector, Aff2 and Aff1: zero for every vCPU that there is.
        const ELSEWHERE: u64 = 0xff << 48 | 0xf << 44 | 0xff << 32 | 0xff << 16;
        let bit = 1u32.unbounded_shl((value >> 24 & 0xf) as u32);
        let targets = match value {
            _ if value & OTHERS != 0 => !1u64.unbounded_shl(from.index() as u32),
            _ if value & ELSEWHERE != 0 => 0,
            _ => value & 0xffff,
        };
        Bits(targets as u32 & 0xff).fold(Kicks::NONE, |kicks, target| {
            kicks.and(self.change(At::Local(target as usize), bit, |bank| {
                if !group0 || bank.group & bit == 0 {
                    bank.write(Field::SetPending, bit);
                }
            }))
        })
    }

    /// Deactivates what a vCPU wrote to `ICC_DIR_EL1`, whoever's list register it may be in.
    pub fn deactivate(&mut self, vcpu: VcpuIndex, value: u64) -> Kicks {
        let Some(intid) = Intid::of_register(value) else { return Kicks::NONE };
        self.change(At::of(vcpu.index(), intid), intid.bit(), |bank| bank.write(Field::ClearActive, intid.bit()))
    }

    /// Whether something would end the vCPU's WFI: it is deliverable, and passes the mask in its `ICH_VMCR_EL2`.
    #[must_use]
    pub fn wakes(&mut self, vcpu: VcpuIndex, vmcr: u64) -> bool {
        self.take_back(vcpu.index());
        let mut wakes = false;
        self.candidates(vcpu.index(), Want::Ready, |candidate| {
            wakes |= candidate.is_on(vmcr) && u64::from(candidate.priority) < vmcr >> 24 & 0xff;
        });
        wakes
    }

    /// Notes that the vCPU's thread goes to sleep in the host: from now on it is among the sleepers to be told.
    pub fn sleeps(&mut self, vcpu: VcpuIndex) {
        self.put(vcpu.index(), Place::Asleep);
    }

    /// Wakes a vCPU's thread if it sleeps, and makes it come out of its guest if it is there.
    pub fn wake(&mut self, vcpu: VcpuIndex) -> Kicks {
        self.tell(vcpu.index())
    }

    /// Makes a vCPU come out of its guest. A thread that sleeps is the host's to wake.
    pub fn kick(&mut self, vcpu: VcpuIndex) -> Kicks {
        match self.locals.get(vcpu.index()).map(|local| local.place) {
            Some(Place::In(_)) => self.tell(vcpu.index()),
            Some(Place::Out | Place::Kept | Place::Asleep | Place::Leaving) | None => Kicks::NONE,
        }
    }

    /// Whether a vCPU that is in its guest was made to come out of it.
    #[inline]
    #[must_use]
    pub fn is_told(&self, vcpu: VcpuIndex) -> bool {
        self.locals.get(vcpu.index()).is_some_and(|local| local.place == Place::Leaving)
    }

    fn put(&mut self, vcpu: usize, place: Place) {
        self.take_back(vcpu);
        if let Some(local) = self.locals.get_mut(vcpu) {
            local.place = place;
        }
    }

    /// Has a vCPU that is out keep nothing in list registers: they were as they had been loaded.
    fn take_back(&mut self, vcpu: usize) {
        let Some(local) = self.locals.get_mut(vcpu).filter(|local| local.place == Place::Kept) else { return };
        local.place = Place::Out;
        local.bank.take_back(u32::MAX);
        for (mine, bank) in local.mine.iter_mut().zip(&mut self.spis) {
            bank.take_back(*mine);
            *mine &= bank.active;
        }
    }

    /// Tells a vCPU once; it looks at everything when it comes.
    fn tell(&mut self, vcpu: usize) -> Kicks {
        let Some(local) = self.locals.get_mut(vcpu) else { return Kicks::NONE };
        match local.place {
            Place::Out | Place::Leaving => Kicks::NONE,
            Place::Kept => {
                self.take_back(vcpu);
                Kicks::NONE
            }
            Place::In(cpu) => {
                local.place = Place::Leaving;
                Kicks { cpus: 1u32.unbounded_shl(cpu.into()), sleepers: 0 }
            }
            Place::Asleep => {
                local.place = Place::Out;
                Kicks { cpus: 0, sleepers: 1u8.unbounded_shl(vcpu as u32) }
            }
        }
    }

    fn bank(&self, at: At) -> Option<&Bank> {
        match at {
            At::Local(vcpu) => self.locals.get(vcpu).map(|local| &local.bank),
            At::Shared(n) => self.spis.get(n),
        }
    }

    fn bank_mut(&mut self, at: At) -> Option<&mut Bank> {
        match at {
            At::Local(vcpu) => self.locals.get_mut(vcpu).map(|local| &mut local.bank),
            At::Shared(n) => self.spis.get_mut(n),
        }
    }

    /// Changes a bank, and tells whoever gets something new by it, holds what was `touched`, or has it as a timer's.
    fn change(&mut self, at: At, touched: u32, change: impl FnOnce(&mut Bank)) -> Kicks {
        let groups = self.groups;
        let Some(bank) = self.bank_mut(at) else { return Kicks::NONE };
        let (before, active) = (bank.ready(groups), bank.active);
        change(bank);
        let (fresh, active) = (bank.ready(groups) & !before, bank.active & !active);
        let told = match at {
            At::Local(vcpu) if active != 0 => self.tell(vcpu),
            At::Local(_) => Kicks::NONE,
            At::Shared(n) => self.settle(n),
        };
        let told = told.and(self.announce(at, fresh, touched));
        let At::Local(vcpu) = at else { return told };
        // How long it sleeps was decided by what its timers could raise.
        if touched & TIMERS != 0 { told.and(self.tell(vcpu)) } else { told }
    }

    /// Tells whoever holds what was `touched`, and whoever is to get what is ready then of `fresh`, or of what was held.
    fn announce(&mut self, at: At, fresh: u32, touched: u32) -> Kicks {
        let groups = self.groups;
        let ready = |bank: &Bank, of| bank.ready(groups) & of;
        let (found, held) = self.bank(at).map_or((0, 0), |bank| (ready(bank, fresh), bank.held & touched));
        match at {
            _ if found | held == 0 => Kicks::NONE,
            At::Local(vcpu) => self.tell(vcpu),
            At::Shared(n) => {
                let holders = (0..MAX_VCPUS).filter(|vcpu| self.mine(*vcpu, n) & held != 0);
                let holders = holders.fold(0, |all, vcpu| all | 1u32.unbounded_shl(vcpu as u32));
                let told = Bits(holders).fold(Kicks::NONE, |kicks, vcpu| kicks.and(self.tell(vcpu as usize)));
                let ready = self.bank(at).map_or(0, |bank| ready(bank, fresh | held));
                Bits(ready).fold(told, |kicks, bit| match self.target(n, bit) {
                    Some(vcpu) => kicks.and(self.tell(vcpu)),
                    None => kicks,
                })
            }
        }
    }

    /// Makes every active SPI belong to one vCPU, if its route names one, and tells those that get one.
    fn settle(&mut self, n: usize) -> Kicks {
        let Some(bank) = self.spis.get(n) else { return Kicks::NONE };
        let (alive, mut free) = (bank.active | bank.held, bank.active);
        for mine in self.locals.iter_mut().filter_map(|local| local.mine.get_mut(n)) {
            *mine &= alive;
            free &= !*mine;
        }
        Bits(free).fold(Kicks::NONE, |kicks, bit| {
            let Some(vcpu) = self.target(n, bit) else { return kicks };
            if let Some(mine) = self.locals.get_mut(vcpu).and_then(|local| local.mine.get_mut(n)) {
                *mine |= 1u32.unbounded_shl(bit);
            }
            kicks.and(self.tell(vcpu))
        })
    }

    fn mine(&self, vcpu: usize, n: usize) -> u32 {
        self.locals.get(vcpu).and_then(|local| local.mine.get(n)).copied().unwrap_or(0)
    }

    /// The vCPU that an SPI is routed to.
    fn target(&self, n: usize, bit: u32) -> Option<usize> {
        let route = *self.routes.get(n)?.get(bit as usize)?;
        VcpuIndex::existing(route.into(), MAX_VCPUS).map(VcpuIndex::index)
    }

    /// Takes everything that is ready for the vCPU, or that it has acknowledged and that is in no list register.
    fn candidates(&self, me: usize, want: Want, mut take: impl FnMut(Candidate)) {
        let Some(local) = self.locals.get(me) else { return };
        let groups = if local.sleeps { 0 } else { self.groups };
        (0u32..).zip(self.banks(me)).filter(|(_, bank)| bank.is_busy()).for_each(|(n, bank)| {
            let shared = (n as usize).checked_sub(1);
            let routed = |bit: u32| shared.is_none_or(|n| self.target(n, bit) == Some(me));
            let (all, pending) = match want {
                Want::Ready => (bank.ready(groups), u32::MAX),
                Want::Stranded => (bank.stranded() & shared.map_or(u32::MAX, |n| self.mine(me, n)), bank.again(groups)),
            };
            for at in Bits(all).filter(|bit| want == Want::Stranded || routed(*bit)) {
                let bit = 1u32.unbounded_shl(at);
                take(Candidate {
                    priority: bank.priority(at),
                    intid: Intid::in_bank(n, at),
                    group1: bank.group & bit != 0,
                    pending: pending & bit != 0 && routed(at),
                });
            }
        });
    }

    /// The banks that the vCPU sees.
    fn banks(&self, me: usize) -> impl Iterator<Item = &Bank> {
        self.locals.get(me).map(|local| &local.bank).into_iter().chain(&self.spis)
    }

    /// The candidate that goes first: of a group that is on, of highest priority, then of lowest number; and whether it
    /// is the only one.
    fn first(&self, me: usize, want: Want, vmcr: u64) -> Option<(Candidate, bool)> {
        let last = |candidate: &Candidate| want == Want::Ready && !candidate.is_on(vmcr);
        let rank = |candidate: &Candidate| (last(candidate), candidate.priority, candidate.intid);
        let mut first: Option<(Candidate, bool)> = None;
        self.candidates(me, want, |other| {
            first = Some(match first {
                Some((best, _)) if rank(&best) <= rank(&other) => (best, false),
                seen => (other, seen.is_none()),
            });
        });
        first
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Pending and deliverable.
    Ready,
    /// Active, and in no list register.
    Stranded,
}

/// An interrupt that could go to a list register.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    priority: u8,
    intid: Intid,
    group1: bool,
    /// The list register says that it is pending.
    pending: bool,
}

impl Candidate {
    /// Whether its group is on in a CPU interface with this `ICH_VMCR_EL2`.
    const fn is_on(&self, vmcr: u64) -> bool {
        vmcr & if self.group1 { 2 } else { 1 } != 0
    }
}

#[cfg(test)]
mod tests;
