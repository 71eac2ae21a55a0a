// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux guests under `freehold-vmm run`, judged from outside: what their self-test says on the console, how their
//! clock goes beside the host's, how they end, and what the host sees of their memory meanwhile.

mod child;
pub(crate) mod crowd;
mod debugger;
mod drift;
mod heard;
mod look;
mod terminal;

use std::process::Command;
use std::time::{Duration, Instant};

use freehold_uapi::hvc;
use kvm_ioctls::VcpuExit;

use crate::hostile::Hostile;
use crate::raw::{resting, settle};
use crate::report::Step;
use child::{Child, Read};
use drift::Stamps;
use terminal::Terminal;

/// No guest takes longer on a machine that is merely loaded.
const LIMIT: Duration = Duration::from_secs(540);
const INITRD: &str = "/guest/initrd";
const MEMORY: &str = "192M";
/// The kernel's releases that guests may be of, by what the job says.
const RELEASE: &str = "FH_RELEASE";
/// CPUs of a guest.
const CPUS: u32 = 4;

/// What the self-test must report, each as passed.
const CHECKS: [&str; 9] = [
    "cpus-online",
    "counter-and-clock-agree",
    "timers-on-every-cpu",
    "ipis-between-cpus",
    "membarrier-reaches-every-cpu",
    "fp-survives-preemption",
    "hotplug",
    "cpus-online-again",
    "over",
];
/// What it reports too where it held a secret.
const HELD: &str = "memory-while-held";

/// A guest to run.
pub(crate) struct Plan {
    /// The step that its cases belong to.
    pub(crate) step: Step,
    pub(crate) kernel: String,
    pub(crate) cpus: u32,
    pub(crate) protected: bool,
    /// How it ends: `poweroff` or `reboot`.
    pub(crate) end: &'static str,
    /// A user sits at its shell, and ends it so.
    pub(crate) shell: bool,
    /// Whether it keeps a secret, for which the host looks.
    pub(crate) hold: bool,
    /// What its cases' names begin with.
    pub(crate) prefix: String,
}

impl Plan {
    fn arguments(&self) -> Vec<String> {
        let mut line = format!(
            "console=ttyS0 panic=-1 fh.cpus={} fh.end={}",
            self.cpus,
            if self.shell { "shell" } else { self.end }
        );
        // Somebody watches the scene; each byte that a console takes costs two exits.
        line.push_str(if self.hold { " loglevel=6 fh.hold" } else { " quiet" });
        let cpus = self.cpus.to_string();
        let all = ["--kernel", &self.kernel, "--initrd", INITRD, "--mem", MEMORY, "--cpus", &cpus, "--cmdline", &line];
        let mut all: Vec<String> = all.map(str::to_owned).to_vec();
        if self.protected {
            all.push("--protected".to_owned());
        }
        all
    }
}

/// Runs the guest and reports what it showed.
pub(crate) fn linux(plan: &Plan) -> Result<(), String> {
    let step = plan.step;
    let case = |what: &str| format!("{}{what}", plan.prefix);
    let terminal = if plan.shell { Some(Terminal::new()?) } else { None };
    let mut child = Child::at(&plan.arguments(), terminal.as_ref())?;
    let mut stamps = Stamps::default();
    stamps.begin();
    let mut seen: Vec<String> = Vec::new();
    let deadline = Instant::now() + LIMIT;
    loop {
        let line = match child.line(deadline) {
            Read::Line(line) => line,
            Read::Closed => break,
            Read::Late => {
                step.same(&case("ends"), "within its time", format!("not after {} s", LIMIT.as_secs()));
                break;
            }
        };
        let Some(said) = line.split_once("fh-guest: ").map(|(_, said)| said) else { continue };
        match said.split_once(' ') {
            Some(("stamp", time)) => stamps.take(time),
            Some(("secret", masked)) => {
                look::at_memory(step, child.id(), masked)?;
                child.type_in("go\n");
            }
            Some(("userspace", release)) => {
                let wanted = std::env::var(RELEASE).unwrap_or_default();
                let held = release.contains("+deb") && release.starts_with(&format!("{wanted}."));
                step.judged(&case("userspace"), &format!("Debian's {wanted}"), release, held);
                whose(plan, child.id())?;
            }
            Some((check, outcome)) => {
                let held = outcome.split(' ').next() == Some("pass");
                step.judged(&case(check), "pass", outcome, held);
                seen.push(check.to_owned());
                if let (Some(terminal), "over") = (&terminal, check) {
                    terminal::use_shell(step, &mut child, terminal, plan.end, &case);
                }
            }
            None => {}
        }
    }
    for check in CHECKS.iter().chain(plan.hold.then_some(&HELD)) {
        if !seen.iter().any(|name| name == check) {
            step.same(&case(check), "pass", "not reported");
        }
    }
    let (held, what) = stamps.judge();
    step.judged(&case("its clock goes as the host's"), "less than 1 % apart", what, held);
    let expected = if plan.end == "reboot" { 10 } else { 0 };
    let (status, said) = child.ended();
    step.same(&case("the VMM's exit status"), expected, status);
    let how = if plan.end == "reboot" { "asked for a reset" } else { "switched itself off" };
    step.judged(&case("a summary of its exits"), how, &said, terminal::summary(&said, how, plan.cpus));
    if let Some(terminal) = terminal {
        step.same(&case("its terminal is a user's again"), false, terminal.manner().is_raw());
    }
    Ok(())
}

/// The guest is of the kind that was asked for: a process of the host's reads all of its memory, or none.
fn whose(plan: &Plan, process: u32) -> Result<(), String> {
    let (pages, _) = look::by_mapping(process)?;
    let (expected, held) =
        if plan.protected { ("no page is read", pages.are_closed()) } else { ("all are read", pages.are_open()) };
    plan.step.judged(&format!("{}whose its memory is", plan.prefix), expected, pages, held);
    Ok(())
}

