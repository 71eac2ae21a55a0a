// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of a machine and who owns them: an `el2` that keeps its own books and is the judge, and a kernel that counts.

use super::*;

/// One physical frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame {
    /// References beside the driver's.
    pub(super) held: u32,
    pub(super) frozen: bool,
    /// Process mappings; each is one of `held`.
    pub(super) mapped: bool,
    pub(super) dirty: bool,
}

/// Frames of the machine and who owns them.
#[derive(Default)]
pub(super) struct World {
    pub(super) frames: RefCell<BTreeMap<u64, Frame>>,
    pub(super) next_pfn: Cell<u64>,
    /// Allocations follow each other without a hole, as a kernel's often do.
    pub(super) adjacent: Cell<bool>,
    /// Guest frame behind each frame of the VM, and whether it is shared.
    pub(super) owned: RefCell<BTreeMap<u64, (u64, bool)>>,
    /// Guest frame behind each frame of the host's that an ordinary VM borrows.
    pub(super) loans: RefCell<BTreeMap<u64, u64>>,
    pub(super) pool: RefCell<BTreeSet<u64>>,
    pub(super) lists: RefCell<BTreeMap<u64, Vec<Record>>>,
    pub(super) kept: RefCell<Vec<Run>>,
    pub(super) dying: Cell<bool>,
    pub(super) ran: Cell<bool>,
    /// Pool frames that el2 still has free.
    pub(super) pool_free: Cell<u64>,
    /// Frames that one call does before it is interrupted.
    pub(super) burst: Cell<u64>,
    /// Guest frames at which a donation is refused.
    pub(super) refuse: RefCell<BTreeSet<u64>>,
    /// Frames that el2 keeps for ever.
    pub(super) stuck: RefCell<BTreeSet<u64>>,
    /// A request of the guest: first guest frame and count, and which way.
    pub(super) request: RefCell<Option<(u64, u64, crate::exit::Request)>>,
    pub(super) calls: Cell<u64>,
    /// The functions called, in order.
    pub(super) functions: RefCell<Vec<u32>>,
    /// List frames taken from the kernel.
    pub(super) lists_taken: Cell<u64>,
    /// Allocations of any kind that still go well; none means all do.
    pub(super) memory: Cell<Option<u64>>,
}

pub(super) fn status(status: i64) -> [u64; 5] {
    [status as u64, 0, 0, 0, 0]
}

pub(super) fn ok(value: u64) -> [u64; 5] {
    [0, value, 0, 0, 0]
}

impl World {
    /// Whether the next allocation goes well.
    pub(super) fn has_memory(&self) -> bool {
        match self.memory.get() {
            Some(0) => false,
            Some(left) => {
                self.memory.set(Some(left - 1));
                true
            }
            None => true,
        }
    }

    pub(super) fn take_frames(&self, count: u64) -> u64 {
        let first = self.next_pfn.get();
        // Else a hole between any two runs, so that only one allocation is contiguous.
        self.next_pfn.set(first + count + u64::from(!self.adjacent.get()));
        for pfn in first..first + count {
            self.frames.borrow_mut().insert(pfn, Frame::default());
        }
        first
    }

    pub(super) fn free_frames(&self, first: u64, count: u64) {
        for pfn in first..first + count {
            assert!(!self.owned.borrow().contains_key(&pfn), "frame {pfn} is freed while the guest owns it");
            assert!(!self.loans.borrow().contains_key(&pfn), "frame {pfn} is freed while it is lent");
            assert!(!self.pool.borrow().contains(&pfn), "frame {pfn} is freed while el2 owns it");
            let frame = self.frames.borrow_mut().remove(&pfn).expect("freed twice");
            assert!(!frame.frozen, "frame {pfn} is freed while frozen");
        }
    }

    pub(super) fn donate(&self, runs: &[(u64, u64, u64)]) -> [u64; 5] {
        if self.dying.get() {
            return status(hvc::WRONG_STATE);
        }
        // Gathered once: an interpreter would look through it for each frame.
        let backed: BTreeSet<u64> = self.owned.borrow().values().map(|&(gfn, _)| gfn).collect();
        let asked: u64 = runs.iter().map(|&(_, _, count)| count).sum();
        assert!(asked <= hvc::MAX_RUN, "el2 is asked to take {asked} frames at once");
        for &(pfn, gfn, count) in runs {
            assert_ne!(count, 0);
            for i in 0..count {
                let frame = self.frames.borrow()[&(pfn + i)];
                assert!(frame.frozen && frame.held == 0, "I5: frame {} is donated while {frame:?}", pfn + i);
                if self.refuse.borrow().contains(&(gfn + i)) {
                    return status(hvc::GFN_POISONED);
                }
                if self.owned.borrow().contains_key(&(pfn + i)) {
                    return status(hvc::ALREADY_DONATED);
                }
                if backed.contains(&(gfn + i)) {
                    return status(hvc::GFN_MAPPED);
                }
            }
        }
        if self.pool_free.get() == 0 {
            return [hvc::NEED_PAGES as u64, 1, 0, 0, 0];
        }
        self.pool_free.set(self.pool_free.get() - 1);
        let mut done = 0;
        for &(pfn, gfn, count) in runs {
            for i in 0..count {
                if done == self.burst.get() {
                    return ok(done);
                }
                self.owned.borrow_mut().insert(pfn + i, (gfn + i, false));
                if self.ran.get() {
                    self.frames.borrow_mut().get_mut(&(pfn + i)).unwrap().dirty = false;
                }
                done += 1;
            }
        }
        ok(done)
    }

