/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the user side of the hostile module asks for. tests/vmm/src/hostile.rs
 * mirrors these structures; both sides carry the sizes in the ioctl numbers.
 */
#ifndef FH_HOSTILE_H
#define FH_HOSTILE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Raw call through the kernel's own conduit: x0-x17 in, x0-x17 out. */
struct fh_call {
	__u64 x[18];
};

/* A block of 2^order frames that the module owns. */
struct fh_block {
	__u64 order;	/* in: FH_ALLOC */
	__u64 pfn;	/* out: FH_ALLOC, in: FH_FREE */
};

/* The frame behind a user address of the caller. */
struct fh_pfn {
	__u64 addr;
	__u64 pfn;
};

/* One access of 8 bytes by the kernel, with its own fixup or without one. */
struct fh_access {
	__u64 pfn;
	__u64 offset;	/* into the frame, a multiple of 8 */
	__u64 value;	/* in: stored; out: loaded */
	__u32 write;	/* FH_DO_* */
	__u32 how;	/* FH_HOW_* */
	__s32 result;	/* out: 0, -EFAULT, or FH_DIED */
	__u32 pad;
};

/* Fills a frame that the module owns from a user buffer, with fixups. */
struct fh_fill {
	__u64 pfn;
	__u64 addr;
	__u64 bytes;	/* a multiple of 8, at most 4096 */
};

/* Finds the frames of a range that the linear map can not reach any more. */
struct fh_sweep {
	__u64 first;
	__u64 count;
	__u64 out;	/* address of room for `room` frame numbers */
	__u64 room;
	__u64 found;	/* out: how many there are, maybe more than fit */
};

/* The call is made in streaming mode. */
#define FH_STREAMING	1
/* And with a watchpoint on each access to the second 2 GB of addresses. */
#define FH_WATCHING	2
/* And with the cycle counter armed. */
#define FH_COUNTING	4

/*
 * A raw call with every vector register of the host filled: V0-V31, or with SVE
 * Z0-Z31, P0-P15 and FFR at the longest length, and with SME ZA.
 */
struct fh_vectors {
	struct fh_call call;
	__u32 manner;		/* in: FH_STREAMING, FH_WATCHING, FH_COUNTING */
	__u32 compared;		/* out: FH_HAS_* of what was filled */
	__u64 differ;		/* out: bytes that were not the same after it */
	__u32 debug_set;	/* out: debug registers that were not zero before it */
	__u32 debug_differ;	/* out: those that were not the same after it */
	__u32 control_differ;	/* out: of FPCR and FPSR, set before it, those that were not the same after it */
	__u32 timer_shown;	/* out: registers of the virtual timer with what is neither the host's own nor 0 */
	/* out: by FH_COUNTING, the time that the call took and the cycles counted in it, then the same of the host, which
	 * spins for as long, 10 ms at most; all 0 where there is no such counter.
	 */
	__u64 ticks;
	__u64 cycles;
	__u64 own_ticks;
	__u64 own_cycles;
	/*
	 * out: a bit for each register of EL1, in the order of look_at_el1(): it had a value of its own before the call; it
	 * was not the same after it. From bit 48 on, x18 to x30. Both 0 by FH_COUNTING.
	 */
	__u64 el1_set;
	__u64 el1_differ;
};

/*
 * The same watchpoint, for the host itself: it loads from an address of the
 * caller's and is stopped there until a timer has taken the watchpoint away.
 */
struct fh_watched {
	__u64 addr;
	__u64 stopped;		/* out: 1 if it was */
};

/* Physical memory that the kernel was told nothing of, and is to use. */
struct fh_memory {
	__u64 start;
	__u64 bytes;
};

#define FH_HAS_V	1
#define FH_HAS_SVE	2	/* Z, P and FFR */
#define FH_HAS_ZA	4

/* A reference to a frame, taken as whoever walks frames by their numbers takes one. */
struct fh_hold {
	__u64 pfn;
	__u32 what;	/* FH_HOLD_* */
	__u32 answer;	/* out: 1 if it was taken or dropped; its references */
};

#define FH_HOLD_TAKE	0	/* unless it has none */
#define FH_HOLD_DROP	1
#define FH_HOLD_COUNT	2

/* What is done; beyond load and store by FH_HOW_LINEAR and FH_HOW_FRESH only. */
#define FH_DO_LOAD	0
#define FH_DO_STORE	1
#define FH_DO_ZVA	2	/* DC ZVA: zeroes a block without naming a value */
#define FH_DO_EXCLUSIVE	3	/* LDXR, then STXR */
#define FH_DO_ATOMIC	4	/* CASAL */
#define FH_DO_PREFETCH	5	/* PRFM for a store: may be dropped, must not fault */
#define FH_DO_WALK	6	/* LDTR of address 0 while TTBR0_EL1 is the frame */
#define FH_DO_TRANSLATE	7	/* AT S1E0R of it; value: PAR_EL1 */
/* On machines with tag memory only. */
#define FH_DO_STORE_TAG	8	/* STG of tag 5 */
#define FH_DO_LOAD_TAG	9	/* LDG; value: the tag */
#define FH_DO_ZERO_TAG	10	/* STZG: zeroes a granule and gives it tag 3 */
#define FH_DO_BLOCK_TAG	11	/* DC GZVA: zeroes a block and gives it a tag */
#define FH_DO_KERNEL_WALK	12	/* LDR of an address of the kernel's half, by a level-3 table that is the frame */
#define FH_DO_FETCH	13	/* a call of its first instruction, always in a thread that may die */

#define FH_HOW_LINEAR	0	/* the linear map, nofault helpers */
#define FH_HOW_FRESH	1	/* a fresh memremap() mapping, nofault helpers */
#define FH_HOW_THREAD	2	/* the linear map, plainly, in a thread that may die */
#define FH_HOW_FRESH_THREAD 3	/* a fresh mapping, plainly, in a thread that may die */

#define FH_DIED		1	/* the sacrificial thread did not come back */

#define FH_MAGIC	0xF6
#define FH_CALL		_IOWR(FH_MAGIC, 1, struct fh_call)
#define FH_ALLOC	_IOWR(FH_MAGIC, 2, struct fh_block)
#define FH_FREE		_IOWR(FH_MAGIC, 3, struct fh_block)
#define FH_PFN		_IOWR(FH_MAGIC, 4, struct fh_pfn)
#define FH_ACCESS	_IOWR(FH_MAGIC, 5, struct fh_access)
#define FH_FILL		_IOW(FH_MAGIC, 6, struct fh_fill)
#define FH_SWEEP	_IOWR(FH_MAGIC, 7, struct fh_sweep)
#define FH_VECTORS	_IOWR(FH_MAGIC, 8, struct fh_vectors)
#define FH_ADD_MEMORY	_IOW(FH_MAGIC, 9, struct fh_memory)
#define FH_WATCHED	_IOWR(FH_MAGIC, 10, struct fh_watched)
#define FH_HOLD		_IOWR(FH_MAGIC, 11, struct fh_hold)

#endif
