// SPDX-License-Identifier: GPL-2.0-only
/*
 * The hostile host kernel, for tests.
 *
 * Does to Freehold what a kernel that has turned against its guests would do:
 * calls el2 with any registers, maps any frame into a process, and reads and
 * writes any frame through the linear map or a fresh mapping. It decides
 * nothing; tests/vmm drives it. It refuses to load where no el2 answers, for
 * a raw call that nobody serves would be the end of the kernel.
 */
#include <linux/arm-smccc.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/memory_hotplug.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/platform_device.h>
#include <linux/pm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/version.h>

#include <asm/cpufeature.h>
#include <asm/neon.h>
#include <asm/sysreg.h>

#include "fh_hostile.h"

#define CALL_UID	0x8600FF01UL
#define UID_0		0x9d1e6c4fUL
#define UID_1		0x4b7a52e0UL
#define UID_2		0x8c3f17a6UL
#define UID_3		0xf00d4e1dUL
/* The calls that this module may pass on: the host range of Freehold only. */
#define CALL_FIRST	0xC6000080UL
#define CALL_LAST	0xC60000FFUL
/* What Linux's own stub at EL2 serves; always by HVC. */
#define STUB_LAST	3UL

struct block {
	struct list_head list;
	struct page *page;
	unsigned int order;
};

static LIST_HEAD(blocks);
static DEFINE_MUTEX(blocks_lock);
static enum arm_smccc_conduit conduit;

static void smccc(const struct arm_smccc_1_2_regs *in,
		  struct arm_smccc_1_2_regs *out)
{
	if (conduit == SMCCC_CONDUIT_HVC || in->a0 <= STUB_LAST)
		arm_smccc_1_2_hvc(in, out);
	else
		arm_smccc_1_2_smc(in, out);
}

/* Any registers may pass, but never to firmware: power calls stay out. */
static bool may_pass(const struct fh_call *call)
{
	return call->x[0] == CALL_UID || call->x[0] <= STUB_LAST ||
	       (call->x[0] >= CALL_FIRST && call->x[0] <= CALL_LAST);
}

static long do_call(void __user *arg)
{
	struct arm_smccc_1_2_regs in, out;
	unsigned long flags;
	struct fh_call call;

	if (copy_from_user(&call, arg, sizeof(call)))
		return -EFAULT;
	if (!may_pass(&call))
		return -EPERM;
	BUILD_BUG_ON(sizeof(call) != sizeof(in));
	memcpy(&in, &call, sizeof(in));
	/* VCPU_RUN wants interrupts masked; no other call minds. */
	local_irq_save(flags);
	smccc(&in, &out);
	local_irq_restore(flags);
	memcpy(&call, &out, sizeof(call));
	return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
}

/* Longest vectors: 32 of 256 bytes, 17 predicates of 32, ZA of 256 by 256. */
struct vectors {
	u8 z[32 * 256];
	u8 p[17 * 32];
	u8 za[256 * 256];
};

#define ALL_32	"0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22," \
		"23,24,25,26,27,28,29,30,31"
#define ALL_16	"0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define CPACR_SMEN	(3UL << 24)
#define SMCR_LONGEST	0xf
#define SMSTART_ZA	".inst 0xd503457f"
#define SMSTART_SM	".inst 0xd503437f"
#define SMSTOP		".inst 0xd503467f"

static void load_v(const struct vectors *v)
{
	asm volatile(".arch_extension simd\n"
		     ".irp n," ALL_32 "\n"
		     "ldr q\\n, [%0, #(\\n * 16)]\n"
		     ".endr\n"
		     :: "r"(v->z) : "memory");
}

static void store_v(struct vectors *v)
{
	asm volatile(".arch_extension simd\n"
		     ".irp n," ALL_32 "\n"
		     "str q\\n, [%0, #(\\n * 16)]\n"
		     ".endr\n"
		     :: "r"(v->z) : "memory");
}

static void load_sve(const struct vectors *v)
{
	asm volatile(".arch_extension sve\n"
		     "ldr p0, [%1, #16, mul vl]\n"
		     "wrffr p0.b\n"
		     ".irp n," ALL_32 "\n"
		     "ldr z\\n, [%0, #\\n, mul vl]\n"
		     ".endr\n"
		     ".irp n," ALL_16 "\n"
		     "ldr p\\n, [%1, #\\n, mul vl]\n"
		     ".endr\n"
		     :: "r"(v->z), "r"(v->p) : "memory");
}

static void store_sve(struct vectors *v)
{
	asm volatile(".arch_extension sve\n"
		     ".irp n," ALL_32 "\n"
		     "str z\\n, [%0, #\\n, mul vl]\n"
		     ".endr\n"
		     ".irp n," ALL_16 "\n"
		     "str p\\n, [%1, #\\n, mul vl]\n"
		     ".endr\n"
		     "rdffr p0.b\n"
		     "str p0, [%1, #16, mul vl]\n"
		     :: "r"(v->z), "r"(v->p) : "memory");
}

static unsigned int sve_bytes(void)
{
	unsigned long bytes;

	asm volatile(".arch_extension sve\nrdvl %0, #1" : "=r"(bytes));
	return bytes;
}

/* RDSVL: the streaming length, which is ZA's in both directions. */
static unsigned int za_bytes(void)
{
	register unsigned long bytes asm("x0");

	asm volatile(".inst 0x04bf5820" : "=r"(bytes));
	return bytes;
}

static void move_za(u8 *za, unsigned int bytes, bool load)
{
	register unsigned long row asm("x12");
	register u8 *at asm("x0");
	unsigned int i;

	for (i = 0; i < bytes; i++) {
		row = i;
		at = za + i * bytes;
		/* LDR and STR ZA[w12, 0], [x0] */
		if (load)
			asm volatile(".inst 0xe1000000"
				     :: "r"(row), "r"(at) : "memory");
		else
			asm volatile(".inst 0xe1200000"
				     :: "r"(row), "r"(at) : "memory");
	}
}

