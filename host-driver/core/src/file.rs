// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports: what the engine needs of one `guest_memfd`, and of the thread that runs it.

use crate::error::Error;
use crate::page::{Page, Span};

/// What the file's lock protects.
pub struct Book<'a> {
    /// State of each page offset.
    pub pages: &'a mut [Page],
    /// Number of the next attempt; none is used twice.
    pub next: &'a mut u64,
    /// What a waiting attempt waits for.
    pub report: &'a mut Report,
}

impl Book<'_> {
    /// State of `page`; beyond the end of the file it is lost.
    #[must_use]
    pub fn page(&self, page: u64) -> Page {
        usize::try_from(page).ok().and_then(|i| self.pages.get(i)).copied().unwrap_or(Page::Lost)
    }

    /// Changes the state of `page`.
    pub fn set(&mut self, page: u64, state: Page) {
        if let Some(slot) = usize::try_from(page).ok().and_then(|i| self.pages.get_mut(i)) {
            *slot = state;
        }
    }

    /// Whether `span` lies within the file.
    #[must_use]
    pub fn holds(&self, span: Span) -> bool {
        usize::try_from(span.end()).is_ok_and(|end| end <= self.pages.len())
    }
}

/// What the file's waiting attempts wait for: the answer of `FREEHOLD_PENDING`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Attempts that wait at this moment.
    pub waiting: u32,
    /// Page that the attempt which looked last found held.
    pub page: u64,
    /// Pages that it has frozen.
    pub frozen: u64,
    /// Pages that it is about.
    pub total: u64,
    /// Times that it tried to freeze `page`.
    pub tries: u64,
    /// Conversions to private that have completed.
    pub completed: u64,
}

/// Outcome of one try to freeze a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// Reference count 0: nobody else holds it, and nobody can get hold of it.
    Frozen,
    /// Somebody holds a reference.
    Busy,
    /// The page is marked as broken memory; it was not frozen.
    Poisoned,
}

/// One `guest_memfd`.
///
/// `change` is the lock: while it runs no host fault is being answered and nobody else changes anything. The frame of a
/// page is touched only under it, or by the attempt that the page is draining for.
pub trait File {
    /// Runs `change` with the lock held. May sleep.
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R;

    /// Frame number behind `page`.
    fn frame(&self, page: u64) -> Option<u64>;

    /// Brings a zeroed frame with one reference, the driver's, to a page that has none.
    ///
    /// # Errors
    /// `NoMemory`.
    fn allocate(&self, page: u64) -> Result<(), Error>;

    /// Forgets the frame and drops the driver's reference to it; it must not be frozen nor mapped.
    fn release(&self, page: u64);

    /// Tries once to take the reference count from the driver's own to zero, in one atomic step. Hides the page from
    /// dumps and scanners on success.
    fn freeze(&self, page: u64) -> Freeze;

    /// Undoes `freeze`.
    fn thaw(&self, page: u64);

    /// Waits out the faults that were answered before the lock was taken, and unmaps `span` from every process. Called
    /// under the lock.
    fn shut(&self, span: Span);

    /// Wakes those who wait for an attempt's outcome.
    fn wake(&self);
}

/// Pages that are handled while the lock is held once, so that faults elsewhere in the file do not wait for long.
pub const CHUNK: u64 = 4096;

/// Whether any page of `span` is what `is` says.
pub fn any<F: File>(file: &F, span: Span, is: impl Fn(Page) -> bool) -> bool {
    span.parts(CHUNK).any(|part| file.change(|book| part.pages().any(|page| is(book.page(page)))))
}

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The time passed.
    Elapsed,
    /// The thread has something else to do: a signal, or a kick.
    Interrupted,
}

/// The calling thread.
pub trait Thread {
    /// Milliseconds of a clock that does not go back.
    fn now(&self) -> u64;

    /// Sleeps for about `micros`.
    fn pause(&self, micros: u32) -> Wake;

    /// Lets others run if they should.
    fn breathe(&self);

    /// Whether the thread is being killed: long work stops at the next good place.
    fn dying(&self) -> bool;
}
