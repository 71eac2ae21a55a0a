// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is measured from inside: each round between two marks, and by the virtual counter.

use crate::proto::*;
use crate::rows::{self, begin, end, mark};
use crate::sysreg::counter;
use crate::{cpus, device, fp, hypercall, interrupts, memory};

const PSCI_VERSION: u64 = 0x8400_0000;
/// The CPU that is sent interrupts.
const OTHER: u64 = 1;
const TYPER: u64 = (GICD_GFN << 12) + 4;

/// Does a row's work `times` times; `at` is the first of the pages that it is done to. The fewest ticks that a round
/// took, the most, and of how many rounds the result was wrong.
pub(crate) fn run(row: u64, times: u64, at: u64) -> [u64; 3] {
    if row == rows::VMM_READ_LISTED {
        interrupts::pend_two();
    }
    if row == rows::IPI {
        cpus::begin_answers(OTHER, times);
    }
    let (mut least, mut most, mut wrong) = (u64::MAX, 0, 0);
    for round in 0..times {
        let (held, ticks) = one(row, at + round * GRANULE);
        wrong += u64::from(!held);
        least = least.min(ticks);
        most = most.max(ticks);
    }
    if row == rows::VMM_READ_LISTED {
        interrupts::take_two();
    }
    if row == rows::IPI {
        wrong += cpus::end_answers(OTHER);
    }
    [least, most, wrong]
}

/// Whether one round did what it must, and its ticks.
fn one(row: u64, page: u64) -> (bool, u64) {
    match row {
        rows::GUEST_NOTHING => timed(row, || true),
        rows::GUEST_HVC => timed(row, || hypercall::hvc(PSCI_VERSION, [0; 3])[0] >> 16 == 1),
        rows::VGIC_READ => timed(row, || device::read32(TYPER) != 0),
        rows::VMM_READ | rows::VMM_READ_LISTED | rows::VMM_READ_8 | rows::VMM_READ_64 => {
            timed(row, || device::read64(REG_SCRATCH) != 0)
        }
        rows::VMM_READ_FP => timed(row, || {
            fp::use_it();
            device::read64(REG_SCRATCH) != 0
        }),
        // One page each: the peer takes one at a time, and knows no count.
        rows::SHARE => timed(row, || hypercall::share(page, 0)[0] == 0),
        rows::UNSHARE => timed(row, || hypercall::unshare(page, 0)[0] == 0),
        rows::RELINQUISH => timed(row, || hypercall::relinquish(page)[0] == 0),
        rows::TOUCH | rows::TOUCH_4M | rows::TOUCH_64M | rows::TOUCH_1G => timed(row, || memory::load(page) == 0),
        rows::SELF_SGI => timed(row, interrupts::one_to_self),
        rows::IPI => timed(row, || cpus::one_answer(OTHER)),
        rows::TIMER => interrupts::one_tick(row, false),
        rows::WAKE => interrupts::one_tick(row, true),
        _ => (false, 0),
    }
}

/// The two ways of counting are to agree: the ticks are those of the marks and of what is between them.
fn timed(row: u64, what: impl FnOnce() -> bool) -> (bool, u64) {
    let since = counter();
    mark!(begin(row));
    let held = what();
    mark!(end(row));
    (held, counter() - since)
}
