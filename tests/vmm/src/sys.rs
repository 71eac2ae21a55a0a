// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few system calls that the tests make by hand, each with its errno as the error.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// Name of an errno, or its number.
pub(crate) fn errno_name(error: i32) -> String {
    let name = match error {
        0 => "0",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSPC => "ENOSPC",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENOEXEC => "ENOEXEC",
        libc::EIO => "EIO",
        libc::ECANCELED => "ECANCELED",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::EACCES => "EACCES",
        libc::ESPIPE => "ESPIPE",
        libc::ESHUTDOWN => "ESHUTDOWN",
        other => return format!("errno {other}"),
    };
    name.to_string()
}

/// What a system call answered: "0" or more as a number, or the errno's name.
pub(crate) fn outcome(result: Result<i64, i32>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => errno_name(error),
    }
}

/// The errno of the last system call of this thread.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn checked(value: i64) -> Result<i64, i32> {
    if value < 0 { Err(last_errno()) } else { Ok(value) }
}

/// ioctl with a plain argument.
pub(crate) fn ioctl_value(fd: &impl AsRawFd, request: u32, argument: u64) -> Result<i64, i32> {
    // SAFETY: the argument is what the test wants to say, right or wrong; the kernel checks it, and where it is an
    // address, the caller keeps the memory behind it alive (or means it to be bad).
    checked(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) }))
}

/// ioctl with a structure that the kernel reads, and maybe writes.
pub(crate) fn ioctl<T>(fd: &impl AsRawFd, request: u32, argument: &mut T) -> Result<i64, i32> {
    ioctl_value(fd, request, std::ptr::from_mut(argument) as u64)
}