/* Debian's 6.12 is built without SME; the CPU may have it all the same. */
static bool has_sme(void)
{
	return (read_sysreg_s(SYS_ID_AA64PFR1_EL1) >> 24) & 0xf;
}

static u64 count_differ(const u8 *was, const u8 *is, unsigned int bytes)
{
	u64 differ = 0;

	while (bytes--)
		differ += *was++ != *is++;
	return differ;
}

/* DBGWCR0_EL1: 2^31 bytes, loads and stores, of EL1 and EL0, on. */
#define WATCH_HALF	(31UL << 24 | 0xff << 5 | 3 << 3 | 3 << 1 | 1)
#define WATCH_FROM	0x80000000UL

/* What the debug registers held before. */
struct watch {
	u64 control;
	u64 place;
	u64 mdscr;
};

static void arm(struct watch *was)
{
	was->control = read_sysreg_s(SYS_DBGWCRn_EL1(0));
	was->place = read_sysreg_s(SYS_DBGWVRn_EL1(0));
	was->mdscr = read_sysreg(mdscr_el1);
	write_sysreg_s(WATCH_FROM, SYS_DBGWVRn_EL1(0));
	write_sysreg_s(WATCH_HALF, SYS_DBGWCRn_EL1(0));
	/* MDE and KDE */
	write_sysreg(was->mdscr | BIT(15) | BIT(13), mdscr_el1);
	isb();
}

static void disarm(const struct watch *was)
{
	write_sysreg(was->mdscr, mdscr_el1);
	write_sysreg_s(was->control, SYS_DBGWCRn_EL1(0));
	write_sysreg_s(was->place, SYS_DBGWVRn_EL1(0));
	isb();
}

#define DEBUG_WORDS	9

static void look_at_debug(u64 *words)
{
	words[0] = read_sysreg_s(SYS_DBGBVRn_EL1(0));
	words[1] = read_sysreg_s(SYS_DBGBCRn_EL1(0));
	words[2] = read_sysreg_s(SYS_DBGWVRn_EL1(0));
	words[3] = read_sysreg_s(SYS_DBGWCRn_EL1(0));
	words[4] = read_sysreg(mdscr_el1);
	words[5] = read_sysreg_s(SYS_OSLSR_EL1);
	words[6] = read_sysreg_s(SYS_OSDLR_EL1);
	words[7] = read_sysreg_s(SYS_DBGCLAIMCLR_EL1);
	words[8] = read_sysreg_s(SYS_DBGBVRn_EL1(1));
}

/* Alternative half precision, towards plus infinity; a division by zero, a denormal input. No guest of the tests has them. */
#define OWN_FPCR	(BIT(26) | BIT(22))
#define OWN_FPSR	(BIT(7) | BIT(1))
#define CONTROL_WORDS	2

static void look_at_control(u64 *words)
{
	words[0] = read_sysreg_s(sys_reg(3, 3, 4, 4, 0));
	words[1] = read_sysreg_s(sys_reg(3, 3, 4, 4, 1));
}

static void set_control(const u64 *words)
{
	write_sysreg_s(words[0], sys_reg(3, 3, 4, 4, 0));
	write_sysreg_s(words[1], sys_reg(3, 3, 4, 4, 1));
}

/* A deadline that is no guest's. Linux uses the other timer; if it does not, this one stays. */
#define OWN_DEADLINE	0x6f776e2d74696d65UL
#define TIMER_ON	1UL
#define TIMER_WORDS	2

static void look_at_timer(u64 *words)
{
	/* Whether it has come, the timer says itself. */
	words[0] = read_sysreg(cntv_ctl_el0) & 3;
	words[1] = read_sysreg(cntv_cval_el0);
}

static void set_deadline(u64 deadline)
{
	if (read_sysreg(cntv_ctl_el0) & TIMER_ON)
		return;
	write_sysreg(deadline, cntv_cval_el0);
	isb();
}

/* Registers of EL1 that the kernel does without as long as it takes no exception and no other thread. */
#define OWN_REGISTERS(each)	\
	each(far_el1)		\
	each(esr_el1)		\
	each(elr_el1)		\
	each(spsr_el1)		\
	each(par_el1)		\
	each(contextidr_el1)	\
	each(tpidrro_el0)	\
	each(tpidr_el0)		\
	each(afsr0_el1)		\
	each(afsr1_el1)

/* Those that it can not do without. */
#define NEEDED_REGISTERS(each)	\
	each(sctlr_el1)		\
	each(tcr_el1)		\
	each(ttbr0_el1)		\
	each(ttbr1_el1)		\
	each(mair_el1)		\
	each(amair_el1)		\
	each(vbar_el1)		\
	each(cpacr_el1)		\
	each(cntkctl_el1)	\
	each(csselr_el1)	\
	each(tpidr_el1)		\
	each(sp_el0)

/* The keys of pointer authentication. They are compared, and shown to nobody. */
#define KEY_REGISTERS(each)		\
	each(SYS_APIAKEYLO_EL1)		\
	each(SYS_APIAKEYHI_EL1)		\
	each(SYS_APIBKEYLO_EL1)		\
	each(SYS_APIBKEYHI_EL1)		\
	each(SYS_APDAKEYLO_EL1)		\
	each(SYS_APDAKEYHI_EL1)		\
	each(SYS_APDBKEYLO_EL1)		\
	each(SYS_APDBKEYHI_EL1)		\
	each(SYS_APGAKEYLO_EL1)		\
	each(SYS_APGAKEYHI_EL1)

/* As many as OWN_REGISTERS has, then DISR_EL1, then the others. */
#define OWN_WORDS	10
#define EL1_WORDS	33

/* No guest of the tests has these. */
#define own_word(n)	(0x0f1e2d3c4b5a6978UL + (n) * 0x0101010101010101UL)
/* DISR_EL1: an error was deferred, and which is implementation defined. */
#define OWN_DISR	(BIT(31) | BIT(24) | 0x5a5a5a)

static bool has_ras(void)
{
	return (read_sysreg(id_aa64pfr0_el1) >> 28) & 0xf;
}

