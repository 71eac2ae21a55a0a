// SPDX-License-Identifier: GPL-2.0-only
/* Module entry: looks for el2, and offers /dev/freehold only where it answered. */
#include <linux/module.h>
#include <linux/init.h>
#include <linux/printk.h>

#include "glue.h"

static int __init freehold_init(void)
{
	long err;

	if (PAGE_SIZE != 4096) {
		pr_err("freehold: this kernel's page size is %lu; v1 serves 4096 only\n", PAGE_SIZE);
		return -ENODEV;
	}
	err = fh_init();
	return err;
}

static void __exit freehold_exit(void)
{
}

module_init(freehold_init);
module_exit(freehold_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Protected virtual machines over Freehold's el2");
MODULE_VERSION(FREEHOLD_RELEASE);
