// SPDX-License-Identifier: MIT OR Apache-2.0
//! `freehold-model CASE`: one case of the suite `model`, which `cargo xtask test` runs. Without a case it lists them.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    // A finding is one line of text; where el2 stopped is part of it.
    std::panic::set_hook(Box::new(|_| {}));
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        for case in freehold_model::CASES {
            println!("{}: {}", case.name, case.what);
        }
        return ExitCode::SUCCESS;
    };
    let Some(case) = freehold_model::CASES.iter().find(|case| case.name == name) else {
        eprintln!("no case `{name}`");
        return ExitCode::from(2);
    };
    let begin = Instant::now();
    match (case.run)() {
        Ok(text) => {
            println!("{}\n{name}: passed in {:.1} s", text.trim_end(), begin.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("{what}\n{name}: FAILED after {:.1} s", begin.elapsed().as_secs_f64());
            ExitCode::FAILURE
        }
    }
}