/* APA and API, then APA3. Whoever has those has generic keys too. */
static bool has_address_keys(void)
{
	return (read_sysreg(id_aa64isar1_el1) & 0xff0) ||
	       (read_sysreg_s(SYS_ID_AA64ISAR2_EL1) & 0xf000);
}

static void look_at_el1(u64 *words)
{
	bool keys = has_address_keys();
	unsigned int n = 0;

#define look(name)	words[n++] = read_sysreg(name);
#define look_at_key(name)	words[n++] = keys ? read_sysreg_s(name) : 0;
	OWN_REGISTERS(look)
	words[n++] = has_ras() ? read_sysreg_s(SYS_DISR_EL1) : 0;
	NEEDED_REGISTERS(look)
	KEY_REGISTERS(look_at_key)
#undef look_at_key
#undef look
}

/* Writes the first words of what look_at_el1() has. */
static void set_el1(const u64 *words)
{
	unsigned int n = 0;

#define set(name)	write_sysreg(words[n++], name);
	OWN_REGISTERS(set)
#undef set
	if (has_ras())
		write_sysreg_s(words[n], SYS_DISR_EL1);
	isb();
}

static void set_own_el1(void)
{
	u64 words[OWN_WORDS + 1];
	unsigned int n;

	for (n = 0; n < OWN_WORDS; n++)
		words[n] = own_word(n);
	words[OWN_WORDS] = OWN_DISR;
	set_el1(words);
}

/*
 * Calls with a value of their own in x18 to x30. Which of them came back otherwise, a bit each from 0 on.
 *
 * x0: registers in, x1: registers out, x2: by HVC. The frame: x29 and x30, x19 to x28, x18, x1, then room for x0 and x1.
 */
u64 fh_call_kept(const struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *out, u64 by_hvc);
asm(".pushsection .text\n"
    ".balign 8\n"
    ".macro fh_own r, to\n"
    "movz \\to, #(0x6f77 + \\r), lsl #48\n"
    "movk \\to, #(0x6e00 + \\r)\n"
    ".endm\n"
    ".macro fh_pairs op, at\n"
    "\\op x2, x3, [\\at, #16]\n"
    "\\op x4, x5, [\\at, #32]\n"
    "\\op x6, x7, [\\at, #48]\n"
    "\\op x8, x9, [\\at, #64]\n"
    "\\op x10, x11, [\\at, #80]\n"
    "\\op x12, x13, [\\at, #96]\n"
    "\\op x14, x15, [\\at, #112]\n"
    "\\op x16, x17, [\\at, #128]\n"
    ".endm\n"
    ".macro fh_kept op\n"
    "\\op x19, x20, [sp, #16]\n"
    "\\op x21, x22, [sp, #32]\n"
    "\\op x23, x24, [sp, #48]\n"
    "\\op x25, x26, [sp, #64]\n"
    "\\op x27, x28, [sp, #80]\n"
    ".endm\n"
    ".type fh_call_kept, %function\n"
    "fh_call_kept:\n"
    "stp x29, x30, [sp, #-128]!\n"
    "fh_kept stp\n"
    "stp x18, x1, [sp, #96]\n"
    "cmp x2, #0\n"
    ".irp r,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
    "fh_own \\r, x\\r\n"
    ".endr\n"
    "fh_pairs ldp, x0\n"
    "ldp x0, x1, [x0]\n"
    "b.ne 1f\n"
    "smc #0\n"
    "b 2f\n"
    "1: hvc #0\n"
    "2: stp x0, x1, [sp, #112]\n"
    "ldr x0, [sp, #104]\n"
    "fh_pairs stp, x0\n"
    "ldp x2, x3, [sp, #112]\n"
    "stp x2, x3, [x0]\n"
    "mov x0, #0\n"
    ".irp r,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
    "fh_own \\r, x1\n"
    "cmp x\\r, x1\n"
    "cset x2, ne\n"
    "orr x0, x0, x2, lsl #(\\r - 18)\n"
    ".endr\n"
    "fh_kept ldp\n"
    "ldr x18, [sp, #96]\n"
    "ldp x29, x30, [sp], #128\n"
    "ret\n"
    ".size fh_call_kept, . - fh_call_kept\n"
    ".popsection\n");

/* Where the general registers' bits begin among those of the others. */
#define GENERAL_BITS	48

/* Calls with registers of the kernel's own values, and compares all that EL1 has with what it was. */
static void call_with_el1(struct fh_vectors *ask, struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *out)
{
	u64 kept[EL1_WORDS], was[EL1_WORDS], is[EL1_WORDS], differ;
	unsigned int n;

	look_at_el1(kept);
	set_own_el1();
	look_at_el1(was);
	differ = fh_call_kept(in, out, conduit == SMCCC_CONDUIT_HVC || in->a0 <= STUB_LAST) << GENERAL_BITS;
	look_at_el1(is);
	set_el1(kept);
	ask->el1_set = 0;
	for (n = 0; n < EL1_WORDS; n++) {
		ask->el1_set |= (u64)(was[n] != 0 && was[n] != kept[n]) << n;
		differ |= (u64)(was[n] != is[n]) << n;
	}
	ask->el1_differ = differ;
}

