// SPDX-License-Identifier: GPL-2.0-only
//! The glue's services, as Rust sees them. Mirrors `glue/glue.h`.
//!
//! Each wrapper is safe to call and holds one foreign call; what the glue needs of its arguments is in their types.
// UNSAFETY: foreign calls into the C glue.

use core::fmt::{self, Write};

extern "C" {
    fn fhc_log(level: i32, text: *const u8, len: usize);
    fn fhc_bug(text: *const u8, len: usize) -> !;
    fn fhc_el2_conduit() -> i32;
    fn fhc_el2_uid(words: *mut u32);
    fn fhc_el2_call(regs: *mut u64);
    fn fhc_el2_run(regs: *mut u64);
}

/// How urgent a message is.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Error = 0,
    /// Rate-limited.
    Warning = 1,
    Info = 2,
}

/// One line of text on the stack; what does not fit is cut off.
pub(crate) struct Line {
    text: [u8; 160],
    len: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { text: [0; 160], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for b in s.bytes() {
            let Some(slot) = self.text.get_mut(self.len) else { return Ok(()) };
            *slot = b;
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Writes one line to the kernel's log, behind `freehold: `.
pub(crate) fn log(level: Level, args: fmt::Arguments<'_>) {
    let mut line = Line::new();
    if line.write_fmt(args).is_err() {
        return;
    }
    let text = line.bytes();
    // SAFETY: `text` is valid for reads of its length for the whole call, which is all that the glue asks.
    unsafe { fhc_log(level as i32, text.as_ptr(), text.len()) }
}

/// How this kernel calls what lies below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Conduit {
    None,
    Hvc,
    Smc,
}

/// Asks the kernel for its SMCCC conduit.
pub(crate) fn conduit() -> Conduit {
    // SAFETY: takes nothing and only reads what the kernel found at boot.
    match unsafe { fhc_el2_conduit() } {
        1 => Conduit::Hvc,
        2 => Conduit::Smc,
        _ => Conduit::None,
    }
}

/// Asks for the vendor-hypervisor UID. The caller has seen that there is a conduit.
pub(crate) fn uid() -> [u32; 4] {
    let mut words = [0; 4];
    // SAFETY: `words` is writable for four u32, which is what the glue fills.
    unsafe { fhc_el2_uid(words.as_mut_ptr()) };
    words
}

/// Makes one call to EL2 with x0–x17, and leaves its results there. Only after [`uid`] answered.
pub(crate) fn el2_call(regs: &mut [u64; 18]) {
    // SAFETY: `regs` is readable and writable for 18 u64, which is what the glue reads and fills.
    unsafe { fhc_el2_call(regs.as_mut_ptr()) }
}

/// As [`el2_call`], with this CPU's interrupts masked around the call.
pub(crate) fn el2_run(regs: &mut [u64; 18]) {
    // SAFETY: `regs` is readable and writable for 18 u64, which is what the glue reads and fills.
    unsafe { fhc_el2_run(regs.as_mut_ptr()) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut line = Line::new();
    // A line that does not fit is cut; the writer has no other failure.
    let _ = line.write_fmt(format_args!("{info}"));
    let text = line.bytes();
    // SAFETY: `text` is valid for reads of its length; the glue ends this thread and does not return.
    unsafe { fhc_bug(text.as_ptr(), text.len()) }
}
