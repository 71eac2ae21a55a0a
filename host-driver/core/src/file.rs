// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports: what the engine needs of one `guest_memfd`, and of the thread that runs it.

use crate::error::Error;
use crate::notify::Notice;
use crate::page::{Initial, Origin, Page, Span};
use crate::status::Refused;

/// What the file's lock protects.
pub struct Book<'a> {
    /// State of each page offset.
    pub pages: Pages<'a>,
    /// Number of the next attempt; none is used twice.
    pub next: &'a mut u64,
    /// What has begun, what has ended, and what is waited for.
    pub report: &'a mut Report,
    /// The conversion that nobody waits for, or its outcome.
    pub notice: &'a mut Notice,
    /// Whose file it is.
    pub owner: &'a mut Owner,
}

/// The states themselves. They change by [`Book`]'s moves alone.
pub struct Pages<'a>(&'a mut [Page]);

impl<'a> Pages<'a> {
    /// One state per offset.
    #[must_use]
    pub fn new(states: &'a mut [Page]) -> Self {
        Self(states)
    }
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Number of the VM, maybe of one that has ended.
    pub vm: u64,
    /// That VM is ordinary: no page becomes private any more.
    pub ordinary: bool,
}

impl Book<'_> {
    /// State of `page`; beyond the end of the file it is lost.
    #[must_use]
    pub fn page(&self, page: u64) -> Page {
        usize::try_from(page).ok().and_then(|i| self.pages.0.get(i)).copied().unwrap_or(Page::Lost)
    }

    /// Makes `page` `NoneMappable`, for an attempt.
    pub fn drain(&mut self, page: u64, origin: Origin, attempt: u64) {
        self.put(page, Page::Draining { origin, attempt });
    }

    /// Makes a draining `page` what it was.
    pub fn restore(&mut self, page: u64) {
        if let Page::Draining { origin, .. } = self.page(page) {
            self.put(page, origin.page());
        }
    }

    /// Makes a draining `page` `GuestMappable`. Called in one place, where an attempt ends.
    pub fn seal(&mut self, page: u64, as_what: Sealed) {
        if let Page::Draining { .. } = self.page(page) {
            self.put(
                page,
                match as_what {
                    Sealed::Held => Page::Held,
                    Sealed::Vacant => Page::Vacant,
                    Sealed::Given => Page::Given,
                },
            );
        }
    }

    /// Makes `page` the host's to map, or nobody's.
    pub fn open(&mut self, page: u64, as_what: Open) {
        self.put(
            page,
            match as_what {
                Open::Host => Page::Host,
                Open::Borrowed => Page::Borrowed,
                Open::Lent => Page::Lent,
                Open::Lost => Page::Lost,
            },
        );
    }

    /// A held `page` has no frame any more, and is as private as before.
    pub fn hollow(&mut self, page: u64) {
        if self.page(page) == Page::Held {
            self.put(page, Page::Vacant);
        }
    }

    /// Makes `page`, whose frame has gone, what it is in a new file. It was private, or shared by the guest whose page it
    /// was: what is the host's or an attempt's stays so, and becomes private by [`Book::seal`] only.
    pub fn renew(&mut self, page: u64, initial: Initial) {
        match self.page(page) {
            Page::Given | Page::Lent | Page::Held | Page::Vacant => self.put(page, initial.page()),
            Page::Host | Page::Borrowed | Page::Draining { .. } | Page::Lost => {}
        }
    }

    fn put(&mut self, page: u64, state: Page) {
        if let Some(slot) = usize::try_from(page).ok().and_then(|i| self.pages.0.get_mut(i)) {
            *slot = state;
        }
    }

    /// Any state, for a test to start from.
    #[cfg(test)]
    pub(crate) fn set(&mut self, page: u64, state: Page) {
        self.put(page, state);
    }

    /// Whether `span` lies within the file.
    #[must_use]
    pub fn holds(&self, span: Span) -> bool {
        span.end() <= self.len()
    }

    /// Pages of the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        u64::try_from(self.pages.0.len()).unwrap_or(u64::MAX)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.0.is_empty()
    }
}

/// The `GuestMappable` states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// `Page::Held`.
    Held,
    /// `Page::Vacant`.
    Vacant,
    /// `Page::Given`.
    Given,
}

/// States that an offset enters outside of an attempt, none of them `GuestMappable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// `Page::Host`.
    Host,
    /// `Page::Borrowed`.
    Borrowed,
    /// `Page::Lent`.
    Lent,
    /// `Page::Lost`.
    Lost,
}

