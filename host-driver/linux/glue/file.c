// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd: a file whose pages are the host's to map or the guest's, never both.
 *
 * Pages are ordinary ones from the allocator, charged, never on an LRU list nor in the page cache, so that the only
 * references are this file's and those of whoever got one through a mapping. The mapping's invalidate lock is the
 * file's lock: faults hold it shared, changes exclusive.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/page_ref.h>
#include <linux/pagemap.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "glue.h"

#define PAGE_GFP (GFP_HIGHUSER | __GFP_ZERO | __GFP_ACCOUNT)
/* An ioctl that runs into a limit says so, rather than have its caller killed; a fault has no such choice. */
#define CALL_GFP (PAGE_GFP | __GFP_NOWARN | __GFP_RETRY_MAYFAIL)

/* Files that may hold frozen frames. */
atomic_t fh_files = ATOMIC_INIT(0);

enum { FAULT_MAP, FAULT_WAIT, FAULT_REFUSE };

static struct address_space *mapping_of(struct fh_file *f)
{
	return f->file->f_mapping;
}

/* A page's way out: nothing maps it any more. Its mapping is cleared before the last reference can go. */
static void page_drop(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_lock(folio);
	folio->mapping = NULL;
	folio->index = 0;
	folio_unlock(folio);
	folio_put(folio);
}

void fhc_file_lock(struct fh_file *f)
{
	filemap_invalidate_lock(mapping_of(f));
}

void fhc_file_unlock(struct fh_file *f)
{
	filemap_invalidate_unlock(mapping_of(f));
	/* Long work takes the lock in parts: others may run in between. */
	cond_resched();
}

u64 fhc_file_frame(struct fh_file *f, u64 index)
{
	struct page *page = index < f->pages ? READ_ONCE(f->frames[index]) : NULL;

	return page ? page_to_pfn(page) : U64_MAX;
}

/*
 * mapping and index make shared futexes and GUP-fast work; the page is nobody else's yet. It is dirty for good: when
 * the page turns out to be broken memory while a fault maps it, the kernel must not evict it from the page cache, in
 * which it never was.
 */
static struct page *page_new(struct fh_file *f, u64 index, gfp_t gfp)
{
	struct page *page = alloc_page(gfp);

	if (page) {
		page_folio(page)->mapping = mapping_of(f);
		page_folio(page)->index = index;
		SetPageDirty(page);
	}
	return page;
}

int fhc_file_allocate(struct fh_file *f, u64 index)
{
	struct page *page;

	if (index >= f->pages)
		return -EINVAL;
	page = page_new(f, index, CALL_GFP);
	if (!page)
		return -ENOMEM;
	if (cmpxchg(&f->frames[index], NULL, page))
		page_drop(page);
	return 0;
}

void fhc_file_release(struct fh_file *f, u64 index)
{
	struct page *page = index < f->pages ? xchg(&f->frames[index], NULL) : NULL;

	if (page)
		page_drop(page);
}

/* 0: frozen, 1: somebody holds a reference, 2: broken memory. */
int fhc_file_freeze(struct fh_file *f, u64 index)
{
	struct page *page = index < f->pages ? f->frames[index] : NULL;

	if (WARN_ON_ONCE(!page))
		return 2;
	if (!page_ref_freeze(page, 1))
		return 1;
	if (PageHWPoison(page)) {
		page_ref_unfreeze(page, 1);
		return 2;
	}
	/*
	 * Dumps and scanners pass it over. No page_offline_begin: a reader of /proc/kcore holds that lock across a copy to
	 * user memory, maybe ours, and a reader that is past the test reads without faulting the kernel.
	 */
	__SetPageOffline(page);
	return 0;
}

void fhc_file_thaw(struct fh_file *f, u64 index)
{
	struct page *page = index < f->pages ? f->frames[index] : NULL;

	if (WARN_ON_ONCE(!page || page_count(page)))
		return;
	__ClearPageOffline(page);
	page_ref_unfreeze(page, 1);
}

/*
 * A fault that was answered before this lock was taken holds its folio locked until its PTE stands: taking each folio's
 * lock once makes sure that the unmapping sees it.
 */
void fhc_file_shut(struct fh_file *f, u64 first, u64 count)
{
	u64 i;

	WRITE_ONCE(f->since, get_jiffies_64());
	for (i = first; i < first + count && i < f->pages; i++) {
		struct page *page = f->frames[i];

		if (page && page_count(page)) {
			folio_lock(page_folio(page));
			folio_unlock(page_folio(page));
		}
		if (i % 1024 == 1023)
			cond_resched();
	}
	unmap_mapping_range(mapping_of(f), first << PAGE_SHIFT, count << PAGE_SHIFT, 1);
}

