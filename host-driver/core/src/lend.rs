// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of an ordinary VM: they stay the host's, and are lent to the VM as it touches them.
//!
//! A loan is made and ended under the file's lock, and a page's state says whether one is out: no frame goes back to the
//! kernel that a VM can still reach, and no touch finds a page whose frame is about to go. Contents stay whatever
//! happens. Keeps the driver's half of I8 for such VMs. Knows nothing of protected ones.

use crate::el2::Handle;
use crate::error::Error;
use crate::file::{any, Book, File, Open, Owner};
use crate::page::{Page, Span};
use crate::status::Refused;
use freehold_uapi::hvc::MAX_RUN;

/// Where the guest of an ordinary VM finds pages of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The VM.
    pub vm: Handle,
    /// The pages.
    pub pages: Span,
    /// Guest frame of the first of them.
    pub gfn: u64,
}

/// Slots that one file can stand in at a time.
pub const MAX_BINDINGS: usize = 32;

/// Every binding of a file. No two have a page in common, as slots do not.
#[derive(Clone, Debug, Default)]
pub struct Bindings([Option<Binding>; MAX_BINDINGS]);

/// A run of guest frames of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loan {
    /// The VM.
    pub vm: Handle,
    /// First guest frame.
    pub gfn: u64,
    /// Frames.
    pub count: u64,
}

impl Bindings {
    /// Adds one.
    ///
    /// # Errors
    /// `NoSpace` for one more than [`MAX_BINDINGS`].
    pub fn add(&mut self, binding: Binding) -> Result<(), Error> {
        let room = self.0.iter_mut().find(|place| place.is_none()).ok_or(Error::NoSpace)?;
        *room = Some(binding);
        Ok(())
    }

    /// Forgets the one that has these pages.
    pub fn remove(&mut self, pages: Span) {
        for place in &mut self.0 {
            if place.is_some_and(|binding| binding.pages == pages) {
                *place = None;
            }
        }
    }

    /// Who borrows `run`, and as which guest frames: in order, each a part of it.
    pub fn loans(&self, run: Span) -> impl Iterator<Item = Loan> + '_ {
        self.0.iter().flatten().filter_map(move |binding| {
            let first = binding.pages.first().max(run.first());
            let count = binding.pages.end().min(run.end()).checked_sub(first)?;
            let gfn = binding.gfn.checked_add(first.checked_sub(binding.pages.first())?)?;
            (count > 0).then_some(Loan { vm: binding.vm, gfn, count })
        })
    }
}

/// Makes the file `new`'s and binds `pages`, by `bind`; nothing is bound and the file is whose it was if that fails.
///
/// It is `new`'s while `bind` runs: what would make a page of an ordinary VM's private is refused from then on, and what
/// did before is seen here.
///
/// # Errors
/// `Invalid`: `pages` are not all in the file, the file is another living VM's, or `new` is ordinary and one of the pages is
/// not the host's to lend. What `bind` says.
pub fn claim<F: File>(
    file: &F,
    new: Owner,
    pages: Span,
    alive: impl FnOnce(u64) -> bool,
    bind: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let before = file.change(|book| {
        let before = *book.owner;
        if !book.holds(pages) || (before.vm != new.vm && alive(before.vm)) {
            return Err(Error::Invalid);
        }
        *book.owner = new;
        Ok(before)
    })?;
    let bound = if new.ordinary && any(file, pages, |page| page != Page::Host) { Err(Error::Invalid) } else { bind() };
    // Nobody else's meanwhile: `new` is alive, and its slots are changed by one thread at a time.
    bound.inspect_err(|_| file.change(|book| *book.owner = before))
}

