// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file system in this process: one file, whose reads and writes end when the test says so. What is read or written
//! past the page cache stays referenced for as long.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::calls::{open, open_direct};
use super::rig::PATIENCE;
use crate::sys::{self, errno_name, last_errno};

const PLACE: &std::ffi::CStr = c"/tmp/fuse";
const HEADER: usize = 40;
const MAX_WRITE: u32 = 64 << 10;
const REGULAR: u32 = 0o100_644;

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const DIRECT_IO: u32 = 1;

#[derive(Default)]
struct Desk {
    hold: AtomicBool,
    held: AtomicU32,
}

/// The file system, mounted; it goes when dropped.
pub(crate) struct Fuse {
    desk: Arc<Desk>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts it. A page that is read comes as `contents`.
    pub(crate) fn new(contents: Vec<u8>) -> Result<Self, String> {
        let device = open(c"/dev/fuse", libc::O_RDWR).map_err(|e| format!("/dev/fuse: {}", errno_name(e)))?;
        std::fs::write(PLACE.to_str().unwrap_or_default(), "").map_err(|e| e.to_string())?;
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0\0", device.as_raw_fd());
        // SAFETY: every string ends with a zero byte and lives during the call.
        let done =
            unsafe { libc::mount(c"fuse".as_ptr(), PLACE.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()) };
        if done != 0 {
            return Err(format!("mount: {}", errno_name(last_errno())));
        }
        let desk = Arc::new(Desk::default());
        let seen = Arc::clone(&desk);
        let server = Some(std::thread::spawn(move || serve(&device, &seen, &contents)));
        Ok(Self { desk, server })
    }

    /// Its file, past the page cache.
    pub(crate) fn open(&self) -> Result<OwnedFd, String> {
        open_direct(PLACE).map_err(|e| format!("open: {}", errno_name(e)))
    }

    /// Whether reads and writes are to wait.
    pub(crate) fn hold(&self, hold: bool) {
        self.desk.hold.store(hold, Ordering::SeqCst);
    }

    /// Waits until one does.
    pub(crate) fn in_flight(&self) -> u32 {
        let start = Instant::now();
        while self.desk.held.load(Ordering::SeqCst) == 0 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.desk.held.load(Ordering::SeqCst)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.hold(false);
        // SAFETY: a string that ends with a zero byte.
        unsafe { libc::umount2(PLACE.as_ptr(), libc::MNT_DETACH) };
        let _ = self.server.take().map(JoinHandle::join);
    }
}

/// Answers until the file system is gone.
fn serve(device: &OwnedFd, desk: &Desk, contents: &[u8]) {
    let mut request = vec![0u8; MAX_WRITE as usize + 4096];
    loop {
        let got = match sys::read_to(device, request.as_mut_ptr(), request.len()) {
            Ok(got) => usize::try_from(got).unwrap_or(0),
            Err(libc::EINTR | libc::EAGAIN | libc::ENOENT) => continue,
            Err(_) => return,
        };
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap_or_default());
        if got < HEADER || word(4) == FORGET {
            continue;
        }
        let answer = match word(4) {
            kind @ (READ | WRITE) => {
                let bytes = word(HEADER + 16);
                if desk.hold.load(Ordering::SeqCst) {
                    desk.held.fetch_add(1, Ordering::SeqCst);
                    while desk.hold.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    desk.held.fetch_sub(1, Ordering::SeqCst);
                }
                let read = || contents.iter().copied().cycle().take(bytes as usize).collect();
                Ok(if kind == READ { read() } else { words(&[bytes, 0]) })
            }
            INIT => Ok([words(&[7, 31, 0, 0, 16 | 12 << 16, MAX_WRITE, 1]), vec![0; 36]].concat()),
            // Valid for a second: size, blocks, times, mode, links, owner, block size.
            GETATTR => {
                Ok([words(&[1, 0, 0, 0]), words(&[1, 0, 1 << 20, 0, 2048, 0]), vec![0; 36], attributes()].concat())
            }
            OPEN => Ok(words(&[1, 0, DIRECT_IO, 0])),
            RELEASE | FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = answer.map_or_else(|error| (-error, Vec::new()), |body: Vec<u8>| (0, body));
        let bytes = u32::try_from(body.len()).unwrap_or(0) + 16;
        let reply = [words(&[bytes, error.cast_unsigned()]), request[8..16].to_vec(), body].concat();
        let _ = sys::write_from(device, reply.as_ptr(), reply.len());
    }
}

fn attributes() -> Vec<u8> {
    words(&[REGULAR, 1, 0, 0, 0, 4096, 0])
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
