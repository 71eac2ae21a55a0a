// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attempt to take pages from the host: it ends with every page frozen, or with every page as it was.
//!
//! Keeps I5. Order (recipe and races: design §4): states change and mappings go under the lock; freezing is tried
//! without blocking, from the first page on, until one is busy; the lock is never held while the caller waits. Pages
//! that an attempt took carry its number, so attempts on one file do not get in each other's way. Knows nothing of
//! what happens to frozen pages; [`Attempt::finish`] is the single place that makes a page `GuestMappable`.

use crate::error::Error;
use crate::file::{Book, File, Freeze, Sealed, Thread};
use crate::page::{Origin, Page, Span};

/// What an attempt is for; decides which states it takes, passes over, or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The VMM converts: takes the host's pages, passes over private ones, refuses lent ones.
    Convert,
    /// A vCPU touched an unbacked page: takes whatever the guest does not own.
    Touch,
    /// The guest takes back what it shared: takes lent pages, refuses all else.
    Unshare,
    /// Frames that wait for their donation: takes held pages, passes over all else.
    Bind,
    /// `fallocate` on private offsets: takes vacant pages, passes over all else.
    Reserve,
    /// The VMM brings contents: takes vacant pages, refuses all else.
    Populate,
}

enum Verdict {
    Take(Origin),
    Pass,
    Wait,
    Refuse(Error),
}

impl Aim {
    const fn verdict(self, page: Page) -> Verdict {
        match (self, page) {
            (_, Page::Lost) => Verdict::Refuse(Error::Poisoned),
            (Self::Convert | Self::Touch, Page::Host) => Verdict::Take(Origin::Host),
            (Self::Touch | Self::Bind, Page::Held) => Verdict::Take(Origin::Held),
            (Self::Touch | Self::Reserve | Self::Populate, Page::Vacant) => Verdict::Take(Origin::Vacant),
            (Self::Populate, Page::Host | Page::Borrowed | Page::Lent | Page::Held | Page::Given)
            | (Self::Unshare, Page::Host | Page::Held | Page::Vacant | Page::Given) => Verdict::Refuse(Error::Exists),
            (Self::Unshare, Page::Lent) => Verdict::Take(Origin::Lent),
            (Self::Convert | Self::Touch, Page::Borrowed) | (Self::Convert, Page::Lent) => {
                Verdict::Refuse(Error::Denied)
            }
            (Self::Bind | Self::Reserve, Page::Draining { .. }) => Verdict::Pass,
            (Self::Convert | Self::Touch | Self::Unshare | Self::Populate, Page::Draining { .. }) => Verdict::Wait,
            (Self::Unshare, Page::Borrowed) => Verdict::Refuse(Error::Io),
            (Self::Convert, Page::Held | Page::Vacant | Page::Given)
            | (Self::Touch, Page::Lent | Page::Given)
            | (Self::Bind, Page::Host | Page::Borrowed | Page::Lent | Page::Vacant | Page::Given)
            | (Self::Reserve, Page::Host | Page::Borrowed | Page::Lent | Page::Held | Page::Given) => Verdict::Pass,
        }
    }

    /// Whether a frame is brought where there is none. A hole that is converted stays one.
    const fn brings_frames(self) -> bool {
        matches!(self, Self::Touch | Self::Reserve | Self::Populate)
    }

    /// Whether it makes the host's pages, or new ones, private: nobody may for an ordinary VM, whose pages are lent.
    const fn hides(self) -> bool {
        match self {
            Self::Convert | Self::Touch | Self::Populate => true,
            Self::Unshare | Self::Bind | Self::Reserve => false,
        }
    }

    /// Whether it is a VM's own: it ends with its VM, whatever it waits for.
    const fn is_the_vms(self) -> bool {
        match self {
            Self::Touch | Self::Unshare | Self::Bind => true,
            Self::Convert | Self::Reserve | Self::Populate => false,
        }
    }

    /// Whether its end counts as a completed conversion.
    const fn counts(self) -> bool {
        matches!(self, Self::Convert | Self::Unshare)
    }
}

/// Outcome of [`begin`].
#[derive(Debug)]
pub enum Begun {
    /// Pages were taken: they are `NoneMappable` now.
    Attempt(Attempt),
    /// There is nothing to do.
    Nothing,
    /// Nothing changed; this page is why. `Again`: it belongs to another attempt.
    Refused(Error, u64),
}

