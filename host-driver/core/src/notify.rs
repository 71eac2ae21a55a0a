// SPDX-License-Identifier: MIT OR Apache-2.0
//! A conversion that nobody waits for: it goes on by itself, and whoever polls the file is told of its end.
//!
//! Keeps I5 and I6, as the engine below it does. A file has one at a time. Its pages end up held, not donated: whoever
//! drives it needs no VM and no memory for tables. The VM's first run donates them, or the guest's first touch. Knows
//! nothing of who drives it.

use crate::convert::{Given, Giver, Mode, Patience, Stopped, SHORT_WAITS};
use crate::drain::{begin, Aim, Attempt, Begun, Rest, Step};
use crate::error::Error;
use crate::file::{File, Thread};
use crate::page::Span;

/// The file's one conversion that nobody waits for.
#[derive(Debug, Default)]
pub enum Notice {
    /// There is none.
    #[default]
    None,
    /// It waits for its next look.
    Pending(Pending),
    /// Somebody looks at it at this moment.
    Driven,
    /// It has ended, and nobody has asked how.
    Ended(Outcome),
}

/// What is between two looks.
#[derive(Debug)]
pub struct Pending {
    attempt: Attempt,
    /// The clock's time at which it gives up, if ever.
    until: Option<u64>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was asked for.
    pub span: Span,
    /// Why nothing moved, and at which page.
    pub result: Result<(), Stopped>,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again.
    Again,
    /// There is nothing to look at.
    Over,
}

/// Starts to take `span` from the host. `Ok`: it is done, `giver` gave.
///
/// # Errors
/// `InProgress` at the first page that somebody holds, or at the first of all where `giver` cannot give yet: [`drive`] goes on, until the clock shows `until`. `Busy` if the
/// file has such a conversion already, or an outcome that was not collected. `Again` if a page belongs to another
/// attempt. Otherwise why it was refused; nothing has changed then.
pub fn start<F: File, T: Thread>(
    file: &F,
    span: Span,
    until: Option<u64>,
    thread: &T,
    giver: &mut impl Giver<F>,
) -> Result<(), Stopped> {
    let free = file.change(|book| {
        let free = matches!(book.notice, Notice::None);
        if free {
            *book.notice = Notice::Driven;
        }
        free
    });
    if !free {
        return Err(Stopped { error: Error::Busy, page: span.first() });
    }
    let begun = match begin(file, span, Aim::Convert) {
        Begun::Attempt(attempt) => Ok(attempt),
        Begun::Nothing => Err(Ok(())),
        Begun::Refused(error, page) => Err(Err(Stopped { error, page })),
    };
    match begun.map(|attempt| look(file, attempt, thread)) {
        Err(over) => {
            file.change(|book| *book.notice = Notice::None);
            over
        }
        Ok(Looked::Frozen(mut attempt)) => {
            let Some(given) = offered(file, &mut attempt, thread, giver) else {
                file.change(|book| *book.notice = Notice::Pending(Pending { attempt, until }));
                return Err(Stopped { error: Error::InProgress, page: span.first() });
            };
            let page = attempt.nth(file, span.first(), given.count).unwrap_or(span.first());
            attempt.finish(file, given.count, given.rest);
            file.change(|book| *book.notice = Notice::None);
            given.error.map_or(Ok(()), |error| Err(Stopped { error, page }))
        }
        Ok(Looked::Busy(attempt, page)) => {
            file.change(|book| *book.notice = Notice::Pending(Pending { attempt, until }));
            Err(Stopped { error: Error::InProgress, page })
        }
        Ok(Looked::Stopped(stopped)) => {
            file.change(|book| *book.notice = Notice::None);
            Err(stopped)
        }
    }
}

