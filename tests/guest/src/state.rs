// SPDX-License-Identifier: MIT OR Apache-2.0
//! EL1 system and general registers hold what the guest put there, however often it leaves.

use crate::device;
use crate::proto::{DEVICE, HASH_SEED, REG_SCRATCH, pattern};
use crate::sysreg::{field, read, write};
use crate::trap;
use core::arch::global_asm;

/// General registers that the check fills: x2-x28 and x30.
const GENERAL: usize = 28;

macro_rules! system_registers {
    ($($register:literal = $mask:expr),+ $(,)?) => {
        /// Writes a pattern to each register and keeps what it then reads as.
        fn fill(seed: u64, kept: &mut [u64; SYSTEM]) {
            let mut slots = kept.iter_mut().zip(0u64..);
            $(if let Some((slot, n)) = slots.next() {
                write!($register, pattern(seed, n) & $mask);
                *slot = read!($register);
            })+
        }

        /// Counts the registers that read otherwise now.
        fn changed(kept: &[u64; SYSTEM]) -> u64 {
            let mut slots = kept.iter();
            [$(slots.next().is_some_and(|slot| *slot != read!($register))),+].iter().filter(|wrong| **wrong).count() as u64
        }

        /// Whether each of them is zero.
        fn none_is_set() -> bool {
            [$(read!($register)),+].iter().all(|value| *value == 0)
        }

        const SYSTEM: usize = [$($register),+].len();
    };
}

system_registers! {
    "tpidr_el0" = u64::MAX,
    "tpidrro_el0" = u64::MAX,
    "tpidr_el1" = u64::MAX,
    "contextidr_el1" = 0xffff_ffff,
    "par_el1" = 0x0000_ffff_ffff_f000,
    "far_el1" = u64::MAX,
    "esr_el1" = 0xffff_ffff,
    "elr_el1" = u64::MAX,
    "spsr_el1" = 0xf000_0000,
    "sp_el0" = 0xffff_ffff_ffff_fff0,
    "afsr0_el1" = 0xffff_ffff,
    "afsr1_el1" = 0xffff_ffff,
    "amair_el1" = u64::MAX,
    "ttbr1_el1" = 0x0000_00ff_ffff_f000,
    "cntkctl_el1" = 0x3,
    "cntv_cval_el0" = u64::MAX,
    "mair_el1" = 0xff00,
}

macro_rules! key_registers {
    ($($register:literal),+ $(,)?) => {
        fn fill_keys(seed: u64) {
            let mut n = 100;
            $(n += 1; write!($register, pattern(seed, n));)+
        }

        fn no_key_is_set() -> bool {
            [$(read!($register)),+].iter().all(|value| *value == 0)
        }

        fn changed_keys(seed: u64) -> u64 {
            let (mut n, mut wrong) = (100, 0);
            $(n += 1; wrong += u64::from(read!($register) != pattern(seed, n));)+
            wrong
        }
    };
}

key_registers! {
    "s3_0_c2_c1_0", "s3_0_c2_c1_1", "s3_0_c2_c1_2", "s3_0_c2_c1_3", "s3_0_c2_c2_0",
    "s3_0_c2_c2_1", "s3_0_c2_c2_2", "s3_0_c2_c2_3", "s3_0_c2_c3_0", "s3_0_c2_c3_1",
}

/// Whether the ID registers promise pointer authentication.
fn has_keys() -> bool {
    let isar1 = read!("id_aa64isar1_el1");
    let isar2 = read!("id_aa64isar2_el1");
    [4, 8, 24, 28].iter().any(|&at| field(isar1, at) != 0) || [8, 12].iter().any(|&at| field(isar2, at) != 0)
}

/// Whether the registers are those of a CPU that was just reset. Asked before anything sets one.
pub(crate) fn is_reset() -> bool {
    let others = [
        read!("vbar_el1"),
        read!("ttbr0_el1"),
        read!("tcr_el1"),
        read!("cpacr_el1"),
        read!("csselr_el1"),
        read!("mdscr_el1"),
        read!("cntv_ctl_el0"),
        // M, C and I.
        read!("sctlr_el1") & 0x1005,
    ];
    // Where there is a controller, the physical timer is there too.
    let timer = !has_controller() || (read!("cntp_ctl_el0") | read!("cntp_cval_el0") == 0);
    none_is_set() && others == [0; 8] && (!has_keys() || no_key_is_set()) && timer
}

fn has_controller() -> bool {
    field(read!("id_aa64pfr0_el1"), 24) != 0
}

/// An error that was deferred, and which: no guest of EL2's ever has one, but each may write so.
const DEFERRED: u64 = 1 << 31 | 1 << 24 | 0x5a_5a5a;
/// What a guest wrote may be gone at its next exit; so often in a row it is not.
const TRIES: usize = 100;

