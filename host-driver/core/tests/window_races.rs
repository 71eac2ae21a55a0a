// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happens between the begin and the end of a conversion or of a hole, beside a fault of the host's and a touch of
//! the guest's, in every interleaving that loom finds (requirements 8, 10, 11, 46, 48).
//!
//! The engine is the shipped one. Below it is one page as the kernel and `el2` have it: references, the folio's lock, a
//! mapping of the host's that stands some time after its fault was answered, and what the guest reaches. The judge is each
//! access: whoever has a translation reaches the frame that the file has at that moment, and never both of them a private
//! one. No sleep has a time here: an end that wakes nobody is a deadlock, which loom reports. The controls are glue that
//! does the right things in a wrong order.

use freehold_driver_core::convert::{punch, to_private, to_shared, Given, Mode, Nobody, Stopped};
use freehold_driver_core::drain::{Aim, Attempt, Rest};
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report, Thread, Wake};
use freehold_driver_core::lend;
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{HostFault, Page, Span};
use freehold_driver_core::status::Refused;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex, RwLock};
use std::cell::Cell;

/// Which order the glue gets wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    /// A fault takes its reference behind the lock under which it was answered.
    HoldsLate,
    /// Mappings go without a look at the faults that were answered and do not stand yet.
    PassesFaultsBy,
    /// Mappings go when the lock has been let go.
    UnmapsLate,
    /// Loans end when the lock has been let go.
    RecallsLate,
}

#[derive(Default)]
struct Inside {
    pages: Vec<Page>,
    next: u64,
    report: Report,
    notice: Notice,
    owner: Owner,
}

/// Frames that there are: the first, and those that come after a hole.
const FRAMES: usize = 4;

/// A file of one page, the host's mapping of it and the guest's.
struct Machine {
    inside: RwLock<Inside>,
    /// The file's frame; 0: none.
    frame: AtomicU64,
    next_frame: AtomicU64,
    /// References of each frame; the driver's own is one of them.
    refs: [AtomicU64; FRAMES],
    folio: Mutex<()>,
    /// What the host's mapping reaches. An access has the lock: who takes a translation away waits for it.
    host: Mutex<Option<u64>>,
    /// What the guest reaches.
    guest: Mutex<Option<u64>>,
    /// The glue owes it, for the lock is still held.
    owes: AtomicBool,
    /// Pages that came back from being frozen; nobody in the model decides by it.
    thawed: std::sync::atomic::AtomicU64,
    /// Counts what a sleeper may wait for.
    events: Mutex<u64>,
    wake: Condvar,
    slip: Slip,
}

impl Machine {
    fn new(slip: Slip) -> Arc<Self> {
        let refs = [0, 1, 0, 0].map(AtomicU64::new);
        Arc::new(Self {
            inside: RwLock::new(Inside { pages: vec![Page::Host], ..Inside::default() }),
            frame: AtomicU64::new(1),
            next_frame: AtomicU64::new(2),
            refs,
            folio: Mutex::new(()),
            host: Mutex::new(None),
            guest: Mutex::new(None),
            owes: AtomicBool::new(false),
            thawed: std::sync::atomic::AtomicU64::new(0),
            events: Mutex::new(0),
            wake: Condvar::new(),
            slip,
        })
    }

    fn refs(&self, frame: u64) -> &AtomicU64 {
        &self.refs[usize::try_from(frame).unwrap()]
    }

    fn current(&self) -> Option<u64> {
        Some(self.frame.load(Ordering::Acquire)).filter(|&frame| frame != 0)
    }

    fn happened(&self) {
        *self.events.lock().unwrap() += 1;
        self.wake.notify_all();
    }

    /// Sleeps until more has happened than was seen.
    fn sleep(&self, seen: &Cell<u64>) {
        let mut events = self.events.lock().unwrap();
        while *events == seen.get() {
            events = self.wake.wait(events).unwrap();
        }
        seen.set(*events);
    }

    fn put(&self, frame: u64) {
        self.refs(frame).fetch_sub(1, Ordering::AcqRel);
        self.happened();
    }

    fn unmap(&self) {
        let gone = self.host.lock().unwrap().take();
        if let Some(frame) = gone {
            self.put(frame);
        }
    }

    /// An access of the host's by the mapping that stands, if one does.
    fn host_reaches(&self) -> bool {
        let host = self.host.lock().unwrap();
        if let Some(frame) = *host {
            assert_eq!(Some(frame), self.current(), "the host reaches a frame that is not the file's");
            assert_ne!(self.refs(frame).load(Ordering::Acquire), 0, "the host reaches a private frame");
        }
        host.is_some()
    }

