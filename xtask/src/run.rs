// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask run`: everything from an empty machine to the table of the main job.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::builds::{self, Parts};
use crate::env::Env;
use crate::qemu::{Machine, Running};
use crate::session::{self, Heard, Outcome, Stage};
use crate::setup::{self, Tools};
use crate::steps::{self, Status};
use crate::{Usage, image, ui};

/// What a run takes at most on an idle machine once everything is built.
const LATER: Duration = Duration::from_secs(150);
/// No boot and no step may take longer than this; an idle machine needs a tenth.
const LIMIT: Duration = Duration::from_secs(900);

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    /// The result as JSON on stdout
    #[arg(long, conflicts_with = "shell")]
    json: bool,
    /// Leaves you in a root shell on the host (power off to leave)
    #[arg(long)]
    shell: bool,
    /// QEMU's CPU model
    #[arg(long, default_value = "max", value_name = "C")]
    cpu: String,
    /// CPUs of the machine
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    smp: u32,
    /// Another host kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Version of the interrupt controller
    #[arg(long, default_value_t = 3, value_name = "V", value_parser = clap::value_parser!(u32).range(2..=3))]
    gic: u32,
}

/// Shows the main job.
///
/// # Errors
/// If something does not build or QEMU cannot be run; a step that fails is a result, not an error.
pub(crate) fn run(env: &Env, args: &RunArgs) -> Result<ExitCode> {
    let begin = Instant::now();
    if let Some(kernel) = &args.kernel {
        image::check_kernel(kernel)?;
    }
    let tools = setup::ensure(env)?;
    check_cpu(&tools, &args.cpu)?;
    let parts = builds::all(env, &tools, &[])?;
    let Some(kernel) = boot_image(env, args, &parts)? else {
        ui::note("el2 is not there yet: nothing to boot");
        return Ok(ExitCode::from(3));
    };
    let initramfs = builds::with_guest(env, &tools, false)?;
    let machine = machine(args, &kernel, &initramfs);
    if args.shell {
        return shell(&tools, machine);
    }
    let log = env.logs().join("run.log");
    let mut outcome = ui::stage("the main job", |stage| {
        let mut running = Running::start(&tools.qemu, &machine, &log)?;
        session::follow(&mut running, LIMIT, |heard| match heard {
            Heard::Case(case) => stage.say(&format!("step {}: {}", case.step, case.case)),
            Heard::Guest(said) => stage.note(&format!("guest| {said}")),
        })
    })?;
    let astray = outcome.cases.iter().find(|c| !c.held && steps::STEPS.iter().all(|s| s.number != c.step));
    if let Some(case) = astray {
        outcome.problem = Some(format!("{}: {}", case.case, case.seen));
    }
    let took = begin.elapsed();
    let code = show(env, args, &outcome, &parts, &log, took);
    if let Some(slow) = too_long(took) {
        ui::note(&slow);
    }
    Ok(code)
}

/// What is said of a run that took longer than a later one may.
fn too_long(took: Duration) -> Option<String> {
    let most = LATER.as_secs();
    let said = format!(
        "this took {}: with everything built, and nothing else to do for the machine, it takes at most {most} s",
        ui::seconds(took)
    );
    (took > LATER).then_some(said)
}

fn boot_image(env: &Env, args: &RunArgs, parts: &Parts) -> Result<Option<PathBuf>> {
    let (Some(el2), Some(kernel)) = (&parts.el2, &args.kernel) else { return Ok(parts.image.clone()) };
    let out = env.out.join("freehold-other.img");
    image::bundle(el2, kernel, &out)?;
    Ok(Some(out))
}

fn check_cpu(tools: &Tools, cpu: &str) -> Result<()> {
    let mut command = std::process::Command::new(&tools.qemu);
    let known = crate::cmd::output(command.args(["-M", "virt", "-cpu", "help"]))?;
    let model = cpu.split(',').next().unwrap_or(cpu);
    if known.split_whitespace().any(|word| word == model) {
        return Ok(());
    }
    anyhow::bail!(Usage(format!(
        "--cpu {cpu}: QEMU knows no such CPU (try cortex-a72, cortex-a76, neoverse-n1, neoverse-v1, max)"
    )))
}

