// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of the VMM's own memory behind a slot of an ordinary VM: lent as the guest touches them, and taken back before
//! the kernel moves, copies or frees them.
//!
//! No reference keeps a page: the kernel says that a range of the VMM's mappings is about to change, and the loans in it
//! end first. A page that was looked up before such a change is not lent after it. Contents are the VMM's business. Keeps
//! the driver's half of I8 for such slots. Knows nothing of protected VMs.

use crate::error::Error;
use crate::lend::NotLent;
use crate::page::Span;
use crate::status::Refused;
use freehold_uapi::hvc::MAX_RUN;

/// Pages that are brought in and lent for one touch, at most.
pub const AROUND: usize = 16;
/// Bits of a word.
const WORD: u64 = 64;

/// Which pages of a slot are lent, and whether any still may be. Under the slot's lock.
#[derive(Debug)]
pub struct Lent<'a> {
    /// A bit for each page.
    pub bits: &'a mut [u64],
    /// The slot has gone: nothing is lent from it any more.
    pub over: &'a mut bool,
}

impl Lent<'_> {
    fn place(page: u64) -> (Option<usize>, u64) {
        (usize::try_from(page / WORD).ok(), 1_u64.checked_shl(u32::try_from(page % WORD).unwrap_or(0)).unwrap_or(0))
    }

    /// Whether `page` is lent.
    #[must_use]
    pub fn has(&self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        word.and_then(|word| self.bits.get(word)).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, page: u64, lent: bool) {
        let (word, bit) = Self::place(page);
        if let Some(word) = word.and_then(|word| self.bits.get_mut(word)) {
            *word = if lent { *word | bit } else { *word & !bit };
        }
    }

    /// The first lent page from `from` on and before `end`.
    fn next(&self, from: u64, end: u64) -> Option<u64> {
        let mut page = from;
        while page < end {
            if self.has(page) {
                return Some(page);
            }
            let word = usize::try_from(page / WORD).ok().and_then(|word| self.bits.get(word))?;
            // Words in which nothing is lent are passed over whole.
            let step = if *word == 0 { WORD.saturating_sub(page % WORD) } else { 1 };
            page = page.saturating_add(step);
        }
        None
    }
}

/// What the guest may do with a slot's pages. For this they are looked up, and for nothing more they are lent: a page that
/// was looked up to be read may be the kernel's page of zeros, or one that others have a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read: the slot is read only.
    Read,
    /// Read and write.
    Write,
}

/// The loans of one slot, where its VM finds it at present. Known to whoever has the slot's lock.
pub trait Way {
    /// Lends `frame` as `page`, for `access`; 0: an interrupt came first.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn lend(&self, frame: u64, page: u64, access: Access) -> Result<u64, Refused>;

    /// Ends the loans of `run`, at most `MAX_RUN` pages. `false` if the hypervisor would not.
    fn recall(&self, run: Span) -> bool;
}

/// One slot's pages in the VMM's address space.
///
/// `change` is the slot's lock. It is taken when the kernel is about to change mappings, also to get memory: nothing is
/// allocated under it.
pub trait Lease {
    /// How its pages are lent.
    type Way: Way;

    /// What its guest may do. It never changes.
    fn access(&self) -> Access;

    /// A number for [`Lease::passed`], taken before pages are looked up.
    fn begin(&self) -> u64;

    /// Looks up the pages of `span` from its first on, for `access`, and writes their frame numbers; they are held until
    /// [`Lease::let_go`]. Answers how many, at least one.
    ///
    /// # Errors
    /// `Fault` where the VMM has nothing for that access, `Interrupted`, `NoMemory`, `Poisoned`, `Io` in another process.
    fn bring(&self, span: Span, access: Access, frames: &mut [u64; AROUND]) -> Result<usize, Error>;

    /// Lets go of frames that `bring` held.
    fn let_go(&self, frames: &[u64]);

