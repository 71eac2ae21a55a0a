// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a VM: every frame that it was given comes back, scrubbed, and the offsets are as in a new file.
//!
//! Keeps the driver's half of I8. A frame goes back to the kernel only after `el2` said that it is the host's again; one
//! that `el2` keeps is lost: leaked, and said so. May be called again until it is complete.

use crate::el2::{Conduit, El2, Handle, Run};
use crate::error::Error;
use crate::file::{Book, File, Open, Thread};
use crate::page::{Initial, Page, Span};
use crate::pool;
use crate::status::Refused;
use freehold_uapi::hvc::{self, MAX_RUN};

/// Success without progress that is believed before `el2` is.
const PATIENCE: u32 = 1000;

/// Milliseconds that a VM's end waits for its vCPUs, for conversions under way, and before a reboot for whoever has the VM.
pub const SETTLES: u64 = 5000;

/// Waits until `is_done` says so, looking each millisecond until `until`; whether it did. It is asked once at least.
///
/// Before a reboot it asks whether the VM's lock is free: a first run has it while it looks memory up, which a process's
/// file system may serve when it likes, and the machine does not wait for that.
pub fn settles<T: Thread>(thread: &T, until: u64, mut is_done: impl FnMut() -> bool) -> bool {
    loop {
        if is_done() {
            return true;
        }
        if thread.now() >= until {
            return false;
        }
        thread.pause(1000);
    }
}

