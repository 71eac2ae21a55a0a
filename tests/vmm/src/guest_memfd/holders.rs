// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whoever holds a reference to a page blocks its conversion, and lets it go through when done (I5, requirement 35).

use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{self, Aio, Ring, call, fd};
use super::rig::{PAGE, PAGE_BYTES, PATIENCE, Rig, STILL, bytes, in_pipe, until_pending, word};
use crate::gmem::converted;
use crate::probe::{Access, probe};
use crate::sys::{self, errno_name, outcome};

/// Page that is held, of a file of 4.
const HELD: u64 = 2;
const SLOW: &str = "/sys/module/fh_slow/parameters";

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    pipes()?;
    direct_io()?;
    registered()?;
    zero_copy()?;
    each_page()?;
    for_ever()
}

fn held_at(rig: &Rig) -> *mut u8 {
    rig.map.at(bytes(HELD))
}

/// How often a holder is tried that lets go, until the conversion is through soon enough behind it.
const TRIES: u32 = 5;
/// How soon that is: hundreds of times what it takes, and less than any time-out that would see the page free by itself.
const SOON: Duration = Duration::from_secs(1);
/// The same of an `io_uring`, whose end the kernel puts off.
const LATER: Duration = Duration::from_secs(2);

/// As [`blocks`], for what `hold` makes and `release` ends; and soon behind that, in the best of a few tries: a machine that
/// is busy makes a wait longer, and none makes it shorter.
fn lets_through<H>(
    case: &str,
    rig: &Rig,
    limit: Duration,
    mut hold: impl FnMut() -> Result<H, String>,
    mut release: impl FnMut(H),
) -> Result<(), String> {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let held = hold()?;
        best = best.min(blocks(case, rig, || release(held)));
        if best < limit {
            break;
        }
    }
    is_soon(case, limit, best);
    Ok(())
}

fn is_soon(case: &str, limit: Duration, best: Duration) {
    let seen = format!("{} us", best.as_micros());
    STEP.judged(&format!("{case}: soon"), &format!("within {} s", limit.as_secs()), seen, best < limit);
}

/// The page is held now: at once it is `EAGAIN` with its offset and nothing changes; one that waits is through after
/// `release`; how long after.
pub(super) fn blocks(case: &str, rig: &Rig, release: impl FnOnce()) -> Duration {
    blocks_until(case, rig, "[]", release)
}

