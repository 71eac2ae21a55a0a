// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls to EL2: pKVM's memory calls and PSCI, by HVC.

use core::arch::asm;

const MEM_SHARE: u64 = 0xc600_0003;
const MEM_UNSHARE: u64 = 0xc600_0004;
const MEM_RELINQUISH: u64 = 0xc600_0009;
const ATTEST: u64 = 0xc600_0070;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

/// HVC with three arguments; returns x0, x1, x2.
pub(crate) fn hvc(function: u64, arguments: [u64; 3]) -> [u64; 3] {
    let [mut x0, mut x1, mut x2] = [function, arguments[0], arguments[1]];
    // SAFETY: SMCCC: a call may change x0-x17 and memory that it was told of, which holds no Rust
    // object here.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") arguments[2] => _,
            inout("x4") 0u64 => _, inout("x5") 0u64 => _, inout("x6") 0u64 => _, inout("x7") 0u64 => _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    [x0, x1, x2]
}

/// Lends granules to the host.
pub(crate) fn share(address: u64, count: u64) -> [u64; 3] {
    hvc(MEM_SHARE, [address, count, 0])
}

/// Takes granules back from the host.
pub(crate) fn unshare(address: u64, count: u64) -> [u64; 3] {
    hvc(MEM_UNSHARE, [address, count, 0])
}

/// Gives a granule back for good.
pub(crate) fn relinquish(address: u64) -> [u64; 3] {
    hvc(MEM_RELINQUISH, [address, 0, 0])
}

/// Asks for the report; x0–x9.
pub(crate) fn attest(nonce: [u64; 4]) -> [u64; 10] {
    let mut x = [ATTEST, nonce[0], nonce[1], nonce[2], nonce[3], 0, 0, 0, 0, 0];
    // SAFETY: SMCCC: a call may change x0-x17; this one touches no memory.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3], inout("x4") x[4],
            inout("x5") x[5], inout("x6") x[6], inout("x7") x[7], inout("x8") x[8], inout("x9") x[9],
            out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack, nomem),
        );
    }
    x
}

/// Ends the VM.
pub(crate) fn system_off() -> ! {
    loop {
        hvc(SYSTEM_OFF, [0; 3]);
    }
}

/// Asks for a reset of the VM.
pub(crate) fn system_reset() -> ! {
    loop {
        hvc(SYSTEM_RESET, [0; 3]);
    }
}
