// SPDX-License-Identifier: MIT OR Apache-2.0
//! FP and SIMD, lazily: the host's vectors stay in the registers until the guest first uses one.
//!
//! Guarantees: the host's Z0-Z31, P0-P15 and FFR at the longest length, FPCR, FPSR and FPMR are the
//! same after a run as before; ZA and ZT0 are never touched, for a guest's SME instructions trap
//! (CPTR_EL2.TSM). Streaming mode would change what the V registers are: a host that left it on is
//! refused. The guest has V0-V31, FPCR and FPSR; everything longer traps.
//!
//! EL2 is compiled without FP, so that only the asm below ever touches a vector register.

use super::traps::guest_cptr;
use crate::barrier;
use crate::features::sve::host_cptr;
use crate::features::{Has, Ids};
use core::arch::global_asm;

/// SVCR: streaming mode is on.
const SVCR_SM: u64 = 1;
/// Bytes of 32 vectors of 2048 bits.
const Z_BYTES: usize = 32 * 256;
/// Bytes of 16 predicates and FFR at that length.
const P_BYTES: usize = 17 * 32;

/// FPCR, FPSR and FPMR.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Control {
    fpcr: u64,
    fpsr: u64,
    fpmr: u64,
}

impl Control {
    const fn new() -> Self {
        Self { fpcr: 0, fpsr: 0, fpmr: 0 }
    }

    fn save(&mut self, ids: Has) {
        self.fpcr = read_sysreg!("s3_3_c4_c4_0");
        self.fpsr = read_sysreg!("s3_3_c4_c4_1");
        if ids.has_fpmr() {
            self.fpmr = read_sysreg!("s3_3_c4_c4_2");
        }
    }

    fn load(&self, ids: Has) {
        write_sysreg!("s3_3_c4_c4_0", self.fpcr);
        write_sysreg!("s3_3_c4_c4_1", self.fpsr);
        if ids.has_fpmr() {
            write_sysreg!("s3_3_c4_c4_2", self.fpmr);
        }
    }
}

/// A guest's vector registers.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub(super) struct GuestFp {
    v: [[u64; 2]; 32],
    control: Control,
}

impl GuestFp {
    pub(super) const fn new() -> Self {
        Self { v: [[0; 2]; 32], control: Control::new() }
    }

    /// The vectors by halves, FPCR and FPSR.
    pub(super) fn words(&mut self) -> impl Iterator<Item = &mut u64> {
        self.v.as_flattened_mut().iter_mut().chain([&mut self.control.fpcr, &mut self.control.fpsr])
    }
}

/// The host's vector registers of one CPU, and whose are in the registers now.
#[derive(Debug)]
#[repr(C, align(16))]
pub(super) struct HostFp {
    z: [u8; Z_BYTES],
    p: [u8; P_BYTES],
    control: Control,
    pub(super) guest_has_it: bool,
}

impl HostFp {
    pub(super) const fn new() -> Self {
        Self { z: [0; Z_BYTES], p: [0; P_BYTES], control: Control::new(), guest_has_it: false }
    }

    /// Saves the host's vectors, loads the guest's, and lets the guest use them.
    pub(super) fn give_to_guest(&mut self, guest: &GuestFp, ids: Has) {
        open_vectors(host_cptr(&Ids));
        self.control.save(ids);
        if ids.has_sve() {
            // SAFETY: CPTR_EL2 traps no SVE, ZCR_EL2 is the longest length since boot, and the two
            // areas hold that much.
            unsafe { freehold_save_z(self.z.as_mut_ptr(), self.p.as_mut_ptr()) };
        } else {
            // SAFETY: CPTR_EL2 traps no FP; the area holds 32 vectors of 16 bytes.
            unsafe { freehold_save_v(self.z.as_mut_ptr()) };
        }
        // SAFETY: as above; this zeroes whatever is longer than 16 bytes.
        unsafe { freehold_load_v(guest.v.as_ptr().cast()) };
        guest.control.load(ids);
        open_vectors(guest_cptr(true));
        self.guest_has_it = true;
    }

