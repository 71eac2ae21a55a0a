// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's block: the pool frame that holds its registers and what it waits for, and how it runs here.
//!
//! Guarantees that a block is reached only through the claim of [`freehold_virt::vm`], so by one CPU at a time, and
//! only as long as its VM can not start to die (so that frame and tables stay the VM's). Does not know what an exit
//! means.

use crate::fatal;
use crate::percpu::{self, MAX_CPUS};
use crate::switch::{self, GuestContext, GuestRegime, HostContext};
use core::sync::atomic::AtomicU64;
use freehold_mem::{PAGE_SIZE, Pfn};
use freehold_virt::setting::Setting;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Stop, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::Claimed;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// What a pool frame holds of a vCPU.
#[derive(Debug)]
#[repr(C)]
struct Block {
    context: GuestContext,
    vcpu: Vcpu,
    /// What its list registers are loaded with while it runs, or keeps while it is out.
    lists: Lists,
    /// What it runs in, since it has run, and how that is said to the CPU.
    setting: Option<(Setting, GuestRegime)>,
}

impl Block {
    /// A vCPU that was just reset.
    const fn new() -> Self {
        Self { context: GuestContext::new(), vcpu: Vcpu::new(), lists: Lists::EMPTY, setting: None }
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
    /// What this CPU keeps of its host.
    host: SpinMutexGuard<'static, HostContext>,
}

impl<'a> Loaded<'a> {
    /// Opens the block of a claimed vCPU.
    #[inline(always)]
    pub fn open(claim: Claimed<'a, AtomicU64>) -> Self {
        let Some(frame) = Pfn::new(claim.block()) else {
            fatal::defect("a vCPU without a block");
        };
        // SAFETY: the frame is what `create` returned, and stays the VM's while the claim lives; the claim is unique
        // and goes into `Self`, so this is the only reference to the block.
        let block = unsafe { &mut *place(frame) };
        Self { claim, block, host: kept_here().lock() }
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

    /// What it runs in, since it has run.
    #[inline(always)]
    pub fn setting(&self) -> Option<&Setting> {
        self.block.setting.as_ref().map(|(setting, _)| setting)
    }

    /// Says what it runs in: its VM's tables, which live as long as the claim.
    pub fn settle(&mut self, setting: Setting) {
        let regime = GuestRegime { stage2: setting.stage2(), vmpidr: setting.vcpu.mpidr(), flush_local: true };
        self.block.setting = Some((setting, regime));
    }

    /// Makes the vCPU as if it had just been created, but for what it runs in.
    pub fn reset(&mut self) {
        *self.block = Block { setting: self.block.setting, ..Block::new() };
    }

    /// The virtual timer, as it was at the last exit.
    pub fn timer(&self) -> Timer {
        self.block.context.timer()
    }

    /// Runs the vCPU until it exits; [`Self::leave`], or the end of this, brings the host back. What `answer` answers at
    /// once is no exit: it says whether the guest goes on. Not before [`Self::settle`].
    #[inline(always)]
    pub fn run(&mut self, flushes: bool, answer: impl Answer<GuestContext>) -> Stop {
        let Block { context, lists, setting, .. } = &mut *self.block;
        let Some((Setting { controller, .. }, regime)) = setting else { return Stop::BadState };
        let lists = controller.is_some().then_some(lists);
        regime.flush_local = flushes;
        // SAFETY: the tables are the claimed vCPU's VM's, for `settle` was told so in this block, and live as long as the
        // claim, which `self` holds until the guest is left; EL2 runs with DAIF masked from the host's trap on, under the
        // host's stage 2 or this guest's.
        unsafe { switch::enter(context, &mut self.host, regime, lists, answer) }
    }

    /// Puts the host's EL1 state and stage 2 back, if the guest's are in force since it ran.
    pub fn leave(&mut self) {
        switch::leave(&mut self.block.context, &mut self.host);
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
