// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VM has beside memory and registers: its interrupt controller, its timers as far as they raise interrupts, and
//! which of its CPUs are on.
//!
//! Its controller is met from the moment that the host says where the frames are. All of it lies under a lock of its own,
//! which is taken last and held for no other. Guarantees that a guest's waiting ends: [`Board::idle`] lets it sleep only
//! when nothing is deliverable, and says until when; who sleeps, or is off, is among those to be woken.

use crate::exit::{Exit, Width};
use crate::guest_call;
use crate::guest_power::{Answer, Arrival, Power};
use crate::handle::VcpuIndex;
use crate::registers::Registers;
use crate::sysreg::{Access, Encoding};
use crate::timer::{Register, Timer};
use crate::vcpu::{Next, Trap};
use crate::vgic::{Intid, Kicks, Lists, Vgic, Window};

/// The interrupt controller of a VM, where it is, and the power of its CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Board {
    vgic: Vgic,
    window: Option<Window>,
    power: Power,
    /// Those that were created, a bit each.
    vcpus: u64,
    /// Which of them ran last on each CPU.
    turns: [Option<VcpuIndex>; MAX_CPUS],
}

/// Most CPUs that a VM's turns are kept of.
pub const MAX_CPUS: usize = 32;

/// A vCPU's timers: the virtual one and the physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Of the virtual one, what the CPU said at its last exit.
    pub cntv: Timer,
    /// The emulated one.
    pub cntp: Timer,
}

impl Timers {
    /// Both, with their interrupts.
    const fn each(self) -> [(Intid, Timer); 2] {
        [(Intid::VIRTUAL_TIMER, self.cntv), (Intid::PHYSICAL_TIMER, self.cntp)]
    }
}

/// `ICC_DIR_EL1` and the three registers that send SGIs, all write only.
const DIR: Encoding = Encoding::new(3, 0, 12, 11, 1);
const SGI1: Encoding = Encoding::new(3, 0, 12, 11, 5);
const ASGI1: Encoding = Encoding::new(3, 0, 12, 11, 6);
const SGI0: Encoding = Encoding::new(3, 0, 12, 11, 7);

impl Board {
    /// Of no VM: all zero, so that it takes no place in the image.
    pub const NONE: Self =
        Self { vgic: Vgic::NONE, window: None, power: Power::NONE, vcpus: 0, turns: [None; MAX_CPUS] };

    /// Of a VM that was just created.
    #[must_use]
    pub const fn new() -> Self {
        Self { vgic: Vgic::new(), power: Power::new(), ..Self::NONE }
    }

