// SPDX-License-Identifier: GPL-2.0-only
//! The core's ports over the kernel: calls to EL2, the calling thread, frames.
// UNSAFETY: frames by number, and the list frame's records.

use crate::sys;
use crate::vm::Vm;
use freehold_driver_core::el2::{Conduit, El2, Run};
use freehold_driver_core::file::{Thread, Wake};
use freehold_driver_core::give::{List, Lists};
use freehold_driver_core::pool::Frames;
use freehold_driver_core::status::Refused;
use freehold_uapi::hvc::{self, Record};

/// The kernel's own conduit.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

/// `el2`, below this kernel.
pub(crate) const EL2: El2<Kernel> = El2(Kernel);

fn registers(function: u32, [a, b, c, d, e]: [u64; 5]) -> [u64; 18] {
    [u64::from(function), a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

impl Conduit for Kernel {
    fn call(&self, function: u32, args: [u64; 5]) -> [u64; 5] {
        let mut regs = registers(function, args);
        sys::el2_call(&mut regs);
        let [a, b, c, d, e, ..] = regs;
        [a, b, c, d, e]
    }

    fn run(&self, args: [u64; 5]) -> Option<[u64; 6]> {
        let mut regs = registers(hvc::VCPU_RUN, args);
        let ran = sys::el2_run(&mut regs);
        let [a, b, c, d, e, f, ..] = regs;
        ran.then_some([a, b, c, d, e, f])
    }
}

/// The thread of an ioctl: a signal interrupts it.
pub(crate) struct Caller;

impl Thread for Caller {
    fn now(&self) -> u64 {
        sys::now()
    }

    fn pause(&self, micros: u32) -> Wake {
        sys::pause(micros, false);
        if sys::signal() {
            Wake::Interrupted
        } else {
            Wake::Elapsed
        }
    }

    fn breathe(&self) {
        sys::breathe();
    }

    fn dying(&self) -> bool {
        sys::dying()
    }
}

/// A thread that ends something: it goes on whatever signals it.
pub(crate) struct Undertaker;

impl Thread for Undertaker {
    fn now(&self) -> u64 {
        sys::now()
    }

    fn pause(&self, micros: u32) -> Wake {
        sys::pause(micros, true);
        Wake::Elapsed
    }

    fn breathe(&self) {
        sys::breathe();
    }

    fn dying(&self) -> bool {
        false
    }
}

fn take(order: u32) -> Option<Run> {
    let count = 1_u64.checked_shl(order)?;
    sys::page_take(order).map(|pfn| Run { pfn, count })
}

impl Frames for Vm {
    fn take(&self, order: u32) -> Option<Run> {
        take(order)
    }

    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        self.pool_keep(chunk, give)
    }

    fn next(&self) -> Option<Run> {
        self.pool_next()
    }

    fn give_back(&self, chunk: Run) {
        // SAFETY: the core returns a chunk of `take` once, and only when `el2` has refused or returned it.
        unsafe { sys::page_give_back(chunk.pfn, chunk.count) }
    }
}

/// One frame of the host's for a record list.
pub(crate) struct ListFrame {
    pfn: u64,
}

impl List for ListFrame {
    fn pfn(&self) -> u64 {
        self.pfn
    }

    fn put(&mut self, index: u64, record: Record) {
        let Some(index) = usize::try_from(index).ok().filter(|_| index < hvc::MAX_RECORDS) else { return };
        // SAFETY: the frame is this object's, taken by `list` and returned only when it is dropped.
        let base = unsafe { sys::page_address(self.pfn) }.cast::<Record>();
        // SAFETY: 256 records of 16 bytes fill the frame, and `index` is below that.
        let slot = unsafe { base.add(index) };
        // SAFETY: `slot` lies in this object's own frame and is aligned, for the frame is.
        unsafe { slot.write(record) };
    }
}

impl Drop for ListFrame {
    fn drop(&mut self) {
        // SAFETY: the frame came from `page_take`, stayed the host's, and is not used after this.
        unsafe { sys::page_give_back(self.pfn, 1) }
    }
}

impl Lists for Vm {
    type List = ListFrame;

    fn list(&self) -> Option<ListFrame> {
        sys::page_take(0).map(|pfn| ListFrame { pfn })
    }
}
