// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the tables as a C header and as a document. Pure text: `cargo xtask gen` decides where it goes.

use core::fmt::{Result, Write};

use crate::table::{Call, Item, Struct};
use crate::{guest, hvc, ioctl};

/// Tables of plain numbers: C prefix, heading, rows.
const ITEM_TABLES: &[(&str, &str, &[Item])] = &[
    ("FREEHOLD_", "Statuses of host calls (x0)", hvc::STATUSES),
    ("FREEHOLD_", "VM flags", hvc::VM_FLAGS),
    ("FREEHOLD_", "Donation flags", hvc::DONATE_FLAGS),
    ("FREEHOLD_", "Share flags", hvc::SHARE_FLAGS),
    ("FREEHOLD_", "Counters", hvc::COUNTERS),
    ("FREEHOLD_", "Exit reasons (x1 of VCPU_RUN)", hvc::EXITS),
    ("FREEHOLD_", "Flags of VM_IRQ", hvc::IRQ_FLAGS),
    ("FREEHOLD_", "MMIO exit bits", hvc::MMIO_BITS),
    ("FREEHOLD_", "Crash codes", hvc::CRASHES),
    ("FREEHOLD_", "Registers", hvc::REGS),
    ("FREEHOLD_GUEST_", "Statuses of guest calls (x0)", guest::GUEST_STATUSES),
    ("FREEHOLD_GUEST_", "Further statuses of PSCI", guest::PSCI_STATUSES),
    ("FREEHOLD_GUEST_", "Further statuses of random numbers", guest::TRNG_STATUSES),
    ("FREEHOLD_GUEST_", "First word of a report", guest::REPORT),
];

/// Tables that only the ioctl half has; KVM's own names are left to `<linux/kvm.h>` in the header.
const IOCTL_TABLES: &[(&str, &[Item])] = &[
    ("Ioctls", ioctl::IOCTLS),
    ("Conversion constants", ioctl::CONVERTS),
    ("Capabilities", ioctl::CAPS),
    ("Other KVM numbers", ioctl::KVM_NUMBERS),
];

/// Writes the C header: host calls, guest calls, and the ioctls and structures that KVM's headers lack.
///
/// # Errors
/// Those of `out`.
pub fn header(out: &mut impl Write) -> Result {
    writeln!(out, "/* SPDX-License-Identifier: MIT OR Apache-2.0 */")?;
    writeln!(out, "/* Made by `cargo xtask gen` from the crate `uapi`; do not edit. */")?;
    writeln!(out, "#ifndef FREEHOLD_H\n#define FREEHOLD_H\n\n#include <linux/types.h>\n")?;
    writeln!(out, "#define FREEHOLD_ABI_VERSION {:#x}U", crate::ABI_VERSION)?;
    for (index, word) in hvc::UID.iter().enumerate() {
        writeln!(out, "#define FREEHOLD_UID{index} {word:#x}U")?;
    }
    writeln!(out, "#define FREEHOLD_CALL_UID {:#x}U", hvc::CALL_UID)?;
    writeln!(out, "#define FREEHOLD_MAX_RUN {}U\n#define FREEHOLD_MAX_RECORDS {}U", hvc::MAX_RUN, hvc::MAX_RECORDS)?;
    header_calls(out, "Host calls", "FREEHOLD_HVC_", hvc::CALLS)?;
    header_calls(out, "Guest calls", "FREEHOLD_GUEST_", guest::CALLS)?;
    for (prefix, heading, rows) in ITEM_TABLES {
        header_items(out, heading, prefix, rows)?;
    }
    header_items(out, "Conversion constants", "FREEHOLD_", ioctl::CONVERTS)?;
    writeln!(out, "\n/* Ioctls that KVM lacks */")?;
    for row in ioctl::IOCTLS.iter().filter(|row| row.name.starts_with("FREEHOLD_")) {
        writeln!(out, "#define {} {:#x}U", row.name, row.value)?;
    }
    for of in hvc::STRUCTS.iter().chain(ioctl::STRUCTS).filter(|of| of.tag.starts_with("freehold_")) {
        header_struct(out, of)?;
    }
    writeln!(out, "\n#endif")
}

