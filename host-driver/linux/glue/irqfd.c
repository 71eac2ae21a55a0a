// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eventfds that raise interrupts. A signal comes with the eventfd's lock held and interrupts off, so a work item raises
 * the interrupt. An irqfd is taken off its VM's list once, by whoever ends it: the VMM, the eventfd's last close, or the
 * VM's end; then a work item of this file's own queue takes it apart.
 */
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "glue.h"

struct fh_irqfd {
	struct list_head list;		/* of its VM; empty: it is being taken apart */
	struct list_head resamplers;	/* of its VM's, until it is apart */
	struct fh_vm *vm;		/* outlives it */
	struct eventfd_ctx *event;
	struct eventfd_ctx *resample;	/* or NULL */
	u32 gsi;
	wait_queue_entry_t wait;
	poll_table table;
	struct work_struct raise;
	struct work_struct apart;
};

static struct workqueue_struct *endings;

int fh_irqfds_init(void)
{
	endings = alloc_workqueue("freehold-irqfd", 0, 0);
	return endings ? 0 : -ENOMEM;
}

void fh_irqfds_exit(void)
{
	destroy_workqueue(endings);
}

static void irqfd_raise(struct work_struct *work)
{
	struct fh_irqfd *irqfd = container_of(work, struct fh_irqfd, raise);

	fh_irqfd_raise(irqfd->vm, irqfd->vm->state, irqfd->gsi, irqfd->resample != NULL);
}

/*
 * Who is told of an end stands on a list of its own under a mutex: telling takes an eventfd's lock, and an eventfd's last
 * close comes with that lock held and takes the other list's.
 */
static void resampler_add(struct fh_irqfd *irqfd)
{
	mutex_lock(&irqfd->vm->resample_lock);
	list_add_tail(&irqfd->resamplers, &irqfd->vm->resamplers);
	mutex_unlock(&irqfd->vm->resample_lock);
}

static void resampler_drop(struct fh_irqfd *irqfd)
{
	if (!irqfd->resample)
		return;
	mutex_lock(&irqfd->vm->resample_lock);
	list_del(&irqfd->resamplers);
	mutex_unlock(&irqfd->vm->resample_lock);
	eventfd_ctx_put(irqfd->resample);
}

static void irqfd_apart(struct work_struct *work)
{
	struct fh_irqfd *irqfd = container_of(work, struct fh_irqfd, apart);
	u64 count;

	/* No signal comes after this, and none that came is under way after that. */
	eventfd_ctx_remove_wait_queue(irqfd->event, &irqfd->wait, &count);
	flush_work(&irqfd->raise);
	resampler_drop(irqfd);
	eventfd_ctx_put(irqfd->event);
	kfree(irqfd);
}

/* With the list's lock held. */
static void irqfd_end(struct fh_irqfd *irqfd)
{
	list_del_init(&irqfd->list);
	queue_work(endings, &irqfd->apart);
}

/* With the eventfd's lock held. */
static int irqfd_signalled(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct fh_irqfd *irqfd = container_of(wait, struct fh_irqfd, wait);
	__poll_t what = key_to_poll(key);
	unsigned long flags;
	u64 count;

	if (what & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->event, &count);
		schedule_work(&irqfd->raise);
	}
	if (what & EPOLLHUP) {
		spin_lock_irqsave(&irqfd->vm->irqfd_lock, flags);
		if (!list_empty(&irqfd->list))
			irqfd_end(irqfd);
		spin_unlock_irqrestore(&irqfd->vm->irqfd_lock, flags);
	}
	return 0;
}

static void irqfd_enlist(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	struct fh_irqfd *irqfd = container_of(table, struct fh_irqfd, table);

	add_wait_queue(queue, &irqfd->wait);
}

