// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small VMM for protected VMs, and the attacks that a hostile host makes on them.
//!
//! `run` boots a Linux kernel, for anybody. Every other subcommand runs as root in the host of the test machine, prints
//! one `@fh` line per case and exits with 0 only if all cases held. They decide what is right from `uapi` and `proto`,
//! and from nothing else.

mod attack;
mod attest;
mod away;
mod beats;
mod bench;
mod beside;
mod compat;
mod counters;
mod cpus;
mod cycles;
mod direct;
mod drain;
mod events;
mod fuzz;
mod gmem;
mod guest_memfd;
mod guests;
mod hostile;
mod interrupts;
mod ioctl_fuzz;
mod ioctls;
mod kill;
mod kinds;
mod leaks;
mod light;
mod loans;
mod machine;
mod neighbours;
mod ordinary;
mod passed;
mod peer;
mod pinned;
mod plain;
mod probe;
#[path = "../../guest/src/proto.rs"]
mod proto;
mod raw;
mod refusals;
mod registers;
mod replays;
mod report;
mod reset;
#[path = "../../guest/src/rows.rs"]
mod rows;
mod run;
mod runs;
mod sheet;
mod soak;
mod spinning;
mod successor;
mod switch;
mod sys;
mod vcpus;
mod vgic;

const USAGE: &str = "usage: freehold-vmm SUBCOMMAND
  run --kernel K ...  boots a Linux kernel in a VM (run --help says more)
  counters    what el2 counted until the host was up
  light       steps 4 and 5: a protected VM runs what was written
  attack      step 6: the host attacks its memory
  carve-out   the part of step 6 that needs no VM
  drain       step 7: a conversion waits for who holds a page
  kill        step 8: kill -9 gives everything back
  held        the VMM that step 8 kills
  debian      step 9: a Linux guest, and a host that looks for its secret
  guests      Linux guests of every kind
  crowd       eight protected guests at once, three of them bad
  cycles      sharing, relinquishing, ends at every stage and in every order
  leaks       VMs that come and go leave nothing behind in the host
  rounds [COUNT]  VMs that come and go leave nothing behind in el2
  stage NAME  a VMM that `cycles` kills at a stage
  canary      stores to RAM that is not donated yet
  ioctls      bad input to the driver
  peer        cases of ioctls, registers, plain, events, pinned, cpus, vgic and replays, asked of the kernel's own KVM
  ioctl-fuzz [SEED [CALLS]]  random ioctls on every descriptor, from two threads
  refusals    wrong calls past the driver
  fuzz [SEED [CALLS]]  random calls past the driver, from every CPU
  soak SEED SECONDS  random calls with guests that run, a while
  bench       things done between marks, which the emulator counts
  bench-boot  marks that the host is up, and counts a system call
  bench-quick  the part of `bench` in which a guest runs alone
  bench-ipi   interrupts between two CPUs of a guest, between marks
  ordinary    an ordinary VM, through the driver
  events      eventfds that stores ring, and that raise interrupts
  plain       an ordinary VM on this process' own memory
  pinned      a protected VM on this process' own memory
  direct      what a disk that reaches memory by itself gets of such a VM
  replays     what kvmtool and crosvm say, in their order
  passed-fds VM VCPU FILE  the program that `replays` executes
  cpus        a guest of several vCPUs, through the driver
  vgic        a guest's interrupts and waits, through the driver
  switch      what survives a run, and what an exit shows
  vcpus       a guest of several vCPUs: who starts them, and who is woken
  gmem-convert  conversions in every mode, by either ioctl
  gmem-draining  what is done while a page drains, and what ends that
  gmem-files    what a guest_memfd is, in each state
  gmem-fd FD    the program that `gmem-files` executes
  gmem-holders  who holds a page blocks its conversion
  gmem-maps     who only maps it does not
  gmem-lives    ends of waiters, limits, dumps, scanners
  gmem-populate  contents by a call, for pages that are never mapped
  gmem-broken   pages that root says are broken memory
  gmem-stress [SECONDS [SEED]]  all of it at once
  gmem-kernel   what the kernel does with pages by itself, and for others
  gmem-offline  memory that the kernel would take offline
  gmem-numa     a machine of two nodes
  gmem-wide     what is touched while a window of the driver is held open
  gmem-planted  the same, of a driver that lets its lock go in it
  gmem-pressure  a machine that is short of memory keeps its guests
  gmem-starved  calls of which one allocation after the other fails
  core-sink     the program that `gmem-lives` has a dump piped into
  kexec-from  the machine goes over to another kernel, with VMs that live
  kexec-into  what that kernel finds
  crash-from  the kernel dies, with a VM that lives
  crash-into  what the crash kernel finds
  reboot      the machine is rebooted, with a VM that lives
  reset       the same, and no driver is told
  noel2       what must not be there without el2
