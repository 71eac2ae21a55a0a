// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured, by number: the payload and the VMM mark begin and end of each, `cargo xtask bench` reads the marks.
//!
//! One source for the three. A mark's label is the number shifted left by one; the last bit tells the end.

#![allow(dead_code, unreachable_pub, unused_macros, reason = "one file, three users")]

/// The payload does nothing between the marks: what they cost themselves.
pub const GUEST_NOTHING: u64 = 1;
/// `PSCI_VERSION`.
pub const GUEST_HVC: u64 = 2;
/// A load of `GICD_TYPER`.
pub const VGIC_READ: u64 = 3;
/// A load that the VMM answers.
pub const VMM_READ: u64 = 4;
/// The same, with two interrupts in list registers.
pub const VMM_READ_LISTED: u64 = 5;
/// The same as [`VMM_READ`], with one FP instruction before it.
pub const VMM_READ_FP: u64 = 6;
/// The guest shares a page.
pub const SHARE: u64 = 7;
/// The guest takes it back.
pub const UNSHARE: u64 = 8;
/// The guest gives a page back for good.
pub const RELINQUISH: u64 = 9;
/// The guest's first load from a page.
pub const TOUCH: u64 = 10;
/// An SGI to itself, until it is acknowledged and ended.
pub const SELF_SGI: u64 = 11;
/// The virtual timer, from the time that it is set to, to the first instruction of the handler.
pub const TIMER: u64 = 12;
/// The virtual timer, from the time that it is set to, to the instruction behind `WFI`.
pub const WAKE: u64 = 13;
/// An SGI to another vCPU that runs, until it has acknowledged and ended it.
pub const IPI: u64 = 14;
/// [`VMM_READ`] in one of 8 VMs that all have run.
pub const VMM_READ_8: u64 = 15;
/// In one of 64, which are all that there can be.
pub const VMM_READ_64: u64 = 16;
/// [`TOUCH`] at the end of a guest's 4 MiB.
pub const TOUCH_4M: u64 = 17;
/// Of 64 MiB.
pub const TOUCH_64M: u64 = 18;
/// Of 1 GiB.
pub const TOUCH_1G: u64 = 19;
/// What VMM and kernel do: nothing between the marks.
pub const USER_NOTHING: u64 = 32;
/// The first program of the host is up, with all that came before.
pub const BOOT: u64 = 33;
/// A call of the host that reads one counter.
pub const HOST_CALL: u64 = 34;
/// VM, memory, interrupt controller and vCPU are made.
pub const VM_CREATE: u64 = 35;
/// The vCPU's first run, to the payload's first exit.
pub const FIRST_RUN: u64 = 36;
/// All descriptors are closed.
pub const VM_END: u64 = 37;
/// 4 KiB to private, before the first run: measured.
pub const PRIVATE_4K: u64 = 38;
/// 2 MiB.
pub const PRIVATE_2M: u64 = 39;
/// 64 MiB.
pub const PRIVATE_64M: u64 = 40;
/// 4 KiB that are frozen and not donated, to shared.
pub const SHARED_4K: u64 = 41;
/// 2 MiB.
pub const SHARED_2M: u64 = 42;
/// 64 MiB.
pub const SHARED_64M: u64 = 43;
/// A call that donates one page to a VM that runs.
pub const DONATE_1: u64 = 44;
/// 64 pages in a run.
pub const DONATE_64: u64 = 45;
/// 512 pages in a run.
pub const DONATE_512: u64 = 46;
/// 64 pages, every other one of a block of 2 MiB that was whole.
pub const DONATE_LIST_64: u64 = 47;
/// 256 pages.
pub const DONATE_LIST_256: u64 = 48;
/// A call that takes one page back from a VM that has ended.
pub const RECLAIM_1: u64 = 49;
/// 64 pages in a run.
pub const RECLAIM_64: u64 = 50;
/// 512 pages in a run.
pub const RECLAIM_512: u64 = 51;

/// A system call that does nothing: what the host's kernel takes for any.
pub const SYSTEM_CALL: u64 = 52;
/// 2 MiB to private that are mapped and touched once.
pub const MAPPED_1: u64 = 53;
/// That are mapped and touched 64 times.
pub const MAPPED_64: u64 = 54;

/// Stage-2 faults of the host in a second in which it does nothing.
pub const FAULTS_AT_REST: u64 = 55;
/// Bytes that the host lends EL2 for a VM with one vCPU and a controller, before the guest has any memory.
pub const VM_MEMORY: u64 = 56;
/// 64 pages, each in a block of 2 MiB of its own that was whole.
pub const DONATE_WHOLE_64: u64 = 57;
/// 256 pages.
pub const DONATE_WHOLE_256: u64 = 58;
/// 64 pages, each in a block of its own that was split before.
pub const DONATE_SPLIT_64: u64 = 59;
/// 256 pages.
pub const DONATE_SPLIT_256: u64 = 60;
/// `VERSION`, for its profile: its figure is counted by its number, wherever it is called.
pub const VERSION: u64 = 61;

/// The label of a row's begin.
#[must_use]
pub const fn begin(row: u64) -> u64 {
    row << 1
}

/// The label of its end.
#[must_use]
pub const fn end(row: u64) -> u64 {
    row << 1 | 1
}

/// Executes a mark with a label, and a value that is known to who marks alone.
macro_rules! mark {
    ($label:expr) => {
        $crate::rows::mark!($label, 0)
    };
    ($label:expr, $value:expr) => {{
        let (label, value): (u64, u64) = ($label, $value);
        // SAFETY: a hint that no CPU gives a meaning to. No access moves across it: some are what is measured.
        unsafe { core::arch::asm!("hint #0x7a", in("x0") label, in("x1") value, options(nostack)) };
    }};
}
#[allow(unused_imports, reason = "one file, three users")]
pub(crate) use mark;
