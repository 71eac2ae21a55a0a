/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The border between the C glue and the Rust half of the module.
 *
 * FH_RUST names an entry into Rust (Kbuild reads these lines to keep the symbols); FH_C a service of the glue that
 * Rust calls. The glue wraps exported kernel functions and decides nothing; `src/sys.rs` mirrors this file.
 */
#ifndef FH_GLUE_H
#define FH_GLUE_H

#include <linux/types.h>

#define FH_RUST(ret, name, ...) ret name(__VA_ARGS__)
#define FH_C(ret, name, ...) ret name(__VA_ARGS__)

/* main.c */
FH_RUST(long, fh_init, void);

/* sys.c */
FH_C(void, fhc_log, int level, const u8 *text, size_t len);
FH_C(void, fhc_bug, const u8 *text, size_t len);

/* el2.c */
FH_C(int, fhc_el2_conduit, void);
FH_C(void, fhc_el2_uid, u32 *words);
FH_C(void, fhc_el2_call, u64 *regs);
FH_C(void, fhc_el2_run, u64 *regs);

#endif
