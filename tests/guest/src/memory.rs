// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's RAM as words at addresses: hashing, filling, comparing.

use crate::proto::{
    HASH_FROM, HASH_SEED, HEADER_HASH_OFFSET, HEADER_LEN_OFFSET, RAM_BASE, SECRET_BASE, VOLATILE_BASE, hash_step,
    pattern,
};
use crate::secret;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    static guest_image_end: u8;
}

/// Loads one word.
pub(crate) fn load(address: u64) -> u64 {
    // SAFETY: the payload owns the machine's address space; an address that is not RAM traps, and
    // the trap handler reports it. Alignment is the caller's: a misaligned one traps as well.
    unsafe { (address as *const u64).read_volatile() }
}

/// Stores one word. Only for memory that no Rust object lives in.
pub(crate) fn store(address: u64, value: u64) {
    // SAFETY: as in `load`; callers pass the arenas, which hold no Rust object.
    unsafe { (address as *mut u64).write_volatile(value) }
}

macro_rules! store_by {
    ($text:literal, $address:expr, $value:expr) => {
        // SAFETY: as in `store`; one store, whatever else is in the register.
        unsafe { asm!($text, in("x0") $value, in("x1") $address, options(nostack)) }
    };
}

/// Stores the lowest `bytes` of a word if they are 1, 2 or 4, else all of it.
pub(crate) fn store_of(address: u64, value: u64, bytes: u64) {
    match bytes {
        1 => store_by!("strb w0, [x1]", address, value),
        2 => store_by!("strh w0, [x1]", address, value),
        4 => store_by!("str w0, [x1]", address, value),
        _ => store_by!("str x0, [x1]", address, value),
    }
}

/// Adds to one word, whoever else does meanwhile. Only for memory that no Rust object lives in.
pub(crate) fn add(address: u64, value: u64) {
    // SAFETY: as in `store`; every CPU has the arenas as cacheable memory.
    let word = unsafe { AtomicU64::from_ptr(address as *mut u64) };
    word.fetch_add(value, Ordering::Relaxed);
}

fn words(start: u64, bytes: u64) -> impl Iterator<Item = u64> {
    (0..bytes / 8).map(move |n| start + n * 8)
}

/// Hash of a range.
pub(crate) fn hash(start: u64, bytes: u64) -> u64 {
    words(start, bytes).fold(HASH_SEED, |hash, at| hash_step(hash, load(at)))
}

/// Hash of the image from `HASH_FROM` on, over the length in the header or, unpatched, as linked.
pub(crate) fn image_hash() -> u64 {
    let linked = &raw const guest_image_end as u64 - RAM_BASE;
    let length = match load(RAM_BASE + HEADER_LEN_OFFSET as u64) {
        length if length > HASH_FROM as u64 && length <= VOLATILE_BASE - RAM_BASE => length,
        _ => linked,
    };
    hash(RAM_BASE + HASH_FROM as u64, length.next_multiple_of(8) - HASH_FROM as u64)
}

/// What the build says that hash is.
pub(crate) fn header_hash() -> u64 {
    load(RAM_BASE + HEADER_HASH_OFFSET as u64)
}

/// Hash of everything that must not change once the payload runs.
pub(crate) fn constant_hash() -> u64 {
    hash_step(image_hash(), hash(SECRET_BASE, secret::BYTES))
}

/// Fills a range with the pattern of `seed`.
pub(crate) fn fill(start: u64, bytes: u64, seed: u64) {
    words(start, bytes).for_each(|at| store(at, pattern(seed, at)));
}

/// Counts words that `wrong` says are wrong; returns the count and the first one's address.
pub(crate) fn count(start: u64, bytes: u64, wrong: impl Fn(u64, u64) -> bool) -> (u64, u64) {
    words(start, bytes).filter(|&at| wrong(at, load(at))).fold((0, 0), |(n, first), at| match n {
        0 => (1, at),
        _ => (n + 1, first),
    })
}

/// Writes text and a zero byte at an 8-aligned address.
pub(crate) fn write_text(at: u64, text: &str) {
    let bytes = text.as_bytes();
    for n in 0..=bytes.len() / 8 {
        let word = (0..8).fold(0, |word, k| {
            let byte = bytes.get(n * 8 + k).copied().unwrap_or(0);
            word | u64::from(byte) << (8 * k)
        });
        store(at + 8 * n as u64, word);
    }
}
