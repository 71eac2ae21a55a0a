// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of the VMM's own memory behind a slot of a protected VM: pinned, given to the guest, and let go of once `el2` has
//! returned them.
//!
//! What the VMM has put there before the first run goes to the guest with its contents, and is measured. What it has not
//! touched until then comes when the guest touches it, and is zero. Nobody drains whoever else holds such a page: frames
//! are given as revocable (design D8), so that a holder finds a fault or zeros, never the guest's contents. Keeps the
//! driver's half of I8: a frame is let go of only when it is the host's again; one that `el2` keeps stays pinned, and is
//! counted. Knows nothing of ordinary VMs.

use crate::el2::{Conduit, El2, Handle, Run};
use crate::error::Error;
use crate::exit::Request;
use crate::file::Thread;
use crate::page::Span;
use crate::status::Refused;
use freehold_uapi::hvc;

/// Success without progress that is believed before `el2` is.
const PATIENCE: u32 = 1000;
/// No frame is pinned for this page. Frame 0 is never RAM that a process has.
const NONE: u64 = 0;

/// One slot's pages in the VMM's address space.
pub trait Pins {
    /// Looks a page up to be written, pins its frame for good and charges it. With `present`, `None`: nobody has put
    /// anything there yet, and nothing is brought in. Called without the slot's lock: it may wait for whoever serves the
    /// VMM's memory.
    ///
    /// # Errors
    /// `Fault` where the VMM has nothing to write to, `Interrupted`, `NoMemory` beyond its limit of locked memory, `Io` in
    /// another process and for memory that is some file's.
    fn pin(&self, page: u64, present: bool) -> Result<Option<u64>, Error>;

    /// Lets go of a frame that `pin` brought.
    fn unpin(&self, frame: u64);

    /// Runs `change` with the slot's lock held, on the frame of each page.
    fn change<R>(&self, change: impl FnOnce(&mut [u64]) -> R) -> R;
}

fn at(frames: &mut [u64], page: u64) -> Option<&mut u64> {
    usize::try_from(page).ok().and_then(|page| frames.get_mut(page))
}

/// Pages from `span`'s first on that have a frame.
fn given(frames: &[u64], span: Span) -> u64 {
    let has = |&page: &u64| usize::try_from(page).ok().and_then(|page| frames.get(page)).is_some_and(|&f| f != NONE);
    u64::try_from(span.pages().take_while(has).count()).unwrap_or(0)
}