    /// An access of the guest's, if it reaches anything.
    fn guest_reaches(&self) -> bool {
        let guest = self.guest.lock().unwrap();
        if let Some(frame) = *guest {
            assert_eq!(Some(frame), self.current(), "the guest reaches a frame that is not the file's");
        }
        guest.is_some()
    }

    /// A store of the host's, and the fault before it as the kernel answers one. Whether it was served.
    fn store(&self) -> bool {
        let seen = Cell::new(0);
        loop {
            let inside = self.inside.read().unwrap();
            match inside.pages[0].host_fault() {
                HostFault::Refuse => return false,
                HostFault::Wait => {
                    assert!(
                        inside.report.begun > inside.report.ended,
                        "a fault waits for what has begun and not ended"
                    );
                    drop(inside);
                    self.sleep(&seen);
                }
                HostFault::Map => {
                    self.allocate(0).unwrap();
                    let frame = self.current().unwrap();
                    let inside = (self.slip != Slip::HoldsLate).then_some(inside);
                    let before = self.refs(frame).fetch_add(1, Ordering::AcqRel);
                    assert_ne!(before, 0, "a fault takes hold of a private frame");
                    let folio = self.folio.lock().unwrap();
                    drop(inside);
                    let old = self.host.lock().unwrap().replace(frame);
                    assert_eq!(old, None, "one thread maps it");
                    drop(folio);
                    self.host_reaches();
                    return true;
                }
            }
        }
    }

    /// How it must stand when nobody does anything any more.
    fn settled(&self) -> Page {
        let inside = self.inside.read().unwrap();
        let (page, report) = (inside.pages[0], inside.report);
        assert_eq!((report.begun, report.waiting), (report.ended, 0), "as many have ended as begun");
        let frame = self.current();
        let (host, guest) = (*self.host.lock().unwrap(), *self.guest.lock().unwrap());
        let refs = frame.map(|frame| self.refs(frame).load(Ordering::Acquire));
        match page {
            Page::Host => assert_eq!(guest, None),
            Page::Borrowed | Page::Given => assert!(guest.is_some() && guest == frame),
            Page::Held => assert_eq!(guest, None),
            Page::Vacant => assert_eq!((frame, guest), (None, None)),
            Page::Lent | Page::Draining { .. } | Page::Lost => panic!("{page:?}"),
        }
        match page {
            Page::Host | Page::Borrowed => {
                assert!(host.is_none() || host == frame);
                assert!(refs.is_none_or(|refs| refs == 1 + u64::from(host.is_some())), "{refs:?}");
            }
            Page::Held | Page::Vacant | Page::Given | Page::Lent | Page::Draining { .. } | Page::Lost => {
                assert!(host.is_none() && refs.is_none_or(|refs| refs == 0), "{host:?} {refs:?}");
            }
        }
        page
    }
}

impl File for Machine {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        let mut inside = self.inside.write().unwrap();
        let Inside { pages, next, report, notice, owner } = &mut *inside;
        let result = change(&mut Book { pages: Pages::new(pages), next, report, notice, owner });
        drop(inside);
        if self.slip != Slip::None && self.owes.swap(false, Ordering::AcqRel) {
            match self.slip {
                Slip::UnmapsLate => self.unmap(),
                Slip::RecallsLate => *self.guest.lock().unwrap() = None,
                Slip::None | Slip::HoldsLate | Slip::PassesFaultsBy => {}
            }
        }
        result
    }

    fn frame(&self, _: u64) -> Option<u64> {
        self.current()
    }

    fn allocate(&self, _: u64) -> Result<(), Error> {
        if self.current().is_none() {
            let fresh = self.next_frame.fetch_add(1, Ordering::AcqRel);
            self.refs(fresh).store(1, Ordering::Release);
            let put = self.frame.compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Relaxed);
            assert_eq!(put, Ok(0), "nobody else brings one");
        }
        Ok(())
    }

    fn release(&self, _: u64) {
        let frame = self.frame.swap(0, Ordering::AcqRel);
        assert_ne!(frame, 0, "released what is not there");
        drop(self.folio.lock().unwrap());
        assert_ne!(self.refs(frame).load(Ordering::Acquire), 0, "released while frozen");
        self.put(frame);
    }

    fn freeze(&self, _: u64) -> Freeze {
        let refs = self.refs(self.current().unwrap());
        match refs.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Freeze::Frozen,
            Err(_) => Freeze::Busy,
        }
    }

    fn thaw(&self, _: u64) {
        let refs = self.refs(self.current().unwrap());
        assert_eq!(refs.swap(1, Ordering::AcqRel), 0, "thawed what was not frozen");
        self.thawed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn shut(&self, _: Span) {
        if self.slip != Slip::PassesFaultsBy {
            drop(self.folio.lock().unwrap());
        }
        if self.slip == Slip::UnmapsLate {
            self.owes.store(true, Ordering::Release);
        } else {
            self.unmap();
        }
    }

    fn lend(&self, _: u64) -> Result<u64, Refused> {
        *self.guest.lock().unwrap() = self.current();
        Ok(1)
    }

    fn recall(&self, _: Span) -> bool {
        if self.slip == Slip::RecallsLate {
            self.owes.store(true, Ordering::Release);
        } else {
            *self.guest.lock().unwrap() = None;
        }
        true
    }

    fn wake(&self) {
        self.happened();
    }

    fn tell(&self, _: bool) {}
}

