// SPDX-License-Identifier: MIT OR Apache-2.0
//! A random secret of 128 bits, and many copies of it in private pages.

use crate::memory::{load, store};
use crate::proto::{GRANULE, HASH_SEED, SECRET_BASE, SECRET_PAGES, hash_step, pattern};
use crate::sysreg::{counter, field, read};
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the arena.
pub(crate) const BYTES: u64 = SECRET_PAGES * GRANULE;
/// One copy stands at the start of each of these.
const STRIDE: u64 = 64;
/// Rounds of mixing where there is no random number instruction.
const ROUNDS: u64 = 256;

static SECRET: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Makes the secret from the CPU's random numbers if it has any, the counter's jitter, and `entropy`.
pub(crate) fn make(entropy: u64) -> [u64; 2] {
    let mut hash = hash_step(HASH_SEED, entropy);
    let has_random = field(read!("id_aa64isar0_el1"), 60) != 0;
    let secret = core::array::from_fn(|_| {
        for round in 0..ROUNDS {
            hash = hash_step(hash, counter() ^ round);
        }
        if has_random {
            hash = hash_step(hash, random());
        }
        hash
    });
    SECRET.iter().zip(secret).for_each(|(to, from)| to.store(from, Ordering::Relaxed));
    secret
}

/// The secret.
pub(crate) fn get() -> [u64; 2] {
    core::array::from_fn(|n| SECRET[n].load(Ordering::Relaxed))
}

/// RNDR. When it fails it reads zero, which the mixing bears.
fn random() -> u64 {
    read!("s3_3_c2_c4_0")
}

fn word(secret: [u64; 2], at: u64) -> u64 {
    match at % STRIDE {
        0 => secret[0],
        8 => secret[1],
        _ => pattern(0, at),
    }
}

/// Fills the arena with copies.
pub(crate) fn store_copies(secret: [u64; 2]) {
    (SECRET_BASE..SECRET_BASE + BYTES).step_by(8).for_each(|at| store(at, word(secret, at)));
}

/// Counts words of the arena that are not what was stored.
pub(crate) fn damage() -> u64 {
    let secret = get();
    (SECRET_BASE..SECRET_BASE + BYTES).step_by(8).filter(|&at| load(at) != word(secret, at)).count() as u64
}