/* Calls, and looks at the host's registers of EL1, of debugging, FPCR, FPSR and virtual timer before and after. */
static void call_looking(struct fh_vectors *ask, struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *out)
{
	const u64 own[CONTROL_WORDS] = { OWN_FPCR, OWN_FPSR };
	u64 control[CONTROL_WORDS], control_was[CONTROL_WORDS], control_is[CONTROL_WORDS];
	u64 timer[TIMER_WORDS], timer_was[TIMER_WORDS], timer_is[TIMER_WORDS];
	u64 was[DEBUG_WORDS], is[DEBUG_WORDS];
	unsigned int i;

	look_at_control(control);
	look_at_timer(timer);
	set_control(own);
	set_deadline(OWN_DEADLINE);
	look_at_control(control_was);
	look_at_timer(timer_was);
	look_at_debug(was);
	/* Looking takes cycles, which are not the call's. */
	if (ask->manner & FH_COUNTING)
		smccc(in, out);
	else
		call_with_el1(ask, in, out);
	look_at_debug(is);
	look_at_timer(timer_is);
	look_at_control(control_is);
	set_deadline(timer[1]);
	set_control(control);
	ask->debug_set = 0;
	ask->debug_differ = 0;
	for (i = 0; i < DEBUG_WORDS; i++) {
		ask->debug_set += was[i] != 0;
		ask->debug_differ += was[i] != is[i];
	}
	ask->control_differ = 0;
	for (i = 0; i < CONTROL_WORDS; i++)
		ask->control_differ += control_was[i] != control_is[i] || control_was[i] != own[i];
	ask->timer_shown = 0;
	for (i = 0; i < TIMER_WORDS; i++)
		ask->timer_shown += timer_is[i] != 0 && timer_is[i] != timer_was[i];
}

/*
 * Calls while a watchpoint is armed. The kernel has nothing at the addresses that it watches, and interrupts are off.
 */
static void call_watching(struct fh_vectors *ask, struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *out)
{
	struct watch was;

	arm(&was);
	call_looking(ask, in, out);
	disarm(&was);
}

/* PMCR_EL0: on, 64 bits, a count for each cycle. The cycle counter is bit 31 of the sets. */
#define COUNTERS_ON	(BIT(0) | BIT(6))
#define COUNTS_64TH	BIT(3)
#define CYCLES		BIT(31)

/* What the counters' registers held before. */
struct counters {
	u64 control;
	u64 filter;
	u64 on;
};

static bool has_counters(void)
{
	unsigned int version = (read_sysreg(id_aa64dfr0_el1) >> 8) & 0xf;

	return version != 0 && version != 0xf;
}

static void count(struct counters *was)
{
	was->control = read_sysreg(pmcr_el0);
	was->filter = read_sysreg(pmccfiltr_el0);
	was->on = read_sysreg(pmcntenset_el0);
	write_sysreg(0, pmccfiltr_el0);
	write_sysreg((was->control | COUNTERS_ON) & ~COUNTS_64TH, pmcr_el0);
	write_sysreg(CYCLES, pmcntenset_el0);
	isb();
}

static void count_no_more(const struct counters *was)
{
	write_sysreg(CYCLES & ~was->on, pmcntenclr_el0);
	write_sysreg(was->control, pmcr_el0);
	write_sysreg(was->filter, pmccfiltr_el0);
	isb();
}

static u64 ticks(void)
{
	isb();
	return read_sysreg(cntvct_el0);
}

static u64 cycles(void)
{
	isb();
	return read_sysreg(pmccntr_el0);
}

/*
 * Calls while the host's cycle counter is armed, and spins as long itself. Whatever delays this between two reads makes
 * the cycles of the call look more, and those of the host less.
 */
static void call_counting(struct fh_vectors *ask, struct arm_smccc_1_2_regs *in, struct arm_smccc_1_2_regs *out)
{
	u64 most = read_sysreg(cntfrq_el0) / 100, c, t;
	struct counters was;

	count(&was);
	c = cycles();
	t = ticks();
	call_looking(ask, in, out);
	ask->ticks = ticks() - t;
	ask->cycles = cycles() - c;
	t = ticks();
	c = cycles();
	while (ticks() - t < min(ask->ticks, most))
		;
	ask->own_cycles = cycles() - c;
	ask->own_ticks = ticks() - t;
	count_no_more(&was);
}

/* A watchpoint that a timer takes away. */
struct own_watch {
	struct hrtimer timer;
	struct watch was;
	bool gone;
};

static enum hrtimer_restart watch_ends(struct hrtimer *timer)
{
	struct own_watch *own = container_of(timer, struct own_watch, timer);

	disarm(&own->was);
	WRITE_ONCE(own->gone, true);
	return HRTIMER_NORESTART;
}

/*
 * The kernel knows nothing of this watchpoint: whoever it stops, it has try again.
 */
