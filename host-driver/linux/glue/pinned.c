// SPDX-License-Identifier: GPL-2.0-only
/*
 * A slot of the VMM's own memory behind a protected VM: its pages are pinned for as long as the guest has them, and
 * charged to the VMM's limit of locked memory.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "glue.h"

/* Of one process: that of the thread that made it. */
struct fh_pinned {
	struct kref ref;
	struct mutex lock;		/* which frame is whose; no page is looked up under it */
	struct mm_struct *mm;		/* kept for its account, also when the process is gone */
	unsigned long start;
	u64 pages;
	struct fh_pinned_state *state;
};

/* A slot on a range of the caller's memory. On failure the state stays the caller's. */
int fhc_pinned_new(struct fh_pinned **made, unsigned long start, u64 pages, struct fh_pinned_state *state)
{
	struct fh_pinned *pinned;

	if (start != untagged_addr(start) || !access_ok((void __user *)start, pages << PAGE_SHIFT))
		return -EINVAL;
	pinned = kzalloc(sizeof(*pinned), FH_GFP);
	if (!pinned)
		return -ENOMEM;
	kref_init(&pinned->ref);
	mutex_init(&pinned->lock);
	mmgrab(current->mm);
	pinned->mm = current->mm;
	pinned->start = start;
	pinned->pages = pages;
	pinned->state = state;
	*made = pinned;
	return 0;
}

void fhc_pinned_hold(struct fh_pinned *pinned)
{
	kref_get(&pinned->ref);
}

static void pinned_release(struct kref *ref)
{
	struct fh_pinned *pinned = container_of(ref, struct fh_pinned, ref);

	fh_pinned_free(pinned->state);
	mmdrop(pinned->mm);
	kfree(pinned);
}

void fhc_pinned_put(struct fh_pinned *pinned)
{
	kref_put(&pinned->ref, pinned_release);
}

void fhc_pinned_lock(struct fh_pinned *pinned)
{
	mutex_lock(&pinned->lock);
}

void fhc_pinned_unlock(struct fh_pinned *pinned)
{
	mutex_unlock(&pinned->lock);
}

/* Whether the file of a shared mapping has nothing there yet: neither a page nor one that is swapped out. */
static bool pinned_is_hole(struct mm_struct *mm, unsigned long at)
{
	struct vm_area_struct *vma;
	bool hole = false;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, at);
	if (vma && vma->vm_file && vma->vm_flags & VM_SHARED)
		hole = !xa_load(&vma->vm_file->f_mapping->i_pages, linear_page_index(vma, at));
	mmap_read_unlock(mm);
	return hole;
}

/*
 * Pins a page, to be written, and charges it: 1 and its frame, or an error. With `present` 0 where nobody has put
 * anything yet. A file's own pages are not taken: the file system would write them back.
 */
int fhc_pinned_pin(struct fh_pinned *pinned, u64 page, bool present, u64 *frame)
{
	unsigned long at = pinned->start + (page << PAGE_SHIFT);
	unsigned int flags = FOLL_WRITE | FOLL_LONGTERM | FOLL_HWPOISON | FOLL_INTERRUPTIBLE;
	struct page *got;
	long ret;

	if (current->mm != pinned->mm)
		return -EIO;
	if (WARN_ON_ONCE(page >= pinned->pages))
		return -EINVAL;
	if (present && pinned_is_hole(pinned->mm, at))
		return 0;
	/* Memory without a file that was never touched is an error with FOLL_DUMP, and comes back as one. */
	ret = pin_user_pages_unlocked(at, 1, &got, present ? flags | FOLL_DUMP : flags);
	if (ret != 1)
		return ret ?: -EFAULT;
	ret = -EIO;
	if (!folio_test_swapbacked(page_folio(got)) || folio_test_hugetlb(page_folio(got)))
		goto unpin;
	ret = account_locked_vm(pinned->mm, 1, true);
	if (ret)
		goto unpin;
	*frame = page_to_pfn(got);
	return 1;
unpin:
	unpin_user_page(got);
	return ret;
}

/* Lets go of a frame that el2 has returned: what is in it is new to the kernel. */
void fhc_pinned_unpin(struct fh_pinned *pinned, u64 frame)
{
	struct page *page = pfn_to_page(frame);

	unpin_user_pages_dirty_lock(&page, 1, true);
	account_locked_vm(pinned->mm, 1, false);
}