fn machine(args: &RunArgs, kernel: &Path, initramfs: &Path) -> Machine {
    let mut machine = Machine::new(kernel, initramfs);
    (machine.cpu, machine.smp, machine.gic) = (args.cpu.clone(), args.smp, args.gic);
    machine.append = if args.shell { "fh.shell" } else { "fh.job=boot,main fh.release=6.12" }.to_owned();
    machine
}

fn shell(tools: &Tools, machine: Machine) -> Result<ExitCode> {
    if !std::io::stdin().is_terminal() {
        anyhow::bail!(Usage("--shell needs a terminal".to_owned()));
    }
    ui::note("a root shell on the host follows; `poweroff -f` or Ctrl-A X leaves it");
    Running::attached(&tools.qemu, &machine)?;
    Ok(ExitCode::SUCCESS)
}

fn show(env: &Env, args: &RunArgs, outcome: &Outcome, parts: &Parts, log: &Path, took: Duration) -> ExitCode {
    let results = steps::judge(outcome, args.smp);
    let count = |status: Status| results.iter().filter(|r| r.status == status).count();
    let (held, failed) = (count(Status::Held), count(Status::Failed));
    if args.json {
        let value = json!({
            "steps": results, "held": held, "total": results.len(), "failed": failed,
            "stage": outcome.stage, "problem": outcome.problem, "missing_parts": parts.missing, "log": env.shown(log),
            "seconds": took.as_secs_f64(),
        });
        println!("{value:#}");
    } else {
        table(&results);
        if let Some(problem) = &outcome.problem {
            println!("the boot failed after stage `{}`: {problem}", stage_name(outcome.stage));
        }
        if failed > 0 || outcome.problem.is_some() {
            println!("console log: {}", env.shown(log));
        }
        if !parts.missing.is_empty() {
            println!("not there yet: {}", parts.missing.join(", "));
        }
        println!("freehold: {held} of {} steps held, in {}", results.len(), ui::seconds(took));
    }
    if failed > 0 || outcome.problem.is_some() {
        ExitCode::FAILURE
    } else if held < results.len() {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Nothing => "power on",
        Stage::El2 => "el2",
        Stage::Kernel => "host kernel",
        Stage::Userspace => "host userspace",
        Stage::Done => "job",
    }
}

/// Shows the cases that a step needs and those that failed; how many more held is said in one line.
fn table(results: &[steps::Result]) {
    println!("{:<5}{:<34} {:<58} seen", "step", "case", "expected");
    for result in results {
        let status = match result.status {
            Status::Held => ui::green("held"),
            Status::Failed => ui::red("FAILED"),
            Status::NotYet => ui::yellow("not yet"),
        };
        println!("{:<5}{}: {status}", result.step, result.title);
        let (shown, others): (Vec<_>, Vec<_>) = result.cases.iter().partition(|c| !c.held || result.needs(&c.case));
        for case in shown {
            let mark = if case.held { ui::green("+") } else { ui::red("-") };
            let (name, expected, seen) = (one_line(&case.case), one_line(&case.expected), one_line(&case.seen));
            // What failed is shown whole, and `--json` shows everything so.
            let cut = |text: &str| if case.held { shortened(text) } else { text.to_owned() };
            println!("   {mark} {name:<34} {:<58} {}", cut(&expected), cut(&seen));
        }
        if !others.is_empty() {
            println!("     and {} more cases that held", others.len());
        }
        if !result.missing.is_empty() {
            println!("     not seen: {}", result.missing.join(", "));
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(56) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_takes_longer_than_later_ones_may_says_so() {
        assert_eq!(too_long(Duration::from_secs(150)), None);
        assert!(
            too_long(Duration::from_secs(151))
                .is_some_and(|said| said.contains("151") && said.contains("at most 150 s"))
        );
    }
}
