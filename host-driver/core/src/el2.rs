// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host calls of `uapi::hvc`, typed. Says nothing about when they are made.

use crate::status::Refused;
use crate::vgic::{Frames, Spi, Wire};
use freehold_uapi::hvc;

/// How a call reaches EL2: function and x1–x5 in, x0–x4 out, or x0–x5.
pub trait Conduit {
    /// Makes one call.
    fn call(&self, function: u32, args: [u64; 5]) -> [u64; 5];

    /// Makes one `VCPU_RUN`, with this CPU's interrupts masked around it; `None` if something was pending for the thread,
    /// and then no call was made.
    fn run(&self, args: [u64; 5]) -> Option<[u64; 6]>;
}

/// A VM's handle, as `VM_CREATE` returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u64);

/// A run of physical frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First frame number.
    pub pfn: u64,
    /// Number of frames.
    pub count: u64,
}

/// What `VERSION` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// ABI: major `[31:16]`, minor `[15:0]`.
    pub abi: u64,
    /// Release: major `[31:16]`, minor `[15:8]`, patch `[7:0]`.
    pub release: u64,
    /// VM slots.
    pub max_vms: u64,
    /// vCPUs per VM.
    pub max_vcpus: u64,
}

/// What a `VCPU_RUN` came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Reason and payloads, or why the vCPU was not entered.
    pub answer: Result<[u64; 4], Refused>,
    /// vCPUs, one bit each, whose threads slept and have something to do now.
    pub wake: u64,
}

fn answer(regs: [u64; 5]) -> Result<[u64; 4], Refused> {
    let [status, a, b, c, d] = regs;
    #[expect(clippy::cast_possible_wrap, reason = "a status is a signed number in an unsigned register")]
    match status as i64 {
        hvc::SUCCESS => Ok([a, b, c, d]),
        status => Err(Refused { status, detail: a }),
    }
}

/// `el2`, reached through a conduit.
#[derive(Clone, Copy, Debug)]
pub struct El2<C>(pub C);

impl<C: Conduit> El2<C> {
    fn call(&self, function: u32, args: [u64; 5]) -> Result<[u64; 4], Refused> {
        answer(self.0.call(function, args))
    }

    /// `VERSION`.
    ///
    /// # Errors
    /// As the call's.
    pub fn version(&self) -> Result<Version, Refused> {
        let [abi, release, max_vms, max_vcpus] = self.call(hvc::VERSION, [0; 5])?;
        Ok(Version { abi, release, max_vms, max_vcpus })
    }

    /// `COUNTER`.
    ///
    /// # Errors
    /// As the call's.
    pub fn counter(&self, counter: u64, index: u64) -> Result<u64, Refused> {
        self.call(hvc::COUNTER, [counter, index, 0, 0, 0]).map(|r| r[0])
    }