/* Copies a page of the caller's memory into a frame that is the attempt's alone. */
bool fhc_file_fill(struct fh_file *f, u64 index, unsigned long from)
{
	struct page *page = index < f->pages ? f->frames[index] : NULL;
	unsigned long left;
	void *to;

	if (WARN_ON_ONCE(!page || page_count(page)))
		return false;
	to = kmap_local_page(page);
	left = copy_from_user(to, (const void __user *)from, PAGE_SIZE);
	kunmap_local(to);
	return left == 0;
}

void fhc_file_wake(struct fh_file *f)
{
	wake_up_all(&f->wait);
}

void fhc_file_tell(struct fh_file *f, bool outcome)
{
	WRITE_ONCE(f->outcome, outcome);
	wake_up_all(&f->wait);
}

static void drive(struct work_struct *work)
{
	struct fh_file *f = container_of(to_delayed_work(work), struct fh_file, drive);

	if (fh_file_drive(f, f->state))
		fhc_file_drive_later(f);
}

/* It needs no reference to the file: the file's release waits for it. */
void fhc_file_drive_later(struct fh_file *f)
{
	queue_delayed_work(system_unbound_wq, &f->drive, 1);
}

static __poll_t fh_file_poll(struct file *file, poll_table *table)
{
	struct fh_file *f = file->private_data;

	poll_wait(file, &f->wait, table);
	return READ_ONCE(f->outcome) ? EPOLLIN | EPOLLRDNORM : 0;
}

static bool settled(struct fh_file *f, u64 index)
{
	int answer;

	filemap_invalidate_lock_shared(mapping_of(f));
	answer = fh_file_fault(f->state, index);
	filemap_invalidate_unlock_shared(mapping_of(f));
	return answer != FAULT_WAIT;
}

/* Ticks that this thread's fault may still wait. Threads are told apart, never looked into. */
static long fault_has_left(struct fh_file *f, bool again)
{
	u64 left;

	spin_lock(&f->faults_lock);
	left = fh_file_patience(f->state, (unsigned long)current, again, get_jiffies_64(), READ_ONCE(f->since), HZ);
	spin_unlock(&f->faults_lock);
	return min_t(u64, left, MAX_SCHEDULE_TIMEOUT - 1);
}

/* The fault is over: its thread's place is free. */
static void fault_forget(struct fh_file *f)
{
	spin_lock(&f->faults_lock);
	fh_file_fault_over(f->state, (unsigned long)current);
	spin_unlock(&f->faults_lock);
}

/*
 * Waits outside of the mm's lock, which the holder of the page may need, for a bounded time. Attempts that follow each other
 * could hold it for ever otherwise, and with it what the system call that faults has locked. A fault may be tried again as
 * often as it likes, as long as the mm's lock is let go each time.
 */
static vm_fault_t fault_wait(struct fh_file *f, struct vm_fault *vmf, u64 index)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	struct file *file;
	long left;

	if (!(vmf->flags & FAULT_FLAG_ALLOW_RETRY) || (vmf->flags & FAULT_FLAG_RETRY_NOWAIT))
		return VM_FAULT_SIGBUS;
	left = fault_has_left(f, vmf->flags & FAULT_FLAG_TRIED);
	if (!left)
		return VM_FAULT_SIGBUS;
	file = get_file(f->file);
	release_fault_lock(vmf);
	/* To look may sleep, so the look comes before the sleep and not within it: a wake-up between the two is kept. */
	add_wait_queue(&f->wait, &wait);
	while (!settled(f, index) && left > 0 && !fatal_signal_pending(current))
		left = wait_woken(&wait, TASK_KILLABLE, left);
	remove_wait_queue(&f->wait, &wait);
	fput(file);
	return VM_FAULT_RETRY;
}

static vm_fault_t fh_fault(struct vm_fault *vmf)
{
	struct fh_file *f = vmf->vma->vm_file->private_data;
	u64 index = vmf->pgoff;
	struct page *page;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	int answer;

	if (index >= f->pages)
		return VM_FAULT_SIGBUS;
	for (;;) {
		filemap_invalidate_lock_shared(mapping_of(f));
		answer = fh_file_fault(f->state, index);
		page = READ_ONCE(f->frames[index]);
		if (answer != FAULT_MAP || page)
			break;
		filemap_invalidate_unlock_shared(mapping_of(f));
		page = page_new(f, index, PAGE_GFP);
		if (!page)
			return VM_FAULT_OOM;
		filemap_invalidate_lock_shared(mapping_of(f));
		/* The page stays only where it still belongs to the host. */
		if (fh_file_fault(f->state, index) != FAULT_MAP || cmpxchg(&f->frames[index], NULL, page))
			page_drop(page);
		filemap_invalidate_unlock_shared(mapping_of(f));
	}
	if (answer == FAULT_MAP && PageHWPoison(page)) {
		ret = VM_FAULT_HWPOISON;
	} else if (answer == FAULT_MAP) {
		get_page(page);
		lock_page(page);
		vmf->page = page;
		ret = VM_FAULT_LOCKED;
	}
	filemap_invalidate_unlock_shared(mapping_of(f));
	if (answer == FAULT_WAIT)
		ret = fault_wait(f, vmf, index);
	if (ret != VM_FAULT_RETRY && (vmf->flags & FAULT_FLAG_TRIED))
		fault_forget(f);
	return ret;
}