/// As [`blocks`], where the holder has written to the pages in `written` by its end.
fn blocks_until(case: &str, rig: &Rig, written: &str, release: impl FnOnce()) -> Duration {
    let busy = format!("EAGAIN at {:#x}", HELD * PAGE);
    STEP.same(&format!("{case}: at once"), &busy, converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same(&format!("{case}: nothing has changed"), "[]", format!("{:?}", rig.damaged()));
    let (result, took) = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let result = rig.gmem.to_private(0, rig.size(), 120_000);
            (result, Instant::now())
        });
        STEP.same(&format!("{case}: it waits"), format!("pending at {:#x}", HELD * PAGE), until_pending(&rig.gmem));
        release();
        let released = Instant::now();
        let (result, at) = waiter.join().unwrap_or((Err((0, 0)), released));
        (result, at.saturating_duration_since(released))
    });
    STEP.same(&format!("{case}: let go"), "0", converted(result));
    println!("{case}: {} us after its release", took.as_micros());
    STEP.same(&format!("{case}: the host reads"), "SIGBUS", probe(held_at(rig), Access::Load));
    STEP.same(&format!("{case}: back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same(&format!("{case}: contents are kept"), written, format!("{:?}", rig.damaged()));
    took
}

/// Nobody holds the page: the conversion is through at once.
fn passes(case: &str, rig: &Rig) {
    STEP.same(&format!("{case}: at once"), "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same(&format!("{case}: back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same(&format!("{case}: contents are kept"), "[]", format!("{:?}", rig.damaged()));
}

fn pipes() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let mut out = vec![0u8; PAGE_BYTES];
    let held = || Ok(in_pipe(held_at(&rig)));
    lets_through("vmsplice, read", &rig, SOON, held, |pipe| {
        let _ = sys::read_to(&pipe.0, out.as_mut_ptr(), PAGE_BYTES);
    })?;
    STEP.same("vmsplice, read: what was read", true, out[..8] == word(HELD).to_le_bytes());
    lets_through("vmsplice, closed", &rig, SOON, held, drop)?;
    let copied = || {
        let (first, second) = (in_pipe(held_at(&rig)), sys::pipe());
        STEP.same("tee", "4096", outcome(calls::tee(&first.0, &second.1)));
        Ok(second)
    };
    lets_through("vmsplice, its copy by tee", &rig, SOON, copied, drop)?;
    let given = || {
        let gift = sys::pipe();
        let vector = libc::iovec { iov_base: held_at(&rig).cast(), iov_len: PAGE_BYTES };
        let given = call(libc::SYS_vmsplice, &[fd(&gift.1), (&raw const vector) as u64, 1, 8]);
        STEP.same("vmsplice as a gift", "4096", outcome(given));
        Ok(gift)
    };
    lets_through("vmsplice, a gift", &rig, SOON, given, drop)?;
    let pipe = in_pipe(held_at(&rig));
    let memfd = call(libc::SYS_memfd_create, &[c"copy".as_ptr() as u64, 0]).map(sys::owned).map_err(errno_name)?;
    STEP.same("splice into a memfd", "4096", outcome(calls::splice(&pipe.0, &memfd)));
    passes("vmsplice, then splice into a file", &rig);
    Ok(())
}

fn slow(hold: bool) -> Result<(), String> {
    let value = if hold { "1" } else { "0" };
    std::fs::write(format!("{SLOW}/hold"), value).map_err(|e| format!("{SLOW}/hold: {e}"))
}

/// Waits until the disk keeps a request.
fn in_flight() -> String {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let text = std::fs::read_to_string(format!("{SLOW}/held")).unwrap_or_default();
        if text.trim() != "0" {
            return text.trim().to_owned();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    "none".to_owned()
}

fn direct_io() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let disk = calls::open_direct(c"/dev/fh_slow").map_err(|e| format!("/dev/fh_slow: {}", errno_name(e)))?;
    let at = held_at(&rig) as u64;
    // The disk reads as zeros.
    let reads = format!("[{HELD}]");
    for (case, number, written) in
        [("O_DIRECT write", libc::SYS_pwrite64, "[]"), ("O_DIRECT read", libc::SYS_pread64, &reads)]
    {
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            slow(true)?;
            rig.map.store(bytes(HELD), word(HELD));
            let (moved, took) = std::thread::scope(|scope| {
                let mover = scope.spawn(|| call(number, &[fd(&disk), at, PAGE, 0]));
                STEP.same(&format!("{case}: in flight"), "1", in_flight());
                let took = blocks_until(case, &rig, written, || drop(slow(false)));
                (mover.join().unwrap_or(Err(0)), took)
            });
            STEP.same(&format!("{case}: its result"), "4096", outcome(moved));
            best = best.min(took);
            if best < SOON {
                break;
            }
        }
        is_soon(case, SOON, best);
    }
    STEP.same("O_DIRECT read: what came", 0, rig.map.load(bytes(HELD)));
    let done = converted(rig.gmem.to_private(0, rig.size(), 60_000));
    STEP.same("O_DIRECT read: converted afterwards", "0", done);
    let refused = call(libc::SYS_pwrite64, &[fd(&disk), at, PAGE, 0]);
    STEP.same("O_DIRECT write of a private page", "EFAULT", outcome(refused));
    let refused = call(libc::SYS_pread64, &[fd(&disk), at, PAGE, 0]);
    STEP.same("O_DIRECT read into a private page", "EFAULT", outcome(refused));
    STEP.same("O_DIRECT: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    rig.map.store(bytes(HELD), word(HELD));
    let submitted = || {
        slow(true)?;
        let aio = Aio::write(&disk, held_at(&rig)).map_err(|e| format!("io_submit: {}", errno_name(e)))?;
        STEP.same("libaio write: in flight", "1", in_flight());
        Ok(aio)
    };
    lets_through("libaio write", &rig, SOON, submitted, |aio| {
        drop(slow(false));
        STEP.same("libaio write: its result", "4096", outcome(aio.wait()));
    })
}

fn registered() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let ring = || Ring::with_buffer(held_at(&rig)).map_err(|e| format!("io_uring: {}", errno_name(e)));
    let mut rings = Vec::new();
    lets_through("io_uring buffer, unregistered", &rig, LATER, ring, |ring| {
        STEP.same("io_uring: unregister", "0", outcome(ring.unregister()));
        rings.push(ring);
    })?;
    drop(rings);
    lets_through("io_uring buffer, ring closed", &rig, LATER, ring, drop)?;
    STEP.same("io_uring: back to private", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    let refused = Ring::with_buffer(held_at(&rig)).map_or_else(errno_name, |_| "0".to_owned());
    STEP.same("io_uring: a private page as a buffer", "EFAULT", refused);
    Ok(())
}

/// The peer does not read: what was sent without a copy stays in the queue, and so does the reference.
fn zero_copy() -> Result<(), String> {
    const FILL: usize = 64 << 10;
    const SO_ZEROCOPY: i32 = 60;
    let rig = Rig::new(4)?;
    let (sender, mut receiver) = calls::tcp()?;
    let set = |socket: &std::net::TcpStream, option, value| {
        calls::socket_option(socket, option, value).map_err(|e| format!("setsockopt: {}", errno_name(e)))
    };
    set(&receiver, libc::SO_RCVBUF, 4096)?;
    set(&sender, libc::SO_SNDBUF, 8 << 20)?;
    set(&sender, SO_ZEROCOPY, 1)?;
    let filler = vec![7u8; FILL];
    let mut filled = 0;
    // Until the peer's window is closed what is sent goes there, and is copied.
    let start = Instant::now();
    while queued(&sender) < FILL && start.elapsed() < PATIENCE {
        filled += usize::try_from(calls::send(&sender, filler.as_ptr(), FILL, 0).unwrap_or(0)).unwrap_or(0);
    }
    let sent = calls::send(&sender, held_at(&rig), PAGE_BYTES, libc::MSG_ZEROCOPY);
    STEP.same("zero-copy send", "4096", outcome(sent));
    let mut came = Vec::new();
    blocks("zero-copy send", &rig, || {
        let mut buffer = vec![0u8; FILL];
        while came.len() < filled + PAGE_BYTES {
            match receiver.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(got) => came.extend_from_slice(&buffer[..got]),
            }
        }
    });
    let last = came.get(filled..filled + 8).map(<[u8]>::to_vec);
    STEP.same("zero-copy send: what came", true, last == Some(word(HELD).to_le_bytes().to_vec()));
    Ok(())
}

