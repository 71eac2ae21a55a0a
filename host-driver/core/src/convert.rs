// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves ranges of a `guest_memfd` between the host and the guest: the whole sequence, over the ports.
//!
//! Keeps I5 and I6. Results are distinct: done, pending at a page (`Again`, `TimedOut`, `Interrupted`), refused.

use crate::drain::{begin, begin_waiting, Aim, Attempt, Begun, Rest, Step};
use crate::error::Error;
use crate::file::{Book, File, Open, Thread, Wake};
use crate::lend::recall;
use crate::page::{Page, Span};

/// First pause between two tries, in microseconds; it doubles.
const FIRST_PAUSE: u32 = 10;
/// Longest pause between two tries, in microseconds.
const LONGEST_PAUSE: u32 = 1000;
/// Pauses that even a caller who does not wait makes for a giver's owner, some ten milliseconds: somebody always has it for a
/// moment, a vCPU's exit say, and that is no answer.
pub(crate) const SHORT_WAITS: u32 = 16;

/// Whether to wait for pages that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Now,
    /// Until a signal.
    Wait,
    /// Until a signal, or the thread's clock shows this.
    Until(u64),
}

/// Why a range did not move, and the first page that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Why.
    pub error: Error,
    /// Where.
    pub page: u64,
}

/// What a giver did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Pages, of those that have a frame, that are the guest's now: a prefix.
    pub count: u64,
    /// What becomes of the others.
    pub rest: Rest,
    /// Why there are others, if that is an error.
    pub error: Option<Error>,
}

/// Gives the frozen pages of an attempt to their new owner.
pub trait Giver<F> {
    /// Gives; every page of the attempt is frozen or has no frame. `None`: somebody else has their new owner at this moment,
    /// nothing was given, and it may be asked again. It does not wait for that somebody, who may be waiting for anything:
    /// the pages are frozen meanwhile, and how long they may be is the caller's to say.
    fn give(&mut self, file: &F, attempt: &Attempt) -> Option<Given>;
}

/// Gives nothing: pages stay held until the file is bound.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl<F> Giver<F> for Nobody {
    fn give(&mut self, _: &F, _: &Attempt) -> Option<Given> {
        Some(Given { count: 0, rest: Rest::Keep, error: None })
    }
}

impl<F, G: FnMut(&F, &Attempt) -> Option<Given>> Giver<F> for G {
    fn give(&mut self, file: &F, attempt: &Attempt) -> Option<Given> {
        self(file, attempt)
    }
}

pub(crate) struct Patience<'a, T> {
    thread: &'a T,
    mode: Mode,
    pause: u32,
}

impl<'a, T: Thread> Patience<'a, T> {
    pub(crate) const fn new(thread: &'a T, mode: Mode) -> Self {
        Self { thread, mode, pause: FIRST_PAUSE }
    }

    /// As [`Patience::wait`]; who does not wait does so `left` times.
    pub(crate) fn wait_for_giver(&mut self, left: &mut u32) -> Result<(), Error> {
        match (self.mode, left.checked_sub(1)) {
            (Mode::Now, Some(less)) => {
                *left = less;
                self.sleep()
            }
            (Mode::Now, None) | (Mode::Wait | Mode::Until(_), _) => self.wait(),
        }
    }

    fn wait(&mut self) -> Result<(), Error> {
        match self.mode {
            Mode::Now => return Err(Error::Again),
            Mode::Until(deadline) if self.thread.now() >= deadline => return Err(Error::TimedOut),
            Mode::Until(_) | Mode::Wait => {}
        }
        self.sleep()
    }

    fn sleep(&mut self) -> Result<(), Error> {
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        match self.thread.pause(pause) {
            Wake::Elapsed => Ok(()),
            Wake::Interrupted => Err(Error::Interrupted),
        }
    }
}

/// Takes what `aim` wants of `span` from the host, and lets `giver` give it. `Ok(false)`: there was nothing to take.
///
/// # Errors
/// Why it stopped and where; every page that was not given is what it was before.
pub fn to_private<F: File, T: Thread>(
    file: &F,
    span: Span,
    aim: Aim,
    mode: Mode,
    thread: &T,
    giver: &mut impl Giver<F>,
) -> Result<bool, Stopped> {
    let mut patience = Patience::new(thread, mode);
    let mut attempt = match begin_waiting(file, span, aim, || patience.wait()) {
        Begun::Attempt(attempt) => attempt,
        Begun::Nothing => return Ok(false),
        Begun::Refused(error, page) => return Err(Stopped { error, page }),
    };
    if let Err(stopped) = freeze_all(file, &mut attempt, &mut patience) {
        attempt.finish(file, 0, Rest::Restore);
        return Err(stopped);
    }
    finish_with(file, attempt, &mut patience, giver).map(|()| true)
}