/// A thread that sleeps until something has happened, however long that is.
struct Sleeper(Arc<Machine>, Cell<u64>);

impl Thread for Sleeper {
    fn now(&self) -> u64 {
        0
    }

    fn pause(&self, _: u32) -> Wake {
        self.0.sleep(&self.1);
        Wake::Elapsed
    }

    fn breathe(&self) {}

    fn dying(&self) -> bool {
        false
    }
}

fn page() -> Span {
    Span::one(0).unwrap()
}

/// As `el2` takes a page: the guest reaches it from here on.
fn give(machine: &Machine, attempt: &Attempt) -> Option<Given> {
    let frame = machine.current().filter(|_| attempt.nth(machine, 0, 0).is_some());
    let Some(frame) = frame else { return Some(Given { count: 0, rest: Rest::Keep, error: None }) };
    assert_eq!(machine.refs(frame).load(Ordering::Acquire), 0, "given while somebody holds it");
    assert_eq!(machine.guest.lock().unwrap().replace(frame), None, "given twice");
    Some(Given { count: 1, rest: Rest::Keep, error: None })
}

fn converts(machine: &Arc<Machine>) -> Result<bool, Stopped> {
    converts_in(machine, Mode::Wait)
}

fn converts_in(machine: &Arc<Machine>, mode: Mode) -> Result<bool, Stopped> {
    let thread = Sleeper(Arc::clone(machine), Cell::new(0));
    to_private(&**machine, page(), Aim::Convert, mode, &thread, &mut Nobody)
}

/// A protected guest's first touch, and its access behind it.
fn touches(machine: &Arc<Machine>) {
    let thread = Sleeper(Arc::clone(machine), Cell::new(0));
    assert!(to_private(&**machine, page(), Aim::Touch, Mode::Wait, &thread, &mut give).is_ok());
    assert!(machine.guest_reaches(), "what it was given stays");
}

/// An ordinary guest's touch, and its access behind it.
fn borrows(machine: &Arc<Machine>) {
    assert_eq!(lend::touch(&**machine, page()), Ok(()));
    machine.guest_reaches();
}

fn beside(machine: &Arc<Machine>, act: impl FnOnce(&Arc<Machine>) + Send + 'static) -> loom::thread::JoinHandle<()> {
    let machine = Arc::clone(machine);
    loom::thread::spawn(move || act(&machine))
}

fn bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

fn stores(machine: &Arc<Machine>) {
    machine.store();
}

fn conversion_beside_a_fault(slip: Slip) {
    bounded(4, move || {
        let machine = Machine::new(slip);
        let host = beside(&machine, stores);
        assert_eq!(converts(&machine), Ok(true));
        host.join().unwrap();
        assert_eq!(machine.settled(), Page::Held);
        assert!(!machine.store(), "nothing of it is the host's any more");
    });
}

#[test]
fn a_fault_beside_a_conversion_is_served_before_it_or_refused() {
    conversion_beside_a_fault(Slip::None);
}

#[test]
#[should_panic(expected = "a fault takes hold of a private frame")]
fn a_fault_that_takes_its_reference_late_is_found() {
    bounded(4, || {
        let machine = Machine::new(Slip::HoldsLate);
        let host = beside(&machine, stores);
        // Without patience: a reference that is taken in time keeps the conversion from its end.
        let _ = converts_in(&machine, Mode::Now);
        host.join().unwrap();
    });
}

/// Its mapping comes to stand behind the unmapping, and nothing takes it away again: the conversion waits for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn a_fault_that_is_passed_by_is_found() {
    conversion_beside_a_fault(Slip::PassesFaultsBy);
}

#[test]
fn a_touch_beside_a_fault_has_the_page_alone() {
    bounded(4, || {
        let machine = Machine::new(Slip::None);
        let host = beside(&machine, stores);
        touches(&machine);
        host.join().unwrap();
        assert_eq!(machine.settled(), Page::Given);
    });
}

/// The touch waits for the conversion, or the conversion for the touch; nobody is forgotten.
#[test]
fn a_touch_and_a_fault_beside_a_conversion_find_its_outcome() {
    bounded(3, || {
        let machine = Machine::new(Slip::None);
        let others = [beside(&machine, stores), beside(&machine, touches)];
        assert!(converts(&machine).is_ok());
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(machine.settled(), Page::Given);
        assert!(machine.guest_reaches());
    });
}

