// SPDX-License-Identifier: GPL-2.0-only
/* Services of the kernel at large: messages, memory, time and signals. */
#include <linux/bug.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/printk.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>

#include "glue.h"

void fhc_log(int level, const u8 *text, size_t len)
{
	switch (level) {
	case 0:
		pr_err("freehold: %.*s\n", (int)len, text);
		break;
	case 1:
		pr_warn_ratelimited("freehold: %.*s\n", (int)len, text);
		break;
	default:
		pr_info("freehold: %.*s\n", (int)len, text);
	}
}

/* A broken promise inside the Rust half: this thread stops with an oops, the rest of the kernel goes on. */
void fhc_bug(const u8 *text, size_t len)
{
	pr_emerg("freehold: %.*s\n", (int)len, text);
	BUG();
}

/* Zeroed, charged to the caller's memory cgroup; NULL rather than an OOM kill where there is no memory. */
void *fhc_alloc(size_t size)
{
	return kvzalloc(size, FH_GFP);
}

void fhc_free(void *ptr)
{
	kvfree(ptr);
}

bool fhc_copy_in(void *to, unsigned long from, size_t len)
{
	return copy_from_user(to, (const void __user *)from, len) == 0;
}

bool fhc_copy_out(unsigned long to, const void *from, size_t len)
{
	return copy_to_user((void __user *)to, from, len) == 0;
}

u64 fhc_now(void)
{
	return ktime_to_ms(ktime_get());
}

/* Sleeps; not through a signal, unless it is deaf. */
void fhc_pause(u32 micros, bool deaf)
{
	ktime_t time = ns_to_ktime((u64)micros * NSEC_PER_USEC);

	set_current_state(deaf ? TASK_UNINTERRUPTIBLE : TASK_INTERRUPTIBLE);
	schedule_hrtimeout(&time, HRTIMER_MODE_REL);
}

/* A vCPU that waits for an interrupt lets others run for a tick. */
void fhc_doze(void)
{
	schedule_timeout_interruptible(1);
}

bool fhc_signal(void)
{
	return signal_pending(current);
}

/*
 * Whether work waits for this thread's way back to its process (task_work, rseq). If so, a signal that there is not makes
 * it go there; a call that ends with ERESTARTNOHAND is then made again.
 */
bool fhc_called_away(void)
{
	if (!test_thread_flag(TIF_NOTIFY_RESUME))
		return false;
	set_thread_flag(TIF_SIGPENDING);
	return true;
}

bool fhc_dying(void)
{
	return fatal_signal_pending(current);
}

void fhc_breathe(void)
{
	cond_resched();
}

/*
 * A file and its name are the kernel's to allocate, and charged so that a group at its limit loses a process instead of being
 * told. What is charged here, with a limit told, and given back stays in this CPU's share of the group's account, of which
 * the next charges are met. A thread that is moved in between meets what every open(2) does.
 */
int fh_room_for_a_file(void)
{
	struct page *page = alloc_pages(FH_GFP, 2);

	if (!page)
		return -ENOMEM;
	__free_pages(page, 2);
	return 0;
}

/*
 * Frames for el2: contiguous, charged, and marked offline, so that /proc/kcore, dumps and scanners keep off them.
 * Returns the first frame number, or U64_MAX.
 */
u64 fhc_page_take(u32 order)
{
	struct page *page = alloc_pages(FH_GFP, order);
	u64 i;

	if (!page)
		return U64_MAX;
	for (i = 0; i < 1ULL << order; i++)
		__SetPageOffline(page + i);
	return page_to_pfn(page);
}

void fhc_page_give_back(u64 pfn, u64 count)
{
	struct page *page = pfn_to_page(pfn);
	bool poisoned = false;
	u64 i;

	for (i = 0; i < count; i++) {
		__ClearPageOffline(page + i);
		poisoned |= PageHWPoison(page + i);
	}
	if (!poisoned) {
		__free_pages(page, ilog2(count));
		return;
	}
	/* Only of a page that is freed by itself does the allocator ask whether it is broken memory. */
	split_page(page, ilog2(count));
	for (i = 0; i < count; i++)
		__free_page(page + i);
}

/* The kernel's address of a frame that fhc_page_take returned. */
void *fhc_page_address(u64 pfn)
{
	return page_address(pfn_to_page(pfn));
}
