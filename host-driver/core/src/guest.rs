// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a running guest asks of the host's memory: to lend pages, to take them back, to give them away.
//!
//! Each is two-phase: `el2` recorded the request and carries it out when the driver accepts it, at the moment that the
//! driver's half holds. Lending and giving away need no wait and run under the file's lock; taking back is a drain.
//!
//! A request may be old: another vCPU's, for the same pages, was served meanwhile. Then nothing is done, which is no
//! error: the guest makes its call again, and `el2` answers by what stands there now.
//!
//! So is a wait: no vCPU stays away from its guest for longer than [`STRETCH`], for it is the next entry that brings the
//! guest its interrupts.

use crate::convert::{to_private, Given, Giver, Mode, Stopped};
use crate::drain::{Aim, Attempt, Rest};
use crate::error::Error;
use crate::file::{Book, File, Open, Thread, Wake};
use crate::page::{Initial, Origin, Page, Span};
use crate::status::Refused;

/// Milliseconds that a vCPU waits for the host at a stretch. What it waited for is then as before, and the guest stands on
/// its call or access: it is entered, takes what interrupts have come, and makes it again.
///
/// Nothing tells the driver of a protected guest's timers, so that a wait which ends when there is something to take can not
/// be had. What a holder lets go of in one stretch is free in the next, whose first try finds it so.
pub const STRETCH: u64 = 10;

/// A wait that lasts for one stretch from now.
fn stretch(thread: &impl Thread) -> Mode {
    Mode::Until(thread.now().saturating_add(STRETCH))
}

/// Why a request could not be served at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotYet {
    /// The first page is not backed: resolve it as a touch, and try again.
    Untouched(u64),
    /// The first page is draining: wait for the outcome.
    Draining(u64),
    /// It will not be served.
    Refused(Error),
}

impl From<Refused> for NotYet {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused.into())
    }
}

/// Pages at the start of `span` that are the guest's alone; if none is, why. That it is lent is no reason to complain.
fn given_prefix(book: &Book<'_>, span: Span) -> Result<u64, NotYet> {
    let mut count = 0_u64;
    for page in span.pages() {
        let why = match book.page(page) {
            Page::Given => {
                count = count.saturating_add(1);
                continue;
            }
            Page::Host | Page::Held | Page::Vacant => NotYet::Untouched(page),
            Page::Draining { .. } => NotYet::Draining(page),
            Page::Lent => return Ok(count),
            // `el2` would not have passed the request on.
            Page::Borrowed | Page::Lost => NotYet::Refused(Error::Io),
        };
        return if count == 0 { Err(why) } else { Ok(count) };
    }
    Ok(count)
}

/// Pages at the start of `span` that the guest has lent, those on their way back included. None if the first is not.
fn lent_prefix(book: &Book<'_>, span: Span) -> Result<Option<Span>, Error> {
    let lent = |&page: &u64| matches!(book.page(page), Page::Lent | Page::Draining { origin: Origin::Lent, .. });
    let count = u64::try_from(span.pages().take_while(lent).count()).unwrap_or(0);
    match book.page(span.first()) {
        // `el2` would not have passed the request on.
        Page::Borrowed | Page::Lost => Err(Error::Io),
        Page::Host | Page::Lent | Page::Draining { .. } | Page::Held | Page::Vacant | Page::Given => {
            Ok(Span::new(span.first(), count))
        }
    }
}

/// Carries out MEM_SHARE: the guest stays the owner, the host may map. Fewer pages than asked may be done, or none.
///
/// # Errors
/// Why not even the first page was shared; nothing has changed.
pub fn share<F: File>(file: &F, span: Span, accept: impl FnOnce(u64) -> Result<u64, Refused>) -> Result<u64, NotYet> {
    file.change(|book| {
        let count = given_prefix(book, span)?;
        if count == 0 {
            return Ok(0);
        }
        let done = accept(count)?.min(count);
        for page in span.pages().take(usize::try_from(done).unwrap_or(usize::MAX)) {
            file.thaw(page);
            book.open(page, Open::Lent);
        }
        Ok(done)
    })
}