/// Gives `page` to the guest, unless it has it. `give` gives a frame: the number given, 0 or 1.
///
/// # Errors
/// Why the VMM has no such page, or what `give` says; nothing has changed then.
pub fn touch<P: Pins>(
    pins: &P,
    page: u64,
    present: bool,
    give: impl FnOnce(u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    if pins.change(|frames| at(frames, page).is_none_or(|frame| *frame != NONE)) {
        return Ok(());
    }
    let Some(frame) = pins.pin(page, present)? else { return Ok(()) };
    let kept = pins.change(|frames| match at(frames, page) {
        // Another vCPU was faster.
        Some(place) if *place == NONE => {
            let given = give(frame)? != 0;
            if given {
                *place = frame;
            }
            Ok(given)
        }
        _ => Ok(false),
    });
    if kept != Ok(true) {
        pins.unpin(frame);
    }
    kept.map(|_| ())
}

/// Gives the guest what the VMM has put into the slot's pages, in order, before the first run.
///
/// # Errors
/// As [`touch`]; `Interrupted` when the thread is being killed. What was given stays given.
pub fn populate<P: Pins, T: Thread>(
    pins: &P,
    pages: Span,
    thread: &T,
    mut give: impl FnMut(u64, u64) -> Result<u64, Error>,
) -> Result<(), Error> {
    for page in pages.pages() {
        let mut idle = 0_u32;
        loop {
            let mut done = true;
            let touched = touch(pins, page, true, |frame| {
                let given = give(page, frame)?;
                done = given != 0;
                Ok(given)
            });
            match touched {
                // Memory that is not there, or not to be written, is nobody's until the guest asks for it.
                Err(Error::Fault) => break,
                other => other?,
            }
            if done {
                break;
            }
            idle = idle.saturating_add(1);
            if idle > PATIENCE {
                return Err(Error::Io);
            }
        }
        thread.breathe();
        if thread.dying() {
            return Err(Error::Interrupted);
        }
    }
    Ok(())
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The guest goes on, or makes its call again.
    Done,
    /// The first page is not given yet: touch it, and ask again.
    Untouched,
}

/// Carries out what the guest asks of pages that it has been given, or of as many as stand in one piece.
///
/// A request that is old, because another vCPU's for the same pages came first, is none: the guest makes its call again.
///
/// # Errors
/// What `accept` says.
pub fn request<P: Pins>(
    pins: &P,
    kind: Request,
    span: Span,
    accept: impl FnOnce(u64) -> Result<u64, Refused>,
) -> Result<Served, Error> {
    // What comes back is let go of outside the lock.
    let mut from = span.first();
    let mut until = from;
    let served = pins.change(|frames| {
        let count = given(frames, span);
        if count == 0 {
            return Ok(Served::Untouched);
        }
        match accept(count) {
            Ok(done) if kind == Request::Relinquish => until = from.saturating_add(done.min(count)),
            Ok(_) => {}
            Err(Refused {
                status: hvc::SHARED | hvc::GFN_NOT_MAPPED | hvc::GFN_POISONED | hvc::NO_REQUEST, ..
            }) => {}
            Err(refused) => return Err(refused.into()),
        }
        Ok(Served::Done)
    });
    while from < until {
        release(pins, from);
        from = from.saturating_add(1);
    }
    served
}

/// Lets go of the frame of `page`, which is the host's again.
fn release<P: Pins>(pins: &P, page: u64) {
    let frame = pins.change(|frames| at(frames, page).map_or(NONE, |frame| core::mem::replace(frame, NONE)));
    if frame != NONE {
        pins.unpin(frame);
    }
}

/// Whether the guest was given any of `pages`.
pub fn any<P: Pins>(pins: &P, pages: Span) -> bool {
    pins.change(|frames| pages.pages().any(|page| at(frames, page).is_some_and(|frame| *frame != NONE)))
}

/// Takes back what the dying VM was given of `pages`; the number of frames that `el2` would not return. May be called
/// again.
pub fn reclaim<P: Pins, C: Conduit, T: Thread>(pins: &P, pages: Span, el2: &El2<C>, vm: Handle, thread: &T) -> u64 {
    let mut lost = 0_u64;
    for page in pages.pages() {
        let frame = pins.change(|frames| at(frames, page).map_or(NONE, |frame| *frame));
        if frame == NONE {
            continue;
        }
        if returned(el2, vm, frame) {
            release(pins, page);
        } else {
            lost = lost.saturating_add(1);
        }
        thread.breathe();
    }
    lost
}

/// Whether the frame is not the VM's any more.
fn returned<C: Conduit>(el2: &El2<C>, vm: Handle, frame: u64) -> bool {
    for _ in 0..PATIENCE {
        match el2.vm_reclaim(vm, Run { pfn: frame, count: 1 }) {
            Ok(0) => {}
            Ok(_) => return true,
            // It was revoked, and may be another VM's since, which has a pin of its own.
            Err(refused) => return matches!(refused.status, hvc::HOST_OWNED | hvc::FOREIGN),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Wake;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    /// A VMM's memory of 100 pages whose frames are 1,000 and up; nothing is in pages from 50 on.
    struct Fake {
        frames: RefCell<Vec<u64>>,
        pinned: RefCell<Vec<u64>>,
        fails: Cell<Option<Error>>,
        faster: Cell<bool>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                frames: RefCell::new(vec![NONE; 100]),
                pinned: RefCell::default(),
                fails: Cell::new(None),
                faster: Cell::new(false),
            }
        }

        fn held(&self) -> Vec<u64> {
            let mut held = self.pinned.borrow().clone();
            held.sort_unstable();
            held
        }

        fn touched(&self, page: u64) -> Result<(), Error> {
            touch(self, page, false, |_| Ok(1))
        }
    }

    impl Pins for Fake {
        fn pin(&self, page: u64, present: bool) -> Result<Option<u64>, Error> {
            if let Some(error) = self.fails.get() {
                return Err(error);
            }
            if present && page >= 50 {
                return Ok(None);
            }
            let frame = 1000 + page;
            self.pinned.borrow_mut().push(frame);
            if self.faster.replace(false) {
                self.touched(page).unwrap();
            }
            Ok(Some(frame))
        }

        fn unpin(&self, frame: u64) {
            let mut pinned = self.pinned.borrow_mut();
            let place = pinned.iter().position(|&held| held == frame).expect("a frame that is not pinned");
            pinned.swap_remove(place);
        }

        fn change<R>(&self, change: impl FnOnce(&mut [u64]) -> R) -> R {
            change(&mut self.frames.borrow_mut())
        }
    }

    /// A thread that is killed after so many pages.
    struct Breath(Cell<u32>);

    impl Thread for Breath {
        fn now(&self) -> u64 {
            0
        }
        fn pause(&self, _: u32) -> Wake {
            Wake::Elapsed
        }
        fn breathe(&self) {
            self.0.set(self.0.get().saturating_sub(1));
        }
        fn dying(&self) -> bool {
            self.0.get() == 0
        }
    }

    fn span(first: u64, count: u64) -> Span {
        Span::new(first, count).unwrap()
    }

    #[test]
    fn a_touch_gives_one_page_once() {
        let fake = Fake::new();
        fake.touched(3).unwrap();
        fake.touched(3).unwrap();
        assert_eq!((fake.held(), fake.frames.borrow()[3]), (vec![1003], 1003));
        assert!(any(&fake, span(0, 100)));
        assert!(!any(&fake, span(4, 96)));
    }

    #[test]
    fn what_is_not_given_is_not_pinned() {
        let fake = Fake::new();
        assert_eq!(touch(&fake, 3, false, |_| Err(Error::Exists)), Err(Error::Exists));
        assert_eq!(touch(&fake, 3, false, |_| Ok(0)), Ok(()));
        assert_eq!(touch(&fake, 60, true, |_| panic!("there is nothing")), Ok(()));
        fake.fails.set(Some(Error::NoMemory));
        assert_eq!(fake.touched(3), Err(Error::NoMemory));
        assert_eq!((fake.held(), any(&fake, span(0, 100))), (vec![], false));
    }

    #[test]
    fn of_two_vcpus_that_touch_a_page_one_gives_it() {
        let fake = Fake::new();
        fake.faster.set(true);
        touch(&fake, 3, false, |_| panic!("given twice")).unwrap();
        assert_eq!((fake.held(), fake.frames.borrow()[3]), (vec![1003], 1003));
    }

    #[test]
    fn what_the_vmm_put_there_goes_to_the_guest_in_order() {
        let fake = Fake::new();
        let (gave, mut idle) = (RefCell::new(Vec::new()), true);
        populate(&fake, span(0, 100), &Breath(Cell::new(u32::MAX)), |page, frame| {
            // An interrupt comes first, once.
            if core::mem::take(&mut idle) {
                return Ok(0);
            }
            gave.borrow_mut().push((page, frame));
            Ok(1)
        })
        .unwrap();
        assert_eq!(gave.take(), (0..50).map(|page| (page, 1000 + page)).collect::<Vec<_>>());
        assert_eq!(fake.held().len(), 50);
    }

    #[test]
    fn population_ends_where_it_must() {
        let all = span(0, 100);
        let fake = Fake::new();
        assert_eq!(populate(&fake, all, &Breath(Cell::new(7)), |_, _| Ok(1)), Err(Error::Interrupted));
        assert_eq!(fake.held().len(), 7);
        let fake = Fake::new();
        assert_eq!(populate(&fake, all, &Breath(Cell::new(7)), |_, _| Ok(0)), Err(Error::Io));
        let forever = Breath(Cell::new(u32::MAX));
        assert_eq!(populate(&fake, all, &forever, |_, _| Err(Error::Exists)), Err(Error::Exists));
        assert_eq!(fake.held(), []);
        fake.fails.set(Some(Error::Fault));
        assert_eq!(populate(&fake, all, &forever, |_, _| Ok(1)), Ok(()));
    }

    #[test]
    fn a_request_is_for_what_stands_in_one_piece() {
        let fake = Fake::new();
        for page in [0, 1, 2, 5] {
            fake.touched(page).unwrap();
        }
        for kind in [Request::Share, Request::Unshare] {
            let mut asked = 0;
            let served = request(&fake, kind, span(0, 10), |count| {
                asked = count;
                Ok(count)
            });
            assert_eq!((served, asked), (Ok(Served::Done), 3));
            assert_eq!(request(&fake, kind, span(3, 2), |_| panic!("not given")), Ok(Served::Untouched));
        }
        assert_eq!(fake.held(), [1000, 1001, 1002, 1005]);
    }

    #[test]
    fn what_a_guest_gives_back_is_let_go_of_as_far_as_it_came() {
        let fake = Fake::new();
        (0..4).for_each(|page| fake.touched(page).unwrap());
        assert_eq!(request(&fake, Request::Relinquish, span(0, 4), |_| Ok(2)), Ok(Served::Done));
        assert_eq!(fake.held(), [1002, 1003]);
        // The guest may have it anew.
        fake.touched(0).unwrap();
        assert_eq!(fake.held(), [1000, 1002, 1003]);
    }

    #[test]
    fn an_old_request_is_none_and_any_other_refusal_is_told() {
        let fake = Fake::new();
        fake.touched(0).unwrap();
        for kind in [Request::Share, Request::Unshare, Request::Relinquish] {
            for status in [hvc::SHARED, hvc::GFN_NOT_MAPPED, hvc::GFN_POISONED, hvc::NO_REQUEST] {
                let refused = Refused { status, detail: 0 };
                assert_eq!(request(&fake, kind, span(0, 1), |_| Err(refused)), Ok(Served::Done));
            }
            let refused = Refused { status: hvc::WRONG_STATE, detail: 0 };
            assert_eq!(request(&fake, kind, span(0, 1), |_| Err(refused)), Err(Error::Denied));
        }
        assert_eq!(fake.held(), [1000]);
    }

    /// An `el2` that returns frames, as its table says.
    struct Returns {
        revoked: BTreeSet<u64>,
        foreign: BTreeSet<u64>,
        kept: BTreeSet<u64>,
        interrupted: Cell<u32>,
    }

    impl Conduit for &Returns {
        #[expect(clippy::cast_sign_loss, reason = "a status travels in an unsigned register")]
        fn call(&self, function: u32, [_, pfn, count, ..]: [u64; 5]) -> [u64; 5] {
            assert_eq!((function, count), (hvc::VM_RECLAIM, 1));
            let status = match () {
                () if self.revoked.contains(&pfn) => hvc::HOST_OWNED,
                () if self.foreign.contains(&pfn) => hvc::FOREIGN,
                () if self.kept.contains(&pfn) => hvc::WRONG_STATE,
                () => hvc::SUCCESS,
            };
            let none = self.interrupted.get() > 0;
            self.interrupted.set(self.interrupted.get().saturating_sub(1));
            [status as u64, u64::from(status == hvc::SUCCESS && !none), 0, 0, 0]
        }

        fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
            None
        }
    }

    #[test]
    fn the_end_lets_go_of_what_came_back_and_counts_the_rest() {
        let fake = Fake::new();
        (0..6).for_each(|page| fake.touched(page).unwrap());
        let rules =
            Returns { revoked: [1001].into(), foreign: [1002].into(), kept: [1004].into(), interrupted: Cell::new(3) };
        let breath = Breath(Cell::new(u32::MAX));
        assert_eq!(reclaim(&fake, span(0, 100), &El2(&rules), Handle(1), &breath), 1);
        assert_eq!(fake.held(), [1004]);
        // Again, once el2 lets go.
        let rules = Returns { kept: BTreeSet::new(), ..rules };
        assert_eq!(reclaim(&fake, span(0, 100), &El2(&rules), Handle(1), &breath), 0);
        assert_eq!(fake.held(), []);
        // An el2 that never comes to it.
        fake.touched(0).unwrap();
        rules.interrupted.set(PATIENCE + 1);
        assert_eq!(reclaim(&fake, span(0, 100), &El2(&rules), Handle(1), &breath), 1);
    }
}