static long do_watched(void __user *arg)
{
	struct fh_watched ask;
	struct own_watch own = { .gone = false };
	u64 word;
	long ret;

	if (copy_from_user(&ask, arg, sizeof(ask)) ||
	    get_user(word, (u64 __user *)ask.addr))
		return -EFAULT;
	preempt_disable();
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
	hrtimer_init_on_stack(&own.timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED);
	own.timer.function = watch_ends;
#else
	hrtimer_setup_on_stack(&own.timer, watch_ends, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED);
#endif
	arm(&own.was);
	hrtimer_start(&own.timer, ms_to_ktime(20), HRTIMER_MODE_REL_PINNED);
	pagefault_disable();
	ret = get_user(word, (u64 __user *)ask.addr);
	pagefault_enable();
	ask.stopped = READ_ONCE(own.gone);
	if (hrtimer_cancel(&own.timer))
		disarm(&own.was);
	preempt_enable();
	destroy_hrtimer_on_stack(&own.timer);
	return ret ? ret : copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

/*
 * Fills every vector register, calls, and counts what came back otherwise. The
 * kernel's own use of them is over by kernel_neon_begin(), and with interrupts
 * off nobody else touches them meanwhile.
 */
static void call_with_vectors(struct fh_vectors *ask, struct vectors *was,
			      struct vectors *is)
{
	bool sve = system_supports_sve(), sme = has_sme();
	struct arm_smccc_1_2_regs in, out;
	unsigned int zl = 16, zal = 0;
	unsigned long flags;
	u64 zcr = 0, cpacr = 0;

	memcpy(&in, &ask->call, sizeof(in));
	kernel_neon_begin();
	local_irq_save(flags);
	if (sve) {
		zcr = read_sysreg_s(SYS_ZCR_EL1);
		write_sysreg_s(zcr | ZCR_ELx_LEN_MASK, SYS_ZCR_EL1);
		isb();
		zl = sve_bytes();
		/* FFR can only hold ones from the bottom up. */
		memset(was->p + 2 * zl, 0, zl / 8);
		memset(was->p + 2 * zl, 0xff, zl / 16);
		load_sve(was);
	} else {
		load_v(was);
	}
	if (sme) {
		cpacr = read_sysreg(cpacr_el1);
		write_sysreg(cpacr | CPACR_SMEN, cpacr_el1);
		isb();
		write_sysreg_s(SMCR_LONGEST, SYS_SMCR_EL1);
		isb();
		asm volatile(SMSTART_ZA);
		zal = za_bytes();
		move_za(was->za, zal, true);
	}
	if (sme && (ask->manner & FH_STREAMING))
		asm volatile(SMSTART_SM);
	if (ask->manner & FH_WATCHING)
		call_watching(ask, &in, &out);
	else if (ask->manner & FH_COUNTING && has_counters())
		call_counting(ask, &in, &out);
	else
		call_looking(ask, &in, &out);
	if (sme) {
		/* Leaving streaming mode clears the vectors. */
		if (!(ask->manner & FH_STREAMING) && sve)
			store_sve(is);
		move_za(is->za, zal, false);
		asm volatile(SMSTOP);
		write_sysreg(cpacr, cpacr_el1);
		isb();
	} else if (sve) {
		store_sve(is);
	}
	if (!sve)
		store_v(is);
	if (sve) {
		write_sysreg_s(zcr, SYS_ZCR_EL1);
		isb();
	}
	local_irq_restore(flags);
	kernel_neon_end();
	memcpy(&ask->call, &out, sizeof(out));
	ask->compared = FH_HAS_V | (sve ? FH_HAS_SVE : 0) | (sme ? FH_HAS_ZA : 0);
	ask->differ = count_differ(was->za, is->za, zal * zal);
	if (ask->manner & FH_STREAMING)
		return;
	ask->differ += count_differ(was->z, is->z, 32 * zl);
	if (sve)
		ask->differ += count_differ(was->p, is->p, 17 * zl / 8);
}

static long do_vectors(void __user *arg)
{
	struct fh_vectors ask;
	struct vectors *both;
	long ret = -EFAULT;
	unsigned int i;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (!may_pass(&ask.call))
		return -EPERM;
	both = vzalloc(2 * sizeof(*both));
	if (!both)
		return -ENOMEM;
	for (i = 0; i < sizeof(*both); i++)
		((u8 *)both)[i] = i * 7 + (i >> 8) + 3;
	call_with_vectors(&ask, &both[0], &both[1]);
	if (!copy_to_user(arg, &ask, sizeof(ask)))
		ret = 0;
	vfree(both);
	return ret;
}

static long do_alloc(void __user *arg)
{
	struct fh_block ask;
	struct block *block;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (ask.order > MAX_PAGE_ORDER)
		return -EINVAL;
	block = kzalloc(sizeof(*block), GFP_KERNEL);
	if (!block)
		return -ENOMEM;
	block->order = ask.order;
	block->page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN,
				  ask.order);
	if (!block->page) {
		kfree(block);
		return -ENOMEM;
	}
	ask.pfn = page_to_pfn(block->page);
	mutex_lock(&blocks_lock);
	list_add(&block->list, &blocks);
	mutex_unlock(&blocks_lock);
	return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

/*
 * Frees a block if every frame of it can be read again, else keeps it for
 * ever: a frame that el2 still holds must not meet the page allocator.
 */
static bool release(struct block *block)
{
	unsigned long i, word;

	for (i = 0; i < 1UL << block->order; i++)
		if (copy_from_kernel_nofault(&word,
				page_address(block->page + i), sizeof(word)))
			return false;
	__free_pages(block->page, block->order);
	return true;
}

static long do_free(void __user *arg)
{
	struct block *block, *next;
	struct fh_block ask;
	long ret = -ENOENT;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	mutex_lock(&blocks_lock);
	list_for_each_entry_safe(block, next, &blocks, list) {
		if (page_to_pfn(block->page) != ask.pfn)
			continue;
		ret = -EBUSY;
		if (release(block)) {
			list_del(&block->list);
			kfree(block);
			ret = 0;
		}
		break;
	}
	mutex_unlock(&blocks_lock);
	return ret;
}

static long do_pfn(void __user *arg)
{
	struct fh_pfn ask;
	struct page *page;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (get_user_pages_fast(ask.addr, 1, 0, &page) != 1)
		return -EFAULT;
	ask.pfn = page_to_pfn(page);
	put_page(page);
	return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

static long do_hold(void __user *arg)
{
	struct fh_hold ask;
	struct page *page;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (!pfn_valid(ask.pfn))
		return -EINVAL;
	page = pfn_to_page(ask.pfn);
	switch (ask.what) {
	case FH_HOLD_TAKE:
		ask.answer = get_page_unless_zero(page);
		break;
	case FH_HOLD_DROP:
		put_page(page);
		ask.answer = 1;
		break;
	case FH_HOLD_COUNT:
		ask.answer = page_count(page);
		break;
	default:
		return -EINVAL;
	}
	return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

/* copy_to_kernel_nofault() is not exported; this is its one instruction. */
static int store_nofault(u64 *to, u64 value)
{
	__raw_put_mem("str", value, to, fault, K);
	return 0;
fault:
	return -EFAULT;
}

static void flush_here(void)
{
	asm volatile("dsb nshst\ntlbi vmalle1\ndsb nsh\nisb" ::: "memory");
}

/* Address 0 by tables that begin in the frame, instead of those of the caller's process. */
static int walk_nofault(struct fh_access *ask)
{
	unsigned long flags;
	u64 value = 0, tables;
	int result = 0;

	local_irq_save(flags);
	tables = read_sysreg(ttbr0_el1);
	write_sysreg(PFN_PHYS(ask->pfn), ttbr0_el1);
	isb();
	flush_here();
	if (ask->write == FH_DO_WALK) {
		asm volatile("1: ldtr %1, [%2]\n2:\n"
			     _ASM_EXTABLE_UACCESS_ERR(1b, 2b, %w0)
			     : "+r"(result), "+r"(value) : "r"(0UL) : "memory");
	} else {
		asm volatile("1: at s1e0r, %1\n2:\n"
			     _ASM_EXTABLE_UACCESS_ERR(1b, 2b, %w0)
			     : "+r"(result) : "r"(0UL) : "memory");
		isb();
		value = read_sysreg(par_el1);
	}
	write_sysreg(tables, ttbr0_el1);
	isb();
	flush_here();
	local_irq_restore(flags);
	ask->value = value;
	return result;
}

/* Pages of a mapping that has all addresses of at least one level-3 table. */
#define WHOLE		(2 * PMD_SIZE / PAGE_SIZE)
#define TABLE_FRAME	GENMASK_ULL(47, 12)

/* The kernel's own level-2 entry for an address of its half. */
static u64 *level2_of(u64 at)
{
	unsigned int bits = 64 - (read_sysreg(tcr_el1) >> 16 & 0x3f);
	unsigned int shift = PAGE_SHIFT + (DIV_ROUND_UP(bits - PAGE_SHIFT, 9) - 1) * 9;
	u64 *table = phys_to_virt(read_sysreg(ttbr1_el1) & GENMASK_ULL(47, 6));

	table += at >> shift & (BIT_ULL(bits - shift) - 1);
	for (; shift > PMD_SHIFT; shift -= 9) {
		if ((READ_ONCE(*table) & 3) != 3)
			return NULL;
		table = phys_to_virt(READ_ONCE(*table) & TABLE_FRAME);
		table += at >> (shift - 9) & 511;
	}
	return (READ_ONCE(*table) & 3) == 3 ? table : NULL;
}

static void put_entry(u64 *entry, u64 descriptor)
{
	WRITE_ONCE(*entry, descriptor);
	dsb(ishst);
	isb();
	flush_here();
}

/* An address of the kernel's half, for a moment by a level-3 table that is the frame. */
static int kernel_walk_nofault(struct fh_access *ask)
{
	struct page **pages = kcalloc(WHOLE, sizeof(*pages), GFP_KERNEL);
	unsigned long flags, i;
	int result = -ENOMEM;
	u64 *entry, *page, kept;
	void *area;

	if (!pages)
		return result;
	for (i = 0; i < WHOLE; i++)
		pages[i] = pfn_to_page(ask->pfn);
	area = vmap(pages, WHOLE, VM_MAP, PAGE_KERNEL);
	kfree(pages);
	if (!area)
		return result;
	page = PTR_ALIGN(area, PMD_SIZE);
	result = -ENXIO;
	entry = level2_of((u64)page);
	if (entry) {
		kept = READ_ONCE(*entry);
		local_irq_save(flags);
		put_entry(entry, (kept & ~TABLE_FRAME) | PFN_PHYS(ask->pfn));
		result = copy_from_kernel_nofault(&ask->value, page, sizeof(*page));
		put_entry(entry, kept);
		local_irq_restore(flags);
	}
	vunmap(area);
	return result;
}

#define MEMTAG ".arch armv8.5-a\n.arch_extension memtag\n"

/* A register with this tag, for an instruction that stores it. */
static u64 tagged(u64 *at, u64 tag)
{
	return ((u64)at & ~(15ull << 56)) | tag << 56;
}

/* Tags of memory: the same, by linear addresses, whose own tag is never looked at. */
static int tag_nofault(u64 *at, struct fh_access *ask)
{
	switch (ask->write) {
	case FH_DO_STORE_TAG:
		asm goto(MEMTAG "1: stg %0, [%1]\n" _ASM_EXTABLE_KACCESS(1b, %l2)
			 :: "r"(tagged(at, 5)), "r"(at) : "memory" : fault);
		return 0;
	case FH_DO_LOAD_TAG:
		asm goto(MEMTAG "mov x10, #0\n1: ldg x10, [%0]\n"
			 "ubfx x10, x10, #56, #4\nstr x10, [%1]\n"
			 _ASM_EXTABLE_KACCESS(1b, %l2)
			 :: "r"(at), "r"(&ask->value) : "memory", "x10" : fault);
		return 0;
	case FH_DO_ZERO_TAG:
		asm goto(MEMTAG "1: stzg %0, [%1]\n" _ASM_EXTABLE_KACCESS(1b, %l2)
			 :: "r"(tagged(at, 3)), "r"(at) : "memory" : fault);
		return 0;
	case FH_DO_BLOCK_TAG:
		asm goto(MEMTAG "1: dc gzva, %0\n" _ASM_EXTABLE_KACCESS(1b, %l1)
			 :: "r"(at) : "memory" : fault);
		return 0;
	default:
		return -EINVAL;
	}
fault:
	return -EFAULT;
}

/* What else reaches memory: each is one instruction that may fault, with its own fixup. */
static int odd_nofault(u64 *at, struct fh_access *ask)
{
	switch (ask->write) {
	case FH_DO_ZVA:
		asm goto("1: dc zva, %0\n" _ASM_EXTABLE_KACCESS(1b, %l1)
			 :: "r"(at) : "memory" : fault);
		return 0;
	case FH_DO_EXCLUSIVE:
		asm goto("1: ldxr x10, [%0]\n"
			 "2: stxr w9, x10, [%0]\n"
			 _ASM_EXTABLE_KACCESS(1b, %l1) _ASM_EXTABLE_KACCESS(2b, %l1)
			 :: "r"(at) : "memory", "x9", "x10" : fault);
		return 0;
	case FH_DO_ATOMIC:
		asm goto(".arch_extension lse\nmov x10, #0\n"
			 "1: casal x10, %0, [%1]\n" _ASM_EXTABLE_KACCESS(1b, %l2)
			 :: "r"(ask->value), "r"(at) : "memory", "x10" : fault);
		return 0;
	case FH_DO_PREFETCH:
		asm volatile("prfm pstl1keep, [%0]\n" :: "r"(at) : "memory");
		return 0;
	default:
		return tag_nofault(at, ask);
	}
fault:
	return -EFAULT;
}

static int access_nofault(u64 *at, struct fh_access *ask)
{
	if (ask->write == FH_DO_WALK || ask->write == FH_DO_TRANSLATE)
		return walk_nofault(ask);
	if (ask->write == FH_DO_KERNEL_WALK)
		return kernel_walk_nofault(ask);
	if (ask->write > FH_DO_STORE)
		return odd_nofault(at, ask);
	if (ask->write)
		return store_nofault(at, ask->value);
	return copy_from_kernel_nofault(&ask->value, at, sizeof(*at));
}

struct sacrifice {
	u64 *at;
	u64 value;
	u32 write;
	bool survived;
	struct completion go;
};

static int sacrifice_fn(void *data)
{
	struct sacrifice *s = data;

	wait_for_completion(&s->go);
	if (s->write == FH_DO_FETCH)
		((void (*)(void))s->at)();
	else if (s->write)
		WRITE_ONCE(*s->at, s->value);
	else
		s->value = READ_ONCE(*s->at);
	WRITE_ONCE(s->survived, true);
	return 0;
}

/* Lets a thread of its own do the access; an oops ends that thread alone. */
static int access_thread(u64 *at, struct fh_access *ask)
{
	struct sacrifice *s = kzalloc(sizeof(*s), GFP_KERNEL);
	struct task_struct *task;
	int i, result = -ETIMEDOUT;

	if (!s)
		return -ENOMEM;
	s->at = at;
	s->value = ask->value;
	s->write = ask->write;
	init_completion(&s->go);
	task = kthread_create(sacrifice_fn, s, "fh_sacrifice");
	if (IS_ERR(task)) {
		kfree(s);
		return PTR_ERR(task);
	}
	get_task_struct(task);
	wake_up_process(task);
	complete(&s->go);
	for (i = 0; i < 3000; i++) {
		if (READ_ONCE(task->exit_state)) {
			result = READ_ONCE(s->survived) ? 0 : FH_DIED;
			break;
		}
		msleep(10);
	}
	ask->value = s->value;
	put_task_struct(task);
	if (result != -ETIMEDOUT)
		kfree(s);
	return result;
}

/* Lets the kernel execute what is at this address of its own: a page's, which no mapping of a module may be. */
static int make_executable(void *at)
{
	u64 *entry = level2_of((u64)at);

	if (!entry)
		return -ENXIO;
	entry = phys_to_virt(READ_ONCE(*entry) & TABLE_FRAME);
	entry += (u64)at >> PAGE_SHIFT & 511;
	WRITE_ONCE(*entry, READ_ONCE(*entry) & ~PTE_PXN);
	asm volatile("dsb ishst\ntlbi vmalle1is\ndsb ish\n"
		     "ic ialluis\ndsb ish\nisb" ::: "memory");
	return 0;
}

static int fetch_thread(struct fh_access *ask)
{
	struct page *page = pfn_to_page(ask->pfn);
	void *at = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	int result;

	if (!at)
		return -ENOMEM;
	result = make_executable(at);
	if (!result)
		result = access_thread(at, ask);
	vunmap(at);
	return result;
}

static long do_access(void __user *arg)
{
	struct fh_access ask;
	void *fresh = NULL;
	u64 *at;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (ask.offset > PAGE_SIZE - 8 || ask.offset % 8)
		return -EINVAL;
	if (ask.write == FH_DO_FETCH) {
		ask.result = pfn_valid(ask.pfn) ? fetch_thread(&ask) : -ENXIO;
		return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
	}
	if (ask.how == FH_HOW_FRESH || ask.how == FH_HOW_FRESH_THREAD) {
		fresh = memremap(PFN_PHYS(ask.pfn), PAGE_SIZE, MEMREMAP_WB);
		if (!fresh)
			return -ENOMEM;
		at = fresh + ask.offset;
	} else {
		if (!pfn_valid(ask.pfn))
			return -ENXIO;
		at = phys_to_virt(PFN_PHYS(ask.pfn)) + ask.offset;
	}
	if (ask.how == FH_HOW_THREAD || ask.how == FH_HOW_FRESH_THREAD)
		ask.result = access_thread(at, &ask);
	else
		ask.result = access_nofault(at, &ask);
	if (fresh)
		memunmap(fresh);
	return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

static long do_fill(void __user *arg)
{
	struct fh_fill ask;
	long ret = 0;
	u64 *buffer;
	u64 i;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (ask.bytes > PAGE_SIZE || ask.bytes % 8 || !pfn_valid(ask.pfn))
		return -EINVAL;
	buffer = memdup_user((void __user *)ask.addr, ask.bytes);
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	for (i = 0; i < ask.bytes / 8 && !ret; i++)
		ret = store_nofault((u64 *)phys_to_virt(PFN_PHYS(ask.pfn)) + i,
				    buffer[i]);
	kfree(buffer);
	return ret;
}

static long do_sweep(void __user *arg)
{
	struct fh_sweep ask;
	u64 i, pfn, word;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	ask.found = 0;
	for (i = 0; i < ask.count; i++) {
		pfn = ask.first + i;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		if (!pfn_is_map_memory(pfn) ||
		    !copy_from_kernel_nofault(&word,
				phys_to_virt(PFN_PHYS(pfn)), sizeof(word)))
			continue;
		if (ask.found < ask.room &&
		    put_user(pfn, (u64 __user *)ask.out + ask.found))
			return -EFAULT;
		ask.found++;
	}
	return copy_to_user(arg, &ask, sizeof(ask)) ? -EFAULT : 0;
}

/* Hot-plugs memory: unlike the memory of the boot it may be taken offline. */
static long do_add_memory(void __user *arg)
{
	struct fh_memory memory;

	if (copy_from_user(&memory, arg, sizeof(memory)))
		return -EFAULT;
	return add_memory(0, memory.start, memory.bytes, MHP_NONE);
}

static long hostile_ioctl(struct file *file, unsigned int cmd, unsigned long p)
{
	void __user *arg = (void __user *)p;

	switch (cmd) {
	case FH_CALL:
		return do_call(arg);
	case FH_ALLOC:
		return do_alloc(arg);
	case FH_FREE:
		return do_free(arg);
	case FH_PFN:
		return do_pfn(arg);
	case FH_ACCESS:
		return do_access(arg);
	case FH_FILL:
		return do_fill(arg);
	case FH_SWEEP:
		return do_sweep(arg);
	case FH_VECTORS:
		return do_vectors(arg);
	case FH_ADD_MEMORY:
		return do_add_memory(arg);
	case FH_WATCHED:
		return do_watched(arg);
	case FH_HOLD:
		return do_hold(arg);
	default:
		return -ENOTTY;
	}
}

/* The file offset is the frame: any frame at all, RAM or not. */
static vm_fault_t hostile_fault(struct vm_fault *vmf)
{
	return vmf_insert_pfn(vmf->vma, vmf->address, vmf->pgoff);
}

static const struct vm_operations_struct hostile_vm_ops = {
	.fault = hostile_fault,
};

static int hostile_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &hostile_vm_ops;
	return 0;
}

static const struct file_operations hostile_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = hostile_ioctl,
	.mmap = hostile_mmap,
};

static struct miscdevice hostile_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "fh_hostile",
	.fops = &hostile_fops,
	.mode = 0600,
};

static bool take_kvm;
module_param(take_kvm, bool, 0400);
MODULE_PARM_DESC(take_kvm, "it has the node that the kernel's own KVM would have");

static struct miscdevice kvm_misc = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &hostile_fops,
	.mode = 0600,
};