";

fn main() {
    sys::ignore_ends_of_children();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|name| name == "run") {
        std::process::exit(run::run(arguments).into());
    }
    let mut parser = lexopt::Parser::from_env();
    let subcommand = match parser.next() {
        Ok(Some(lexopt::Arg::Value(name))) => name.to_string_lossy().into_owned(),
        Ok(Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help"))) => {
            print!("{USAGE}");
            return;
        }
        _ => usage("no subcommand"),
    };
    let mut numbers = Vec::new();
    let mut stage = String::new();
    while let Ok(Some(more)) = parser.next() {
        let given = match (more, subcommand.as_str()) {
            (lexopt::Arg::Value(text), "stage") if stage.is_empty() => {
                stage = text.to_string_lossy().into_owned();
                continue;
            }
            (lexopt::Arg::Value(text), "fuzz" | "ioctl-fuzz" | "soak" | "gmem-fd" | "gmem-stress" | "rounds")
                if numbers.len() < 2 =>
            {
                number(&text.to_string_lossy())
            }
            (lexopt::Arg::Value(text), "passed-fds") if numbers.len() < 3 => number(&text.to_string_lossy()),
            _ => None,
        };
        match given {
            Some(given) => numbers.push(given),
            None => usage(&format!("{subcommand}: unexpected argument")),
        }
    }
    match subcommand.as_str() {
        "counters" => or_report("2", counters::at_boot()),
        "light" => drop(light::first_light()),
        "attack" => or_report("6", attack::attack()),
        "carve-out" => or_report("6", attack::without_vm()),
        "tags" => or_report("6", attack::tags()),
        "drain" => or_report("7", drain::drains()),
        "kill" => or_report("8", kill::killed()),
        "held" => or_report("8", kill::held()),
        "debian" => or_report("9", guests::scene()),
        "guests" => or_report("guests", guests::all()),
        "crowd" => or_report("guests", guests::crowd::all()),
        "cycles" => or_report("cycles", cycles::all()),
        "leaks" => or_report("cycles", leaks::all()),
        "rounds" => {
            or_report("rounds", neighbours::rounds(report::Step("rounds"), numbers.first().copied().unwrap_or(50)))
        }
        "stage" => or_report("cycles", cycles::stage(&stage)),
        "canary" => light::canary(),
        "attest" => or_report("attest", attest::all()),
        "ioctls" => or_report("ioctls", ioctls::all()),
        "refusals" => or_report("hvc-refusals", refusals::all()),
        "fuzz" => or_report("hvc-fuzz", fuzz::all(numbers.first().copied(), numbers.get(1).copied())),
        "soak" => or_report("soak", soak::all(numbers.first().copied(), numbers.get(1).copied())),
        "bench" => or_report("bench", bench::all()),
        "bench-boot" => bench::boot(),
        "bench-quick" => or_report("bench", bench::guest()),
        "bench-ipi" => or_report("bench", bench::between()),
        "ordinary" => {
            or_report("ordinary", ordinary::all());
            or_report("registers", registers::all());
        }
        "events" => or_report("events", events::all()),
        "plain" => or_report("plain", plain::all()),
        "pinned" => or_report("pinned", pinned::all()),
        "direct" => or_report("direct", direct::all()),
        "peer" => peer::all(),
        "replays" => or_report("replays", replays::all()),
        "ioctl-fuzz" => {
            or_report("ioctl-fuzz", ioctl_fuzz::all(numbers.first().copied(), numbers.get(1).copied()));
        }
        "cpus" => or_report(cpus::STEP.0, cpus::all()),
        "vgic" => or_report(vgic::STEP.0, vgic::all()),
        "switch" => or_report("world-switch", switch::all()),
        "vcpus" => or_report("vcpus", vcpus::all()),
        "gmem-convert" => or_report(guest_memfd::STEP.0, guest_memfd::convert::all()),
        "gmem-draining" => or_report(guest_memfd::STEP.0, guest_memfd::draining::all()),
        "gmem-broken" => or_report(guest_memfd::STEP.0, guest_memfd::broken::all()),
        "gmem-files" => or_report(guest_memfd::STEP.0, guest_memfd::files::all()),
        "gmem-populate" => or_report(guest_memfd::STEP.0, guest_memfd::populate::all()),
        "gmem-holders" => or_report(guest_memfd::STEP.0, guest_memfd::holders::all()),
        "gmem-maps" => or_report(guest_memfd::STEP.0, guest_memfd::mappings::all()),
        "gmem-lives" => or_report(guest_memfd::STEP.0, guest_memfd::lives::all()),
        "gmem-kernel" => or_report(guest_memfd::STEP.0, guest_memfd::kernel::all()),
        "gmem-offline" => or_report(guest_memfd::STEP.0, guest_memfd::kernel::offline()),
        "gmem-numa" => or_report(guest_memfd::STEP.0, guest_memfd::numa::all()),
        "gmem-wide" => or_report(guest_memfd::STEP.0, guest_memfd::wide::all()),
        "gmem-planted" => or_report(guest_memfd::STEP.0, guest_memfd::wide::planted()),
        "gmem-pressure" => or_report(guest_memfd::STEP.0, guest_memfd::pressure::all()),
        "gmem-starved" => or_report(guest_memfd::STEP.0, guest_memfd::starved::all()),
        "passed-fds" => or_report("replays", passed::executed(&numbers)),
        "gmem-fd" => {
            let fd = numbers.first().and_then(|fd| i32::try_from(*fd).ok()).unwrap_or(-1);
            or_report(guest_memfd::STEP.0, guest_memfd::files::executed(fd));
        }
        "gmem-stress" => {
            let seconds = numbers.first().copied().unwrap_or(60);
            or_report(guest_memfd::STEP.0, guest_memfd::stress::all(seconds, numbers.get(1).copied()));
        }
        "core-sink" => or_report(guest_memfd::STEP.0, guest_memfd::lives::core_sink()),
        "kexec-from" => or_report("kexec-from", successor::leave()),
        "kexec-into" => or_report("kexec-into", successor::arrive()),
        "crash-from" => or_report("crash-from", successor::crash::die()),
        "crash-into" => or_report("crash-into", successor::crash::after()),
        "reboot" => or_report("reboot", reset::leave(reset::How::Reboot)),
        "reset" => or_report("reset", reset::leave(reset::How::Key)),
        "noel2" => ioctls::no_el2(),
        other => usage(&format!("{other}: no such subcommand")),
    }
    std::process::exit(report::status());
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reports what kept a suite from going on.
pub(crate) fn or_report(step: &'static str, result: Result<(), String>) {
    if let Err(error) = result {
        report::Step(step).same("goes through", "", error);
    }
}

fn usage(what: &str) -> ! {
    eprintln!("freehold-vmm: {what}");
    eprint!("{USAGE}");
    std::process::exit(2);
}