    /// `VM_CREATE` of a protected VM, or an ordinary one.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_create(&self, protected: bool, ipa_bits: u64, pool: Run) -> Result<Handle, Refused> {
        let flags = if protected { hvc::VM_PROTECTED } else { 0 };
        self.call(hvc::VM_CREATE, [flags, ipa_bits, pool.pfn, pool.count, 0]).map(|r| Handle(r[0]))
    }

    /// `VM_RANGE`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_range(&self, vm: Handle, gfn: u64, count: u64) -> Result<(), Refused> {
        self.call(hvc::VM_RANGE, [vm.0, gfn, count, 0, 0]).map(|_| ())
    }

    /// `VM_DESTROY`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_destroy(&self, vm: Handle) -> Result<(), Refused> {
        self.call(hvc::VM_DESTROY, [vm.0, 0, 0, 0, 0]).map(|_| ())
    }

    /// `VM_RECLAIM`; the number of frames that came back.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_reclaim(&self, vm: Handle, run: Run) -> Result<u64, Refused> {
        self.call(hvc::VM_RECLAIM, [vm.0, run.pfn, run.count, 0, 0]).map(|r| r[0])
    }

    /// `POOL_TOPUP`.
    ///
    /// # Errors
    /// As the call's.
    pub fn pool_topup(&self, vm: Handle, run: Run) -> Result<(), Refused> {
        self.call(hvc::POOL_TOPUP, [vm.0, run.pfn, run.count, 0, 0]).map(|_| ())
    }

    /// `VCPU_CREATE`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vcpu_create(&self, vm: Handle, vcpu: u64) -> Result<(), Refused> {
        self.call(hvc::VCPU_CREATE, [vm.0, vcpu, 0, 0, 0]).map(|_| ())
    }

    /// `VCPU_SET_REG`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vcpu_set_reg(&self, vm: Handle, vcpu: u64, reg: u64, value: u64) -> Result<(), Refused> {
        self.call(hvc::VCPU_SET_REG, [vm.0, vcpu, reg, value, 0]).map(|_| ())
    }

    /// `VCPU_GET_REG`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vcpu_get_reg(&self, vm: Handle, vcpu: u64, reg: u64) -> Result<u64, Refused> {
        self.call(hvc::VCPU_GET_REG, [vm.0, vcpu, reg, 0, 0]).map(|r| r[0])
    }

    /// `VCPU_RUN`; `None` if the vCPU was not entered, for something was pending for the thread.
    pub fn vcpu_run(&self, vm: Handle, vcpu: u64, mmio: u64) -> Option<Ran> {
        let [status, a, b, c, d, wake] = self.0.run([vm.0, vcpu, mmio, 0, 0])?;
        Some(Ran { answer: answer([status, a, b, c, d]), wake })
    }

    /// `VM_GIC`: guest frames of the distributor and of the first redistributor.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_gic(&self, vm: Handle, frames: Frames) -> Result<(), Refused> {
        self.call(hvc::VM_GIC, [vm.0, frames.distributor, frames.redistributors, 0, 0]).map(|_| ())
    }

    /// `VM_IRQ`; the vCPUs, one bit each, whose threads are to be woken.
    ///
    /// # Errors
    /// As the call's.
    pub fn vm_irq(&self, vm: Handle, spi: Spi, wire: Wire) -> Result<u64, Refused> {
        let flags = match wire {
            Wire::Low => 0,
            Wire::High => hvc::IRQ_HIGH,
            Wire::HighUntilEnded => hvc::IRQ_HIGH | hvc::IRQ_RESAMPLE,
        };
        self.call(hvc::VM_IRQ, [vm.0, spi.intid(), flags, 0, 0]).map(|r| r[0])
    }

    /// `VCPU_KICK`.
    ///
    /// # Errors
    /// As the call's.
    pub fn vcpu_kick(&self, vm: Handle, vcpu: u64) -> Result<(), Refused> {
        self.call(hvc::VCPU_KICK, [vm.0, vcpu, 0, 0, 0]).map(|_| ())
    }

    /// `MEM_DONATE` of frames that are never revoked; the number of frames donated.
    ///
    /// # Errors
    /// As the call's.
    pub fn mem_donate(&self, vm: Handle, run: Run, gfn: u64) -> Result<u64, Refused> {
        self.call(hvc::MEM_DONATE, [vm.0, run.pfn, gfn, run.count, 0]).map(|r| r[0])
    }

    /// `MEM_DONATE` of a frame that the host's processes may reach; the number of frames donated.
    ///
    /// # Errors
    /// As the call's.
    pub fn mem_donate_revocable(&self, vm: Handle, pfn: u64, gfn: u64) -> Result<u64, Refused> {
        self.call(hvc::MEM_DONATE, [vm.0, pfn, gfn, 1, hvc::DONATE_REVOCABLE]).map(|r| r[0])
    }

    /// `MEM_DONATE_LIST`; the number of frames donated.
    ///
    /// # Errors
    /// As the call's.
    pub fn mem_donate_list(&self, vm: Handle, list: u64, records: u64) -> Result<u64, Refused> {
        self.call(hvc::MEM_DONATE_LIST, [vm.0, list, records, 0, 0]).map(|r| r[0])
    }

    /// `MEM_SHARE` of a frame, to be read, executed and, if so, written; the number of frames lent.
    ///
    /// # Errors
    /// As the call's.
    pub fn mem_share(&self, vm: Handle, pfn: u64, gfn: u64, write: bool) -> Result<u64, Refused> {
        let write = if write { hvc::SHARE_WRITE } else { 0 };
        self.call(hvc::MEM_SHARE, [vm.0, pfn, gfn, 1, write | hvc::SHARE_EXEC]).map(|r| r[0])
    }

    /// `MEM_UNSHARE`; the number of frames taken back.
    ///
    /// # Errors
    /// As the call's.
    pub fn mem_unshare(&self, vm: Handle, gfn: u64, count: u64) -> Result<u64, Refused> {
        self.call(hvc::MEM_UNSHARE, [vm.0, gfn, count, 0, 0]).map(|r| r[0])
    }

    /// `GUEST_ACCEPT`; the number of frames moved.
    ///
    /// # Errors
    /// As the call's.
    pub fn guest_accept(&self, vm: Handle, vcpu: u64, count: u64) -> Result<u64, Refused> {
        self.call(hvc::GUEST_ACCEPT, [vm.0, vcpu, count, 0, 0]).map(|r| r[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vgic::{Attr, Facts, Vgic};
    use std::cell::RefCell;

    /// Notes what comes, and answers success with a number for each register.
    #[derive(Default)]
    struct Line(RefCell<Vec<(u32, [u64; 5])>>);

    impl Conduit for Line {
        fn call(&self, function: u32, args: [u64; 5]) -> [u64; 5] {
            self.0.borrow_mut().push((function, args));
            [0, 101, 102, 103, 104]
        }

        fn run(&self, args: [u64; 5]) -> Option<[u64; 6]> {
            self.0.borrow_mut().push((hvc::VCPU_RUN, args));
            Some([0, 101, 102, 103, 104, 105])
        }
    }

    const VM: Handle = Handle(7);
    const RUN: Run = Run { pfn: 20, count: 30 };

    /// What one call says in x0 to x5, and what of the answer comes back.
    fn said<T>(make: impl FnOnce(&El2<Line>) -> T) -> ((u32, [u64; 5]), T) {
        let el2 = El2(Line::default());
        let answer = make(&el2);
        let calls = el2.0 .0.into_inner();
        assert_eq!(calls.len(), 1);
        (calls[0], answer)
    }

    #[test]
    fn each_call_names_its_arguments_in_the_order_of_the_abi() {
        let (one, done) = (Ok(101), Ok(()));
        assert_eq!(said(|el2| el2.counter(1, 2)), ((hvc::COUNTER, [1, 2, 0, 0, 0]), one));
        for (protected, flags) in [(false, 0), (true, hvc::VM_PROTECTED)] {
            let created = said(|el2| el2.vm_create(protected, 40, RUN));
            assert_eq!(created, ((hvc::VM_CREATE, [flags, 40, 20, 30, 0]), Ok(Handle(101))));
        }
        assert_eq!(said(|el2| el2.vm_range(VM, 2, 3)), ((hvc::VM_RANGE, [7, 2, 3, 0, 0]), done));
        assert_eq!(said(|el2| el2.vm_destroy(VM)), ((hvc::VM_DESTROY, [7, 0, 0, 0, 0]), done));
        assert_eq!(said(|el2| el2.vm_reclaim(VM, RUN)), ((hvc::VM_RECLAIM, [7, 20, 30, 0, 0]), one));
        assert_eq!(said(|el2| el2.pool_topup(VM, RUN)), ((hvc::POOL_TOPUP, [7, 20, 30, 0, 0]), done));
        assert_eq!(said(|el2| el2.vcpu_create(VM, 1)), ((hvc::VCPU_CREATE, [7, 1, 0, 0, 0]), done));
        assert_eq!(said(|el2| el2.vcpu_set_reg(VM, 1, 2, 3)), ((hvc::VCPU_SET_REG, [7, 1, 2, 3, 0]), done));
        assert_eq!(said(|el2| el2.vcpu_get_reg(VM, 1, 2)), ((hvc::VCPU_GET_REG, [7, 1, 2, 0, 0]), one));
        assert_eq!(said(|el2| el2.vcpu_kick(VM, 1)), ((hvc::VCPU_KICK, [7, 1, 0, 0, 0]), done));
        let frames = Frames { distributor: 2, redistributors: 3 };
        assert_eq!(said(|el2| el2.vm_gic(VM, frames)), ((hvc::VM_GIC, [7, 2, 3, 0, 0]), done));
        assert_eq!(said(|el2| el2.mem_donate(VM, RUN, 9)), ((hvc::MEM_DONATE, [7, 20, 9, 30, 0]), one));
        let revocable = said(|el2| el2.mem_donate_revocable(VM, 20, 9));
        assert_eq!(revocable, ((hvc::MEM_DONATE, [7, 20, 9, 1, hvc::DONATE_REVOCABLE]), one));
        assert_eq!(said(|el2| el2.mem_donate_list(VM, 5, 6)), ((hvc::MEM_DONATE_LIST, [7, 5, 6, 0, 0]), one));
        for (write, flags) in [(true, 3), (false, 2)] {
            assert_eq!(said(|el2| el2.mem_share(VM, 20, 9, write)), ((hvc::MEM_SHARE, [7, 20, 9, 1, flags]), one));
        }
        assert_eq!(said(|el2| el2.mem_unshare(VM, 9, 4)), ((hvc::MEM_UNSHARE, [7, 9, 4, 0, 0]), one));
        assert_eq!(said(|el2| el2.guest_accept(VM, 1, 4)), ((hvc::GUEST_ACCEPT, [7, 1, 4, 0, 0]), one));
    }

    #[test]
    fn a_wire_is_low_or_high_and_its_end_is_asked_for_only_when_it_is_high() {
        let facts = Facts { ipa_bits: 40, vcpus: 1 };
        let mut vgic = Vgic::default();
        for (attr, value) in
            [(Attr::Distributor, 0), (Attr::Redistributors, 1 << 20), (Attr::Irqs, 64), (Attr::Init, 0)]
        {
            vgic.set(attr, value, facts).unwrap();
        }
        let spi = vgic.gsi(8).unwrap();
        for (wire, flags) in [(Wire::Low, 0), (Wire::High, 1), (Wire::HighUntilEnded, 3)] {
            assert_eq!(said(|el2| el2.vm_irq(VM, spi, wire)), ((hvc::VM_IRQ, [7, 40, flags, 0, 0]), Ok(101)));
        }
    }

    #[test]
    fn a_run_brings_an_exit_and_who_is_to_be_woken() {
        let (call, ran) = said(|el2| el2.vcpu_run(VM, 1, 9));
        assert_eq!(call, (hvc::VCPU_RUN, [7, 1, 9, 0, 0]));
        assert_eq!(ran, Some(Ran { answer: Ok([101, 102, 103, 104]), wake: 105 }));
    }

    #[test]
    fn a_status_other_than_success_is_a_refusal_with_its_detail() {
        assert_eq!(answer([0, 1, 2, 3, 4]), Ok([1, 2, 3, 4]));
        assert_eq!(answer([u64::MAX, 5, 0, 0, 0]), Err(Refused { status: -1, detail: 5 }));
    }
}
