// SPDX-License-Identifier: MIT OR Apache-2.0
//! A user at a real terminal: a pseudo terminal whose other end is a VMM's standard input and output.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::child::{Child, Read};
use crate::report::Step;
use crate::sys;

/// How long a command of a few characters may take in a guest on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// After how long a Ctrl-C is typed again.
const AGAIN: Duration = Duration::from_secs(10);
/// Ctrl-C, and the key that ends the VMM.
const INTERRUPT: &str = "\x03";
/// How a shell of root's asks for a command: not by a line.
const PROMPT: &str = "/ # ";
pub(super) const QUIT: &str = "\x1d";

/// The terminal: what the user holds, and what a program finds as its input and output.
pub(super) struct Terminal {
    user: File,
    program: OwnedFd,
}

/// How a terminal treats what is typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manner([libc::tcflag_t; 4]);

impl Manner {
    /// Every key is passed on as it is: no lines, no echo, no signals.
    pub(super) const fn is_raw(&self) -> bool {
        self.0[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

impl Terminal {
    pub(super) fn new() -> Result<Self, String> {
        let failed = |what: &str| format!("{what}: {}", sys::errno_name(sys::last_errno()));
        std::fs::create_dir_all("/dev/pts").map_err(|e| format!("/dev/pts: {e}"))?;
        let (kind, place) = (c"devpts".as_ptr(), c"/dev/pts".as_ptr());
        // SAFETY: the names are alive during the call; there are no options.
        if unsafe { libc::mount(kind, place, kind, 0, std::ptr::null()) } != 0 && sys::last_errno() != libc::EBUSY {
            return Err(failed("mount of devpts"));
        }
        let user = File::options().read(true).write(true).open("/dev/ptmx").map_err(|e| format!("/dev/ptmx: {e}"))?;
        let unlocked: libc::c_int = 0;
        // SAFETY: the number is alive during the call.
        if unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked) } != 0 {
            return Err(failed("TIOCSPTLCK"));
        }
        let how = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: takes a number and returns a new descriptor.
        let program = unsafe { libc::ioctl(user.as_raw_fd(), libc::TIOCGPTPEER as _, how) };
        if program < 0 {
            return Err(failed("TIOCGPTPEER"));
        }
        Ok(Self { user, program: sys::owned(program.into()) })
    }

    /// The program's end.
    pub(super) fn program(&self) -> Result<Stdio, String> {
        self.program.try_clone().map(Stdio::from).map_err(|e| e.to_string())
    }

    /// The user's end.
    pub(super) fn keys(&self) -> Result<File, String> {
        self.user.try_clone().map_err(|e| e.to_string())
    }

    /// How it treats what is typed now.
    pub(super) fn manner(&self) -> Manner {
        // SAFETY: all zeroes is a value of this plain structure.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the structure has room for the answer.
        unsafe { libc::tcgetattr(self.program.as_raw_fd(), &raw mut now) };
        Manner([now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag])
    }
}

/// What the user does at the shell of a guest whose console is `terminal`, until the guest ends, by the command `end`.
pub(super) fn use_shell(step: Step, child: &mut Child, terminal: &Terminal, end: &str, case: &dyn Fn(&str) -> String) {
    let raw = terminal.manner();
    step.judged(
        &case("the terminal passes every key on"),
        "no lines, echo or signals",
        format!("{raw:?}"),
        raw.is_raw(),
    );
    let prompt = child.shows(PROMPT, Instant::now() + PATIENCE);
    step.judged(&case("a prompt that ends no line is shown"), PROMPT, &prompt, prompt.contains(PROMPT));
    let long = "x".repeat(200);
    for (what, keys, answer) in [
        ("typed keys reach the guest's shell", "echo $((6*7))-typed\r", "42-typed"),
        ("more than the port holds at once", &format!("echo -n {long} | wc -c\r"), "200"),
        ("a command that does not end", "echo begun; sleep 10000\r", "begun"),
        ("Ctrl-C is the guest's", &format!("{INTERRUPT}echo $((2+3))-interrupted\r"), "5-interrupted"),
    ] {
        // A Ctrl-C between the shell's fork and the terminal's handover to the child reaches the shell alone, which waits.
        let patience = if keys.starts_with(INTERRUPT) { AGAIN } else { PATIENCE };
        let begin = Instant::now();
        let seen = loop {
            child.type_in(keys);
            match answers(child, answer, patience) {
                None if begin.elapsed() < PATIENCE => {}
                None => break format!("nothing in {} s", PATIENCE.as_secs()),
                Some(seen) => break seen,
            }
        };
        step.same(&case(what), answer, seen);
    }
    child.type_in(&format!("{end} -f\r"));
}

/// Reads the guest's lines until one is `answer`; `None` if none is in time.
fn answers(child: &mut Child, answer: &str, patience: Duration) -> Option<String> {
    let deadline = Instant::now() + patience;
    loop {
        match child.line(deadline) {
            Read::Line(line) if line == answer => return Some(line),
            Read::Line(_) => {}
            Read::Closed => return Some("the end".to_owned()),
            Read::Late => return None,
        }
    }
}

/// The key that ends the VMM does, and leaves the terminal as it was found.
pub(super) fn quits(step: Step, arguments: &[String]) -> Result<(), String> {
    let terminal = Terminal::new()?;
    let before = terminal.manner();
    step.same("a terminal as it is found: keys are not passed on", false, before.is_raw());
    let child = Child::at(arguments, Some(&terminal))?;
    let begin = Instant::now();
    while !terminal.manner().is_raw() && begin.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    terminal.keys()?.write_all(QUIT.as_bytes()).map_err(|e| e.to_string())?;
    let (status, said) = child.ended();
    step.same("Ctrl-] ends the VMM", "12", status);
    step.judged("and it says so, with its exits", "ended by Ctrl-]", &said, summary(&said, "ended by Ctrl-]", 2));
    step.same("the terminal is as it was", format!("{before:?}"), format!("{:?}", terminal.manner()));
    Ok(())
}

/// Whether the VMM's last words are how it ended, and a table of exits with a column for each of so many vCPUs.
pub(super) fn summary(said: &str, how: &str, vcpus: u32) -> bool {
    let mut lines = said.lines().skip_while(|line| !line.contains(how)).skip(1);
    let head = lines.next().is_some_and(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&"exits") && words.last() == Some(&format!("vcpu{}", vcpus - 1).as_str())
    });
    head && lines.all(|line| {
        let counts: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        counts.len() == vcpus as usize + 1 && counts[0] == counts[1..].iter().sum::<u64>()
    })
}
