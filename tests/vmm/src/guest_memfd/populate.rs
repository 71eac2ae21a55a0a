// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents by a call of the file's, into pages that no mapping of the host ever reached.

use freehold_uapi::ioctl::*;

use super::STEP;
use super::rig::{PAGE, bytes, new_vm, open_attempts};
use crate::gmem::{Gmem, converted};
use crate::machine::{Machine, Plan, make_gmem};
use crate::probe::{Access, probe, probe_here};
use crate::proto;
use crate::sys::{Mapping, errno_name, ioctl_value, outcome};

const ASK: Populate = Populate { offset: 0, size: PAGE, source: 0, error_offset: 0, reserved: [0; 4] };

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    refusals()?;
    a_guest_starts_from_it()
}

fn file(pages: u64) -> Result<(kvm_ioctls::VmFd, Gmem, Mapping), String> {
    let vm = new_vm()?;
    let gmem = make_gmem(&vm, pages * PAGE, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
    let map = gmem.map(bytes(pages)).map_err(errno_name)?;
    Ok((vm, gmem, map))
}

fn refusals() -> Result<(), String> {
    let (_vm, gmem, map) = file(4)?;
    let contents = vec![0x5a_u8; bytes(4)];
    let source = contents.as_ptr() as u64;
    let good = Populate { source, ..ASK };
    let ask = |case: &str, expected: &str, ask: Populate| {
        STEP.same(&format!("populate: {case}"), expected, converted(gmem.populate(ask)));
    };
    ask("offset unaligned", "EINVAL at 0x0", Populate { offset: 8, ..good });
    ask("size unaligned", "EINVAL at 0x0", Populate { size: 8, ..good });
    ask("size 0", "EINVAL at 0x0", Populate { size: 0, ..good });
    ask("over the end", "EINVAL at 0x0", Populate { offset: PAGE, size: 4 * PAGE, ..good });
    ask("a source that wraps", "EINVAL at 0x0", Populate { source: u64::MAX - 8, ..good });
    ask("a reserved field", "EINVAL at 0x0", Populate { reserved: [0, 0, 0, 1], ..good });
    ask("no source", "EFAULT at 0x0", Populate { source: 8, ..good });
    STEP.same("populate: bad address", "EFAULT", outcome(ioctl_value(&gmem, FREEHOLD_POPULATE, 8)));
    // The source ends in the middle: what came before it is undone.
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let short = unsafe {
        let (size, flags) = (bytes(3), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if short == libc::MAP_FAILED {
        return Err("no memory".to_owned());
    }
    // SAFETY: the end of the mapping just made.
    unsafe { libc::munmap(short.wrapping_byte_add(bytes(2)), bytes(1)) };
    ask("a source that ends early", "EFAULT at 0x2000", Populate { size: 4 * PAGE, source: short as u64, ..ASK });
    ask("from the file itself", "EFAULT at 0x0", Populate { source: map.at(0) as u64, ..ASK });
    ask("one page", "0", Populate { offset: PAGE, ..good });
    ask("over it", "EEXIST at 0x1000", Populate { size: 4 * PAGE, ..good });
    STEP.same("populate: the host reads it", "SIGBUS", probe(map.at(bytes(1)), Access::Load));
    STEP.same("populate: one to shared", "0", converted(gmem.to_shared(0, 2 * PAGE)));
    STEP.same("populate: contents", format!("{:#x}", 0x5a5a_5a5a_5a5a_5a5a_u64), format!("{:#x}", map.load(bytes(1))));
    STEP.same("populate: beside it zeros", 0, map.load(0));
    ask("a shared page", "EEXIST at 0x0", good);
    STEP.same("populate: as many attempts have ended as begun", "0 of some", open_attempts(&gmem));
    // SAFETY: the rest of the mapping made above.
    unsafe { libc::munmap(short, bytes(2)) };
    Ok(())
}

/// Nothing of the guest's memory is ever mapped by the host, and the guest starts.
fn a_guest_starts_from_it() -> Result<(), String> {
    let mut machine = Machine::populated(Plan::default(), |gmem, ram, program| {
        let mut padded = program.to_vec();
        padded.resize(padded.len().next_multiple_of(bytes(1)), 0);
        let ask = Populate { size: padded.len() as u64, source: padded.as_ptr() as u64, ..ASK };
        STEP.same("populate: the program", "0", converted(gmem.populate(ask)));
        STEP.same("populate: which the host never saw there", "SIGBUS", probe_here(ram.at(0), false));
        Ok(())
    })?;
    // Bound by now: this goes to the guest at once.
    let words: Vec<u64> = (0..512).map(|i| proto::pattern(4, proto::SHARE_BASE + 9 * PAGE + i * 8)).collect();
    let offset = proto::SHARE_BASE - proto::RAM_BASE + 9 * PAGE;
    let data = Populate { offset, source: words.as_ptr() as u64, ..ASK };
    STEP.same("populate, bound", "0", converted(machine.gmem.populate(data)));
    let again = converted(machine.gmem.populate(data));
    STEP.same("populate, bound: again", format!("EEXIST at {offset:#x}"), again);
    let boot = machine.boot()?;
    STEP.same("populate: the guest starts from it", 1, boot.hash_ok);
    let checked = machine.command(proto::CMD_CHECK, [proto::RAM_BASE + offset, 4096, 4])?;
    STEP.same("populate: and finds the data", 0, checked[0]);
    let late = Populate { offset: offset + PAGE, ..data };
    let refused = converted(machine.gmem.populate(late));
    STEP.same("populate: after the first run", format!("EPERM at {:#x}", offset + PAGE), refused);
    let zeros = machine.command(proto::CMD_ZERO, [proto::RAM_BASE + offset + PAGE, PAGE, 0])?;
    STEP.same("populate: where that was refused the guest finds zeros", 0, zeros[0]);
    let at = usize::try_from(offset).map_err(|e| e.to_string())?;
    STEP.same("populate: the host reads, at last", "SIGBUS", probe_here(machine.ram.at(at), false));
    Ok(())
}