static bool hold_sleep;
module_param(hold_sleep, bool, 0600);
MODULE_PARM_DESC(hold_sleep, "the machine's sleep waits, once everybody else has been asked, and is refused in the end");

static unsigned int sleeps_held;
module_param(sleeps_held, uint, 0400);
MODULE_PARM_DESC(sleeps_held, "how often it has");

static int on_sleep(struct notifier_block *block, unsigned long action, void *data)
{
	if (!READ_ONCE(hold_sleep) || (action != PM_HIBERNATION_PREPARE && action != PM_SUSPEND_PREPARE))
		return NOTIFY_DONE;
	WRITE_ONCE(sleeps_held, sleeps_held + 1);
	while (READ_ONCE(hold_sleep) && !signal_pending(current))
		msleep_interruptible(5);
	return notifier_from_errno(-EAGAIN);
}

/* Behind the others. */
static struct notifier_block sleep_block = {
	.notifier_call = on_sleep,
	.priority = -1,
};

static unsigned int awake_at;
module_param(awake_at, uint, 0600);
MODULE_PARM_DESC(awake_at, "1: a device refuses to sleep when every process has stopped; 2: when every device sleeps");

static unsigned int sleeps_refused;
module_param(sleeps_refused, uint, 0400);
MODULE_PARM_DESC(sleeps_refused, "how often it has");

