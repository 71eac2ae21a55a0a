// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a VM against a thread that tops its pool up, in every interleaving that loom finds: no frame stays behind
//! (I8), for what comes after a kexec uses them all.
//!
//! Top-up and end are the shipped ones. Below them is an EL2 that takes chunks until the VM is doomed, and a list under a
//! lock as the kernel's is.

use freehold_driver_core::el2::{Conduit, El2, Handle, Run};
use freehold_driver_core::end::{doom, reclaim_pool, Pool};
use freehold_driver_core::file::{Thread, Wake};
use freehold_driver_core::pool::{grow, Frames};
use freehold_driver_core::status::Refused;
use freehold_uapi::hvc;
use loom::sync::{Arc, Mutex};

const VM: Handle = Handle(1);

#[derive(Default)]
struct Below {
    dying: bool,
    /// Chunks that are EL2's.
    taken: Vec<u64>,
}

struct Host {
    below: Mutex<Below>,
    list: Mutex<Vec<Run>>,
    /// Chunks that are the host's, of those that were taken from it.
    back: Mutex<Vec<u64>>,
    /// The mistake of the control: a chunk is EL2's before the list's lock is taken.
    late: bool,
}

impl Conduit for &Host {
    fn call(&self, function: u32, [_, pfn, ..]: [u64; 5]) -> [u64; 5] {
        let mut below = self.below.lock().unwrap();
        let status = match function {
            hvc::VM_DESTROY => {
                below.dying = true;
                hvc::SUCCESS
            }
            hvc::POOL_TOPUP if below.dying => hvc::WRONG_STATE,
            hvc::POOL_TOPUP => {
                below.taken.push(pfn);
                hvc::SUCCESS
            }
            hvc::VM_RECLAIM => {
                assert!(below.dying && below.taken.contains(&pfn), "only what EL2 has comes back");
                below.taken.retain(|&at| at != pfn);
                hvc::SUCCESS
            }
            _ => hvc::NOT_SUPPORTED,
        };
        [status.cast_unsigned(), 8, 0, 0, 0]
    }

    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

impl Frames for &Host {
    fn take(&self, order: u32) -> Option<Run> {
        Some(Run { pfn: 8, count: 1 << order })
    }

    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        if self.late {
            let given = give()?;
            self.list.lock().unwrap().push(chunk);
            return Ok(given);
        }
        let mut list = self.list.lock().unwrap();
        let given = give()?;
        list.push(chunk);
        Ok(given)
    }

    fn next(&self) -> Option<Run> {
        self.list.lock().unwrap().pop()
    }

    fn give_back(&self, chunk: Run) {
        self.back.lock().unwrap().push(chunk.pfn);
    }
}

struct Ender;

impl Thread for Ender {
    fn now(&self) -> u64 {
        0
    }
    fn pause(&self, _: u32) -> Wake {
        Wake::Elapsed
    }
    fn breathe(&self) {}
    fn dying(&self) -> bool {
        false
    }
}

fn ends_while_it_grows(late: bool) {
    loom::model(move || {
        let new = || (Mutex::new(Below::default()), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let (below, list, back) = new();
        let host = Arc::new(Host { below, list, back, late });
        let grower = {
            let host = Arc::clone(&host);
            loom::thread::spawn(move || grow(&El2(&*host), &&*host, VM, 8).is_ok())
        };
        doom(&El2(&*host), VM).unwrap();
        assert_eq!(reclaim_pool(&El2(&*host), &&*host, VM, &Ender), Pool::Back(0));
        // Before the other thread has come to its end: a kexec waits for nobody.
        assert_eq!(host.below.lock().unwrap().taken, [0; 0], "a frame stays with EL2");
        grower.join().unwrap();
        assert_eq!(*host.back.lock().unwrap(), [8]);
    });
}

#[test]
fn a_pool_that_grows_while_its_vm_ends_leaves_nothing_behind() {
    ends_while_it_grows(false);
}

/// The control: loom finds the moment between the two.
#[test]
#[should_panic(expected = "a frame stays with EL2")]
fn a_chunk_that_is_listed_late_is_noticed() {
    ends_while_it_grows(true);
}