/// Writes `docs/abi.md`.
///
/// # Errors
/// Those of `out`.
pub fn document(out: &mut impl Write) -> Result {
    writeln!(out, "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->")?;
    writeln!(out, "<!-- Made by `cargo xtask gen` from the crate `uapi`; do not edit. -->")?;
    writeln!(out, "# The ABI of Freehold, version {}.{}\n", crate::ABI_VERSION >> 16, crate::ABI_VERSION & 0xffff)?;
    writeln!(out, "## Host to EL2\n")?;
    writeln!(
        out,
        "SMCCC HVC64 (SMC64 where the host's conduit is SMC). x0: function identifier in, status out. Arguments and"
    )?;
    writeln!(
        out,
        "results from x1 on. Arguments are frame numbers (4 KiB), handles and counts, never addresses. A refused call"
    )?;
    writeln!(
        out,
        "changes nothing; where several errors hold, which of them is returned is not fixed. UID (`{:#x}`): `{:08x} {:08x} {:08x} {:08x}`.",
        hvc::CALL_UID,
        hvc::UID[0],
        hvc::UID[1],
        hvc::UID[2],
        hvc::UID[3]
    )?;
    document_calls(out, hvc::CALLS)?;
    writeln!(out, "\n## Guest to EL2\n")?;
    writeln!(out, "SMCCC over HVC, after pKVM's guest ABI. x0: function identifier in, status out.")?;
    document_calls(out, guest::CALLS)?;
    writeln!(out, "\n## Numbers")?;
    for (_, heading, rows) in ITEM_TABLES {
        document_items(out, heading, rows)?;
    }
    writeln!(out, "\n## VMM to driver")?;
    for (heading, rows) in IOCTL_TABLES {
        document_items(out, heading, rows)?;
    }
    writeln!(out, "\n## Structures")?;
    for of in hvc::STRUCTS.iter().chain(ioctl::STRUCTS) {
        document_struct(out, of)?;
    }
    Ok(())
}

fn header_calls(out: &mut impl Write, heading: &str, prefix: &str, calls: &[Call]) -> Result {
    writeln!(out, "\n/* {heading} */")?;
    for call in calls {
        writeln!(out, "#define {prefix}{} {:#x}U", call.name, call.id)?;
    }
    Ok(())
}

fn header_items(out: &mut impl Write, heading: &str, prefix: &str, rows: &[Item]) -> Result {
    writeln!(out, "\n/* {heading} */")?;
    for row in rows {
        writeln!(out, "#define {prefix}{} ({})", row.name, row.value)?;
    }
    Ok(())
}

fn header_struct(out: &mut impl Write, of: &Struct) -> Result {
    writeln!(out, "\nstruct {} {{", of.tag)?;
    for field in of.fields {
        let (ty, array) = c_type(field.ty);
        write!(out, "\t{ty} {}", field.name)?;
        if !array.is_empty() {
            write!(out, "[{array}]")?;
        }
        writeln!(out, ";")?;
    }
    writeln!(out, "}};")
}

/// Splits a Rust type into the C element type and the array length, empty where it is none.
fn c_type(ty: &'static str) -> (&'static str, &'static str) {
    let (element, length) = match ty.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.split_once("; ").unwrap_or((inner, "")),
        None => (ty, ""),
    };
    let c = match element {
        "u8" => "__u8",
        "u16" => "__u16",
        "u32" => "__u32",
        "u64" => "__u64",
        other => other,
    };
    (c, length)
}

fn document_calls(out: &mut impl Write, calls: &[Call]) -> Result {
    for call in calls {
        writeln!(out, "\n### {} `{:#010x}`\n", call.name, call.id)?;
        for line in call.doc {
            writeln!(out, "{}", line.trim())?;
        }
        writeln!(out, "\n- May be called by: {}.", call.when)?;
        document_values(out, "Arguments", call.args)?;
        document_values(out, "Results", call.rets)?;
        if !call.errors.is_empty() {
            write!(out, "- Errors:")?;
            for error in call.errors {
                write!(out, " `{error}`")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

fn document_values(out: &mut impl Write, heading: &str, values: &[(&str, &str)]) -> Result {
    if values.is_empty() {
        return Ok(());
    }
    writeln!(out, "- {heading}:")?;
    for (index, (name, meaning)) in values.iter().enumerate() {
        writeln!(out, "  - x{} `{name}`: {meaning}", index + 1)?;
    }
    Ok(())
}

fn document_items(out: &mut impl Write, heading: &str, rows: &[Item]) -> Result {
    writeln!(out, "\n### {heading}\n\n| name | value | meaning |\n|---|---|---|")?;
    for row in rows {
        if (-4096..4096).contains(&row.value) {
            write!(out, "| `{}` | {} |", row.name, row.value)?;
        } else {
            write!(out, "| `{}` | {:#x} |", row.name, row.value)?;
        }
        for line in row.doc {
            write!(out, " {}", line.trim())?;
        }
        writeln!(out, " |")?;
    }
    Ok(())
}

fn document_struct(out: &mut impl Write, of: &Struct) -> Result {
    writeln!(out, "\n### `struct {}`, {} bytes\n", of.tag, of.size)?;
    for line in of.doc {
        writeln!(out, "{}", line.trim())?;
    }
    writeln!(out, "\n| offset | field | type | meaning |\n|---|---|---|---|")?;
    for field in of.fields {
        write!(out, "| {} | `{}` | `{}` |", field.offset, field.name, field.ty)?;
        for line in field.doc {
            write!(out, " {}", line.trim())?;
        }
        writeln!(out, " |")?;
    }
    Ok(())
}