/// Why a part was not taken.
enum Hindered {
    /// This page belongs to another attempt.
    Wait(u64),
    /// This page is why.
    Refused(Error, u64),
}

/// Outcome of [`Attempt::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Every page is frozen.
    Frozen,
    /// There are more pages to look at.
    More,
    /// Somebody still holds this page.
    Busy(u64),
    /// This page is broken memory.
    Poisoned(u64),
    /// Somebody has it give up (`Cancelled`), or its VM has ended (`Ended`); it stands at this page.
    Over(Error, u64),
}

/// Outcome for the pages that were not donated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They stay private: held if they have a frame, vacant if not.
    Keep,
    /// They are again what they were.
    Restore,
}

/// Pages taken from the host, on their way to the guest.
///
/// # Invariants
/// The pages from `span.first` up to `cursor` that carry `id` are frozen or have no frame; those behind are not frozen,
/// save the ones that were held before.
#[derive(Debug)]
#[must_use = "the pages stay NoneMappable until `finish`"]
pub struct Attempt {
    span: Span,
    id: u64,
    aim: Aim,
    total: u64,
    cursor: u64,
    frozen: u64,
    tries: u64,
    waiting: bool,
    /// The page whose last reference is watched for.
    armed: Option<u64>,
}

/// As [`begin_waiting`], without waiting for anybody.
pub fn begin<F: File>(file: &F, span: Span, aim: Aim) -> Begun {
    begin_waiting(file, span, aim, || Err(Error::Again))
}

/// Takes the pages of `span` that `aim` is about, part by part; a part that it may not take undoes those before.
///
/// Where a page belongs to another attempt, `wait` is called without the lock, and then it is looked at again. It is one
/// attempt all the while, with one number: it can be cancelled, and shows in the report. An error of `wait`'s ends it.
pub fn begin_waiting<F: File>(file: &F, span: Span, aim: Aim, mut wait: impl FnMut() -> Result<(), Error>) -> Begun {
    let numbered = file.change(|book| {
        if !book.holds(span) {
            return Err(Error::Invalid);
        }
        let id = *book.next;
        *book.next = id.checked_add(1).ok_or(Error::NoSpace)?;
        book.report.begun = book.report.begun.saturating_add(1);
        Ok(id)
    });
    let id = match numbered {
        Ok(id) => id,
        Err(error) => return Begun::Refused(error, span.first()),
    };
    // INVARIANT: nothing is frozen yet, and the cursor stands at the start.
    let mut attempt =
        Attempt { span, id, aim, total: 0, cursor: span.first(), frozen: 0, tries: 0, waiting: false, armed: None };
    let mut stands_at = None;
    let refused = loop {
        let (error, page) = match attempt.take_all(file, stands_at) {
            Ok(()) if attempt.total > 0 => {
                attempt.tries = 0;
                return Begun::Attempt(attempt);
            }
            Ok(()) => break None,
            Err(Hindered::Refused(error, page)) => break Some((error, page)),
            Err(Hindered::Wait(page)) => (wait().err(), page),
        };
        stands_at = Some(page);
        if let Some(error) = error {
            break Some((error, page));
        }
    };
    file.change(|book| attempt.leave(book));
    refused.map_or(Begun::Nothing, |(error, page)| Begun::Refused(error, page))
}

impl Attempt {
    /// Takes what it is about, or nothing. Where it waits for a page, only that one is looked at until it is free.
    fn take_all<F: File>(&mut self, file: &F, stands_at: Option<u64>) -> Result<(), Hindered> {
        if let Some(page) = stands_at {
            file.change(|book| self.may_take(book, page).map(|_| ()))?;
        }
        for part in self.span.parts(F::CHUNK) {
            if let Err(why) = file.change(|book| self.take(file, book, part)) {
                if self.total > 0 {
                    self.settle_all(file, 0, Rest::Restore);
                    self.total = 0;
                    file.wake();
                }
                return Err(why);
            }
        }
        Ok(())
    }

    /// What it would take `page` as, if it would.
    fn may_take(&mut self, book: &mut Book<'_>, page: u64) -> Result<Option<Origin>, Hindered> {
        if let Some(error) = self.is_over(book) {
            return Err(Hindered::Refused(error, page));
        }
        match self.aim.verdict(book.page(page)) {
            Verdict::Take(origin) => Ok(Some(origin)),
            Verdict::Pass => Ok(None),
            Verdict::Wait => {
                self.note_queued(book, page);
                Err(Hindered::Wait(page))
            }
            Verdict::Refuse(error) => Err(Hindered::Refused(error, page)),
        }
    }