static const struct vm_operations_struct fh_file_vm_ops = {
	.fault = fh_fault,
};

static int fh_file_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct fh_file *f = file->private_data;

	if (!f->mappable)
		return -ENODEV;
	if ((vma->vm_flags & (VM_SHARED | VM_MAYSHARE)) != (VM_SHARED | VM_MAYSHARE))
		return -EINVAL;
	/* VM_DONTEXPAND makes the mapping special: mlock takes no hidden references then. */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &fh_file_vm_ops;
	return 0;
}

static long fh_file_fops_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct fh_file *f = file->private_data;

	if (!(mode & FALLOC_FL_KEEP_SIZE) || mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	return fh_file_fallocate(f, f->state, !!(mode & FALLOC_FL_PUNCH_HOLE), offset, len);
}

static long fh_file_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct fh_file *f = file->private_data;

	return fh_file_ioctl(f, f->state, cmd, arg);
}

/* The last name is gone, and with it the last slot: whatever is still here is the host's, or lost. */
static int fh_file_release(struct inode *inode, struct file *file)
{
	struct fh_file *f = file->private_data;

	cancel_delayed_work_sync(&f->drive);
	fh_file_drop(f, f->state);
	kvfree(f->frames);
	kfree(f);
	atomic_dec(&fh_files);
	return 0;
}

static const struct file_operations fh_file_fops = {
	.owner = THIS_MODULE,
	.mmap = fh_file_mmap,
	.fallocate = fh_file_fops_fallocate,
	.poll = fh_file_poll,
	.unlocked_ioctl = fh_file_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = fh_file_release,
	.llseek = noop_llseek,
};

static int fh_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	return -EINVAL;
}

static const struct inode_operations fh_file_iops = {
	.setattr = fh_setattr,
};

/* A new descriptor of a new guest_memfd, or a negative errno. */
int fhc_file_open(u64 pages, bool mappable, bool shared, u64 vm)
{
	struct fh_file *f;
	struct file *file;
	struct inode *inode;
	int fd = -ENOMEM;

	/* What could never be backed is refused before its books take the memory that there is. */
	if (pages > totalram_pages())
		return -ENOMEM;
	f = kzalloc(sizeof(*f), FH_GFP);
	if (!f)
		return -ENOMEM;
	f->pages = pages;
	f->mappable = mappable;
	init_waitqueue_head(&f->wait);
	spin_lock_init(&f->faults_lock);
	INIT_DELAYED_WORK(&f->drive, drive);
	if (pages <= SIZE_MAX / sizeof(*f->frames))
		f->frames = fhc_alloc(pages * sizeof(*f->frames));
	if (!f->frames)
		goto free;
	f->state = fh_file_new(pages, shared, vm);
	if (!f->state)
		goto free;
	fd = get_unused_fd_flags(0);
	if (fd < 0)
		goto drop;
	file = fh_room_for_a_file() ? ERR_PTR(-ENOMEM) :
		anon_inode_create_getfile("[freehold-guest_memfd]", &fh_file_fops, f, O_RDWR, NULL);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto drop;
	}
	f->file = file;
	file->f_flags |= O_LARGEFILE;
	inode = file_inode(file);
	inode->i_op = &fh_file_iops;
	/* fallocate asks for a regular file. */
	inode->i_mode |= S_IFREG;
	i_size_write(inode, pages << PAGE_SHIFT);
	atomic_inc(&fh_files);
	fd_install(fd, file);
	return fd;
drop:
	fh_file_drop(NULL, f->state);
free:
	kvfree(f->frames);
	kfree(f);
	return fd;
}

/* The guest_memfd behind a descriptor, with a reference to the file. NULL and *state NULL: not a descriptor; NULL and
 * *state an error pointer: a file of another kind. */
struct fh_file *fhc_file_get(u32 fd, struct fh_file_state **state)
{
	struct file *file = fget(fd);
	struct fh_file *f;

	*state = NULL;
	if (!file)
		return NULL;
	if (file->f_op != &fh_file_fops) {
		fput(file);
		*state = ERR_PTR(-EINVAL);
		return NULL;
	}
	f = file->private_data;
	*state = f->state;
	return f;
}

void fhc_file_put(struct fh_file *f)
{
	fput(f->file);
}

void fhc_file_hold(struct fh_file *f)
{
	get_file(f->file);
}
