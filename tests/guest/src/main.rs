// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest payload: bare-metal EL1 code that proves what runs inside a VM.
//!
//! It turns its own stage 1 on, checks its image, makes a secret that leaves it only masked, greets
//! the host through a page that it shares, and then does what the VMM asks, one command at a time.
//! `proto.rs` is the contract. It trusts nobody's answer but uses it: it is a test, not a system.
#![no_std]
#![no_main]

mod bench;
mod commands;
mod cpus;
mod device;
mod extremes;
mod fp;
mod gic;
mod held;
mod hidden;
mod hypercall;
mod ids;
mod interrupts;
mod last;
mod memory;
mod mmio;
mod mmu;
mod proto;
mod rows;
mod secret;
mod start;
mod state;
mod storm;
mod sweep;
mod sysreg;
mod trap;
mod undescribed;

use proto::{
    BOOT_FP, BOOT_FRESH, BOOT_LINE, BOOT_NO_SHARE, BOOT_QUIET, BOOT_STAGE1, GREETING, REG_BOOT_FACTS, REG_BOOT_HASH,
    REG_BOOT_HASH_OK, REG_BOOT_SECRET0, REG_BOOT_SECRET1, REG_BOOT_SHARED, SECRET_MASK, SHARE_BASE,
};

/// First Rust of the payload: MMU off, stack set, volatile memory zeroed.
#[unsafe(no_mangle)]
extern "C" fn guest_main(flags: u64, entropy: u64, general: u64) -> ! {
    let system = general == 0 && state::is_reset();
    let hash = memory::image_hash();
    trap::install();
    mmu::enable();
    fp::enable();
    let fresh = system && fp::is_reset() && state::nothing_is_deferred();
    device::write64(REG_BOOT_HASH, hash);
    device::write64(REG_BOOT_HASH_OK, u64::from(hash == memory::header_hash()));
    device::write64(REG_BOOT_FACTS, facts() | if fresh { BOOT_FRESH } else { 0 });
    let secret = secret::make(entropy);
    secret::store_copies(secret);
    device::write64(REG_BOOT_SECRET0, secret[0] ^ SECRET_MASK[0]);
    device::write64(REG_BOOT_SECRET1, secret[1] ^ SECRET_MASK[1]);
    if flags & BOOT_NO_SHARE == 0 {
        device::write64(REG_BOOT_SHARED, greet());
    }
    if flags & BOOT_QUIET == 0 {
        device::print(BOOT_LINE);
        device::print("\n");
    }
    commands::serve()
}

fn facts() -> u64 {
    let stage1 = if mmu::is_on() { BOOT_STAGE1 } else { 0 };
    let fp = if fp::computes() { BOOT_FP } else { 0 };
    stage1 | fp
}

/// Writes the greeting and shares its page. Returns the page's address, or the call's status.
fn greet() -> u64 {
    memory::write_text(SHARE_BASE, GREETING);
    match hypercall::share(SHARE_BASE, 1)[0] {
        0 => SHARE_BASE,
        status => status,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    device::print("freehold-guest: panic\n");
    hypercall::system_off()
}
