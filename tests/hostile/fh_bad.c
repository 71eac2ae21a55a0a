// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a kernel that watches itself must complain of, each once and harmlessly: the control of every log without
 * complaints.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(atomic);

/* One byte behind the end. */
static noinline void beyond_the_end(void)
{
	char *bytes = kmalloc(13, GFP_KERNEL);

	if (bytes)
		pr_info("fh_bad: %d\n", READ_ONCE(bytes[13]) & 0);
	kfree(bytes);
}

/* Two locks in one order, then in the other: no deadlock here, and one for two threads. */
static noinline void both_orders(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static noinline void sleeps_in_atomic(void)
{
	spin_lock(&atomic);
	might_sleep();
	spin_unlock(&atomic);
}

/* Its only name is forgotten. */
static noinline void leaks(void)
{
	void *volatile lost = kmalloc(100, GFP_KERNEL);

	lost = NULL;
}

static int __init fh_bad_init(void)
{
	/* First: lockdep watches until the first complaint, be it another's. */
	both_orders();
	beyond_the_end();
	sleeps_in_atomic();
	leaks();
	return 0;
}

static void __exit fh_bad_exit(void)
{
}

module_init(fh_bad_init);
module_exit(fh_bad_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Control of a kernel that watches itself");