    pub(super) fn reclaim(&self, pfn: u64, count: u64) -> [u64; 5] {
        if !self.dying.get() {
            return status(hvc::WRONG_STATE);
        }
        assert!((1..=hvc::MAX_RUN).contains(&count), "el2 is asked for {count} frames at once");
        let mut done = 0;
        for pfn in pfn..pfn + count {
            if done == self.burst.get() {
                break;
            }
            if self.stuck.borrow().contains(&pfn) {
                return if done == 0 { status(hvc::EL2_OWNED) } else { ok(done) };
            }
            if self.pool.borrow().contains(&pfn) {
                if !self.owned.borrow().is_empty() {
                    return status(hvc::GUEST_FRAMES_LEFT);
                }
                self.pool.borrow_mut().remove(&pfn);
            } else if self.owned.borrow_mut().remove(&pfn).is_none() {
                return status(hvc::HOST_OWNED);
            }
            self.frames.borrow_mut().get_mut(&pfn).unwrap().dirty = false;
            done += 1;
        }
        ok(done)
    }

    pub(super) fn accept(&self, count: u64) -> [u64; 5] {
        let Some((gfn, asked, kind)) = self.request.take() else { return status(hvc::NO_REQUEST) };
        assert!(count <= asked);
        let mut done = 0;
        for gfn in gfn..gfn + count {
            let mut owned = self.owned.borrow_mut();
            let Some((&pfn, place)) = owned.iter_mut().find(|(_, place)| place.0 == gfn) else { break };
            let frame = self.frames.borrow()[&pfn];
            assert!(frame.frozen && frame.held == 0, "frame {pfn} changes hands while {frame:?}");
            match kind {
                crate::exit::Request::Share => place.1 = true,
                crate::exit::Request::Unshare => {
                    assert!(place.1, "unshared what was not shared");
                    place.1 = false;
                }
                crate::exit::Request::Relinquish => {
                    owned.remove(&pfn);
                    drop(owned);
                    self.frames.borrow_mut().get_mut(&pfn).unwrap().dirty = false;
                }
            }
            done += 1;
        }
        ok(done)
    }
}

#[derive(Clone)]
pub(super) struct Below(pub(super) Rc<World>);

impl Conduit for Below {
    fn call(&self, function: u32, [_, a, b, c, _]: [u64; 5]) -> [u64; 5] {
        let world = &self.0;
        world.calls.set(world.calls.get() + 1);
        world.functions.borrow_mut().push(function);
        match function {
            hvc::VM_CREATE => {
                // x1 flags, x2 address size, x3 first frame, x4 count.
                if c < 20 {
                    return [hvc::NEED_PAGES as u64, 20 - c, 0, 0, 0];
                }
                world.pool.borrow_mut().extend(b..b + c);
                ok(0x1_0000)
            }
            hvc::POOL_TOPUP => {
                world.pool.borrow_mut().extend(a..a + b);
                world.pool_free.set(world.pool_free.get() + b);
                ok(0)
            }
            hvc::MEM_DONATE => world.donate(&[(a, b, c)]),
            hvc::MEM_DONATE_LIST => {
                let list = world.lists.borrow()[&a].clone();
                let runs: Vec<_> = list[..b as usize].iter().map(|r| (r.pfn, r.gfn(), r.count())).collect();
                world.donate(&runs)
            }
            hvc::VM_DESTROY => {
                let was = world.dying.replace(true);
                if was {
                    status(hvc::WRONG_STATE)
                } else {
                    ok(0)
                }
            }
            hvc::VM_RECLAIM => world.reclaim(a, b),
            hvc::GUEST_ACCEPT => world.accept(b),
            _ => status(hvc::NOT_SUPPORTED),
        }
    }

    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

impl pool::Frames for World {
    fn take(&self, order: u32) -> Option<Run> {
        if !self.has_memory() {
            return None;
        }
        let count = 1 << order;
        Some(Run { pfn: self.take_frames(count), count })
    }

    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        let given = give()?;
        self.kept.borrow_mut().push(chunk);
        Ok(given)
    }

    fn next(&self) -> Option<Run> {
        self.kept.borrow_mut().pop()
    }

    fn give_back(&self, chunk: Run) {
        self.free_frames(chunk.pfn, chunk.count);
    }
}

pub(super) struct Page4k(Rc<World>, u64);

impl List for Page4k {
    fn pfn(&self) -> u64 {
        self.1
    }

    fn put(&mut self, index: u64, record: Record) {
        assert!(index < hvc::MAX_RECORDS);
        let mut lists = self.0.lists.borrow_mut();
        let list = lists.get_mut(&self.1).unwrap();
        list.resize((index + 1) as usize, record);
        list[index as usize] = record;
    }
}

impl Drop for Page4k {
    fn drop(&mut self) {
        self.0.lists.borrow_mut().remove(&self.1);
        self.0.free_frames(self.1, 1);
    }
}

pub(super) struct Kernel(pub(super) Rc<World>);

impl pool::Frames for Kernel {
    fn take(&self, order: u32) -> Option<Run> {
        self.0.take(order)
    }
    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        self.0.keep(chunk, give)
    }
    fn next(&self) -> Option<Run> {
        pool::Frames::next(&*self.0)
    }
    fn give_back(&self, chunk: Run) {
        self.0.give_back(chunk);
    }
}

impl Lists for Kernel {
    type List = Page4k;
    fn list(&self) -> Option<Page4k> {
        if !self.0.has_memory() {
            return None;
        }
        let pfn = self.0.take_frames(1);
        self.0.lists_taken.set(self.0.lists_taken.get() + 1);
        self.0.lists.borrow_mut().insert(pfn, Vec::new());
        Some(Page4k(self.0.clone(), pfn))
    }
}