/// The protected guest of the main job: its console, and the host that looks for its secret.
pub(crate) fn scene() -> Result<(), String> {
    linux(&Plan {
        step: Step("9"),
        kernel: kernel(),
        cpus: CPUS,
        protected: true,
        end: "poweroff",
        shell: false,
        hold: true,
        prefix: String::new(),
    })
}

/// Every kind of guest of one kernel.
pub(crate) fn all() -> Result<(), String> {
    let step = Step("guests");
    refused(step)?;
    starved(step)?;
    let quit = ["--kernel", &kernel(), "--mem", MEMORY, "--cpus", "2"].map(str::to_owned);
    terminal::quits(step, &quit)?;
    for (protected, cpus, end) in [(true, CPUS, "reboot"), (false, CPUS, "poweroff")] {
        let prefix = format!("{}, {cpus} CPUs: ", if protected { "protected" } else { "ordinary" });
        linux(&Plan { step, kernel: kernel(), cpus, protected, end, shell: true, hold: false, prefix })?;
    }
    Ok(())
}

/// A protected guest whose initial file system does not fit in its memory: it starts, gives up, and leaves nothing.
fn starved(step: Step) -> Result<(), String> {
    const LARGE: &str = "/tmp/large";
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    // Zeros that are small while they are packed, before everything else that the guest needs.
    let pack = "set -e; mkdir /tmp/many; cd /tmp/many; dd if=/dev/zero of=zeros bs=1M count=96 2>/dev/null
        echo zeros | cpio -o -H newc 2>/dev/null | gzip -1 >/tmp/large; cat /guest/initrd >>/tmp/large; rm -r /tmp/many";
    let packed = Command::new("sh").args(["-c", pack]).status().map_err(|e| format!("sh: {e}"))?;
    step.same("little memory: an initrd of 96 MiB", "true", packed.success());
    let all = ["--kernel", "/guest/kernel", "--initrd", LARGE, "--mem", "128M", "--protected"];
    let mut all = all.map(str::to_owned).to_vec();
    all.extend(["--cmdline", "console=ttyS0 earlycon panic=-1 quiet"].map(str::to_owned));
    let child = Child::run(&all)?;
    let deadline = Instant::now() + LIMIT;
    let mut said = String::new();
    while let Read::Line(line) = child.line(deadline) {
        if line.contains("Kernel panic") {
            said = line;
        }
    }
    step.judged("little memory: the guest starts, and gives up", "a panic of its kernel's", &said, !said.is_empty());
    let (status, said) = child.ended();
    step.judged("little memory: its VMM ends as for a reset", "10", format!("{status}: {said}"), status == "10");
    settle(step, "little memory: and nothing of it is left", &hostile, &before);
    std::fs::remove_file(LARGE).map_err(|e| e.to_string())
}

fn kernel() -> String {
    "/guest/kernel".to_owned()
}

/// Bad input: one line, the right exit status, and no VM.
fn refused(step: Step) -> Result<(), String> {
    let cut = "/tmp/cut";
    let bytes = std::fs::read(kernel()).map_err(|e| e.to_string())?;
    std::fs::write(cut, &bytes[..bytes.len() / 2]).map_err(|e| e.to_string())?;
    for (case, arguments, status, says) in [
        ("no kernel", &["--kernel", "/nothing"][..], 2, "No such file"),
        ("a kernel cut short", &["--kernel", cut], 2, "truncated"),
        ("a script for a kernel", &["--kernel", "/init"], 2, "not an arm64 Image"),
        ("too little memory", &["--kernel", "/guest/kernel", "--mem", "64M"], 2, "the kernel needs"),
        (
            "an initrd that does not fit",
            &["--kernel", "/guest/kernel", "--initrd", "/guest/kernel", "--mem", "96M"],
            2,
            "the initrd",
        ),
        ("no initrd", &["--kernel", "/guest/kernel", "--initrd", "/nothing"], 2, "No such file"),
        ("a directory for a kernel", &["--kernel", "/guest"], 2, "directory"),
        ("no --kernel", &[], 2, "--kernel"),
        ("no memory", &["--kernel", "/guest/kernel", "--mem", "0"], 2, "multiple of 2 MiB"),
        ("no CPU", &["--kernel", "/guest/kernel", "--cpus", "0"], 2, "not in 1..=8"),
        ("nine CPUs", &["--kernel", "/guest/kernel", "--cpus", "9"], 2, "not in 1..=8"),
        ("what there is not", &["--kernel", "/guest/kernel", "--bios", "x"], 2, "--bios"),
        ("no device", &["--kernel", "/guest/kernel", "--device", "/dev/nothing"], 1, "is the driver loaded"),
        ("another device", &["--kernel", "/guest/kernel", "--device", "/dev/null"], 1, "not a KVM device"),
    ] {
        let (ended, said) = child::refused(arguments)?;
        let lines = said.lines().count();
        let held = ended == Some(status) && said.contains(says) && lines == 1;
        step.judged(case, &format!("status {status}, one line: {says}"), format!("status {ended:?}: {said}"), held);
    }
    for (case, exit, says) in [
        (
            "a run that el2 refuses",
            VcpuExit::FailEntry(hvc::WRONG_STATE as u64, 0),
            "1: the VM can not be run on; vCPU 1: el2 refuses to run it: WRONG_STATE",
        ),
        ("an exit that nobody knows", VcpuExit::Hlt, "11: the guest crashed: vCPU 1: Hlt"),
    ] {
        step.same(case, says, crate::run::would_say(&exit));
    }
    std::fs::remove_file(cut).map_err(|e| e.to_string())
}