/// Ends an attempt of which every page is frozen: `giver` gives, as soon as it can and the patience lasts.
fn finish_with<F: File, T: Thread>(
    file: &F,
    mut attempt: Attempt,
    patience: &mut Patience<'_, T>,
    giver: &mut impl Giver<F>,
) -> Result<(), Stopped> {
    let first = attempt.span().first();
    patience.pause = FIRST_PAUSE;
    let mut left = SHORT_WAITS;
    let given = loop {
        if let Some(given) = giver.give(file, &attempt) {
            break given;
        }
        let waited = match attempt.stall(file) {
            Some(error) => Err(error),
            None => patience.wait_for_giver(&mut left),
        };
        if let Err(error) = waited {
            break Given { count: 0, rest: Rest::Restore, error: Some(error) };
        }
    };
    // Looked for only where it is told, and before the attempt lets go of its pages.
    let stopped =
        given.error.map(|error| Stopped { error, page: attempt.nth(file, first, given.count).unwrap_or(first) });
    attempt.finish(file, given.count, given.rest);
    stopped.map_or(Ok(()), Err)
}

fn freeze_all<F: File, T: Thread>(
    file: &F,
    attempt: &mut Attempt,
    patience: &mut Patience<'_, T>,
) -> Result<(), Stopped> {
    attempt.bring_frames(file, patience.thread).map_err(|(error, page)| Stopped { error, page })?;
    patience.pause = FIRST_PAUSE;
    loop {
        match attempt.step(file) {
            Step::Frozen => return Ok(()),
            Step::More if patience.thread.dying() => {
                return Err(Stopped { error: Error::Interrupted, page: attempt.span().first() });
            }
            Step::More => patience.thread.breathe(),
            Step::Busy(page) => patience.wait().map_err(|error| Stopped { error, page })?,
            Step::Poisoned(page) => return Err(Stopped { error: Error::Poisoned, page }),
            Step::Over(error, page) => return Err(Stopped { error, page }),
        }
    }
}

/// Has every conversion to private that the VMM asked for by now give up, also one that waits behind another attempt: it
/// puts its pages back when it looks next, within a millisecond. What a guest or a vCPU waits for goes on.
pub fn cancel<F: File>(file: &F) {
    file.change(|book| book.report.cancelled = *book.next);
}

/// As [`cancel`], and what the guest and the vCPUs of the file's VM wait for gives up too: the VM has ended.
pub fn bereave<F: File>(file: &F) {
    file.change(|book| {
        book.report.cancelled = *book.next;
        book.report.bereaved = *book.next;
    });
}

/// Brings frames to private offsets that have none, has `copy` fill each, and lets `giver` give them. No host mapping of
/// them ever exists. No lock is held while `copy` runs, which may sleep.
///
/// # Errors
/// `Exists` at a page that has a frame or is not private, `Again` at one that another attempt has, what `copy` says, and
/// where; every page that was not given is what it was before.
pub fn populate<F: File, T: Thread>(
    file: &F,
    span: Span,
    thread: &T,
    mut copy: impl FnMut(u64) -> Result<(), Error>,
    giver: &mut impl Giver<F>,
) -> Result<(), Stopped> {
    let mut attempt = match begin(file, span, Aim::Populate) {
        Begun::Attempt(attempt) => attempt,
        Begun::Nothing => return Ok(()),
        Begun::Refused(error, page) => return Err(Stopped { error, page }),
    };
    let mut patience = Patience::new(thread, Mode::Wait);
    let filled = freeze_all(file, &mut attempt, &mut patience).and_then(|()| {
        span.pages().try_for_each(|page| {
            thread.breathe();
            let done = if thread.dying() { Err(Error::Interrupted) } else { copy(page) };
            done.map_err(|error| Stopped { error, page })
        })
    });
    if let Err(stopped) = filled {
        attempt.finish(file, 0, Rest::Restore);
        return Err(stopped);
    }
    finish_with(file, attempt, &mut patience, giver)
}

