// SPDX-License-Identifier: GPL-2.0-only
/* Services of the kernel at large: messages, memory, time and signals. */
#include <linux/bug.h>
#include <linux/printk.h>

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
