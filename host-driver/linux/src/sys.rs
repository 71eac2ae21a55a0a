// SPDX-License-Identifier: GPL-2.0-only
//! The kernel at large, through the glue: messages, user memory, time, signals, frames. Mirrors `glue/glue.h`.
//!
//! Each wrapper is safe to call and holds one foreign call; what the glue needs of its arguments is in their types.
// UNSAFETY: foreign calls into the C glue.

use core::ffi::c_void;
use core::fmt::{self, Write};
use core::mem::size_of;
use freehold_driver_core::error::Error;
use freehold_uapi::ioctl as io;

extern "C" {
    fn fhc_log(level: i32, text: *const u8, len: usize);
    fn fhc_bug(text: *const u8, len: usize) -> !;
    fn fhc_alloc(size: usize) -> *mut c_void;
    fn fhc_free(ptr: *mut c_void);
    fn fhc_copy_in(to: *mut c_void, from: usize, len: usize) -> bool;
    fn fhc_copy_out(to: usize, from: *const c_void, len: usize) -> bool;
    fn fhc_now() -> u64;
    fn fhc_pause(micros: u32, deaf: bool);
    fn fhc_doze();
    fn fhc_counter() -> u64;
    fn fhc_counter_frequency() -> u64;
    fn fhc_signal() -> bool;
    fn fhc_called_away() -> bool;
    fn fhc_dying() -> bool;
    fn fhc_breathe();
    fn fhc_page_take(order: u32) -> u64;
    fn fhc_page_give_back(pfn: u64, count: u64);
    fn fhc_page_address(pfn: u64) -> *mut c_void;
    fn fhc_el2_conduit() -> i32;
    fn fhc_el2_uid(words: *mut u32);
    fn fhc_el2_call(regs: *mut u64);
    fn fhc_el2_run(regs: *mut u64) -> bool;
}

/// How urgent a message is.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Error = 0,
    Info = 2,
}

/// One line of text on the stack; what does not fit is cut off.
pub(crate) struct Line {
    text: [u8; 160],
    len: usize,
}

impl Line {
    const fn new() -> Self {
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

/// Zeroed memory for `count` values of `T`, or null.
///
/// The kernel aligns any allocation to 8 bytes at least, which is what every type here needs.
pub(crate) fn alloc<T>(count: usize) -> *mut T {
    const { assert!(align_of::<T>() <= 8) };
    let Some(size) = size_of::<T>().checked_mul(count) else { return core::ptr::null_mut() };
    // SAFETY: any size may be asked for; the answer is null or memory of that size.
    unsafe { fhc_alloc(size) }.cast()
}

/// Returns memory of [`alloc`] to the kernel.
///
/// # Safety
/// `ptr` came from [`alloc`] (or is null), was not freed before, and is not used again.
pub(crate) unsafe fn free<T>(ptr: *mut T) {
    // SAFETY: the caller's promise is the glue's condition.
    unsafe { fhc_free(ptr.cast()) }
}

/// A structure of the ABI: plain numbers, no padding, any bits are a value.
///
/// # Safety
/// Implemented only for such types.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),+ $(,)?) => { $(
        // SAFETY: the type is `repr(C)` of integers without padding (a test of `uapi` compares the layout with C's).
        unsafe impl Plain for $name {}
    )+ };
}
plain!(
    u32,
    u64,
    [u64; 2],
    io::Irqfd,
    io::Ioeventfd,
    io::IrqLevel,
    io::CreateDevice,
    io::DeviceAttr,
    io::MpState,
    io::MemoryRegion,
    io::MemoryRegion2,
    io::CreateGuestMemfd,
    io::VcpuInit,
    io::OneReg,
    io::EnableCap,
    io::ProtectedVmInfo,
    io::Convert,
    io::Pending,
    io::Outcome,
    io::Populate,
    io::MemoryAttributes,
    io::MemoryAttributes2,
);