/// What `giver` gave, if it could soon. Where it could not, the pages are held at the next look, as those of a page that was
/// held are.
fn offered<F: File, T: Thread>(
    file: &F,
    attempt: &mut Attempt,
    thread: &T,
    giver: &mut impl Giver<F>,
) -> Option<Given> {
    let (mut patience, mut left) = (Patience::new(thread, Mode::Now), SHORT_WAITS);
    loop {
        if let Some(given) = giver.give(file, attempt) {
            return Some(given);
        }
        if let Some(error) = attempt.stall(file) {
            return Some(Given { count: 0, rest: Rest::Restore, error: Some(error) });
        }
        if patience.wait_for_giver(&mut left).is_err() {
            return None;
        }
    }
}

enum Looked {
    Frozen(Attempt),
    Busy(Attempt, u64),
    Stopped(Stopped),
}

/// Freezes what can be frozen; one that can not go on is undone.
fn look<F: File, T: Thread>(file: &F, mut attempt: Attempt, thread: &T) -> Looked {
    let stopped = loop {
        match attempt.step(file) {
            Step::Frozen => return Looked::Frozen(attempt),
            Step::Busy(page) => return Looked::Busy(attempt, page),
            Step::More if thread.dying() => {
                break Stopped { error: Error::Interrupted, page: attempt.span().first() };
            }
            Step::More => thread.breathe(),
            Step::Poisoned(page) => break Stopped { error: Error::Poisoned, page },
            Step::Over(error, page) => break Stopped { error, page },
        }
    };
    attempt.finish(file, 0, Rest::Restore);
    Looked::Stopped(stopped)
}

/// Looks at the file's pending conversion once.
pub fn drive<F: File, T: Thread>(file: &F, thread: &T) -> Next {
    let taken = file.change(|book| match core::mem::take(book.notice) {
        Notice::Pending(pending) => {
            *book.notice = Notice::Driven;
            Some(pending)
        }
        other @ (Notice::None | Notice::Driven | Notice::Ended(_)) => {
            *book.notice = other;
            None
        }
    });
    let Some(Pending { attempt, until }) = taken else { return Next::Over };
    let span = attempt.span();
    let result = match look(file, attempt, thread) {
        Looked::Busy(attempt, page) if until.is_some_and(|until| thread.now() >= until) => {
            attempt.finish(file, 0, Rest::Restore);
            Err(Stopped { error: Error::TimedOut, page })
        }
        Looked::Busy(attempt, _) => {
            file.change(|book| *book.notice = Notice::Pending(Pending { attempt, until }));
            return Next::Again;
        }
        Looked::Frozen(attempt) => {
            attempt.finish(file, 0, Rest::Keep);
            Ok(())
        }
        Looked::Stopped(stopped) => Err(stopped),
    };
    file.change(|book| {
        *book.notice = Notice::Ended(Outcome { span, result });
        file.tell(true);
    });
    Next::Over
}

/// Takes the outcome away.
///
/// # Errors
/// `InProgress` while there is none yet, `NoEntry` if there will be none.
pub fn collect<F: File>(file: &F) -> Result<Outcome, Error> {
    file.change(|book| match core::mem::take(book.notice) {
        Notice::Ended(outcome) => {
            file.tell(false);
            Ok(outcome)
        }
        Notice::None => Err(Error::NoEntry),
        other @ (Notice::Pending(_) | Notice::Driven) => {
            *book.notice = other;
            Err(Error::InProgress)
        }
    })
}

/// Puts back an outcome that could not be delivered, unless another conversion has begun meanwhile.
pub fn keep<F: File>(file: &F, outcome: Outcome) {
    file.change(|book| {
        if matches!(book.notice, Notice::None) {
            *book.notice = Notice::Ended(outcome);
            file.tell(true);
        }
    });
}

/// Undoes the pending conversion of a file that nobody knows any more, and that nobody drives.
pub fn abandon<F: File>(file: &F) {
    let taken = file.change(|book| core::mem::take(book.notice));
    if let Notice::Pending(Pending { attempt, .. }) = taken {
        attempt.finish(file, 0, Rest::Restore);
    }
}
