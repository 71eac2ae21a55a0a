// SPDX-License-Identifier: GPL-2.0-only
/* The eventfds of a VMM. */
#include <linux/err.h>
#include <linux/eventfd.h>

#include "glue.h"

int fhc_event_get(struct eventfd_ctx **event, u32 fd)
{
	*event = eventfd_ctx_fdget(fd);
	return PTR_ERR_OR_ZERO(*event);
}

void fhc_event_put(struct eventfd_ctx *event)
{
	eventfd_ctx_put(event);
}

void fhc_event_signal(struct eventfd_ctx *event)
{
	eventfd_signal(event);
}