/// Takes over a descriptor that an ioctl answered.
pub(crate) fn owned(fd: i64) -> OwnedFd {
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A shared mapping, unmapped when dropped.
pub(crate) struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is memory of the whole process; accesses to it are volatile and judged by the tests.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of a file from `offset`.
    pub(crate) fn new(fd: &impl AsRawFd, offset: u64, bytes: usize, protection: i32) -> Result<Self, i32> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset.cast_signed())
        };
        match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { at, bytes }),
            _ => Err(last_errno()),
        }
    }

    /// Maps `bytes` of memory without a name, this process' alone or shared with its children.
    pub(crate) fn anonymous(bytes: usize, shared: bool) -> Result<Self, i32> {
        let how = libc::MAP_ANONYMOUS | if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        Self::mapped(bytes, how, -1)
    }

    /// Maps `bytes` of this process' own memory at an address that nothing else has.
    pub(crate) fn at_address(address: usize, bytes: usize) -> Result<Self, i32> {
        let how = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping that takes no place of another one.
        let at = unsafe { libc::mmap(address as *mut _, bytes, libc::PROT_READ | libc::PROT_WRITE, how, -1, 0) };
        if at.addr() != address {
            return Err(last_errno());
        }
        NonNull::new(at.cast::<u8>()).map(|at| Self { at, bytes }).ok_or(0)
    }

    /// Maps a file of memory of its own, so that what is written is in the file, or not.
    pub(crate) fn memfd(bytes: usize, shared: bool) -> Result<(Self, OwnedFd), i32> {
        // SAFETY: the name is a string that ends; the answer is a new descriptor or -1.
        let fd = checked(i64::from(unsafe { libc::memfd_create(c"ram".as_ptr(), libc::MFD_CLOEXEC) }))?;
        let fd = owned(fd);
        // SAFETY: plain numbers.
        checked(i64::from(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as i64) }))?;
        let how = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        Ok((Self::mapped(bytes, how, fd.as_raw_fd())?, fd))
    }

    /// Maps huge pages of this process' alone; `bytes` is a multiple of one.
    pub(crate) fn huge(bytes: usize) -> Result<Self, i32> {
        Self::mapped(bytes, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB, -1)
    }

    /// Maps `bytes` as `how` says, of a file or, with -1, of none.
    pub(crate) fn mapped(bytes: usize, how: i32, fd: i32) -> Result<Self, i32> {
        Self::mapped_for(libc::PROT_READ | libc::PROT_WRITE, bytes, how, fd)
    }

    /// As [`Mapping::mapped`], for what `protection` says.
    pub(crate) fn mapped_for(protection: i32, bytes: usize, how: i32, fd: i32) -> Result<Self, i32> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, how, fd, 0) };
        match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { at, bytes }),
            _ => Err(last_errno()),
        }
    }

    /// A fresh private mapping in place of a part of it.
    pub(crate) fn replace(&self, offset: usize, bytes: usize) -> Result<(), i32> {
        let (at, read_write) = (self.at(offset), libc::PROT_READ | libc::PROT_WRITE);
        let how = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED;
        assert!(offset + bytes <= self.bytes);
        // SAFETY: replaces memory of this mapping alone, of which nobody holds a reference.
        let new = unsafe { libc::mmap(at.cast(), bytes, read_write, how, -1, 0) };
        if new == at.cast() { Ok(()) } else { Err(last_errno()) }
    }

    /// Takes a part of it away.
    pub(crate) fn unmap(&self, offset: usize, bytes: usize) -> Result<i64, i32> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: memory of this mapping alone, of which nobody holds a reference.
        checked(i64::from(unsafe { libc::munmap(self.at(offset).cast(), bytes) }))
    }

    /// What may be done with a part of it.
    pub(crate) fn protect(&self, offset: usize, bytes: usize, protection: i32) -> Result<i64, i32> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: memory of this mapping alone, of which nobody holds a reference.
        checked(i64::from(unsafe { libc::mprotect(self.at(offset).cast(), bytes, protection) }))
    }

    /// madvise(2).
    pub(crate) fn advise(&self, offset: usize, bytes: usize, advice: i32) -> Result<i64, i32> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: memory of this mapping alone, of which nobody holds a reference.
        checked(i64::from(unsafe { libc::madvise(self.at(offset).cast(), bytes, advice) }))
    }

    /// Address of the byte at `offset`.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes);
        self.at.as_ptr().wrapping_add(offset)
    }

    /// Stores a word.
    pub(crate) fn store(&self, offset: usize, value: u64) {
        let at = self.at(offset).cast::<u64>();
        assert!(offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned, as just checked.
        unsafe { at.write_volatile(value) }
    }

    /// Loads a word.
    pub(crate) fn load(&self, offset: usize) -> u64 {
        let at = self.at(offset).cast::<u64>();
        assert!(offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned, as just checked.
        unsafe { at.read_volatile() }
    }

    /// Copies bytes in.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(offset + i * 8, u64::from_le_bytes(word));
        }
    }

    /// Copies bytes out; `offset` is a multiple of 8.
    pub(crate) fn copy_out(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let words = bytes.div_ceil(8);
        let mut out: Vec<u8> = (0..words).flat_map(|i| self.load(offset + i * 8).to_le_bytes()).collect();
        out.truncate(bytes);
        out
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours and nobody holds a borrow of it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// A pipe: its read end and its write end.
pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [-1; 2];
    // SAFETY: the array has room for two descriptors.
    let done = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(done, 0, "no pipe");
    (owned(fds[0].into()), owned(fds[1].into()))
}

/// write(2) from any address.
pub(crate) fn write_from(fd: &impl AsRawFd, at: *const u8, bytes: usize) -> Result<i64, i32> {
    // SAFETY: the kernel reads from the address with its own fixups; that it may fail is what is tested.
    checked(unsafe { libc::write(fd.as_raw_fd(), at.cast(), bytes) } as i64)
}

/// read(2) to any address.
pub(crate) fn read_to(fd: &impl AsRawFd, at: *mut u8, bytes: usize) -> Result<i64, i32> {
    // SAFETY: callers pass memory of a test mapping, never of a Rust object.
    checked(unsafe { libc::read(fd.as_raw_fd(), at.cast(), bytes) } as i64)
}