/// The file's account of its attempts: the answer of `FREEHOLD_PENDING`.
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
    /// Times that mappings were to go (attempts, punches, and the end of a VM that had lent pages) that have begun.
    pub begun: u64,
    /// And that have ended: as many, when nothing is under way.
    pub ended: u64,
    /// Conversions of the VMM's with a lower number give up.
    pub cancelled: u64,
    /// Attempts of a VM's own with a lower number give up: the VM has ended.
    pub bereaved: u64,
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
    /// Pages that are handled while the lock is held once, so that faults elsewhere in the file do not wait for long.
    const CHUNK: u64 = 4096;

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

    /// Lends the frame of `page`, which the host owns, to the ordinary VM that has it in a slot; 0: an interrupt came first.
    /// Called under the lock.
    ///
    /// # Errors
    /// What the hypervisor says; `GFN_NOT_MAPPED` if no slot has the page.
    fn lend(&self, page: u64) -> Result<u64, Refused>;

    /// Ends the loans of `run`, whose pages an ordinary VM borrows, all of them, at most `MAX_RUN`. `false` if the
    /// hypervisor would not. Called under the lock.
    fn recall(&self, run: Span) -> bool;

    /// Wakes those who wait for an attempt's outcome.
    fn wake(&self);

    /// Says to whoever polls the file whether there is an outcome to collect, and wakes them. Called under the lock: what
    /// was said last is what is there.
    fn tell(&self, outcome: bool);

    /// Asks the source of the page's references to say when the last of them has gone, by ending a pause early. It is
    /// called before the page is tried once more, so that what went in between is not missed, and again before each wait:
    /// one event for each time that it is called is enough. The event may come at any time, and more than once. Ordinary
    /// pages have no such source: trying again is all there is.
    fn arm(&self, _page: u64) {}

    /// Withdraws [`File::arm`]; an event may still be on its way.
    fn disarm(&self, _page: u64) {}
}

/// Whether any page of `span` is what `is` says.
pub fn any<F: File>(file: &F, span: Span, is: impl Fn(Page) -> bool) -> bool {
    span.parts(F::CHUNK).any(|part| file.change(|book| part.pages().any(|page| is(book.page(page)))))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a page in the state `page` by `act`.
    fn after(page: Page, act: impl Fn(&mut Book<'_>)) -> Page {
        let (mut states, mut next, mut report) = ([page], 1, Report::default());
        let (mut notice, mut owner) = (Notice::None, Owner::default());
        let pages = Pages::new(&mut states);
        act(&mut Book { pages, next: &mut next, report: &mut report, notice: &mut notice, owner: &mut owner });
        states[0]
    }

    #[test]
    fn a_file_has_pages_or_is_empty() {
        let said = |book: &mut Book<'_>| (book.len(), book.is_empty());
        let (mut next, mut report) = (1, Report::default());
        let (mut notice, mut owner) = (Notice::None, Owner::default());
        for len in [0, 1, 3] {
            let mut states = std::vec![Page::Host; len];
            let (pages, next, report) = (Pages::new(&mut states), &mut next, &mut report);
            let mut book = Book { pages, next, report, notice: &mut notice, owner: &mut owner };
            assert_eq!(said(&mut book), (len as u64, len == 0));
        }
    }

    fn is_private(page: Page) -> bool {
        matches!(page, Page::Held | Page::Vacant | Page::Given)
    }

    #[test]
    fn only_sealing_makes_a_page_of_the_hosts_private_and_only_one_that_drains() {
        let drains = |origin| Page::Draining { origin, attempt: 1 };
        let hosts = [Page::Host, Page::Borrowed, Page::Lost, drains(Origin::Host), drains(Origin::Lent)];
        for page in hosts {
            for initial in [Initial::Host, Initial::Vacant] {
                assert_eq!(after(page, |book| book.renew(0, initial)), page, "{page:?}");
            }
            assert_eq!(after(page, |book| book.hollow(0)), page);
            assert!(!is_private(after(page, |book| book.restore(0))), "{page:?}");
            for open in [Open::Host, Open::Borrowed, Open::Lent, Open::Lost] {
                assert!(!is_private(after(page, |book| book.open(0, open))), "{page:?}");
            }
            for sealed in [Sealed::Held, Sealed::Vacant, Sealed::Given] {
                let drains = matches!(page, Page::Draining { .. });
                assert_eq!(is_private(after(page, |book| book.seal(0, sealed))), drains, "{page:?}");
            }
        }
    }

    #[test]
    fn what_was_private_or_the_guests_is_renewed_as_the_file_began() {
        for page in [Page::Given, Page::Lent, Page::Held, Page::Vacant] {
            assert_eq!(after(page, |book| book.renew(0, Initial::Host)), Page::Host);
            assert_eq!(after(page, |book| book.renew(0, Initial::Vacant)), Page::Vacant);
        }
    }
}