    /// Why it gives up, if it was told to.
    fn is_over(&self, book: &Book<'_>) -> Option<Error> {
        if self.aim == Aim::Convert && self.id < book.report.cancelled {
            Some(Error::Cancelled)
        } else if self.aim.is_the_vms() && self.id < book.report.bereaved {
            Some(Error::Ended)
        } else {
            None
        }
    }

    /// Takes what it is about of one part, or nothing of it.
    fn take<F: File>(&mut self, file: &F, book: &mut Book<'_>, part: Span) -> Result<(), Hindered> {
        // Here, under the lock: the file may have become an ordinary VM's since the call began.
        if book.owner.ordinary && self.aim.hides() {
            return Err(Hindered::Refused(Error::Invalid, part.first()));
        }
        let mut count = 0_u64;
        let mut mapped = false;
        for page in part.pages() {
            if let Some(origin) = self.may_take(book, page)? {
                count = count.saturating_add(1);
                mapped |= matches!(origin, Origin::Host | Origin::Lent);
            }
        }
        for page in part.pages() {
            if let Verdict::Take(origin) = self.aim.verdict(book.page(page)) {
                book.drain(page, origin, self.id);
            }
        }
        if mapped {
            file.shut(part);
        }
        self.total = self.total.saturating_add(count);
        Ok(())
    }

    /// The pages that it was asked for; some of them may not be its own.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Number of pages that it took.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// What `page` was, if this attempt took it.
    #[must_use]
    pub fn took(&self, book: &Book<'_>, page: u64) -> Option<Origin> {
        match book.page(page) {
            Page::Draining { origin, attempt } if attempt == self.id => Some(origin),
            Page::Draining { .. }
            | Page::Host
            | Page::Borrowed
            | Page::Lent
            | Page::Held
            | Page::Vacant
            | Page::Given
            | Page::Lost => None,
        }
    }

    /// Looking from page `from` on: the page behind the first `count` of its pages that have a frame, if there is one.
    #[must_use]
    pub fn nth<F: File>(&self, file: &F, from: u64, count: u64) -> Option<u64> {
        let from = from.max(self.span.first());
        let rest = Span::new(from, self.span.end().saturating_sub(from))?;
        let mut left = count;
        rest.parts(F::CHUNK).find_map(|part| {
            file.change(|book| {
                part.pages().find(|&page| {
                    let next = self.took(book, page).is_some() && file.frame(page).is_some();
                    if next && left > 0 {
                        left = left.saturating_sub(1);
                        return false;
                    }
                    next
                })
            })
        })
    }

    /// Brings the frames that are missing, where the aim wants them.
    ///
    /// # Errors
    /// `NoMemory`, or `Interrupted` by a kill, and the page; the caller then finishes with [`Rest::Restore`].
    pub fn bring_frames<F: File>(&self, file: &F, thread: &impl Thread) -> Result<(), (Error, u64)> {
        if !self.aim.brings_frames() {
            return Ok(());
        }
        for page in self.span.pages() {
            let mine = file.change(|book| self.took(book, page).is_some());
            if !mine || file.frame(page).is_some() {
                continue;
            }
            if thread.dying() {
                return Err((Error::Interrupted, page));
            }
            file.allocate(page).map_err(|error| (error, page))?;
        }
        Ok(())
    }

    /// Freezes from where it stopped, until a page is busy or enough was done for one hold of the lock. Does not wait.
    pub fn step<F: File>(&mut self, file: &F) -> Step {
        let until = self.cursor.saturating_add(F::CHUNK).min(self.span.end());
        file.change(|book| {
            if let Some(error) = self.is_over(book) {
                return Step::Over(error, self.stands_at());
            }
            while self.cursor < until {
                let page = self.cursor;
                if let Some(origin) = self.took(book, page) {
                    if origin != Origin::Held && file.frame(page).is_some() {
                        match self.freeze(file, page) {
                            Freeze::Frozen => {}
                            Freeze::Busy => {
                                self.note_busy(book, page);
                                return Step::Busy(page);
                            }
                            Freeze::Poisoned => return Step::Poisoned(page),
                        }
                    }
                    self.frozen = self.frozen.saturating_add(1);
                    self.tries = 0;
                }
                self.cursor = self.cursor.saturating_add(1);
            }
            if self.cursor == self.span.end() {
                Step::Frozen
            } else {
                Step::More
            }
        })
    }

