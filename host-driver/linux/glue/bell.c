// SPDX-License-Identifier: GPL-2.0-only
/* Sleep of vCPUs that wait for an interrupt: a flag and a wait queue each, and the counter that timers are told by. */
#include <asm/arch_timer.h>
#include <linux/bits.h>
#include <linux/hrtimer.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

#include "glue.h"

void fh_bells_init(struct fh_vm *vm)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(vm->bells); i++)
		init_waitqueue_head(&vm->bells[i].wait);
}

void fhc_bell_mute(struct fh_vcpu *vcpu)
{
	atomic_set(&vcpu->bell->rung, 0);
}

bool fhc_bell_rang(struct fh_vcpu *vcpu)
{
	return atomic_read(&vcpu->bell->rung) != 0;
}

/* The flag is set before the queue's lock is taken, which a sleeper takes before it looks at the flag. */
void fhc_bell_ring(struct fh_vm *vm, u64 vcpus)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(vm->bells); i++) {
		if (vcpus & BIT_ULL(i)) {
			atomic_set(&vm->bells[i].rung, 1);
			wake_up(&vm->bells[i].wait);
		}
	}
}

void fhc_bell_enlist(struct fh_vcpu *vcpu)
{
	init_wait(&vcpu->sleeper);
	prepare_to_wait(&vcpu->bell->wait, &vcpu->sleeper, TASK_INTERRUPTIBLE);
}

/* U64_MAX: no time. True: the time has passed. */
bool fhc_bell_sleep(u64 nanoseconds)
{
	ktime_t time = ns_to_ktime(nanoseconds);

	return schedule_hrtimeout(nanoseconds == U64_MAX ? NULL : &time, HRTIMER_MODE_REL) == 0;
}

void fhc_bell_leave(struct fh_vcpu *vcpu)
{
	finish_wait(&vcpu->bell->wait, &vcpu->sleeper);
}

/* The virtual counter, which is the guests' too: its offset is 0. */
u64 fhc_counter(void)
{
	isb();
	return read_sysreg(cntvct_el0);
}

u64 fhc_counter_frequency(void)
{
	return arch_timer_get_cntfrq();
}
