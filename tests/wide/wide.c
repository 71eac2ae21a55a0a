// SPDX-License-Identifier: GPL-2.0-only
/*
 * Windows of the driver that are too narrow to be met by luck, opened wide. For tests: linked into a copy of the shipped
 * module, whose own source it leaves alone.
 */
#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/page_ref.h>
#include <linux/random.h>
#include <linux/rwsem.h>
#include <linux/sched.h>

#include "glue.h"
#include "freehold.h"

/* Pages are NoneMappable, or about to be a hole, and their mappings still stand. Under the file's lock. */
#define WINDOW_SHUT	BIT(0)
/* A hole: mappings and loans have gone, and the frame has not. Under the file's lock. */
#define WINDOW_RELEASE	BIT(1)
/* Mappings have gone, and no page is frozen yet. No lock is held. */
#define WINDOW_DRAIN	BIT(2)
/* Every page is frozen, and none is donated yet. */
#define WINDOW_DONATE	BIT(3)
/* An ordinary VM's loan is about to end: its mappings still stand. Under the file's lock. */
#define WINDOW_RECALL	BIT(4)
/* A fault of the host's has its page, locked, and has not mapped it. The file's lock is free. */
#define WINDOW_FAULT	BIT(5)

/* A page is about to be frozen: its references have not been looked at, or, where it is compared first, they have. */
#define WINDOW_FREEZE	BIT(6)
/* A page has just been frozen. */
#define WINDOW_FROZEN	BIT(7)

static unsigned int windows;
module_param(windows, uint, 0600);
MODULE_PARM_DESC(windows, "which windows open");

static unsigned int ms = 500;
module_param(ms, uint, 0600);
MODULE_PARM_DESC(ms, "how long they stay open");

static atomic_t left = ATOMIC_INIT(0);
module_param_named(left, left.counter, int, 0600);
MODULE_PARM_DESC(left, "how many more open, each for the whole time; below zero: all, for a random part of it");

static bool fault;
module_param(fault, bool, 0600);
MODULE_PARM_DESC(fault, "planted: the file's lock is let go while a window is open");

static bool unlocked;
module_param(unlocked, bool, 0600);
MODULE_PARM_DESC(unlocked, "planted: mappings go without a look at faults that are on their way");

static bool compares;
module_param(compares, bool, 0600);
MODULE_PARM_DESC(compares, "planted: a page's references are compared with one, and what was seen is taken for what is");

static atomic_t open_now = ATOMIC_INIT(0);
module_param_named(open, open_now.counter, int, 0400);
MODULE_PARM_DESC(open, "how many are open");

static atomic_t opened = ATOMIC_INIT(0);
module_param_named(opened, opened.counter, int, 0400);
MODULE_PARM_DESC(opened, "how many have opened");

/* The thread that has shut mappings and not let the lock go since. */
static struct task_struct *shutter;
/* The thread whose fault may map, and which holds the lock shared. */
static struct task_struct *mapper;

void __real_fhc_file_shut(struct fh_file *f, u64 first, u64 count);
void __wrap_fhc_file_shut(struct fh_file *f, u64 first, u64 count);
void __real_fhc_file_release(struct fh_file *f, u64 index);
void __wrap_fhc_file_release(struct fh_file *f, u64 index);
void __real_fhc_file_unlock(struct fh_file *f);
void __wrap_fhc_file_unlock(struct fh_file *f);
int __real_fhc_file_freeze(struct fh_file *f, u64 index);
int __wrap_fhc_file_freeze(struct fh_file *f, u64 index);
void __real_fhc_el2_call(u64 *regs);
void __wrap_fhc_el2_call(u64 *regs);
int __real_fh_file_fault(struct fh_file_state *state, u64 page);
int __wrap_fh_file_fault(struct fh_file_state *state, u64 page);
void __real_up_read(struct rw_semaphore *sem);
void __wrap_up_read(struct rw_semaphore *sem);

static bool opens(unsigned int which)
{
	return (READ_ONCE(windows) & which) && (atomic_read(&left) < 0 || atomic_dec_if_positive(&left) >= 0);
}

/* A test that has seen enough shuts it before its time. */
static void stay_open(unsigned int which, unsigned int how_long)
{
	unsigned long end = jiffies + msecs_to_jiffies(how_long);

	while (time_before(jiffies, end) && (READ_ONCE(windows) & which))
		msleep(1);
}

/* locked: the file whose lock the caller has, if it has one. */
static void look(unsigned int which, struct fh_file *locked)
{
	if (!opens(which))
		return;
	if (locked && fault)
		__real_fhc_file_unlock(locked);
	atomic_inc(&opened);
	atomic_inc(&open_now);
	stay_open(which, atomic_read(&left) < 0 ? get_random_u32_below(ms + 1) : ms);
	atomic_dec(&open_now);
	if (locked && fault)
		fhc_file_lock(locked);
}

void __wrap_fhc_file_shut(struct fh_file *f, u64 first, u64 count)
{
	look(WINDOW_SHUT, f);
	if (unlocked)
		unmap_mapping_range(f->file->f_mapping, first << PAGE_SHIFT, count << PAGE_SHIFT, 1);
	else
		__real_fhc_file_shut(f, first, count);
	WRITE_ONCE(shutter, current);
}

void __wrap_fhc_file_release(struct fh_file *f, u64 index)
{
	look(WINDOW_RELEASE, f);
	__real_fhc_file_release(f, index);
}

void __wrap_fhc_file_unlock(struct fh_file *f)
{
	__real_fhc_file_unlock(f);
	/* Another file's thread may have taken its place: that one's window stays narrow. */
	if (cmpxchg(&shutter, current, NULL) == current)
		look(WINDOW_DRAIN, NULL);
}

/* As if nobody could come between a look and what follows from it. */
static int freeze_by_comparing(struct page *page)
{
	if (!page || page_count(page) != 1)
		return 1;
	look(WINDOW_FREEZE, NULL);
	set_page_count(page, 0);
	__SetPageOffline(page);
	return 0;
}

int __wrap_fhc_file_freeze(struct fh_file *f, u64 index)
{
	int answer;

	if (compares)
		return freeze_by_comparing(fhc_file_frame(f, index) == U64_MAX ? NULL : f->frames[index]);
	look(WINDOW_FREEZE, NULL);
	answer = __real_fhc_file_freeze(f, index);
	if (!answer)
		look(WINDOW_FROZEN, NULL);
	return answer;
}

void __wrap_fhc_el2_call(u64 *regs)
{
	/* What else is called may be called with interrupts off. */
	if (regs[0] == FREEHOLD_HVC_MEM_DONATE || regs[0] == FREEHOLD_HVC_MEM_DONATE_LIST)
		look(WINDOW_DONATE, NULL);
	if (regs[0] == FREEHOLD_HVC_MEM_UNSHARE)
		look(WINDOW_RECALL, NULL);
	__real_fhc_el2_call(regs);
}

int __wrap_fh_file_fault(struct fh_file_state *state, u64 page)
{
	int answer = __real_fh_file_fault(state, page);

	/* 0: it may map. */
	if (!answer)
		WRITE_ONCE(mapper, current);
	return answer;
}

/* How a fault lets the file's lock go, among much else. */
void __wrap_up_read(struct rw_semaphore *sem)
{
	__real_up_read(sem);
	if (cmpxchg(&mapper, current, NULL) == current)
		look(WINDOW_FAULT, NULL);
}