    /// The page that it looks at next; the first, where it has looked at all.
    const fn stands_at(&self) -> u64 {
        if self.cursor < self.span.end() {
            self.cursor
        } else {
            self.span.first()
        }
    }

    /// Notes that it stands at its first page, all of them frozen, for whoever it gives them to; why it gives up, if it was told
    /// to.
    pub fn stall<F: File>(&mut self, file: &F) -> Option<Error> {
        file.change(|book| {
            self.note_busy(book, self.span.first());
            self.is_over(book)
        })
    }

    /// Tries to freeze `page`; where somebody holds it, once more after the source of its references was armed, each time
    /// anew: what it was armed for before may be the reason for this look, and another reference has come since.
    fn freeze<F: File>(&mut self, file: &F, page: u64) -> Freeze {
        let mut seen = file.freeze(page);
        if seen == Freeze::Busy {
            self.disarm(file);
            file.arm(page);
            self.armed = Some(page);
            seen = file.freeze(page);
        }
        if seen != Freeze::Busy {
            self.disarm(file);
        }
        seen
    }

    fn disarm<F: File>(&mut self, file: &F) {
        if let Some(page) = self.armed.take() {
            file.disarm(page);
        }
    }

    fn note_busy(&mut self, book: &mut Book<'_>, page: u64) {
        self.note_waiting(book);
        self.note(book, page, self.total);
    }

    /// It waits for another attempt, whose own account says more if that one waits too.
    fn note_queued(&mut self, book: &mut Book<'_>, page: u64) {
        self.note_waiting(book);
        if book.report.waiting == 1 {
            self.note(book, page, self.span.count());
        }
    }

    fn note_waiting(&mut self, book: &mut Book<'_>) {
        self.tries = self.tries.saturating_add(1);
        if !self.waiting {
            self.waiting = true;
            book.report.waiting = book.report.waiting.saturating_add(1);
        }
    }

    fn note(&self, book: &mut Book<'_>, page: u64, total: u64) {
        book.report.page = page;
        book.report.frozen = self.frozen;
        book.report.total = total;
        book.report.tries = self.tries;
    }

    /// Takes it out of the file's account: it is over.
    fn leave(&self, book: &mut Book<'_>) {
        if self.waiting {
            book.report.waiting = book.report.waiting.saturating_sub(1);
        }
        book.report.ended = book.report.ended.saturating_add(1);
    }

    /// Ends the attempt: its first `given` pages that have a frame are the guest's, the rest is as `rest` says.
    ///
    /// This is the only place that makes a page `GuestMappable`.
    pub fn finish<F: File>(mut self, file: &F, given: u64, rest: Rest) {
        self.disarm(file);
        let restored = self.settle_all(file, given, rest);
        file.change(|book| {
            self.leave(book);
            if !restored && self.aim.counts() {
                book.report.completed = book.report.completed.saturating_add(1);
            }
        });
        file.wake();
    }

    /// Gives each page that it took its next state; whether any was put back.
    fn settle_all<F: File>(&self, file: &F, given: u64, rest: Rest) -> bool {
        let mut left = given;
        let mut restored = false;
        for part in self.span.parts(F::CHUNK) {
            file.change(|book| self.settle(file, book, part, rest, &mut left, &mut restored));
        }
        restored
    }

    fn settle<F: File>(
        &self,
        file: &F,
        book: &mut Book<'_>,
        part: Span,
        rest: Rest,
        left: &mut u64,
        restored: &mut bool,
    ) {
        for page in part.pages() {
            let Some(origin) = self.took(book, page) else { continue };
            let framed = file.frame(page).is_some();
            let sealed = match (framed, rest) {
                (true, _) if *left > 0 => {
                    *left = left.saturating_sub(1);
                    Sealed::Given
                }
                (true, Rest::Keep) => Sealed::Held,
                (false, Rest::Keep) => Sealed::Vacant,
                (_, Rest::Restore) => {
                    *restored = true;
                    self.restore(file, page, origin);
                    book.restore(page);
                    continue;
                }
            };
            book.seal(page, sealed);
        }
    }

    fn restore<F: File>(&self, file: &F, page: u64, origin: Origin) {
        if file.frame(page).is_none() {
            return;
        }
        if origin != Origin::Held && page < self.cursor {
            file.thaw(page);
        }
        if origin == Origin::Vacant {
            file.release(page);
        }
    }
}
