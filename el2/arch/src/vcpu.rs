// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's block: the pool frame that holds its registers and what it waits for, and how it runs here.
//!
//! Guarantees that a block is reached only through the claim of [`freehold_virt::vm`], so by one CPU at a time, and
//! only as long as its VM can not start to die (so that frame and tables stay the VM's). Does not know what an exit
//! means.

use crate::percpu::{self, MAX_CPUS};
use crate::switch::{self, GuestContext, GuestRegime, HostContext};
use crate::{fatal, host};
use core::sync::atomic::AtomicU64;
use freehold_mem::{PAGE_SIZE, Pfn, Vmid};
use freehold_virt::handle::VcpuIndex;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Stop, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::Claimed;
use spin::mutex::SpinMutex;

/// What a pool frame holds of a vCPU.
#[derive(Debug)]
#[repr(C)]
struct Block {
    context: GuestContext,
    vcpu: Vcpu,
    /// What its list registers are loaded with while it runs, or keeps while it is out.
    lists: Lists,
}

impl Block {
    /// A vCPU that was just reset.
    const fn new() -> Self {
        Self { context: GuestContext::new(), vcpu: Vcpu::new(), lists: Lists::EMPTY }
    }
}

const _: () = assert!(size_of::<Block>() <= PAGE_SIZE as usize, "a vCPU fits its frame");

/// What each CPU keeps of its host while a guest runs there. Never contended: a CPU takes its own only.
static HOSTS: [SpinMutex<HostContext>; MAX_CPUS] = [const { SpinMutex::new(HostContext::new()) }; MAX_CPUS];

fn place(frame: Pfn) -> *mut Block {
    frame.pa().raw() as usize as *mut Block
}

/// Makes a vCPU that was just reset in a frame that its VM's pool has just given, and returns what
/// [`freehold_virt::vm::Vms::create_vcpu`] is to keep.
pub fn create(frame: Pfn) -> u64 {
    let block = Block::new();
    // SAFETY: the pool gives a frame once and the host can not reach it; all RAM is mapped, a frame is aligned for
    // and as large as a block, and no claim on this vCPU can exist before `create_vcpu`.
    unsafe { place(frame).write(block) };
    frame.raw()
}

/// A vCPU that this CPU has claimed, with its block.
pub struct Loaded<'a> {
    claim: Claimed<'a, AtomicU64>,
    block: &'a mut Block,
}

impl<'a> Loaded<'a> {
    /// Opens the block of a claimed vCPU.
    pub fn open(claim: Claimed<'a, AtomicU64>) -> Self {
        let Some(frame) = Pfn::new(claim.block()) else {
            fatal::defect("a vCPU without a block");
        };
        // SAFETY: the frame is what `create` returned, and stays the VM's while the claim lives; the claim is unique
        // and goes into `Self`, so this is the only reference to the block.
        let block = unsafe { &mut *place(frame) };
        Self { claim, block }
    }

    /// The claim.
    pub fn claim(&mut self) -> &mut Claimed<'a, AtomicU64> {
        &mut self.claim
    }

    /// The registers, and what the vCPU waits for.
    pub fn parts(&mut self) -> (&mut GuestContext, &mut Vcpu) {
        (&mut self.block.context, &mut self.block.vcpu)
    }

    /// What its list registers are loaded with while it runs.
    pub fn lists(&mut self) -> &mut Lists {
        &mut self.block.lists
    }

    /// Makes the vCPU as if it had just been created.
    pub fn reset(&mut self) {
        *self.block = Block::new();
    }

    /// The virtual timer, as it was at the last exit.
    pub fn timer(&self) -> Timer {
        self.block.context.timer()
    }

    /// Runs the vCPU until it exits; [`Self::leave`], or the end of this, brings the host back. `regime` was made by
    /// [`regime`] while this claim was held. What `answer` answers at once is no exit: it says whether the guest goes on.
    pub fn run(&mut self, regime: &Regime, has_gic: bool, answer: impl Answer<GuestContext>) -> Stop {
        let Block { context, lists, .. } = &mut *self.block;
        // SAFETY: the tables are the claimed vCPU's VM's, and live as long as the claim, which `self` holds until the
        // guest is left; EL2 runs with DAIF masked from the host's trap on, under the host's stage 2 or this guest's.
        unsafe { switch::enter(context, &mut kept_here().lock(), &regime.0, has_gic.then_some(lists), answer) }
    }

    /// Puts the host's EL1 state and stage 2 back, if the guest's are in force since it ran.
    pub fn leave(&mut self) {
        switch::leave(&mut self.block.context, &mut kept_here().lock());
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

fn kept_here() -> &'static SpinMutex<HostContext> {
    match HOSTS.get(percpu::this_cpu().index()) {
        Some(kept) => kept,
        None => fatal::defect("a CPU without a record"),
    }
}

/// How one vCPU's VM translates addresses.
#[derive(Debug)]
pub struct Regime(GuestRegime);

/// The regime of a VM with this root table, address size and VMID, for its vCPU `index`. `flush_local` says that
/// this CPU may have cached what another vCPU of the VM translated.
pub fn regime((root, ipa_bits): (Pfn, u32), vmid: Vmid, index: VcpuIndex, flush_local: bool) -> Regime {
    Regime(GuestRegime {
        vttbr: host::vttbr(root.pa().raw(), vmid.raw().into()),
        vtcr: host::vtcr(ipa_bits),
        vmpidr: index.mpidr(),
        vpidr: host::midr(),
        flush_local,
    })
}

/// The ID registers of this CPU that a guest's view is made of.
pub fn raw_ids() -> RawIds {
    RawIds {
        pfr0: read_sysreg!("s3_0_c0_c4_0"),
        pfr1: read_sysreg!("s3_0_c0_c4_1"),
        isar0: read_sysreg!("s3_0_c0_c6_0"),
        isar1: read_sysreg!("s3_0_c0_c6_1"),
        isar2: read_sysreg!("s3_0_c0_c6_2"),
        mmfr0: read_sysreg!("s3_0_c0_c7_0"),
        mmfr1: read_sysreg!("s3_0_c0_c7_1"),
        mmfr2: read_sysreg!("s3_0_c0_c7_2"),
        ctr: read_sysreg!("ctr_el0"),
        clidr: read_sysreg!("clidr_el1"),
    }
}

/// The counter, which host and guests read too.
pub fn now() -> u64 {
    // Not read before what was decided earlier.
    crate::barrier::registers_in_effect();
    read_sysreg!("cntvct_el0")
}

/// How many list registers this CPU has.
pub fn list_registers() -> usize {
    switch::list_registers()
}

/// Whether a physical interrupt or `SError` waits for this CPU's host.
pub fn host_is_wanted() -> bool {
    // ISR_EL1: A, I, F.
    read_sysreg!("isr_el1") & 0x1c0 != 0
}
