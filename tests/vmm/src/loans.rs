// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame that several ordinary VMs borrow, at several places, is lent until the last loan ends (A8). Past the driver,
//! through which a file has one VM.

use freehold_uapi::hvc::*;

use crate::hostile::Hostile;
use crate::proto;
use crate::raw::{Arena, end, resting, settle, status_name};
use crate::report::Step;

const GFN: u64 = proto::RAM_BASE >> 12;
const OPEN: u64 = SHARE_WRITE | SHARE_EXEC;

/// A case, what is called with what, and the status that it must answer.
type Call<'a> = (&'a str, (u32, &'a [u64]), i64);

/// A VM, and the frames of its pool.
struct Vm {
    handle: u64,
    pool: Arena,
}

impl Vm {
    fn new(hostile: &Hostile, flags: u64) -> Result<Self, String> {
        let pool = Arena::new(hostile, 4)?;
        let x = hostile.raw(VM_CREATE.into(), &[flags, 40, pool.first, pool.frames]);
        let status = match x[0].cast_signed() {
            SUCCESS => hostile.call(VM_RANGE, &[x[1], GFN, 2]),
            other => other,
        };
        if status == SUCCESS { Ok(Self { handle: x[1], pool }) } else { Err(status_name(status)) }
    }
}

/// Lends one frame three times, and tries to donate it after the end of each loan.
pub(crate) fn are_counted(step: Step, hostile: &Hostile) -> Result<(), String> {
    let before = resting(hostile);
    let page = Arena::new(hostile, 0)?;
    let vms = [Vm::new(hostile, 0)?, Vm::new(hostile, 0)?, Vm::new(hostile, VM_PROTECTED)?];
    let [one, two, other] = [0, 1, 2].map(|n: usize| vms[n].handle);
    let donate: (u32, &[u64]) = (MEM_DONATE, &[other, page.first, GFN, 1, 0]);
    let calls: [Call<'_>; 11] = [
        ("to one VM", (MEM_SHARE, &[one, page.first, GFN, 1, OPEN]), SUCCESS),
        ("to it, at another place", (MEM_SHARE, &[one, page.first, GFN + 1, 1, OPEN]), SUCCESS),
        ("to another VM", (MEM_SHARE, &[two, page.first, GFN, 1, OPEN]), SUCCESS),
        ("three times lent", donate, SHARED),
        ("the first ends", (MEM_UNSHARE, &[one, GFN, 1]), SUCCESS),
        ("twice lent", donate, SHARED),
        ("the second ends", (MEM_UNSHARE, &[one, GFN + 1, 1]), SUCCESS),
        ("once lent", donate, SHARED),
        ("the last one's VM dies", (VM_DESTROY, &[two]), SUCCESS),
        ("lent to a dying VM", donate, SHARED),
        ("the last ends", (MEM_UNSHARE, &[two, GFN, 1]), SUCCESS),
    ];
    for (case, (call, arguments), expected) in calls.into_iter().chain([("not lent", donate, SUCCESS)]) {
        step.same(&format!("loans: {case}"), status_name(expected), status_name(hostile.call(call, arguments)));
    }
    let left = [
        end(hostile, one, &vms[0].pool.all().collect::<Vec<_>>()),
        end(hostile, two, &vms[1].pool.all().collect::<Vec<_>>()),
        end(hostile, other, &page.all().chain(vms[2].pool.all()).collect::<Vec<_>>()),
    ];
    step.same("loans: frames that did not come back", "[0, 0, 0]", format!("{left:?}"));
    settle(step, "loans: back as before", hostile, &before);
    let freed = vms.iter().map(|vm| &vm.pool).chain([&page]).filter(|arena| hostile.free(arena.first).is_ok()).count();
    step.same("loans: frames are the host's again", 4, freed);
    Ok(())
}
