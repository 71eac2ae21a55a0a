// SPDX-License-Identifier: MIT OR Apache-2.0
//! The user's side: keys to the guest, the key and the signals that end it, and a terminal left as it was found.

use std::io::IsTerminal as _;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use freehold_vmm_boot::args::End;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::vcpu::{Ended, Shared};
use crate::sys;

const STDIN: RawFd = 0;
const KEYS: u64 = 0;
const ENDED: u64 = 1;
const SIGNAL: u64 = 2;
/// What ends a program.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// A terminal that passes every key on, until dropped.
struct Raw(libc::termios);

impl Raw {
    /// Standard input, if it is a terminal.
    fn new() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        // SAFETY: all zeroes is a value of this plain structure.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the structure has room for the answer.
        if unsafe { libc::tcgetattr(STDIN, &raw mut before) } != 0 {
            return None;
        }
        let mut raw = before;
        // SAFETY: changes the structure alone.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        // SAFETY: the structure is alive during the call.
        (unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, &raw const raw) } == 0).then_some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: what the terminal said of itself before. Nothing can be done if it does not want that any more.
        unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, &raw const self.0) };
    }
}

/// Waits for keys, signals and the end.
pub(super) struct Waiter {
    epoll: Epoll,
    signals: OwnedFd,
    raw: Option<Raw>,
}

impl Waiter {
    /// Blocks the signals that end the VMM, and takes the terminal.
    pub(super) fn new(shared: &Shared) -> Result<Self, String> {
        let signals = signals()?;
        let epoll = Epoll::new().map_err(|e| format!("epoll: {e}"))?;
        let add = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        add(shared.ended.as_raw_fd(), ENDED).map_err(|e| format!("epoll: {e}"))?;
        add(signals.as_raw_fd(), SIGNAL).map_err(|e| format!("epoll: {e}"))?;
        // A file or /dev/null can not be waited for, and has no keys for a guest.
        let _ = add(STDIN, KEYS);
        Ok(Self { epoll, signals, raw: Raw::new() })
    }

    /// What is readable once a signal came that the VMM has not heard of.
    pub(super) const fn signals(&self) -> &OwnedFd {
        &self.signals
    }

    /// Passes keys on until the VM has ended.
    pub(super) fn wait(&self, shared: &Shared) {
        let mut events = [EpollEvent::default(); 3];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(error) => return shared.end(Ended::Failed(format!("epoll: {error}"))),
            };
            for event in &events[..count] {
                match event.data() {
                    ENDED => return,
                    SIGNAL => {
                        let which = self.which().map_or_else(|| "a signal".to_owned(), |n| format!("signal {n}"));
                        return shared.end(Ended::By(End::Quit, which));
                    }
                    _ => self.keys(shared),
                }
            }
        }
    }

    fn keys(&self, shared: &Shared) {
        let mut keys = [0; 256];
        let got = sys::read_to(&STDIN, keys.as_mut_ptr(), keys.len()).unwrap_or(0);
        let keys = &keys[..usize::try_from(got).unwrap_or(0)];
        if keys.is_empty() {
            // Nothing comes any more; the guest runs on.
            let _ = self.epoll.ctl(ControlOperation::Delete, STDIN, EpollEvent::default());
            return;
        }
        let typed = shared.console().type_in(keys, self.raw.is_some());
        match typed {
            Ok(true) => {}
            Ok(false) => shared.end(Ended::By(End::Quit, "Ctrl-]".to_owned())),
            Err(why) => shared.end(Ended::Failed(format!("the console: {why:?}"))),
        }
    }

    /// A signal that came, if there is one.
    fn which(&self) -> Option<u32> {
        // SAFETY: all zeroes is a value of this plain structure.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        sys::read_to(&self.signals, (&raw mut info).cast(), size_of_val(&info)).ok()?;
        Some(info.ssi_signo)
    }
}

impl Drop for Waiter {
    /// Who is impatient by now ends the program, as ever.
    fn drop(&mut self) {
        while self.which().is_some() {}
        if let Ok(set) = vmm_sys_util::signal::create_sigset(&SIGNALS) {
            // SAFETY: the set is alive during the call.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
        }
    }
}

/// A descriptor that tells of the signals which end a program; they end this one no more by themselves.
fn signals() -> Result<OwnedFd, String> {
    let wrong = |e: vmm_sys_util::errno::Error| format!("signals: {}", sys::errno_name(e.errno()));
    let set = vmm_sys_util::signal::create_sigset(&SIGNALS).map_err(wrong)?;
    // SAFETY: the set is alive during the call.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 { Err(format!("signalfd: {}", sys::errno_name(sys::last_errno()))) } else { Ok(sys::owned(fd.into())) }
}
