// SPDX-License-Identifier: GPL-2.0-only
/*
 * A disk that ends no request until it is told to: what O_DIRECT holds in flight stays in flight. For tests.
 *
 * /sys/module/fh_slow/parameters/hold: 1 (as loaded) keeps requests, 0 ends those kept and each that comes.
 * /sys/module/fh_slow/parameters/held: requests kept.
 * /sys/module/fh_slow/parameters/word: the first word of what was written last, which the disk reads by itself.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(lock);
static struct bio_list kept = BIO_EMPTY_LIST;
static bool hold = true;
static unsigned long word;
module_param(word, ulong, 0444);
static struct gendisk *disk;

static void look(struct bio *bio)
{
	struct bio_vec first = bio_iovec(bio);
	unsigned long *at = bvec_kmap_local(&first);

	WRITE_ONCE(word, READ_ONCE(*at));
	kunmap_local(at);
}

static void end(struct bio *bio)
{
	if (bio_op(bio) == REQ_OP_READ)
		zero_fill_bio(bio);
	if (bio_op(bio) == REQ_OP_WRITE)
		look(bio);
	bio_endio(bio);
}

static void end_all(void)
{
	struct bio *bio;

	for (;;) {
		spin_lock(&lock);
		bio = bio_list_pop(&kept);
		spin_unlock(&lock);
		if (!bio)
			return;
		end(bio);
	}
}

static void slow_submit(struct bio *bio)
{
	spin_lock(&lock);
	if (hold) {
		bio_list_add(&kept, bio);
		bio = NULL;
	}
	spin_unlock(&lock);
	if (bio)
		end(bio);
}

static const struct block_device_operations slow_fops = {
	.owner = THIS_MODULE,
	.submit_bio = slow_submit,
};

static int hold_set(const char *text, const struct kernel_param *param)
{
	bool wanted;
	int err = kstrtobool(text, &wanted);

	if (err)
		return err;
	spin_lock(&lock);
	hold = wanted;
	spin_unlock(&lock);
	if (!wanted)
		end_all();
	return 0;
}

static const struct kernel_param_ops hold_ops = {
	.set = hold_set,
	.get = param_get_bool,
};
module_param_cb(hold, &hold_ops, &hold, 0600);

static int held_get(char *text, const struct kernel_param *param)
{
	int count;

	spin_lock(&lock);
	count = bio_list_size(&kept);
	spin_unlock(&lock);
	return sysfs_emit(text, "%d\n", count);
}

static const struct kernel_param_ops held_ops = {
	.get = held_get,
};
module_param_cb(held, &held_ops, NULL, 0400);

static int __init slow_init(void)
{
	int err;

	disk = blk_alloc_disk(NULL, NUMA_NO_NODE);
	if (IS_ERR(disk))
		return PTR_ERR(disk);
	disk->fops = &slow_fops;
	disk->flags |= GENHD_FL_NO_PART;
	strscpy(disk->disk_name, "fh_slow", sizeof(disk->disk_name));
	set_capacity(disk, 2048);
	err = add_disk(disk);
	if (err)
		put_disk(disk);
	return err;
}

static void __exit slow_exit(void)
{
	spin_lock(&lock);
	hold = false;
	spin_unlock(&lock);
	end_all();
	del_gendisk(disk);
	put_disk(disk);
}

module_init(slow_init);
module_exit(slow_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A disk that waits to be told, for Freehold's tests");