/// Carries out MEM_RELINQUISH: the frames come back zeroed and go to the kernel; the offsets are as in a new file. Fewer
/// pages than asked may be done, or none.
///
/// # Errors
/// Why not even the first page was given away; nothing has changed.
pub fn relinquish<F: File>(
    file: &F,
    span: Span,
    initial: Initial,
    accept: impl FnOnce(u64) -> Result<u64, Refused>,
) -> Result<u64, NotYet> {
    file.change(|book| {
        let count = given_prefix(book, span)?;
        if count == 0 {
            return Ok(0);
        }
        let done = accept(count)?.min(count);
        for page in span.pages().take(usize::try_from(done).unwrap_or(usize::MAX)) {
            file.thaw(page);
            file.release(page);
            book.renew(page, initial);
        }
        Ok(done)
    })
}

/// Repeats a request whose first page was draining, or had to be backed, which `touch` does; for one stretch.
///
/// # Errors
/// Why it stopped. That it was not served in time is none.
pub fn until_served<T: Thread>(
    thread: &T,
    mut ask: impl FnMut() -> Result<u64, NotYet>,
    mut touch: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let until = thread.now().saturating_add(STRETCH);
    loop {
        match ask() {
            Ok(_) => return Ok(()),
            Err(NotYet::Refused(error)) => return Err(error),
            Err(NotYet::Untouched(_) | NotYet::Draining(_)) if thread.now() >= until => return Ok(()),
            Err(NotYet::Untouched(page)) => touch(page)?,
            Err(NotYet::Draining(_)) => {
                if thread.pause(1000) == Wake::Interrupted {
                    return Err(Error::Interrupted);
                }
            }
        }
    }
}

/// Gives `page` to the guest because a vCPU touched it, if the host lets go of it within one stretch.
///
/// # Errors
/// Why it stopped. That the host has the page still is none: the guest touches it again.
pub fn touch<F: File, T: Thread>(file: &F, page: u64, thread: &T, giver: &mut impl Giver<F>) -> Result<(), Error> {
    let span = Span::one(page).ok_or(Error::Invalid)?;
    match to_private(file, span, Aim::Touch, stretch(thread), thread, giver) {
        Ok(_) | Err(Stopped { error: Error::TimedOut, .. }) => Ok(()),
        Err(stopped) => Err(stopped.error),
    }
}

/// Carries out MEM_UNSHARE: waits for one stretch until the host has let go of every page, then lets `el2` take them back.
///
/// What is lent no more stays as it is, and what lies behind it. A signal, or the stretch's end, cancels the attempt: the
/// pages are lent again, the guest stands on its call, and the next run starts over.
///
/// # Errors
/// Why it stopped, and at which page.
pub fn unshare<F: File, T: Thread>(
    file: &F,
    span: Span,
    thread: &T,
    accept: impl FnOnce(u64) -> Result<u64, Refused>,
) -> Result<(), Stopped> {
    let lent = file.change(|book| lent_prefix(book, span)).map_err(|error| Stopped { error, page: span.first() })?;
    let Some(span) = lent else { return Ok(()) };
    let mut accept = Some(accept);
    let mut giver = |_: &F, attempt: &Attempt| {
        let Some(accept) = accept.take() else {
            return Some(Given { count: 0, rest: Rest::Restore, error: Some(Error::Io) });
        };
        Some(match accept(attempt.total()) {
            Ok(count) => Given { count, rest: Rest::Restore, error: None },
            Err(refused) => Given { count: 0, rest: Rest::Restore, error: Some(refused.into()) },
        })
    };
    match to_private(file, span, Aim::Unshare, stretch(thread), thread, &mut giver) {
        // Another vCPU took a page back after it was looked at; or the guest is to have its interrupts.
        Ok(_) | Err(Stopped { error: Error::Exists | Error::TimedOut, .. }) => Ok(()),
        Err(stopped) => Err(stopped),
    }
}