/// Runs `act` on each part of `span`, each in one hold of the lock.
fn in_parts<F: File, E>(
    file: &F,
    span: Span,
    mut act: impl FnMut(&mut Book<'_>, Span) -> Result<(), E>,
) -> Result<(), E> {
    span.parts(F::CHUNK).try_for_each(|part| file.change(|book| act(book, part)))
}

fn may_be_shared(book: &Book<'_>, part: Span) -> Result<(), Stopped> {
    if !book.holds(part) {
        return Err(Stopped { error: Error::Invalid, page: part.first() });
    }
    for page in part.pages() {
        let error = match book.page(page) {
            Page::Host | Page::Borrowed | Page::Lent | Page::Held | Page::Vacant => continue,
            Page::Draining { .. } => Error::Again,
            Page::Given => Error::Denied,
            Page::Lost => Error::Poisoned,
        };
        return Err(Stopped { error, page });
    }
    Ok(())
}

/// Makes every page of `span` the host's to map again. Only frames that were never donated may come back this way.
///
/// # Errors
/// `Denied` for a donated page, `Again` for one that is draining; nothing has changed, unless another thread moved
/// pages meanwhile: the parts before its own have.
pub fn to_shared<F: File>(file: &F, span: Span) -> Result<(), Stopped> {
    in_parts(file, span, |book, part| may_be_shared(book, part))?;
    in_parts(file, span, |book, part| {
        may_be_shared(book, part)?;
        for page in part.pages() {
            match book.page(page) {
                Page::Held => {
                    file.thaw(page);
                    book.open(page, Open::Host);
                }
                Page::Vacant => book.open(page, Open::Host),
                Page::Host | Page::Borrowed | Page::Lent | Page::Draining { .. } | Page::Given | Page::Lost => {}
            }
        }
        Ok(())
    })
}

fn may_be_punched(book: &Book<'_>, part: Span) -> Result<(), Error> {
    if !book.holds(part) {
        return Err(Error::Invalid);
    }
    for page in part.pages() {
        match book.page(page) {
            Page::Host | Page::Borrowed | Page::Held | Page::Vacant => {}
            Page::Lent | Page::Draining { .. } | Page::Given | Page::Lost => return Err(Error::Busy),
        }
    }
    Ok(())
}

/// Frees the host's frames of `span` (`FALLOC_FL_PUNCH_HOLE`); the offsets keep who may map them.
///
/// # Errors
/// `Busy` if a page is the guest's or draining; nothing has changed, unless another thread moved pages meanwhile: the
/// parts before its own have.
pub fn punch<F: File>(file: &F, span: Span) -> Result<(), Error> {
    in_parts(file, span, |book, part| may_be_punched(book, part))?;
    in_parts(file, span, |book, part| {
        may_be_punched(book, part)?;
        book.report.begun = book.report.begun.saturating_add(1);
        // Before any frame goes: a mapping of a frame that somebody else has by then would be the end.
        file.shut(part);
        recall(file, book, part);
        for page in part.pages() {
            if file.frame(page).is_none() || book.page(page) == Page::Lost {
                continue;
            }
            if book.page(page) == Page::Held {
                file.thaw(page);
                book.hollow(page);
            }
            file.release(page);
        }
        book.report.ended = book.report.ended.saturating_add(1);
        Ok(())
    })
}

/// Brings a frame for every offset of `span` that has none (`fallocate`); the private ones are kept frozen.
///
/// # Errors
/// `NoMemory`, `Invalid` beyond the end, `Interrupted` by a kill; frames that were brought stay.
pub fn reserve<F: File, T: Thread>(file: &F, span: Span, thread: &T) -> Result<(), Error> {
    for page in span.pages() {
        if thread.dying() {
            return Err(Error::Interrupted);
        }
        // Under the lock: a page that is the host's here may be somebody's attempt a moment later.
        file.change(|book| match book.page(page) {
            _ if !book.holds(span) => Err(Error::Invalid),
            Page::Host if file.frame(page).is_none() => file.allocate(page),
            Page::Host
            | Page::Borrowed
            | Page::Lent
            | Page::Draining { .. }
            | Page::Held
            | Page::Vacant
            | Page::Given
            | Page::Lost => Ok(()),
        })?;
        thread.breathe();
    }
    to_private(file, span, Aim::Reserve, Mode::Wait, thread, &mut Nobody).map(|_| ()).map_err(|stopped| stopped.error)
}

/// Frees every frame of a file that nobody knows any more; the number of frames that are lost, because they are still
/// the guest's.
pub fn empty<F: File>(file: &F) -> u64 {
    let len = file.change(|book| book.len());
    let Some(all) = Span::new(0, len) else { return 0 };
    all.parts(F::CHUNK).fold(0, |lost, part| file.change(|book| lost.saturating_add(empty_part(file, book, part))))
}

fn empty_part<F: File>(file: &F, book: &Book<'_>, part: Span) -> u64 {
    let mut lost = 0_u64;
    for page in part.pages().filter(|&page| file.frame(page).is_some()) {
        match book.page(page) {
            Page::Host => file.release(page),
            Page::Held => {
                file.thaw(page);
                file.release(page);
            }
            Page::Borrowed | Page::Lent | Page::Draining { .. } | Page::Given | Page::Vacant | Page::Lost => {
                lost = lost.saturating_add(1);
            }
        }
    }
    lost
}