    /// Says where the frames are, in a VM with so many vCPUs.
    pub fn declare(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// Where the frames are, if it was said.
    #[must_use]
    pub const fn window(&self) -> Option<Window> {
        self.window
    }

    /// Counts a vCPU that was created.
    pub fn add_vcpu(&mut self, index: VcpuIndex) {
        self.vcpus |= index.bit();
    }

    /// CPUs that have frames: all up to the last one.
    #[must_use]
    pub const fn frames(&self) -> usize {
        u64::BITS.saturating_sub(self.vcpus.leading_zeros()) as usize
    }

    /// The host has set a vCPU of an ordinary VM back, which is on from here, or off. What it had of interrupts is given up.
    pub fn reset(&mut self, vcpu: VcpuIndex, on: bool) {
        self.power.put(vcpu, on);
        self.vgic.sleeps(vcpu);
    }

    /// The host runs a vCPU. One that is off sleeps, until it is woken.
    pub fn arrive(&mut self, vcpu: VcpuIndex) -> Arrival {
        let arrival = self.power.arrive(vcpu);
        if arrival == Arrival::Off {
            self.vgic.sleeps(vcpu);
        }
        arrival
    }

    /// Whether what CPU number `cpu` has cached of the VM may be of another vCPU than `vcpu`, so that it must be flushed.
    /// From here until [`Self::keep_turn`] nobody was there, for a vCPU that is about to run may not get to it.
    pub fn begin_turn(&mut self, cpu: usize, vcpu: VcpuIndex) -> bool {
        match self.turns.get_mut(cpu) {
            Some(last) if *last == Some(vcpu) => false,
            Some(last) => {
                *last = None;
                true
            }
            None => true,
        }
    }

    /// Notes that `vcpu` has run on CPU number `cpu`, after a flush if it had to be.
    pub fn keep_turn(&mut self, cpu: usize, vcpu: VcpuIndex) {
        if let Some(last) = self.turns.get_mut(cpu) {
            *last = Some(vcpu);
        }
    }

    /// Serves the PSCI call that a vCPU made with HVC; `None` if it is another call.
    pub fn power_call(&mut self, vcpu: VcpuIndex, registers: &mut impl Registers) -> Option<(Next, Kicks)> {
        let x = [registers.x(1), registers.x(2), registers.x(3)];
        let answer = self.power.serve(vcpu, guest_call::identifier(registers.x(0)), x, self.vcpus)?;
        let (code, exit, kicks) = match answer {
            Answer::Return(code) => (code, None, Kicks::NONE),
            Answer::Start(target) => (0, None, self.vgic.wake(target)),
            Answer::Wait => (0, Some(Exit::Wfi(0)), Kicks::NONE),
            Answer::Stop => {
                self.vgic.sleeps(vcpu);
                return Some((Next::Leave(self.rest(Exit::Off)), Kicks::NONE));
            }
            Answer::Off | Answer::Reset(_) => {
                // Whoever runs the vCPU nevertheless meets the call again.
                registers.rewind();
                let exit = if let Answer::Reset(second) = answer { Exit::SystemReset(second) } else { Exit::SystemOff };
                return Some((Next::Leave(exit), Kicks::NONE));
            }
        };
        registers.answer([code.cast_unsigned(), 0, 0, 0]);
        Some((exit.map_or(Next::Resume, Next::Leave), kicks))
    }

    /// Makes a vCPU come out of its guest.
    pub fn kick(&mut self, vcpu: VcpuIndex) -> Kicks {
        self.vgic.kick(vcpu)
    }

    /// How a vCPU leaves whose thread is to sleep: not before the host has heard of every end that it asked for.
    pub fn rest(&mut self, exit: Exit) -> Exit {
        self.vgic.take_ended().map_or(exit, Exit::Ended)
    }

    /// The controller, if there is one.
    pub fn vgic(&mut self) -> Option<&mut Vgic> {
        self.window.and(Some(&mut self.vgic))
    }

    /// What the virtual interface of CPU number `cpu`, which has `room` list registers, is loaded with for a vCPU that
    /// enters its guest, in `lists`. It does not enter before the host has heard of every end that it asked for.
    ///
    /// # Errors
    /// How the vCPU leaves instead.
    #[inline(always)]
    pub fn enter(
        &mut self,
        vcpu: VcpuIndex,
        (cpu, room): (usize, usize),
        timers: Timers,
        now: u64,
        lists: &mut Lists,
    ) -> Result<(), Exit> {
        if let Some(spi) = self.vgic.take_ended() {
            return Err(Exit::Ended(spi));
        }
        self.look_at(vcpu, timers, now);
        self.vgic.load(vcpu, u8::try_from(cpu).unwrap_or(u8::MAX), room, lists);
        lists.until(timers.cntp.deadline(now));
        Ok(())
    }

    /// Whether a vCPU that is in its guest was made to come out: a kick may be on its way to its CPU, or have come.
    #[inline]
    #[must_use]
    pub fn is_told(&self, vcpu: VcpuIndex) -> bool {
        self.vgic.is_told(vcpu)
    }

    /// Takes back what became of it.
    #[inline]
    pub fn leave(&mut self, vcpu: VcpuIndex, lists: &mut Lists) -> Kicks {
        self.vgic.save(vcpu, lists)
    }

    /// Serves a trapped access to a system register of the interrupt controller or of the physical timer. `None`: it
    /// is another one.
    pub fn system_register(
        &mut self,
        vcpu: VcpuIndex,
        access: Access,
        registers: &mut impl Registers,
        physical: &mut Timer,
        now: u64,
    ) -> Option<Kicks> {
        let written = registers.x(access.rt);
        let kicks = match (access.register, access.read) {
            (SGI1 | SGI0 | ASGI1, false) => return self.send(vcpu, access, registers),
            (DIR, false) => self.vgic.deactivate(vcpu, written),
            (register, read) => {
                let timer = Register::physical(register)?;
                if read {
                    registers.set_x(access.rt, physical.read(timer, now));
                } else {
                    physical.write(timer, written, now);
                }
                Kicks::NONE
            }
        };
        registers.advance();
        Some(kicks)
    }

    /// Serves a write that sends SGIs; `None` if it is another access.
    fn send(&mut self, vcpu: VcpuIndex, access: Access, registers: &mut impl Registers) -> Option<Kicks> {
        let of_group0 = match (access.register, access.read) {
            (SGI1, false) => false,
            (SGI0 | ASGI1, false) => true,
            _ => return None,
        };
        let kicks = self.vgic.send_sgi(vcpu, registers.x(access.rt), of_group0);
        registers.advance();
        Some(kicks)
    }

    /// Answers a trap of a vCPU that is in its guest, a load's or that of a system register, if that takes nothing of what
    /// its list registers hold: SGIs that it sends, and most loads from the frames. If it is among those to be told, it has to come out first.
    pub fn answer_at_once(&mut self, vcpu: VcpuIndex, trap: Trap, registers: &mut impl Registers) -> Option<Kicks> {
        let window = self.window?;
        let Some((ipa, load)) = trap.load() else { return self.send(vcpu, Access::decode(trap.esr), registers) };
        let (frame, offset) = window.locate(ipa, self.frames())?;
        load.complete(self.vgic.read_at_once(frame, offset, load.width(), self.frames())?, registers);
        Some(Kicks::NONE)
    }

    /// Serves a load at this address with a value, if one of the frames is there.
    pub fn load(&mut self, ipa: u64, width: Width) -> Option<(u64, Kicks)> {
        let (frame, offset) = self.window?.locate(ipa, self.frames())?;
        Some(self.vgic.read(frame, offset, width, self.frames()))
    }

    /// Serves a store.
    pub fn store(&mut self, ipa: u64, width: Width, data: u64) -> Option<Kicks> {
        let (frame, offset) = self.window?.locate(ipa, self.frames())?;
        Some(self.vgic.write(frame, offset, width, data, self.frames()))
    }

    /// Whether one of the frames is at an address.
    #[must_use]
    pub fn holds(&self, ipa: u64) -> bool {
        self.window.is_some_and(|window| window.locate(ipa, self.frames()).is_some())
    }

    /// Decides a vCPU's WFI: `None` if it goes on, else how it leaves. From here until it enters again it is woken for
    /// whatever becomes deliverable.
    pub fn idle(&mut self, vcpu: VcpuIndex, vmcr: u64, timers: Timers, now: u64) -> Option<Exit> {
        self.look_at(vcpu, timers, now);
        if self.vgic.wakes(vcpu, vmcr) {
            return None;
        }
        self.vgic.sleeps(vcpu);
        let wanted = timers.each().into_iter().filter(|(intid, _)| self.vgic.wants_timer(vcpu, *intid));
        let deadline = wanted.filter_map(|(_, timer)| timer.deadline(now)).min().unwrap_or(0);
        Some(self.rest(Exit::Wfi(deadline)))
    }

    /// Sets the wires of the timers as they are now.
    #[inline(always)]
    fn look_at(&mut self, vcpu: VcpuIndex, timers: Timers, now: u64) {
        for (intid, timer) in timers.each() {
            self.vgic.set_timer(vcpu, intid, timer.asserts(now));
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
