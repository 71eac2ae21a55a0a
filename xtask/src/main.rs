// SPDX-License-Identifier: MIT OR Apache-2.0
//! How Freehold is built, shown and tested.
//!
//! Exit status: 0 held, 1 failed, 2 asked wrongly or refused, 3 something is not there yet.

mod audit;
mod bad_input;
mod bench;
mod builds;
mod cmd;
mod env;
mod fdt;
mod generate;
mod image;
mod initramfs;
mod kernel;
mod lint;
mod live;
mod mutants;
mod qemu;
mod run;
mod scan;
mod session;
mod setup;
mod steps;
mod test;
mod ui;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::env::Env;
use crate::qemu::{Machine, Running};
use crate::session::Heard;

/// The user asked for something that cannot be done; one line says why.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An input is not what it must be; one line says what and where.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about = "Builds, shows and tests Freehold")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs or unpacks what is missing, and names it first
    Setup,
    /// Bundles el2 with any arm64 kernel Image
    Image(ImageArgs),
    /// Shows the main job: a stock host at EL1 and a protected guest that it cannot read
    Run(run::RunArgs),
    /// Runs the tests that CI runs, or a part of them
    Test(test::TestArgs),
    /// Counts what things cost, on Freehold and on the kernel's own protected KVM
    Bench(bench::BenchArgs),
    /// Checks house rules, format and clippy, and prints the size of the trusted base
    Lint,
    /// Plants faults in a copy of the tree: some test must fail for each
    Mutants(mutants::MutantsArgs),
    /// Builds a host kernel with KASAN and lockdep from Debian's source, for `test --kernel debug`
    Kernel(kernel::KernelArgs),
    /// Writes the C header and docs/abi.md from the tables of the ABI
    Gen,
    /// Boots a job of tests/initramfs, for development
    #[command(hide = true)]
    DevBoot(DevBootArgs),
    /// Fuzzes one target and writes its minimised corpus back, for development
    #[command(hide = true)]
    DevFuzz {
        /// The target
        target: String,
        /// How long
        seconds: u64,
    },
}

#[derive(Args)]
struct ImageArgs {
    /// The kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// Where the bundle goes [default: target/freehold/freehold.img]
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct DevBootArgs {
    #[arg(long, default_value = "boot")]
    job: String,
    #[arg(long, default_value = "max")]
    cpu: String,
    #[arg(long, default_value_t = 4)]
    smp: u32,
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    #[arg(long, default_value_t = 3)]
    gic: u32,
    /// Boots this file instead of freehold.img; `stock` is Debian's kernel by itself
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Boots this debug el2 of tests/watch
    #[arg(long, value_name = "NAME")]
    watch: Option<String>,
    /// A machine without EL2
    #[arg(long)]
    no_el2: bool,
    /// Adds a no-map region to the device tree
    #[arg(long)]
    no_map: bool,
    /// PATH=FILE: adds FILE to the initramfs as PATH
    #[arg(long)]
    add: Vec<String>,
    /// Adds a Linux guest to the initramfs, with Debian's `older` or `newer` kernel
    #[arg(long, value_name = "KERNEL", value_parser = ["older", "newer"])]
    guest: Option<String>,
    /// More of the kernel's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// The host's kernel: Debian's, or the one of `xtask kernel --debug`
    #[arg(long, value_name = "KERNEL", value_parser = ["stock", "debug"], default_value = "stock")]
    host: String,
    /// Builds only these parts (el2, guest, vmm, module, wide, hostile), with commas; `none` for none
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// Uses the parts as they were built last
    #[arg(long)]
    no_build: bool,
    #[arg(long, default_value_t = 240)]
    limit: u64,
    /// More of QEMU's arguments
    #[arg(last = true)]
    qemu: Vec<String>,
}

fn main() -> ExitCode {
    a_panic_ends_all();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return bad_arguments(&error),
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            let asked_wrongly = error.is::<Usage>() || error.is::<Refused>();
            ExitCode::from(if asked_wrongly { 2 } else { 1 })
        }
    }
}

/// Nobody waits for some of the threads: one that is gone without a word could pass for one that found nothing.
fn a_panic_ends_all() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        say(what);
        std::process::abort();
    }));
}