/// Lends the first page of `span` to the guest that touched it, bringing a frame if there is none, and those behind it
/// that have one.
///
/// # Errors
/// `Fault` for a page that is not the host's to lend; what `el2` says of the first page, and then nothing has changed.
/// What it says of another page ends the loans there.
pub fn touch<F: File>(file: &F, span: Span) -> Result<(), NotLent> {
    file.change(|book| {
        for page in span.pages() {
            let first = page == span.first();
            let done = match (book.page(page), file.frame(page)) {
                (Page::Host, Some(_)) => file.lend(page),
                (Page::Borrowed, Some(_)) => continue,
                // Under the lock: the frame is brought to a page that is the host's at this moment.
                (Page::Host, None) if first => {
                    file.allocate(page)?;
                    file.lend(page)
                }
                (Page::Host, None) => return Ok(()),
                _ if first => return Err(Error::Fault.into()),
                _ => return Ok(()),
            };
            match done {
                // An interrupt came first.
                Ok(0) => return Ok(()),
                Ok(_) => book.open(page, Open::Borrowed),
                Err(refused) if first => return Err(NotLent::Refused(refused)),
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    })
}

/// Why a page was not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLent {
    /// `el2` says so: it may be short of pool frames.
    Refused(Refused),
    /// The driver does.
    Error(Error),
}

impl From<Error> for NotLent {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Ends every loan in `part`, under the file's lock. A page whose loan `el2` does not end is lost.
pub fn recall<F: File>(file: &F, book: &mut Book<'_>, part: Span) {
    let mut from = part.first();
    while let Some(first) = (from..part.end()).find(|&page| book.page(page) == Page::Borrowed) {
        let rest = first..part.end().min(first.saturating_add(MAX_RUN));
        let end = rest.clone().find(|&page| book.page(page) != Page::Borrowed).unwrap_or(rest.end);
        let Some(run) = Span::new(first, end.saturating_sub(first)) else { return };
        let back = if file.recall(run) { Open::Host } else { Open::Lost };
        for page in run.pages() {
            book.open(page, back);
        }
        from = end;
    }
}

/// Ends every loan in `span`; the number of its pages that are lost.
pub fn recall_all<F: File>(file: &F, span: Span) -> u64 {
    span.parts(F::CHUNK).fold(0, |lost, part| lost.saturating_add(file.change(|book| recall_last(file, book, part))))
}

/// As [`recall_all`], in one hold of the lock that the caller has.
pub fn recall_last<F: File>(file: &F, book: &mut Book<'_>, span: Span) -> u64 {
    book.report.begun = book.report.begun.saturating_add(1);
    recall(file, book, span);
    book.report.ended = book.report.ended.saturating_add(1);
    u64::try_from(span.pages().filter(|&page| book.page(page) == Page::Lost).count()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, count: u64) -> Span {
        Span::new(first, count).unwrap()
    }

    #[test]
    fn a_run_is_found_as_the_guest_frames_of_each_binding() {
        let mut bindings = Bindings::default();
        let vm = Handle(7);
        bindings.add(Binding { vm, pages: span(10, 10), gfn: 0x80 }).unwrap();
        bindings.add(Binding { vm, pages: span(20, 4), gfn: 0x1000 }).unwrap();
        let loans = |first, count| bindings.loans(span(first, count)).map(|l| (l.gfn, l.count)).collect::<Vec<_>>();
        assert_eq!(loans(12, 3), [(0x82, 3)]);
        assert_eq!(loans(18, 4), [(0x88, 2), (0x1000, 2)]);
        assert_eq!(loans(0, 10), []);
        assert_eq!(loans(24, 1), []);
        assert_eq!(loans(0, 100), [(0x80, 10), (0x1000, 4)]);
    }

    #[test]
    fn a_binding_is_forgotten_alone_and_its_place_used_again() {
        let mut bindings = Bindings::default();
        let binding = |first| Binding { vm: Handle(1), pages: span(first, 1), gfn: first };
        for first in 0..MAX_BINDINGS as u64 {
            bindings.add(binding(first)).unwrap();
        }
        assert_eq!(bindings.add(binding(99)), Err(Error::NoSpace));
        bindings.remove(span(3, 1));
        assert_eq!(bindings.loans(span(3, 1)).count(), 0);
        assert_eq!(bindings.loans(span(2, 3)).count(), 2);
        bindings.add(binding(99)).unwrap();
    }
}