/// Copies a structure from the caller's memory, once.
pub(crate) fn copy_in<T: Plain>(from: usize) -> Result<T, Error> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `value` is writable for the size of `T`; the kernel checks the user's address.
    let done = unsafe { fhc_copy_in(value.as_mut_ptr().cast(), from, size_of::<T>()) };
    if !done {
        return Err(Error::Fault);
    }
    // SAFETY: every byte is written, and `T: Plain` makes any bytes a value.
    Ok(unsafe { value.assume_init() })
}

/// Copies a structure to the caller's memory.
pub(crate) fn copy_out<T: Plain>(to: usize, value: &T) -> Result<(), Error> {
    // SAFETY: `value` is readable for the size of `T` and has no padding (`Plain`); the kernel checks the user's address.
    let done = unsafe { fhc_copy_out(to, core::ptr::from_ref(value).cast(), size_of::<T>()) };
    if done {
        Ok(())
    } else {
        Err(Error::Fault)
    }
}

/// Milliseconds since boot.
pub(crate) fn now() -> u64 {
    // SAFETY: takes nothing; reads the kernel's clock.
    unsafe { fhc_now() }
}

/// Sleeps for about `micros`; a signal ends it early unless it is deaf.
pub(crate) fn pause(micros: u32, deaf: bool) {
    // SAFETY: called from a thread that may sleep, as every entry of this module is.
    unsafe { fhc_pause(micros, deaf) }
}

/// The counter that guests' timers are told by.
pub(crate) fn counter() -> u64 {
    // SAFETY: takes nothing; reads the counter.
    unsafe { fhc_counter() }
}

/// Its ticks in a second.
pub(crate) fn counter_frequency() -> u64 {
    // SAFETY: takes nothing; reads the counter's frequency.
    unsafe { fhc_counter_frequency() }
}

/// Sleeps for a tick, or until a signal.
pub(crate) fn doze() {
    // SAFETY: called from a thread that may sleep, as every entry of this module is.
    unsafe { fhc_doze() }
}

/// Whether a signal is pending for this thread.
pub(crate) fn signal() -> bool {
    // SAFETY: takes nothing; reads the thread's own flags.
    unsafe { fhc_signal() }
}

/// Whether the kernel has work for this thread on its way to its process; if so, it is made to go there.
pub(crate) fn called_away() -> bool {
    // SAFETY: takes nothing; reads and sets the thread's own flags.
    unsafe { fhc_called_away() }
}

/// Whether this thread is being killed.
pub(crate) fn dying() -> bool {
    // SAFETY: takes nothing; reads the thread's own flags.
    unsafe { fhc_dying() }
}

/// Lets others run if they should.
pub(crate) fn breathe() {
    // SAFETY: called from a thread that may sleep, as every entry of this module is.
    unsafe { fhc_breathe() }
}

/// Takes `1 << order` contiguous frames, hidden from dumps and scanners.
pub(crate) fn page_take(order: u32) -> Option<u64> {
    // SAFETY: any order may be asked for.
    match unsafe { fhc_page_take(order) } {
        u64::MAX => None,
        pfn => Some(pfn),
    }
}

/// Returns frames of [`page_take`] to the kernel.
///
/// # Safety
/// The frames are one answer of [`page_take`], the host's, not returned before, and not used again.
pub(crate) unsafe fn page_give_back(pfn: u64, count: u64) {
    // SAFETY: the caller's promise is the glue's condition.
    unsafe { fhc_page_give_back(pfn, count) }
}

/// The kernel's address of a frame of [`page_take`].
///
/// # Safety
/// The frame is one of an answer of [`page_take`] that was not returned yet.
pub(crate) unsafe fn page_address(pfn: u64) -> *mut c_void {
    // SAFETY: the caller's promise is the glue's condition.
    unsafe { fhc_page_address(pfn) }
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

/// As [`el2_call`], with this CPU's interrupts masked around the call; `false` if something is pending for this thread,
/// and then no call was made.
pub(crate) fn el2_run(regs: &mut [u64; 18]) -> bool {
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
