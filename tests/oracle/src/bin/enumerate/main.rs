// SPDX-License-Identifier: MIT OR Apache-2.0
//! Enumerates small worlds of the specification alone, breadth first, and holds every invariant on each of them.
//!
//! Prints states, transitions, and the (call, outcome) cells that were hit. Their numbers are asserted: a world that
//! shrank is a failure, and so is a number that `docs/oracle.md` tells otherwise. Exit status 1 with the shortest way
//! there, if an invariant breaks or a number differs.

mod cells;
mod document;
mod explore;
mod worlds;

use std::process::ExitCode;
use std::time::Instant;

use cells::Cells;

fn main() -> ExitCode {
    let filter = std::env::args().nth(1);
    let start = Instant::now();
    let mut cells = Cells::default();
    let mut good = true;
    for world in worlds::ALL.iter().filter(|w| filter.as_ref().is_none_or(|f| w.name.contains(f.as_str()))) {
        let clock = Instant::now();
        match (world.run)(&mut cells) {
            Err(why) => {
                println!("{}: {why}", world.name);
                good = false;
            }
            Ok(count) => {
                let seconds = clock.elapsed().as_secs_f32();
                println!("{}: {count}, {seconds:.1} s", world.name);
                if count.numbers() != world.expected {
                    println!("{}: expected {:?}, found {:?}", world.name, world.expected, count.numbers());
                    good = false;
                }
                good &= document::tells_world(world.name, count.numbers());
            }
        }
    }
    if filter.is_none() {
        good &= cells.judge();
    }
    println!("{:.1} s", start.elapsed().as_secs_f32());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