/// Bytes that a socket has not delivered yet.
fn queued(socket: &std::net::TcpStream) -> usize {
    let mut left = 0i32;
    // SAFETY: the kernel writes one integer, and it is alive.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ as _, &raw mut left) };
    if done == 0 { usize::try_from(left).unwrap_or(0) } else { 0 }
}

/// Whichever page is held, it is the one that is named, and the others are as they were.
fn each_page() -> Result<(), String> {
    let rig = Rig::new(8)?;
    for page in 0..8 {
        let pipe = in_pipe(rig.map.at(bytes(page)));
        let case = format!("page {page} of 8");
        let now = converted(rig.gmem.to_private_now(0, rig.size()));
        STEP.same(&format!("{case} held: at once"), format!("EAGAIN at {:#x}", page * PAGE), now);
        STEP.same(&format!("{case} held: nothing has changed"), "[]", format!("{:?}", rig.damaged()));
        drop(pipe);
        passes(&format!("{case} let go"), &rig);
    }
    Ok(())
}

/// A holder that never lets go costs the caller its deadline, and nothing else.
fn for_ever() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let _pipe = in_pipe(held_at(&rig));
    let start = Instant::now();
    let late = converted(rig.gmem.to_private(0, rig.size(), 300));
    STEP.same("held for ever: at the deadline", format!("ETIMEDOUT at {:#x}", HELD * PAGE), late);
    let took = start.elapsed();
    STEP.judged("held for ever: not before", "300 ms", format!("{} ms", took.as_millis()), took.as_millis() >= 300);
    STEP.same("held for ever: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    STEP.same("held for ever: the pages beside it", "0", converted(rig.gmem.to_private_now(0, 2 * PAGE)));
    STEP.same("held for ever: and back", "0", converted(rig.gmem.to_shared(0, 2 * PAGE)));
    // A host fault waits for the attempt's outcome, and for no longer than it patiently can.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.gmem.to_private(0, rig.size(), 30_000));
        STEP.same("held for ever: it waits", format!("pending at {:#x}", HELD * PAGE), until_pending(&rig.gmem));
        STEP.same("held for ever: a fault meanwhile", "SIGBUS", probe(rig.map.at(0), Access::Load));
        let _ = rig.gmem.cancel();
        let ended = converted(waiter.join().unwrap_or(Err((0, 0))));
        STEP.same("held for ever: cancelled", format!("ECANCELED at {:#x}", HELD * PAGE), ended);
        let waiter = scope.spawn(|| rig.gmem.to_private(0, rig.size(), 30_000));
        let _ = until_pending(&rig.gmem);
        let reader = scope.spawn(|| probe(rig.map.at(0), Access::Load));
        std::thread::sleep(STILL);
        let _ = rig.gmem.cancel();
        let _ = waiter.join();
        let seen = reader.join().unwrap_or_default();
        STEP.same("a fault that meets an attempt which fails", "done", seen);
    });
    Ok(())
}
