// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor: it boots first, keeps EL2, and drops the host to EL1 under its stage 2.
//!
//! This binary names the symbols that the entry and the vectors call, and says that nobody watches. What stands behind
//! them is the library's.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols {
    use core::panic::PanicInfo;
    use freehold_arch::vectors::HostFrame;
    use freehold_el2::wiring::{Plain, boot, trap};

    #[unsafe(no_mangle)]
    extern "C" fn freehold_main(dtb: usize) -> ! {
        boot::main::<Plain>(dtb)
    }

    #[unsafe(no_mangle)]
    extern "C" fn freehold_host_sync(frame: &mut HostFrame) {
        trap::host_sync::<Plain>(frame);
    }

    #[unsafe(no_mangle)]
    extern "C" fn freehold_secondary_main() -> ! {
        trap::secondary_main::<Plain>()
    }

    #[panic_handler]
    fn panicked(info: &PanicInfo<'_>) -> ! {
        freehold_arch::fatal::panic(format_args!("{info}"))
    }
}

/// On the development machine there is nothing to run: the binary exists for `aarch64-unknown-none`.
#[cfg(not(target_os = "none"))]
fn main() {}