    /// Saves the guest's vectors and loads the host's. The host's CPTR_EL2 must be in force.
    pub(super) fn take_from_guest(&mut self, guest: &mut GuestFp, ids: Has) {
        guest.control.save(ids);
        // SAFETY: the host's CPTR_EL2 traps no FP; the area holds 32 vectors of 16 bytes.
        unsafe { freehold_save_v(guest.v.as_mut_ptr().cast()) };
        if ids.has_sve() {
            // SAFETY: as in `give_to_guest`, which filled both areas in this run.
            unsafe { freehold_load_z(self.z.as_ptr(), self.p.as_ptr()) };
        } else {
            // SAFETY: as in `give_to_guest`.
            unsafe { freehold_load_v(self.z.as_ptr()) };
        }
        self.control.load(ids);
        self.guest_has_it = false;
    }
}

/// Whether the host left PSTATE.SM set.
pub(super) fn host_is_streaming(ids: Has) -> bool {
    ids.has_sme() && read_sysreg!("s3_3_c4_c2_2") & SVCR_SM != 0
}

fn open_vectors(cptr: u64) {
    write_sysreg!("cptr_el2", cptr);
    barrier::registers_in_effect();
}

unsafe extern "C" {
    /// # Safety
    /// FP is not trapped; `area` holds 512 bytes.
    fn freehold_save_v(area: *mut u8);
    /// # Safety
    /// As `freehold_save_v`; what the V registers hold is not needed any more.
    fn freehold_load_v(area: *const u8);
    /// # Safety
    /// SVE is implemented and not trapped; the areas hold 32 vectors, 16 predicates and FFR.
    fn freehold_save_z(vectors: *mut u8, predicates: *mut u8);
    /// # Safety
    /// As `freehold_save_z`; what the vectors and predicates hold is not needed any more.
    fn freehold_load_z(vectors: *const u8, predicates: *const u8);
}

// x0: area (v) or vectors (z), x1: predicates. No other general register is touched.
global_asm!(
    ".pushsection .text.freehold_fp, \"ax\"",
    ".arch_extension fp",
    ".arch_extension simd",
    ".arch_extension sve",
    ".macro freehold_vector_pair op, n, m",
    "    \\op    q\\n, q\\m, [x0, #(16 * \\n)]",
    ".endm",
    ".macro freehold_q0_to_q31 op",
    ".altmacro",
    ".irp n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30",
    "    freehold_vector_pair \\op, \\n, %\\n + 1",
    ".endr",
    ".noaltmacro",
    ".endm",
    ".balign 16",
    ".global freehold_save_v",
    "freehold_save_v:",
    "    freehold_q0_to_q31 stp",
    "    ret",
    ".global freehold_load_v",
    "freehold_load_v:",
    "    freehold_q0_to_q31 ldp",
    "    ret",
    ".global freehold_save_z",
    "freehold_save_z:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    str     z\\n, [x0, #\\n, mul vl]",
    "    str     p\\n, [x1, #\\n, mul vl]",
    ".endr",
    ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "    str     z\\n, [x0, #\\n, mul vl]",
    ".endr",
    "    rdffr   p0.b",
    "    str     p0, [x1, #16, mul vl]",
    // p0 is the host's: it is put back by freehold_load_z.
    "    ret",
    ".global freehold_load_z",
    "freehold_load_z:",
    "    ldr     p0, [x1, #16, mul vl]",
    "    wrffr   p0.b",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    ldr     z\\n, [x0, #\\n, mul vl]",
    "    ldr     p\\n, [x1, #\\n, mul vl]",
    ".endr",
    ".irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "    ldr     z\\n, [x0, #\\n, mul vl]",
    ".endr",
    "    ret",
    ".arch_extension nosve",
    ".arch_extension nosimd",
    ".arch_extension nofp",
    ".popsection",
);