#[test]
fn a_hole_beside_a_conversion_is_refused_or_leaves_no_frame_behind() {
    bounded(4, || {
        let machine = Machine::new(Slip::None);
        let other = beside(&machine, |machine| assert!(converts(machine).is_ok()));
        let hole = punch(&*machine, page());
        other.join().unwrap();
        let stands = (machine.settled(), machine.current());
        match hole {
            Err(error) => assert_eq!((error, stands), (Error::Busy, (Page::Held, Some(1)))),
            // Before the conversion, of a page that then had no frame; or behind it.
            Ok(()) => assert_eq!(stands, (Page::Vacant, None)),
        }
    });
}

#[test]
fn a_hole_beside_a_touch_is_refused_or_the_guest_has_another_frame() {
    bounded(4, || {
        let machine = Machine::new(Slip::None);
        let guest = beside(&machine, touches);
        let hole = punch(&*machine, page());
        guest.join().unwrap();
        assert_eq!(machine.settled(), Page::Given);
        assert_eq!(
            (hole, machine.current()),
            if hole.is_ok() { (Ok(()), Some(2)) } else { (Err(Error::Busy), Some(1)) }
        );
    });
}

#[test]
fn sharing_again_beside_a_touch_is_refused_or_comes_before_it() {
    bounded(4, || {
        let machine = Machine::new(Slip::None);
        let guest = beside(&machine, touches);
        let shared = to_shared(&*machine, page()).map_err(|stopped| stopped.error);
        guest.join().unwrap();
        assert!(matches!(shared, Ok(()) | Err(Error::Again | Error::Denied)), "{shared:?}");
        assert_eq!(machine.settled(), Page::Given);
    });
}

/// What says that a private page is the host's again has made it so, whatever became of it since.
#[test]
fn a_private_page_is_shared_again_before_a_touch_or_that_is_refused() {
    bounded(4, || {
        let machine = Machine::new(Slip::None);
        assert_eq!(converts(&machine), Ok(true));
        let guest = beside(&machine, touches);
        let shared = to_shared(&*machine, page()).map_err(|stopped| stopped.error);
        guest.join().unwrap();
        let thawed = machine.thawed.load(std::sync::atomic::Ordering::Relaxed);
        assert!(
            matches!((shared, thawed), (Ok(()), 1) | (Err(Error::Again | Error::Denied), 0)),
            "{shared:?} {thawed}"
        );
        assert_eq!(machine.settled(), Page::Given);
    });
}

fn hole_beside_an_ordinary_guest(slip: Slip) {
    bounded(4, move || {
        let machine = Machine::new(slip);
        let guest = beside(&machine, |machine| {
            borrows(machine);
            machine.guest_reaches();
        });
        assert_eq!(punch(&*machine, page()), Ok(()));
        guest.join().unwrap();
        if slip == Slip::None {
            machine.settled();
        }
    });
}

#[test]
fn a_hole_beside_an_ordinary_guests_touch_takes_what_it_reaches_first() {
    hole_beside_an_ordinary_guest(Slip::None);
}

#[test]
#[should_panic(expected = "the guest reaches a frame that is not the file's")]
fn a_loan_that_ends_late_is_found() {
    hole_beside_an_ordinary_guest(Slip::RecallsLate);
}

fn hole_beside_a_host(slip: Slip) {
    bounded(4, move || {
        let machine = Machine::new(slip);
        let host = beside(&machine, |machine| {
            assert!(machine.store(), "the offset stays the host's");
            machine.host_reaches();
        });
        assert_eq!(punch(&*machine, page()), Ok(()));
        host.join().unwrap();
        machine.host_reaches();
        machine.settled();
    });
}

#[test]
fn a_hole_beside_a_host_takes_its_mapping_first() {
    hole_beside_a_host(Slip::None);
}

#[test]
#[should_panic(expected = "the host reaches a frame that is not the file's")]
fn a_mapping_that_goes_late_is_found() {
    hole_beside_a_host(Slip::UnmapsLate);
}

#[test]
#[should_panic(expected = "the host reaches a frame that is not the file's")]
fn a_fault_that_a_hole_passes_by_is_found() {
    hole_beside_a_host(Slip::PassesFaultsBy);
}

#[test]
fn a_hole_a_host_and_an_ordinary_guest_reach_one_frame() {
    bounded(3, || {
        let machine = Machine::new(Slip::None);
        let others = [beside(&machine, stores), beside(&machine, borrows)];
        assert_eq!(punch(&*machine, page()), Ok(()));
        for other in others {
            other.join().unwrap();
        }
        machine.host_reaches();
        machine.guest_reaches();
        machine.settled();
    });
}