/// process_vm_readv(2) of this very process.
pub(crate) fn read_own(at: *mut u8, bytes: usize) -> Result<i64, i32> {
    let mut buffer = vec![0u8; bytes];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: bytes };
    let remote = libc::iovec { iov_base: at.cast(), iov_len: bytes };
    // SAFETY: asks for a number.
    let me = unsafe { libc::getpid() };
    // SAFETY: both vectors are alive during the call, and the local one has room.
    checked(unsafe { libc::process_vm_readv(me, &raw const local, 1, &raw const remote, 1, 0) } as i64)
}

/// vmsplice(2): the pipe holds the page itself.
pub(crate) fn vmsplice(fd: &impl AsRawFd, at: *mut u8, bytes: usize) -> Result<i64, i32> {
    let vector = libc::iovec { iov_base: at.cast(), iov_len: bytes };
    // SAFETY: the vector is alive during the call; the memory behind it is a test mapping.
    checked(unsafe { libc::vmsplice(fd.as_raw_fd(), &raw const vector, 1, 0) } as i64)
}

/// mremap(2): pages go to another address, in place of what is there.
pub(crate) fn remap(from: *mut u8, bytes: usize, to: *mut u8) -> Result<i64, i32> {
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both are memory of test mappings, of which nobody holds a reference.
    let at = unsafe { libc::mremap(from.cast(), bytes, bytes, how, to.cast::<libc::c_void>()) };
    if at == to.cast() { Ok(0) } else { Err(last_errno()) }
}

/// fallocate(2).
pub(crate) fn fallocate(fd: &impl AsRawFd, mode: i32, offset: i64, bytes: i64) -> Result<i64, i32> {
    // SAFETY: plain numbers.
    checked(i64::from(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, bytes) }))
}

/// Memory with a descriptor of its own.
pub(crate) fn memfd(bytes: u64) -> Result<RawFd, i32> {
    // SAFETY: a constant name.
    let fd = checked(i64::from(unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) }))?;
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    // SAFETY: plain numbers.
    checked(i64::from(unsafe { libc::ftruncate(fd, bytes.cast_signed()) }))?;
    Ok(fd)
}

/// No thread is told of a child's end, which is waited for. `fork` blocks every signal of its thread for a moment: a child
/// that ends within it would have another thread interrupted, and what that waits for made a second time.
pub(crate) fn ignore_ends_of_children() {
    let set = vmm_sys_util::signal::create_sigset(&[libc::SIGCHLD]).expect("a signal");
    // SAFETY: the set is alive during the call.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Keeps this thread on one CPU.
pub(crate) fn pin_to(cpu: usize) {
    allow(0, &[cpu]);
}

/// Keeps a thread of this process on these CPUs; 0 is this one.
pub(crate) fn allow(thread: libc::pid_t, cpus: &[usize]) {
    // SAFETY: all zeroes is an empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: the set is ours; CPU_SET checks the bound.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set is alive during the call.
    unsafe { libc::sched_setaffinity(thread, size_of_val(&set), &raw const set) };
}

/// Online CPUs, whichever of them this thread may be on.
pub(crate) fn cpus() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        (last.parse::<usize>().ok()? + 1).checked_sub(first.parse().ok()?)
    };
    list.trim().split(',').filter_map(count).sum::<usize>().max(1)
}

/// The CPU that this thread is on.
pub(crate) fn here() -> usize {
    // SAFETY: asks for a number.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(usize::MAX)
}

/// Part number of the CPUs that this machine has, as their `MIDR_EL1` says.
pub(crate) fn part() -> Result<u64, String> {
    let file = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
    let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    let midr = u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(|e| format!("{file}: {e}"))?;
    Ok(midr >> 4 & 0xfff)
}
