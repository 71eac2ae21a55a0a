// SPDX-License-Identifier: GPL-2.0-only
/* Calls to EL2, through the conduit that the kernel itself found in the firmware description. */
#include <linux/arm-smccc.h>
#include <linux/irqflags.h>
#include <linux/sched/signal.h>
#include <linux/string.h>

#include "freehold.h"
#include "glue.h"

/* 0: none that speaks SMCCC 1.1 or later; 1: HVC; 2: SMC. */
int fhc_el2_conduit(void)
{
	switch (arm_smccc_1_1_get_conduit()) {
	case SMCCC_CONDUIT_HVC:
		return 1;
	case SMCCC_CONDUIT_SMC:
		return 2;
	default:
		return 0;
	}
}

/* The call-UID query is harmless under any hypervisor or firmware that speaks SMCCC 1.1: another one answers as itself. */
void fhc_el2_uid(u32 *words)
{
	struct arm_smccc_res res = { .a0 = (unsigned long)SMCCC_RET_NOT_SUPPORTED };

	arm_smccc_1_1_invoke(FREEHOLD_CALL_UID, &res);
	words[0] = lower_32_bits(res.a0);
	words[1] = lower_32_bits(res.a1);
	words[2] = lower_32_bits(res.a2);
	words[3] = lower_32_bits(res.a3);
}

/* One call with x0-x17; made only after the UID answered. */
void fhc_el2_call(u64 *regs)
{
	struct arm_smccc_1_2_regs args, res;

	BUILD_BUG_ON(sizeof(args) != 18 * sizeof(u64));
	memcpy(&args, regs, sizeof(args));
	if (fhc_el2_conduit() == 1)
		arm_smccc_1_2_hvc(&args, &res);
	else
		arm_smccc_1_2_smc(&args, &res);
	memcpy(regs, &res, sizeof(res));
}

/*
 * VCPU_RUN: interrupts are masked around the call, so that the task stays on this CPU while its vCPU is loaded, and a
 * host interrupt that ended the run is taken right after it. What came before the masking has had its interrupt
 * already, and must keep the vCPU out: false, and nothing was called.
 */
bool fhc_el2_run(u64 *regs)
{
	unsigned long flags;
	bool enter;

	local_irq_save(flags);
	enter = !signal_pending(current) && !need_resched() && !test_thread_flag(TIF_NOTIFY_RESUME);
	if (enter)
		fhc_el2_call(regs);
	local_irq_restore(flags);
	return enter;
}
