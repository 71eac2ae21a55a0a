// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the parts of the suite share: a written file without a guest, a page in a pipe, and waiting for what comes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;

use super::STEP;
use super::lives::wait_for;
use crate::gmem::Gmem;
use crate::machine::{VM_TYPE, new_gmem, open};
use crate::sys::{self, Mapping, errno_name, outcome};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// The same, to count memory with.
pub(crate) const PAGE_BYTES: usize = 4096;
/// How long anything may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long something must not happen before a test believes that it does not.
pub(crate) const STILL: Duration = Duration::from_millis(200);

/// A VM, a file of its that is bound to nothing, and a mapping of the file.
pub(crate) struct Rig {
    pub(crate) vm: VmFd,
    pub(crate) gmem: Gmem,
    pub(crate) map: Mapping,
    pub(crate) pages: u64,
}

/// A protected VM.
pub(crate) fn new_vm() -> Result<VmFd, String> {
    open()?.create_vm_with_type(VM_TYPE).map_err(|e| format!("CREATE_VM: {}", errno_name(e.errno())))
}

impl Rig {
    /// Creates the file and writes to each page its own number.
    pub(crate) fn new(pages: u64) -> Result<Self, String> {
        let vm = new_vm()?;
        let gmem = new_gmem(&vm, pages * PAGE).map_err(errno_name)?;
        let map = gmem.map(bytes(pages)).map_err(errno_name)?;
        for page in 0..pages {
            map.store(bytes(page), word(page));
        }
        Ok(Self { vm, gmem, map, pages })
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.pages * PAGE
    }

    /// Pages that do not show what was written to them; reading is the test, so each must be the host's.
    pub(crate) fn damaged(&self) -> Vec<u64> {
        (0..self.pages).filter(|&page| self.map.load(bytes(page)) != word(page)).collect()
    }

    /// Closes the VM, and waits until the driver serves nothing but the file: its VM has left by then.
    pub(crate) fn orphaned(self, case: &str) -> (Gmem, Mapping) {
        let Self { vm, gmem, map, .. } = self;
        STEP.same(&format!("{case}: descriptors of the driver's, with the VM"), true, serves(2));
        drop(vm);
        STEP.same(&format!("{case}: without it"), true, serves(1));
        (gmem, map)
    }
}

/// Whether the driver comes to have so many descriptors: each holds the module until its release is through.
fn serves(descriptors: u64) -> bool {
    wait_for(|| {
        let text = std::fs::read_to_string("/sys/module/freehold/refcnt").unwrap_or_default();
        text.trim().parse() == Ok(descriptors)
    })
}

/// What [`Rig::new`] writes to a page.
pub(crate) fn word(page: u64) -> u64 {
    0x6d65_6d66_0000_0000 | page
}

/// Offset of a page in memory.
pub(crate) fn bytes(pages: u64) -> usize {
    usize::try_from(pages * PAGE).expect("small")
}

/// A pipe that holds the page at `at` itself; reader and writer.
pub(crate) fn in_pipe(at: *mut u8) -> (OwnedFd, OwnedFd) {
    let (reader, writer) = sys::pipe();
    let held = sys::vmsplice(&writer, at, PAGE_BYTES);
    if held != Ok(4096) {
        STEP.same("vmsplice takes a page", "4096", outcome(held));
    }
    (reader, writer)
}

/// Waits until a conversion of the file waits for a page; its offset, or why not.
pub(crate) fn until_pending(gmem: &Gmem) -> String {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match gmem.pending() {
            Ok(state) if state.pending == 1 && state.tries > 0 => return format!("pending at {:#x}", state.offset),
            Ok(_) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return errno_name(error),
        }
    }
    "not pending".to_string()
}

/// Attempts that have begun and not ended.
pub(crate) fn open_attempts(gmem: &Gmem) -> String {
    match gmem.pending() {
        Ok(state) => format!("{} of some", state.begun - state.ended),
        Err(error) => errno_name(error),
    }
}