/* Whether the eventfd raises nothing yet, and lists it then if asked to. */
static bool irqfd_fresh(struct fh_irqfd *irqfd, bool list)
{
	struct fh_vm *vm = irqfd->vm;
	struct fh_irqfd *other;
	bool fresh = true;

	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry(other, &vm->irqfds, list)
		fresh &= other->event != irqfd->event;
	if (fresh && list)
		list_add_tail(&irqfd->list, &vm->irqfds);
	spin_unlock_irq(&vm->irqfd_lock);
	return fresh;
}

int fhc_irqfd_assign(struct fh_vm *vm, u32 fd, u32 gsi, bool resample, u32 resamplefd)
{
	struct file *file = eventfd_fget(fd);
	struct fh_irqfd *irqfd;
	int err = -ENOMEM;
	u64 count;

	if (IS_ERR(file))
		return PTR_ERR(file);
	irqfd = kzalloc(sizeof(*irqfd), FH_GFP);
	if (!irqfd)
		goto no_irqfd;
	irqfd->vm = vm;
	irqfd->gsi = gsi;
	INIT_LIST_HEAD(&irqfd->list);
	INIT_WORK(&irqfd->raise, irqfd_raise);
	INIT_WORK(&irqfd->apart, irqfd_apart);
	init_waitqueue_func_entry(&irqfd->wait, irqfd_signalled);
	init_poll_funcptr(&irqfd->table, irqfd_enlist);
	irqfd->event = eventfd_ctx_fileget(file);
	err = PTR_ERR_OR_ZERO(irqfd->event);
	if (err)
		goto no_event;
	if (resample) {
		irqfd->resample = eventfd_ctx_fdget(resamplefd);
		err = PTR_ERR_OR_ZERO(irqfd->resample);
		if (err)
			goto no_resample;
		resampler_add(irqfd);
	}
	err = -EBUSY;
	if (!irqfd_fresh(irqfd, false))
		goto listed;
	/* From here on it may be signalled. It can be ended only once it is listed; the file is held until then. */
	if (vfs_poll(file, &irqfd->table) & EPOLLIN)
		schedule_work(&irqfd->raise);
	if (!irqfd_fresh(irqfd, true))
		goto enlisted;
	fput(file);
	return 0;
enlisted:
	eventfd_ctx_remove_wait_queue(irqfd->event, &irqfd->wait, &count);
	flush_work(&irqfd->raise);
listed:
	resampler_drop(irqfd);
no_resample:
	eventfd_ctx_put(irqfd->event);
no_event:
	kfree(irqfd);
no_irqfd:
	fput(file);
	return err;
}

/* As KVM, no error where there is none. It is apart when this returns. */
int fhc_irqfd_deassign(struct fh_vm *vm, u32 fd, u32 gsi)
{
	struct eventfd_ctx *event = eventfd_ctx_fdget(fd);
	struct fh_irqfd *irqfd, *next;

	if (IS_ERR(event))
		return PTR_ERR(event);
	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, list)
		if (irqfd->event == event && irqfd->gsi == gsi)
			irqfd_end(irqfd);
	spin_unlock_irq(&vm->irqfd_lock);
	eventfd_ctx_put(event);
	flush_workqueue(endings);
	return 0;
}

/* The VM ends. */
void fh_irqfds_drop(struct fh_vm *vm)
{
	struct fh_irqfd *irqfd, *next;

	spin_lock_irq(&vm->irqfd_lock);
	list_for_each_entry_safe(irqfd, next, &vm->irqfds, list)
		irqfd_end(irqfd);
	spin_unlock_irq(&vm->irqfd_lock);
	flush_workqueue(endings);
}

/* The guest has ended the interrupt: who raised it looks whether there is more. In a vCPU's thread, between two runs. */
void fhc_irqfds_ended(struct fh_vm *vm, u32 gsi)
{
	struct fh_irqfd *irqfd;

	mutex_lock(&vm->resample_lock);
	list_for_each_entry(irqfd, &vm->resamplers, resamplers)
		if (irqfd->gsi == gsi)
			eventfd_signal(irqfd->resample);
	mutex_unlock(&vm->resample_lock);
}