/// Help and version as they are; of an error only the line that says what is wrong.
fn bad_arguments(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{text}");
        return ExitCode::from(2);
    }
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    eprintln!("{}", said.join(" "));
    ExitCode::from(2)
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let env = Env::find();
    match command {
        Command::Setup => {
            let tools = setup::ensure(&env)?;
            setup::miri(&env)?;
            println!("set-up is complete: Linux {} and QEMU at {}", tools.release, tools.qemu.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Image(args) => {
            let out = args.out.unwrap_or_else(|| env.out.join("freehold.img"));
            image::check_kernel(&args.kernel)?;
            setup::ensure(&env)?;
            let el2 = ui::stage("build el2", |_| builds::el2(&env))?;
            image::bundle(&el2, &args.kernel, &out)?;
            println!("{}", env.shown(&out));
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => run::run(&env, &args),
        Command::Bench(args) => bench::run(&env, &args),
        Command::Test(args) => test::run(&env, &args),
        Command::Lint => test::run(&env, &test::TestArgs::only("lint")),
        Command::Mutants(args) => mutants::run(&env, &args),
        Command::Kernel(args) => kernel::build(&env, &args).map(|()| ExitCode::SUCCESS),
        Command::Gen => generate::run(&env).map(|()| ExitCode::SUCCESS),
        Command::DevBoot(args) => dev_boot(&env, args),
        Command::DevFuzz { target, seconds } => test::fuzz::grow(&env, &target, seconds).map(|()| ExitCode::SUCCESS),
    }
}

fn dev_boot(env: &Env, args: DevBootArgs) -> Result<ExitCode> {
    let tools = setup::ensure(env)?;
    let tools = if args.host == "debug" { kernel::instead(env, tools)? } else { tools };
    let initramfs = env.out.join("initramfs.cpio");
    if !args.no_build {
        builds::all(env, &tools, &args.parts)?;
    }
    let base = match &args.guest {
        Some(release) => builds::with_guest(env, &tools, release == "newer")?,
        None => initramfs,
    };
    let mut initrd = std::fs::read(&base)?;
    if !args.add.is_empty() {
        let mut more = initramfs::Archive::default();
        for pair in &args.add {
            let (path, file) = pair.split_once('=').ok_or_else(|| Usage(format!("--add {pair}: not PATH=FILE")))?;
            more.add(path, &PathBuf::from(file))?;
        }
        // The kernel unpacks archives one after another.
        initrd.extend(more.bytes()?);
    }
    let own = env.out.join(format!("dev-{}.cpio", args.job));
    image::write_whole(&own, &initrd)?;
    let kernel = match &args.kernel {
        Some(stock) if stock.as_os_str() == "stock" => tools.kernel.clone(),
        Some(other) => other.clone(),
        None => match &args.watch {
            Some(name) => builds::watched(env, &tools, name)?,
            None => env.out.join("freehold.img"),
        },
    };
    let mut machine = Machine::new(&kernel, &own);
    (machine.cpu, machine.smp, machine.memory, machine.gic) = (args.cpu, args.smp, args.memory, args.gic);
    machine.el2 = !args.no_el2;
    machine.append = format!("fh.job={} {}", args.job, args.append);
    machine.extra = args.qemu;
    if args.no_map {
        machine = machine.with_no_map(&tools.qemu, &env.out.join("dev-no-map.dtb"))?;
    }
    let log = env.logs().join(format!("dev-{}.log", args.job));
    let mut running = Running::start(&tools.qemu, &machine, &log)?;
    let outcome = session::follow(&mut running, Duration::from_secs(args.limit), |heard| match heard {
        Heard::Case(case) => {
            let mark = if case.held { ui::green("held") } else { ui::red("FAILED") };
            println!("{mark} {} {}: expected {}, seen {}", case.step, case.case, case.expected, case.seen);
        }
        Heard::Guest(said) => println!("guest| {said}"),
    })?;
    drop(running);
    for line in &outcome.el2 {
        println!("{line}");
    }
    println!("{:?}, problem: {:?}, log: {}", outcome.stage, outcome.problem, env.shown(&log));
    Ok(ExitCode::from(u8::from(!outcome.held())))
}
