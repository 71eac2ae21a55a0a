// SPDX-License-Identifier: GPL-2.0-only
/*
 * A slot of the VMM's own memory: its pages are looked up as the guest touches them, and the kernel says when the
 * mappings behind them are about to change. No reference keeps a page meanwhile.
 */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "glue.h"

/* Of one process: that of the thread that made it. */
struct fh_plain {
	struct mmu_interval_notifier notifier;
	struct kref ref;
	struct mutex lock;		/* what is lent; comes from reclaim, so nothing is allocated under it */
	unsigned long start;
	u64 pages;
	struct fh_plain_state *state;
};

/*
 * Mappings of the range are about to change. Who looked pages up before finds the number changed and looks again. Only
 * the killer of processes can not wait, and tries again later.
 */
static bool plain_invalidate(struct mmu_interval_notifier *notifier, const struct mmu_notifier_range *range,
			     unsigned long seq)
{
	struct fh_plain *plain = container_of(notifier, struct fh_plain, notifier);
	unsigned long end = plain->start + (plain->pages << PAGE_SHIFT);
	unsigned long from = max(range->start, plain->start), to = min(range->end, end);

	if (mmu_notifier_range_blockable(range))
		mutex_lock(&plain->lock);
	else if (!mutex_trylock(&plain->lock))
		return false;
	mmu_interval_set_seq(notifier, seq);
	if (from < to)
		fh_plain_changes(plain->state, (from - plain->start) >> PAGE_SHIFT,
				 (PAGE_ALIGN(to) - from) >> PAGE_SHIFT);
	mutex_unlock(&plain->lock);
	return true;
}

static const struct mmu_interval_notifier_ops plain_ops = {
	.invalidate = plain_invalidate,
};

/* Watches a range of the caller's memory. On failure the state stays the caller's. */
int fhc_plain_new(struct fh_plain **made, unsigned long start, u64 pages, struct fh_plain_state *state)
{
	struct fh_plain *plain;
	int err;

	if (start != untagged_addr(start) || !access_ok((void __user *)start, pages << PAGE_SHIFT))
		return -EINVAL;
	plain = kzalloc(sizeof(*plain), FH_GFP);
	if (!plain)
		return -ENOMEM;
	kref_init(&plain->ref);
	mutex_init(&plain->lock);
	plain->start = start;
	plain->pages = pages;
	plain->state = state;
	/* What the notifier may call is all there: from here on it may be called. */
	*made = plain;
	err = mmu_interval_notifier_insert(&plain->notifier, current->mm, start, pages << PAGE_SHIFT, &plain_ops);
	if (err)
		kfree(plain);
	return err;
}

void fhc_plain_hold(struct fh_plain *plain)
{
	kref_get(&plain->ref);
}

static void plain_release(struct kref *ref)
{
	struct fh_plain *plain = container_of(ref, struct fh_plain, ref);

	mmu_interval_notifier_remove(&plain->notifier);
	fh_plain_free(plain->state);
	kfree(plain);
}

void fhc_plain_put(struct fh_plain *plain)
{
	kref_put(&plain->ref, plain_release);
}

void fhc_plain_lock(struct fh_plain *plain)
{
	mutex_lock(&plain->lock);
}

void fhc_plain_unlock(struct fh_plain *plain)
{
	mutex_unlock(&plain->lock);
}

/* Waits out a change that is under way. */
unsigned long fhc_plain_begin(struct fh_plain *plain)
{
	return mmu_interval_read_begin(&plain->notifier);
}

/* Under the lock. */
bool fhc_plain_passed(struct fh_plain *plain, unsigned long seq)
{
	return mmu_interval_read_retry(&plain->notifier, seq);
}

/*
 * Looks up to FH_AROUND pages up, to be written or only read, and holds them: how many, or an error.
 *
 * What is looked up to be read may be the page of zeros, the file's page behind a private mapping, or one that a child has
 * too. A store of the process puts another page in its place, which the notifier hears of before (wp_page_copy); a page
 * that merely becomes writable is the same page.
 */
int fhc_plain_bring(struct fh_plain *plain, u64 first, u64 *frames, u32 count, bool write)
{
	unsigned int flags = FOLL_HWPOISON | FOLL_INTERRUPTIBLE | (write ? FOLL_WRITE : 0);
	struct page *pages[FH_AROUND];
	long got, i;

	if (current->mm != plain->notifier.mm)
		return -EIO;
	if (WARN_ON_ONCE(count > FH_AROUND || first >= plain->pages || count > plain->pages - first))
		return -EINVAL;
	got = get_user_pages_unlocked(plain->start + (first << PAGE_SHIFT), count, pages, flags);
	for (i = 0; i < got; i++)
		frames[i] = page_to_pfn(pages[i]);
	return got ?: -EFAULT;
}

void fhc_plain_let_go(const u64 *frames, u32 count)
{
	u32 i;

	for (i = 0; i < count; i++)
		put_page(pfn_to_page(frames[i]));
}