    /// Runs `change` with the lock held.
    fn change<R>(&self, change: impl FnOnce(&mut Lent<'_>, &Self::Way) -> R) -> R;

    /// Whether mappings have changed since `begin` answered `seen`, or are about to. Called under the lock.
    fn passed(&self, seen: u64) -> bool;
}

/// What became of a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The guest goes on: the page is there, or it touches it again.
    Done,
    /// The slot has gone meanwhile.
    Gone,
}

/// Lends the first page of `span`, which the guest touched, and some behind it.
///
/// # Errors
/// What `el2` says of the first page, and then nothing has changed; or why the VMM has no such page. What `el2` says of
/// another page ends the loans there.
pub fn touch<L: Lease>(lease: &L, span: Span) -> Result<Touched, NotLent> {
    let (access, seen) = (lease.access(), lease.begin());
    let mut frames = [0; AROUND];
    let brought = lease.bring(span, access, &mut frames)?;
    let frames = frames.get(..brought).unwrap_or(&[]);
    let done = lease.change(|lent, way| {
        if *lent.over {
            return Ok(Touched::Gone);
        }
        if lease.passed(seen) {
            return Ok(Touched::Done);
        }
        for (page, &frame) in span.pages().zip(frames) {
            if lent.has(page) {
                continue;
            }
            match way.lend(frame, page, access) {
                Ok(0) => break,
                Ok(_) => lent.set(page, true),
                Err(refused) if page == span.first() => return Err(NotLent::Refused(refused)),
                Err(_) => break,
            }
        }
        Ok(Touched::Done)
    });
    lease.let_go(frames);
    done
}

/// Ends every loan in `part`, under the lock; the number of pages that `el2` would not give back.
pub fn recall(way: &impl Way, lent: &mut Lent<'_>, part: Span) -> u64 {
    let (mut from, mut kept) = (part.first(), 0_u64);
    while let Some(first) = lent.next(from, part.end()) {
        let limit = part.end().min(first.saturating_add(MAX_RUN));
        let end = (first..limit).find(|&page| !lent.has(page)).unwrap_or(limit);
        let Some(run) = Span::new(first, end.saturating_sub(first)) else { return kept };
        if !way.recall(run) {
            kept = kept.saturating_add(run.count());
        }
        for page in run.pages() {
            lent.set(page, false);
        }
        from = end;
    }
    kept
}

/// Ends every loan of a slot of `pages`, which may be lent from again, or not (`over`); as [`recall`].
pub fn recall_all<L: Lease>(lease: &L, pages: Span, over: bool) -> u64 {
    lease.change(|lent, way| {
        *lent.over |= over;
        recall(way, lent, pages)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use freehold_uapi::hvc;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    /// A VMM's memory of 1,000 pages whose frames are 100,000 and up, and an `el2` that keeps account.
    #[derive(Default)]
    struct Loans {
        lent: RefCell<BTreeMap<u64, u64>>,
        calls: RefCell<Vec<(u64, u64)>>,
        refuse_from: Cell<Option<u64>>,
        interrupt_at: Cell<Option<u64>>,
        stubborn: Cell<bool>,
        rights: Cell<Option<Access>>,
    }

    struct Fake {
        bits: RefCell<Vec<u64>>,
        over: Cell<bool>,
        held: Cell<i64>,
        changes: Cell<u64>,
        change_under_lookup: Cell<bool>,
        loans: Loans,
        brings: Cell<usize>,
        access: Cell<Access>,
        looked_up_for: Cell<Option<Access>>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                bits: RefCell::new(vec![0; 16]),
                over: Cell::new(false),
                held: Cell::new(0),
                changes: Cell::new(0),
                change_under_lookup: Cell::new(false),
                loans: Loans::default(),
                brings: Cell::new(AROUND),
                access: Cell::new(Access::Write),
                looked_up_for: Cell::new(None),
            }
        }

        fn lent(&self) -> Vec<u64> {
            let pages: Vec<u64> = self.loans.lent.borrow().keys().copied().collect();
            let bits: Vec<u64> = (0..1024).filter(|&page| self.change(|lent, _| lent.has(page))).collect();
            assert_eq!(pages, bits, "what is noted is what is lent");
            assert_eq!(self.held.get(), 0, "frames are held for the lookup only");
            pages
        }
    }

    impl Way for Loans {
        fn lend(&self, frame: u64, page: u64, access: Access) -> Result<u64, Refused> {
            self.rights.set(Some(access));
            if self.refuse_from.get().is_some_and(|from| page >= from) {
                return Err(Refused { status: hvc::NEED_PAGES, detail: 3 });
            }
            if self.interrupt_at.get() == Some(page) {
                return Ok(0);
            }
            assert_eq!(self.lent.borrow_mut().insert(page, frame), None, "lent twice");
            Ok(1)
        }
        fn recall(&self, run: Span) -> bool {
            assert!(run.count() <= MAX_RUN);
            self.calls.borrow_mut().push((run.first(), run.count()));
            if self.stubborn.get() {
                return false;
            }
            run.pages().all(|page| self.lent.borrow_mut().remove(&page).is_some())
        }
    }

    impl Lease for Fake {
        type Way = Loans;
        fn access(&self) -> Access {
            self.access.get()
        }
        fn begin(&self) -> u64 {
            self.changes.get()
        }
        fn bring(&self, span: Span, access: Access, frames: &mut [u64; AROUND]) -> Result<usize, Error> {
            self.looked_up_for.set(Some(access));
            if span.first() >= 1000 {
                return Err(Error::Fault);
            }
            if self.change_under_lookup.replace(false) {
                self.changes.set(self.changes.get() + 1);
            }
            let count = usize::try_from(span.count()).unwrap().min(self.brings.get());
            for (page, frame) in span.pages().zip(frames.iter_mut()).take(count) {
                *frame = 100_000 + page;
            }
            self.held.set(self.held.get() + i64::try_from(count).unwrap());
            Ok(count)
        }
        fn let_go(&self, frames: &[u64]) {
            self.held.set(self.held.get() - i64::try_from(frames.len()).unwrap());
        }
        fn change<R>(&self, change: impl FnOnce(&mut Lent<'_>, &Loans) -> R) -> R {
            let mut over = self.over.get();
            let result = change(&mut Lent { bits: &mut self.bits.borrow_mut(), over: &mut over }, &self.loans);
            self.over.set(over);
            result
        }
        fn passed(&self, seen: u64) -> bool {
            self.changes.get() != seen
        }
    }

    fn span(first: u64, count: u64) -> Span {
        Span::new(first, count).unwrap()
    }

    #[test]
    fn a_touch_lends_the_page_and_those_behind_it() {
        let fake = Fake::new();
        assert_eq!(touch(&fake, span(60, 16)), Ok(Touched::Done));
        assert_eq!(fake.lent(), (60..76).collect::<Vec<_>>());
        // What is lent stays so; the rest of the run is added.
        fake.brings.set(4);
        assert_eq!(touch(&fake, span(74, 16)), Ok(Touched::Done));
        assert_eq!(fake.lent(), (60..78).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_is_lent_for_what_it_was_looked_up_for() {
        for access in [Access::Read, Access::Write] {
            let fake = Fake::new();
            fake.access.set(access);
            assert_eq!(touch(&fake, span(3, 2)), Ok(Touched::Done));
            assert_eq!((fake.looked_up_for.get(), fake.loans.rights.get()), (Some(access), Some(access)));
        }
    }

    #[test]
    fn a_page_that_changed_under_its_lookup_is_not_lent() {
        let fake = Fake::new();
        fake.change_under_lookup.set(true);
        assert_eq!(touch(&fake, span(0, 2)), Ok(Touched::Done));
        assert_eq!(fake.lent(), []);
        assert_eq!(touch(&fake, span(0, 2)), Ok(Touched::Done));
        assert_eq!(fake.lent(), [0, 1]);
    }

    #[test]
    fn nothing_is_lent_from_a_slot_that_has_gone() {
        let fake = Fake::new();
        touch(&fake, span(5, 3)).unwrap();
        assert_eq!(recall_all(&fake, span(0, 1000), true), 0);
        assert_eq!(touch(&fake, span(5, 3)), Ok(Touched::Gone));
        assert_eq!(fake.lent(), []);
        // One that only moves is lent from again.
        let fake = Fake::new();
        touch(&fake, span(5, 3)).unwrap();
        assert_eq!(recall_all(&fake, span(0, 1000), false), 0);
        assert_eq!(touch(&fake, span(5, 3)), Ok(Touched::Done));
        assert_eq!(fake.lent(), [5, 6, 7]);
    }

    #[test]
    fn a_refusal_of_the_first_page_is_told_and_of_another_ends_the_loans() {
        let fake = Fake::new();
        fake.loans.refuse_from.set(Some(10));
        let refused = Refused { status: hvc::NEED_PAGES, detail: 3 };
        assert_eq!(touch(&fake, span(10, 4)), Err(NotLent::Refused(refused)));
        assert_eq!(fake.lent(), []);
        assert_eq!(touch(&fake, span(8, 4)), Ok(Touched::Done));
        assert_eq!(fake.lent(), [8, 9]);
        fake.loans.interrupt_at.set(Some(7));
        assert_eq!(touch(&fake, span(6, 4)), Ok(Touched::Done));
        assert_eq!(fake.lent(), [6, 8, 9]);
        assert_eq!(touch(&fake, span(1000, 1)), Err(NotLent::Error(Error::Fault)));
    }

    #[test]
    fn loans_end_in_runs_inside_what_changes_and_nowhere_else() {
        let fake = Fake::new();
        for first in [0, 62, 200, 500] {
            touch(&fake, span(first, 4)).unwrap();
        }
        assert_eq!(fake.change(|lent, way| recall(way, lent, span(1, 200))), 0);
        assert_eq!(fake.loans.calls.take(), [(1, 3), (62, 4), (200, 1)]);
        assert_eq!(fake.lent(), [0, 201, 202, 203, 500, 501, 502, 503]);
        assert_eq!(fake.change(|lent, way| recall(way, lent, span(300, 100))), 0);
        assert_eq!(fake.loans.calls.take(), []);
    }

    #[test]
    fn a_long_run_ends_in_calls_of_no_more_than_el2_takes() {
        let fake = Fake::new();
        for first in (0..992).step_by(16) {
            touch(&fake, span(first, 16)).unwrap();
        }
        assert_eq!(recall_all(&fake, span(0, 1000), false), 0);
        assert_eq!(fake.loans.calls.take(), [(0, 512), (512, 480)]);
        assert_eq!(fake.lent(), []);
    }

    #[test]
    fn pages_that_do_not_come_back_are_counted() {
        let fake = Fake::new();
        touch(&fake, span(5, 3)).unwrap();
        fake.loans.stubborn.set(true);
        assert_eq!(recall_all(&fake, span(0, 1000), true), 3);
    }

    #[test]
    fn a_lent_page_is_found_before_the_end_that_is_asked_for_only() {
        let mut words = [0; 2];
        let mut lent = Lent { bits: &mut words, over: &mut false };
        for _ in 0..2 {
            lent.set(70, true);
            assert!(lent.has(70), "said twice is said");
        }
        assert_eq!((lent.next(0, 71), lent.next(0, 70), lent.next(71, 128)), (Some(70), None, None));
        lent.set(70, false);
        assert_eq!(lent.next(0, 128), None);
    }
}
