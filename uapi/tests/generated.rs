// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generated header and document are those in the tree, and a C compiler lays the structures out as Rust does.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use freehold_uapi::{guest, hvc, ioctl, render, table};

fn tree(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn assert_current(path: &str, made: &str) {
    let there = std::fs::read_to_string(tree(path)).unwrap_or_default();
    assert!(there == made, "{path} is not what the tables say; run `cargo xtask gen`");
}

#[test]
fn header_in_the_tree_is_current() {
    let mut made = String::new();
    render::header(&mut made).unwrap();
    assert_current("include/freehold.h", &made);
}

#[test]
fn document_in_the_tree_is_current() {
    let mut made = String::new();
    render::document(&mut made).unwrap();
    assert_current("../docs/abi.md", &made);
}

/// Compiles a C file of static assertions; `Err` holds the compiler's words.
fn compile(source: &str, name: &str) -> Result<(), String> {
    let file = std::env::temp_dir().join(format!("freehold-{}-{name}.c", std::process::id()));
    std::fs::write(&file, source).unwrap();
    let done = Command::new("gcc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", "-I"])
        .arg(tree("include"))
        .arg(&file)
        .output()
        .expect("gcc is one of the documented requirements");
    std::fs::remove_file(&file).unwrap();
    if done.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

fn layout(of: &table::Struct, source: &mut String) {
    writeln!(source, "_Static_assert(sizeof(struct {}) == {}, \"size\");", of.tag, of.size).unwrap();
    for field in of.fields {
        writeln!(
            source,
            "_Static_assert(offsetof(struct {}, {}) == {}, \"offset\");",
            of.tag, field.name, field.offset
        )
        .unwrap();
    }
}

#[test]
fn c_lays_our_structures_out_as_rust_does() {
    let mut source = String::from("#include <stddef.h>\n#include \"freehold.h\"\n");
    for of in hvc::STRUCTS.iter().chain(ioctl::STRUCTS).filter(|of| of.tag.starts_with("freehold_")) {
        layout(of, &mut source);
    }
    compile(&source, "layout").unwrap();
    source.push_str("_Static_assert(sizeof(struct freehold_convert) == 63, \"control: this one must be noticed\");\n");
    assert!(compile(&source, "control").is_err(), "the compiler does not notice a wrong size");
}

#[test]
fn our_ioctl_numbers_are_what_the_kernel_headers_make() {
    let mut source = String::from("#include <sys/ioctl.h>\n#include <linux/ioctl.h>\n#include \"freehold.h\"\n");
    for (name, made) in [
        ("FREEHOLD_CONVERT", "_IOWR(0xF5, 1, struct freehold_convert)"),
        ("FREEHOLD_PENDING", "_IOR(0xF5, 2, struct freehold_pending)"),
        ("FREEHOLD_COUNTER", "_IOWR(0xF5, 3, __u64)"),
        ("FREEHOLD_OUTCOME", "_IOR(0xF5, 4, struct freehold_outcome)"),
        ("FREEHOLD_CANCEL", "_IO(0xF5, 5)"),
        ("FREEHOLD_POPULATE", "_IOWR(0xF5, 6, struct freehold_populate)"),
    ] {
        writeln!(source, "_Static_assert({name} == {made}, \"{name}\");").unwrap();
    }
    compile(&source, "numbers").unwrap();
}

#[test]
fn numbers_and_names_are_unique() {
    for calls in [hvc::CALLS, guest::CALLS] {
        let ids: HashSet<u32> = calls.iter().map(|call| call.id).collect();
        assert_eq!(ids.len(), calls.len());
    }
    for table in [hvc::STATUSES, hvc::COUNTERS, hvc::EXITS, hvc::REGS, hvc::CRASHES, ioctl::IOCTLS, ioctl::CAPS] {
        let values: HashSet<i64> = table.iter().map(|row| row.value).collect();
        let names: HashSet<&str> = table.iter().map(|row| row.name).collect();
        assert_eq!(values.len(), table.len());
        assert_eq!(names.len(), table.len());
    }
}

#[test]
fn host_calls_stay_out_of_the_guest_range() {
    for call in hvc::CALLS {
        assert!((0x80..0x100).contains(&(call.id & 0xff)) && call.id >> 8 == 0xC6_0000, "{}", call.name);
    }
}

#[test]
fn every_error_that_a_call_names_is_a_status() {
    let statuses: HashSet<&str> = hvc::STATUSES.iter().map(|row| row.name).collect();
    for call in hvc::CALLS {
        for error in call.errors {
            assert!(statuses.contains(error), "{} names {error}", call.name);
        }
    }
}

#[test]
fn a_record_keeps_its_three_numbers() {
    for (gfn, count) in [(0, 1), (0x000f_ffff_ffff_ffff, 512), (0x80000, 4096)] {
        let record = hvc::Record::new(7, gfn, count);
        assert_eq!((record.pfn, record.gfn(), record.count()), (7, gfn, count));
    }
}