/// Marks the VM as dying. A VM that is dying already is fine.
///
/// # Errors
/// `Busy` while a vCPU is loaded; `Ended` if the handle is gone.
pub fn doom<C: Conduit>(el2: &El2<C>, vm: Handle) -> Result<(), Error> {
    match el2.vm_destroy(vm) {
        Ok(()) => Ok(()),
        Err(refused) if refused.status == hvc::WRONG_STATE => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// Takes one run back, however many calls that needs: the number of frames that came back, and what `el2` said of the next.
fn reclaim_run<C: Conduit>(el2: &El2<C>, vm: Handle, run: Run) -> (u64, Option<Refused>) {
    let mut done = 0_u64;
    let mut idle = 0_u32;
    while done < run.count && idle < PATIENCE {
        let left = Run { pfn: run.pfn.saturating_add(done), count: run.count.saturating_sub(done) };
        match el2.vm_reclaim(vm, left) {
            Ok(0) => idle = idle.saturating_add(1),
            Ok(count) => {
                idle = 0;
                done = done.saturating_add(count).min(run.count);
            }
            Err(refused) => return (done, Some(refused)),
        }
    }
    (done, None)
}

/// The next run of guest frames from `from` on: its first page, and the frames.
fn next_run<F: File>(file: &F, state: impl Fn(u64) -> Page, from: u64, end: u64) -> Option<(u64, Run)> {
    let owned = |page: u64| {
        let framed = matches!(state(page), Page::Given | Page::Lent);
        if framed {
            file.frame(page)
        } else {
            None
        }
    };
    let first = (from..end).find(|&page| owned(page).is_some())?;
    let pfn = owned(first)?;
    let mut count = 1_u64;
    while count < MAX_RUN {
        let Some(page) = first.checked_add(count).filter(|&page| page < end) else { break };
        if owned(page) != pfn.checked_add(count) {
            break;
        }
        count = count.saturating_add(1);
    }
    Some((first, Run { pfn, count }))
}

/// What one pass over pages of a dying VM left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "what an attempt has is taken by another pass, when the attempt has ended"]
pub struct Pass {
    /// Frames that `el2` would not return.
    pub lost: u64,
    /// A page was an attempt's when its turn came: it may be the VM's when that ends.
    pub draining: bool,
}

impl Pass {
    /// This pass and one over other pages.
    pub const fn and(self, other: Self) -> Self {
        Self { lost: self.lost.saturating_add(other.lost), draining: self.draining || other.draining }
    }
}

/// Passes over what a dying VM has, until no attempt has any of it, or until `until`; frames that were lost.
///
/// `doom` came first: what no attempt had in the last pass can not be donated any more.
pub fn reclaim_all<T: Thread>(thread: &T, until: u64, mut pass: impl FnMut() -> Pass) -> u64 {
    let mut lost = 0_u64;
    settles(thread, until, || {
        let this = pass();
        lost = lost.saturating_add(this.lost);
        !this.draining
    });
    lost
}

/// Whether an attempt has a page of those from `from` on.
fn drains(book: &Book<'_>, from: u64, until: u64) -> bool {
    (from..until).any(|page| matches!(book.page(page), Page::Draining { .. }))
}

/// Takes back what the dying VM owns of `span`.
///
/// What an attempt has is passed over, and that is noted in the same hold of the lock: whoever asks for it before or after
/// the pass misses an attempt that begins, or ends, between the two.
pub fn reclaim_pages<F: File, C: Conduit, T: Thread>(
    file: &F,
    span: Span,
    initial: Initial,
    el2: &El2<C>,
    vm: Handle,
    thread: &T,
) -> Pass {
    let mut lost = 0_u64;
    let mut draining = false;
    let mut from = span.first();
    while from < span.end() {
        let until = from.saturating_add(F::CHUNK).min(span.end());
        let next = file.change(|book| {
            let found = next_run(file, |page| book.page(page), from, until);
            draining |= drains(book, from, found.map_or(until, |(first, _)| first));
            let (first, run) = found?;
            let (back, _) = reclaim_run(el2, vm, run);
            let taken = Span::new(first, run.count)?;
            // A page that the host had borrowed is unmapped before its frame goes; a private one has no mapping.
            if taken.pages().any(|page| book.page(page) == Page::Lent) {
                book.report.begun = book.report.begun.saturating_add(1);
                file.shut(taken);
                book.report.ended = book.report.ended.saturating_add(1);
            }
            for (at, page) in taken.pages().enumerate() {
                if u64::try_from(at).is_ok_and(|at| at < back) {
                    if book.page(page) == Page::Given {
                        file.thaw(page);
                    }
                    file.release(page);
                    book.renew(page, initial);
                } else {
                    book.open(page, Open::Lost);
                    lost = lost.saturating_add(1);
                }
            }
            first.checked_add(run.count)
        });
        from = next.unwrap_or(until);
        thread.breathe();
    }
    draining |= renew(file, span, initial, thread);
    file.wake();
    Pass { lost, draining }
}

/// Makes offsets that are private, and that the VM was never given, what they are in a new file: the VM that they were
/// private for is gone. Whether an attempt has one of them.
fn renew<F: File, T: Thread>(file: &F, span: Span, initial: Initial, thread: &T) -> bool {
    let mut draining = false;
    let mut from = span.first();
    while from < span.end() {
        let until = from.saturating_add(F::CHUNK).min(span.end());
        file.change(|book| {
            draining |= drains(book, from, until);
            for page in from..until {
                let held = book.page(page) == Page::Held;
                if held {
                    file.thaw(page);
                    file.release(page);
                }
                if held || book.page(page) == Page::Vacant {
                    book.renew(page, initial);
                }
            }
        });
        from = until;
        thread.breathe();
    }
    draining
}

/// How much of a pool came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// All of it, but for so many frames that `el2` would not return.
    Back(u64),
    /// Frames of the guest's must come back first: what is left of the pool may still be asked for.
    Early,
}

/// Takes the pool back, chunk by chunk.
pub fn reclaim_pool<C: Conduit, T: Thread>(el2: &El2<C>, frames: &impl pool::Frames, vm: Handle, thread: &T) -> Pool {
    let mut lost = 0_u64;
    while let Some(chunk) = frames.next() {
        match reclaim_run(el2, vm, chunk) {
            (back, _) if back == chunk.count => frames.give_back(chunk),
            (0, Some(refused)) if refused.status == hvc::GUEST_FRAMES_LEFT => {
                // `el2` has it as before, and so has the list.
                let _: Result<(), Refused> = frames.keep(chunk, || Ok(()));
                return Pool::Early;
            }
            (back, _) => lost = lost.saturating_add(chunk.count.saturating_sub(back)),
        }
        thread.breathe();
    }
    Pool::Back(lost)
}

/// Gives up what is left of the pool; the number of its frames.
pub fn abandon_pool(frames: &impl pool::Frames) -> u64 {
    core::iter::from_fn(|| frames.next()).fold(0, |lost, chunk| lost.saturating_add(chunk.count))
}
