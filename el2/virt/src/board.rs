// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VM has beside memory and registers: its interrupt controller and, as far as they raise interrupts, its timers.
//!
//! A VM has it from the moment that its host says where the frames are; who knows that it has none does not ask here.
//! It lies under a lock of its own, which is taken last and held for no other. Guarantees that a guest's waiting ends:
//! [`Board::idle`] lets it sleep only when nothing is deliverable, and says until when.

use crate::exit::{Exit, Width};
use crate::handle::VcpuIndex;
use crate::registers::Registers;
use crate::sysreg::{Access, Encoding};
use crate::timer::{Register, Timer};
use crate::vgic::{Intid, Kicks, Lists, Vgic, Window};

/// The interrupt controller of a VM, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    vgic: Vgic,
    window: Option<Window>,
    vcpus: usize,
}

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
    /// Of a VM that was just created.
    #[must_use]
    pub const fn new() -> Self {
        Self { vgic: Vgic::new(), window: None, vcpus: 0 }
    }

    /// Says where the frames are, in a VM with so many vCPUs.
    pub fn declare(&mut self, window: Window) {
        self.window = Some(window);
    }

    /// Counts a vCPU that was created.
    pub fn add_vcpu(&mut self) {
        self.vcpus = self.vcpus.saturating_add(1);
    }

    /// The controller, if there is one.
    pub fn vgic(&mut self) -> Option<&mut Vgic> {
        self.window.and(Some(&mut self.vgic))
    }

    /// What the virtual interface of CPU number `cpu`, which has `room` list registers, is loaded with for a vCPU that
    /// enters its guest.
    pub fn enter(&mut self, vcpu: VcpuIndex, cpu: usize, room: usize, timers: Timers, now: u64) -> Lists {
        self.look_at(vcpu, timers, now);
        let mut lists = self.vgic.load(vcpu, u8::try_from(cpu).unwrap_or(u8::MAX), room);
        lists.until(timers.cntp.deadline(now));
        lists
    }

    /// Takes back what became of it.
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
            (SGI1, false) => self.vgic.send_sgi(vcpu, written, false),
            (SGI0 | ASGI1, false) => self.vgic.send_sgi(vcpu, written, true),
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

    /// Serves a load at this address with a value, if one of the frames is there.
    pub fn load(&mut self, ipa: u64, width: Width) -> Option<(u64, Kicks)> {
        let (frame, offset) = self.window?.locate(ipa, self.vcpus)?;
        Some(self.vgic.read(frame, offset, width, self.vcpus))
    }

    /// Serves a store.
    pub fn store(&mut self, ipa: u64, width: Width, data: u64) -> Option<Kicks> {
        let (frame, offset) = self.window?.locate(ipa, self.vcpus)?;
        Some(self.vgic.write(frame, offset, width, data, self.vcpus))
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
        Some(Exit::Wfi(wanted.filter_map(|(_, timer)| timer.deadline(now)).min().unwrap_or(0)))
    }

    /// Sets the wires of the timers as they are now.
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
