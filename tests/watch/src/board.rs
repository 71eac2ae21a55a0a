// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's board: that nobody writes to it without its lock.
//!
//! What a guest's interrupts must be is not specified here; `el2/virt` compares them with a controller of its own.

use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_virt::board::Board;

use crate::lock::Observer;

/// Who is told.
pub trait Told {
    /// A board is not as it was when its lock was let go. Does not return.
    fn written(&self);
    /// This CPU holds a board's lock for the last moment.
    fn let_go(&self);
}

/// What a board was when its lock was let go last.
#[derive(Debug)]
pub struct Last<W> {
    digest: AtomicU64,
    who: W,
}

impl<W> Last<W> {
    /// Of a board that nobody has locked yet.
    pub const fn new(who: W) -> Self {
        Self { digest: AtomicU64::new(0), who }
    }
}

impl<W: Told> Observer<Board> for Last<W> {
    fn taken(&self, board: &Board) {
        let then = self.digest.load(Ordering::Relaxed);
        if then != 0 && then != digest(board) {
            self.who.written();
        }
    }

    fn letting_go(&self, board: &Board) {
        self.who.let_go();
        self.digest.store(digest(board), Ordering::Relaxed);
    }
}

/// FNV-1a over all of it; never zero.
fn digest(board: &Board) -> u64 {
    let mut all = Fnv(0xcbf2_9ce4_8422_2325);
    board.hash(&mut all);
    all.finish() | 1
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