static int sleep_at(unsigned int stage)
{
	if (READ_ONCE(awake_at) != stage)
		return 0;
	WRITE_ONCE(sleeps_refused, sleeps_refused + 1);
	return -EBUSY;
}

static int awake_prepare(struct device *dev)
{
	return sleep_at(1);
}

static int awake_suspend_late(struct device *dev)
{
	return sleep_at(2);
}

static const struct dev_pm_ops awake_ops = {
	.prepare = awake_prepare,
	.suspend_late = awake_suspend_late,
};

static struct platform_driver awake_driver = {
	.driver = {
		.name = "fh_awake",
		.pm = &awake_ops,
	},
};

static struct platform_device *awake_device;

static int awake_init(void)
{
	int err = platform_driver_register(&awake_driver);

	if (err)
		return err;
	awake_device = platform_device_register_simple("fh_awake", PLATFORM_DEVID_NONE, NULL, 0);
	err = PTR_ERR_OR_ZERO(awake_device);
	if (err)
		platform_driver_unregister(&awake_driver);
	return err;
}

static void awake_exit(void)
{
	platform_device_unregister(awake_device);
	platform_driver_unregister(&awake_driver);
}

static int __init hostile_init(void)
{
	struct arm_smccc_1_2_regs in = { .a0 = CALL_UID }, out = { 0 };
	int err;

	conduit = arm_smccc_1_1_get_conduit();
	if (conduit == SMCCC_CONDUIT_NONE)
		return -ENODEV;
	smccc(&in, &out);
	if (lower_32_bits(out.a0) != UID_0 || lower_32_bits(out.a1) != UID_1 ||
	    lower_32_bits(out.a2) != UID_2 || lower_32_bits(out.a3) != UID_3)
		return -ENODEV;
	err = awake_init();
	if (err)
		return err;
	err = register_pm_notifier(&sleep_block);
	if (err)
		goto no_sleep;
	err = misc_register(&hostile_misc);
	if (err)
		goto no_device;
	if (take_kvm) {
		err = misc_register(&kvm_misc);
		if (err)
			goto no_kvm;
	}
	return 0;
no_kvm:
	misc_deregister(&hostile_misc);
no_device:
	unregister_pm_notifier(&sleep_block);
no_sleep:
	awake_exit();
	return err;
}

static void __exit hostile_exit(void)
{
	struct block *block, *next;
	unsigned long kept = 0;

	if (take_kvm)
		misc_deregister(&kvm_misc);
	misc_deregister(&hostile_misc);
	unregister_pm_notifier(&sleep_block);
	awake_exit();
	list_for_each_entry_safe(block, next, &blocks, list) {
		if (!release(block))
			kept++;
		kfree(block);
	}
	if (kept)
		pr_warn("fh_hostile: %lu blocks are not the host's; kept\n",
			kept);
}

module_init(hostile_init);
module_exit(hostile_exit);
MODULE_DESCRIPTION("Freehold's hostile host, for tests only");
MODULE_LICENSE("GPL");
