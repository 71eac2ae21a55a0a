// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line of `freehold-vmm run`, and how it ends.

use std::path::PathBuf;

use clap::Parser;

use crate::layout;

/// How a guest ended, and with which status the VMM exits then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It crashed, or did what can not be served.
    Crash,
    /// The user ended it.
    Quit,
}

impl End {
    /// The VMM's exit status.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 10,
            Self::Crash => 11,
            Self::Quit => 12,
        }
    }
}

/// The VM could not be made, or not be run on.
pub const FAILED: u8 = 1;
/// The command line or a file that it names is wrong.
pub const WRONG: u8 = 2;

const AFTER: &str = "\
Console: the guest's first serial port (16550 at 0x1000000) on standard input and output; Ctrl-] quits.
A summary of exits follows on standard error.

Exit status:
   0  the guest switched itself off
   1  the VM could not be made or run
   2  wrong arguments, or a file that is not what it must be
  10  the guest asked for a reset (it is not started again)
  11  the guest crashed
  12  ended by Ctrl-] or a signal";

/// Boots a Linux kernel in a VM
#[derive(Clone, Debug, Parser)]
#[command(name = "freehold-vmm run", after_help = AFTER)]
pub struct Args {
    /// The guest's kernel: an arm64 Image, as it is or compressed with gzip
    #[arg(long, value_name = "K")]
    pub kernel: PathBuf,
    /// The guest's initial file system
    #[arg(long, value_name = "I")]
    pub initrd: Option<PathBuf>,
    /// The guest's memory, a multiple of 2 MiB
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub mem: u64,
    /// The guest's CPUs
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=layout::CPUS as i64))]
    pub cpus: u32,
    /// Keeps the guest's memory and registers from the host
    #[arg(long)]
    pub protected: bool,
    /// The driver's node
    #[arg(long, value_name = "PATH", default_value = "/dev/freehold")]
    pub device: PathBuf,
    /// The guest kernel's command line
    #[arg(long, value_name = "S", default_value = "console=ttyS0", value_parser = cmdline, allow_hyphen_values = true)]
    pub cmdline: String,
}

/// Reads a size: a number of bytes, or with K, M or G.
fn memory(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size: a number, alone or with K, M or G".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    layout::check_memory(bytes).map_err(|wrong| wrong.to_string())?;
    Ok(bytes)
}

/// What the guest kernel's own buffer holds.
const CMDLINE: usize = 2048;

fn cmdline(text: &str) -> Result<String, String> {
    let mut line = linux_loader::cmdline::Cmdline::new(CMDLINE).map_err(|e| e.to_string())?;
    line.insert_str(text).map_err(|_| format!("more than {CMDLINE} characters, or not plain ASCII"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Args, String> {
        let all = ["freehold-vmm run", "--kernel", "k"].iter().chain(more);
        Args::try_parse_from(all).map_err(|e| e.to_string())
    }

    #[test]
    fn bad_arguments_are_refused_each_with_its_reason() {
        for (arguments, why) in [
            (&["--mem", "3M"][..], "multiple of 2 MiB"),
            (&["--mem", "0"], "multiple of 2 MiB"),
            (&["--mem", "lots"], "not a size"),
            (&["--mem", "M"], "not a size"),
            (&["--mem", "-2M"], "unexpected argument"),
            (&["--mem", "99999999999999G"], "too large"),
            (&["--mem", "2048G"], "at most"),
            (&["--cpus", "0"], "0 is not in 1..=8"),
            (&["--cpus", "9"], "9 is not in 1..=8"),
            (&["--cpus", "two"], "invalid digit"),
            (&["--cmdline", "a\nb"], "plain ASCII"),
            (&["--bios", "x"], "unexpected argument"),
            (&["more"], "unexpected argument"),
        ] {
            let said = parse(arguments).unwrap_err();
            assert!(said.contains(why), "{arguments:?}: {said}");
        }
        assert!(parse(&["--cmdline", &"x".repeat(CMDLINE)]).is_err());
        assert!(Args::try_parse_from(["freehold-vmm run"]).unwrap_err().to_string().contains("--kernel"));
    }

    #[test]
    fn defaults_are_those_that_the_help_names() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.mem, args.cpus, args.protected), (256 << 20, 4, false));
        assert_eq!(args.device, PathBuf::from("/dev/freehold"));
        assert_eq!(parse(&["--mem", "1G"]).unwrap().mem, 1 << 30);
        assert_eq!(parse(&["--mem", "4194304"]).unwrap().mem, 4 << 20);
        assert_eq!(parse(&["--cmdline", "quiet console=ttyS0"]).unwrap().cmdline, "quiet console=ttyS0");
    }

    #[test]
    fn every_end_has_an_exit_status_of_its_own_that_the_help_names() {
        let mut all = vec![FAILED, WRONG];
        all.extend([End::PowerOff, End::Reset, End::Crash, End::Quit].map(End::status));
        let named: Vec<u8> = AFTER.lines().filter_map(|l| l.get(..4)?.trim().parse().ok()).collect();
        all.sort_unstable();
        assert_eq!(all, named);
        all.dedup();
        assert_eq!(all, named);
    }
}
