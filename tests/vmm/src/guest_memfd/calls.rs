// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls that hold or map pages, each with its errno as the error.

use std::os::fd::{AsRawFd, OwnedFd};

use super::rig::PAGE_BYTES;
use crate::sys::{self, last_errno};

fn checked(value: i64) -> Result<i64, i32> {
    if value < 0 { Err(last_errno()) } else { Ok(value) }
}

/// A raw system call of up to six arguments.
pub(crate) fn call(number: libc::c_long, arguments: &[u64]) -> Result<i64, i32> {
    let at = |i: usize| arguments.get(i).copied().unwrap_or(0);
    // SAFETY: the arguments are what the test wants to say; where one is an address, the caller keeps what is behind it.
    checked(unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) })
}

/// A descriptor as an argument.
pub(crate) fn fd(of: &impl AsRawFd) -> u64 {
    u64::from(of.as_raw_fd().cast_unsigned())
}

/// madvise(2) of one page.
pub(crate) fn madvise(at: *mut u8, bytes: usize, advice: i32) -> Result<i64, i32> {
    // SAFETY: the memory is a test mapping's.
    checked(i64::from(unsafe { libc::madvise(at.cast(), bytes, advice) }))
}

/// One page for O_DIRECT to move, in the device's own words.
pub(crate) fn open_direct(path: &std::ffi::CStr) -> Result<OwnedFd, i32> {
    open(path, libc::O_RDWR | libc::O_DIRECT)
}

/// open(2).
pub(crate) fn open(path: &std::ffi::CStr, flags: i32) -> Result<OwnedFd, i32> {
    // SAFETY: a valid path.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
    if fd < 0 { Err(last_errno()) } else { Ok(sys::owned(fd.into())) }
}

/// tee(2) of one page.
pub(crate) fn tee(from: &impl AsRawFd, to: &impl AsRawFd) -> Result<i64, i32> {
    call(libc::SYS_tee, &[fd(from), fd(to), PAGE_BYTES as u64, 0])
}

/// splice(2) of one page.
pub(crate) fn splice(from: &impl AsRawFd, to: &impl AsRawFd) -> Result<i64, i32> {
    call(libc::SYS_splice, &[fd(from), 0, fd(to), 0, PAGE_BYTES as u64, 0])
}

/// An asynchronous request of the kernel's own ABI.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// An asynchronous context, destroyed when dropped.
pub(crate) struct Aio(u64);

impl Aio {
    /// Starts to write one page.
    pub(crate) fn write(to: &impl AsRawFd, at: *mut u8) -> Result<Self, i32> {
        const IOCB_CMD_PWRITE: u16 = 1;
        let mut context = 0u64;
        call(libc::SYS_io_setup, &[4, (&raw mut context) as u64])?;
        let ask = Iocb {
            opcode: IOCB_CMD_PWRITE,
            fd: to.as_raw_fd().cast_unsigned(),
            buffer: at as u64,
            bytes: PAGE_BYTES as u64,
            ..Iocb::default()
        };
        let list = [&raw const ask];
        call(libc::SYS_io_submit, &[context, 1, list.as_ptr() as u64])?;
        Ok(Self(context))
    }

    /// Waits for the write; its result.
    pub(crate) fn wait(&self) -> Result<i64, i32> {
        // data, object, result, second result
        let mut event = [0i64; 4];
        call(libc::SYS_io_getevents, &[self.0, 1, 1, (&raw mut event) as u64, 0])?;
        Ok(event[2])
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        let _ = call(libc::SYS_io_destroy, &[self.0]);
    }
}

/// An `io_uring` that has registered one page as a buffer.
pub(crate) struct Ring(OwnedFd);

impl Ring {
    /// Sets the ring up and registers the page.
    pub(crate) fn with_buffer(at: *mut u8) -> Result<Self, i32> {
        // struct io_uring_params is 120 bytes.
        let mut parameters = [0u64; 15];
        let ring = call(libc::SYS_io_uring_setup, &[4, parameters.as_mut_ptr() as u64])?;
        let ring = Self(sys::owned(ring));
        let vector = libc::iovec { iov_base: at.cast(), iov_len: PAGE_BYTES };
        call(libc::SYS_io_uring_register, &[fd(&ring.0), 0, (&raw const vector) as u64, 1])?;
        Ok(ring)
    }

    /// Unregisters it.
    pub(crate) fn unregister(&self) -> Result<i64, i32> {
        call(libc::SYS_io_uring_register, &[fd(&self.0), 1, 0, 0])
    }
}

/// A connected pair of TCP sockets over the loopback device.
pub(crate) fn tcp() -> Result<(std::net::TcpStream, std::net::TcpStream), String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| format!("bind: {e}"))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let sender = std::net::TcpStream::connect(address).map_err(|e| format!("connect: {e}"))?;
    let (receiver, _) = listener.accept().map_err(|e| format!("accept: {e}"))?;
    Ok((sender, receiver))
}

/// An integer option of a socket, at the socket's own level.
pub(crate) fn socket_option(socket: &impl AsRawFd, option: i32, value: i32) -> Result<i64, i32> {
    let level = u64::from(libc::SOL_SOCKET.cast_unsigned());
    let option = u64::from(option.cast_unsigned());
    call(libc::SYS_setsockopt, &[fd(socket), level, option, (&raw const value) as u64, 4])
}

/// send(2).
pub(crate) fn send(socket: &impl AsRawFd, at: *const u8, bytes: usize, flags: i32) -> Result<i64, i32> {
    call(libc::SYS_sendto, &[fd(socket), at as u64, bytes as u64, u64::from(flags.cast_unsigned()), 0, 0])
}

/// A forked child of this process that runs `body` and leaves with what it returns, at most 63.
///
/// The process has other threads at times: `body` allocates nothing.
pub(crate) fn forked(body: impl FnOnce() -> u8) -> Child {
    // SAFETY: the child makes system calls and touches test mappings, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: plain numbers: the child dies with its parent, and after two minutes.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: a plain number.
        unsafe { libc::alarm(120) };
        let code = body();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code.into()) };
    }
    assert!(pid > 0, "no child");
    Child(pid)
}

/// A child that was not waited for yet.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.0.cast_unsigned()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.0, signal) };
    }

    /// Waits for its end: `exit N` or `signal N`.
    pub(crate) fn end(self) -> String {
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        if libc::WIFSIGNALED(status) {
            format!("signal {}", libc::WTERMSIG(status))
        } else {
            format!("exit {}", libc::WEXITSTATUS(status))
        }
    }
}

/// One byte through a pipe: the other side has come so far.
pub(crate) fn tell(to: &impl AsRawFd) {
    let byte = 1u8;
    let _ = call(libc::SYS_write, &[fd(to), (&raw const byte) as u64, 1]);
}

/// Waits for [`tell`].
pub(crate) fn told(from: &impl AsRawFd) -> bool {
    let mut byte = 0u8;
    call(libc::SYS_read, &[fd(from), (&raw mut byte) as u64, 1]) == Ok(1)
}
