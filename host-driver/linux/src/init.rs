// SPDX-License-Identifier: GPL-2.0-only
//! Looks for `el2` below this kernel, and says what it found.
//!
//! No bare HVC is made: the UID query goes through the kernel's own conduit (a VHE host without a hypervisor below
//! would panic on an HVC), and every other call only after the UID matched.
// UNSAFETY: exports one entry symbol.

use crate::sys::{self, log, Conduit, Level};
use freehold_uapi::{hvc, ABI_VERSION};

const ENODEV: i64 = 19;

/// Entry from `module_init`: 0, or `-ENODEV` with one line that says why.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_init() -> i64 {
    match find() {
        Ok(()) => 0,
        Err(()) => -ENODEV,
    }
}

fn find() -> Result<(), ()> {
    if sys::conduit() == Conduit::None {
        log(Level::Error, format_args!("no el2 below this kernel: no SMCCC 1.1 conduit; boot freehold.img first"));
        return Err(());
    }
    let uid = sys::uid();
    if uid != hvc::UID {
        log(
            Level::Error,
            format_args!("no el2 below this kernel: UID query answered {:#010x}; boot freehold.img first", uid[0]),
        );
        return Err(());
    }
    let mut regs = [0; 18];
    regs[0] = u64::from(hvc::VERSION);
    sys::el2_call(&mut regs);
    let [status, abi, release, max_vms, max_vcpus, ..] = regs;
    if status != 0 || abi >> 16 != u64::from(ABI_VERSION >> 16) || (abi & 0xffff) < u64::from(ABI_VERSION & 0xffff) {
        log(
            Level::Error,
            format_args!(
                "el2 speaks ABI {}.{}, this module {}.{}",
                abi >> 16,
                abi & 0xffff,
                ABI_VERSION >> 16,
                ABI_VERSION & 0xffff
            ),
        );
        return Err(());
    }
    log(
        Level::Info,
        format_args!(
            "found el2 {}.{}.{}, ABI {}.{}, {} VMs of {} vCPUs",
            release >> 16,
            (release >> 8) & 0xff,
            release & 0xff,
            abi >> 16,
            abi & 0xffff,
            max_vms,
            max_vcpus
        ),
    );
    Ok(())
}