/// Whether DISR_EL1 is empty, or this CPU has none: it is UNDEFINED there, and no ID register shows it to a guest.
pub(crate) fn nothing_is_deferred() -> bool {
    let (value, esr) = trap::catching(|| read!("s3_0_c12_c1_1"));
    esr != 0 || value == 0
}

/// Leaves an error in DISR_EL1; false if the register is there and does not hold it.
fn defer() -> bool {
    let once = || {
        let (value, esr) = trap::catching(|| {
            write!("s3_0_c12_c1_1", DEFERRED);
            read!("s3_0_c12_c1_1")
        });
        esr != 0 || value & DEFERRED == DEFERRED
    };
    (0..TRIES).any(|_| once())
}

/// Fills what [`is_reset`] looks at and this program can do without, and leaves it so. The timers run, masked. Whether all
/// of it is there.
pub(crate) fn leave_full(seed: u64) -> bool {
    let deferred = defer();
    let mair = read!("mair_el1");
    fill(seed, &mut [0; SYSTEM]);
    write!("mair_el1", mair | 0xff00);
    if has_keys() {
        fill_keys(seed);
    }
    write!("csselr_el1", 2);
    write!("cntv_ctl_el0", 3);
    if has_controller() {
        write!("cntp_cval_el0", pattern(seed, 99));
        write!("cntp_ctl_el0", 3);
    }
    deferred
}

/// Fills everything, leaves `exits` times for EL2 and as often for the host, and counts registers that changed.
pub(crate) fn survives(exits: u64) -> u64 {
    let seed = read!("cntvct_el0") ^ HASH_SEED;
    let (mair, keys) = (read!("mair_el1"), has_keys());
    let mut kept = [0; SYSTEM];
    fill(seed, &mut kept);
    // MAIR's attribute 0, the one in use, stays normal memory throughout.
    write!("mair_el1", mair | 0xff);
    if let Some(last) = kept.last_mut() {
        *last = read!("mair_el1");
    }
    if keys {
        fill_keys(seed);
    }
    let mut wrong = 0;
    for exit in 0..exits {
        // One that EL2 answers itself, with all of this in place.
        let _ = read!("id_aa64pfr0_el1");
        device::write64(REG_SCRATCH, exit);
        wrong += general(seed ^ exit);
    }
    wrong += changed(&kept);
    if keys {
        wrong += changed_keys(seed);
    }
    write!("mair_el1", mair);
    wrong
}

/// Fills the general registers, leaves once, and counts those that changed.
fn general(seed: u64) -> u64 {
    let filled: [u64; GENERAL] = core::array::from_fn(|n| pattern(seed, n as u64));
    let mut found = filled;
    // SAFETY: the array is as long as the routine says; the device lies outside RAM.
    unsafe { guest_general_exit(&mut found, DEVICE + REG_SCRATCH) };
    filled.iter().zip(&found).filter(|(was, is)| was != is).count() as u64
}

unsafe extern "C" {
    /// Loads x2-x28 and x30 from `registers`, stores to `device`, and stores them back.
    ///
    /// # Safety
    /// `device` must not be memory of this program.
    fn guest_general_exit(registers: &mut [u64; GENERAL], device: u64);
}

global_asm!(
    // x0: registers, x1: device. The caller's x19-x30 go to the stack.
    ".pushsection .text.guest_general_exit, \"ax\"",
    ".global guest_general_exit",
    "guest_general_exit:",
    "    stp     x29, x30, [sp, #-96]!",
    "    stp     x19, x20, [sp, #16]",
    "    stp     x21, x22, [sp, #32]",
    "    stp     x23, x24, [sp, #48]",
    "    stp     x25, x26, [sp, #64]",
    "    stp     x27, x28, [sp, #80]",
    ".macro guest_general operation",
    "    \\operation x2, x3, [x0, #0]",
    "    \\operation x4, x5, [x0, #16]",
    "    \\operation x6, x7, [x0, #32]",
    "    \\operation x8, x9, [x0, #48]",
    "    \\operation x10, x11, [x0, #64]",
    "    \\operation x12, x13, [x0, #80]",
    "    \\operation x14, x15, [x0, #96]",
    "    \\operation x16, x17, [x0, #112]",
    "    \\operation x18, x19, [x0, #128]",
    "    \\operation x20, x21, [x0, #144]",
    "    \\operation x22, x23, [x0, #160]",
    "    \\operation x24, x25, [x0, #176]",
    "    \\operation x26, x27, [x0, #192]",
    "    \\operation x28, x30, [x0, #208]",
    ".endm",
    "    guest_general ldp",
    "    str     xzr, [x1]",
    "    guest_general stp",
    "    ldp     x19, x20, [sp, #16]",
    "    ldp     x21, x22, [sp, #32]",
    "    ldp     x23, x24, [sp, #48]",
    "    ldp     x25, x26, [sp, #64]",
    "    ldp     x27, x28, [sp, #80]",
    "    ldp     x29, x30, [sp], #96",
    "    ret",
    ".popsection",
);
