/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The border between the C glue and the Rust half of the module.
 *
 * FH_RUST names an entry into Rust (Kbuild reads these lines to keep the symbols); FH_C a service of the glue that
 * Rust calls. The glue wraps exported kernel functions and decides nothing; `src/sys.rs` mirrors this file.
 *
 * Lock order: vm->lock > invalidate lock of a guest_memfd > folio lock. mmap_lock is taken before the invalidate lock,
 * so no user memory is touched under it. A plain slot's lock comes after all of them, also after mmap_lock, and a pool's
 * after that. A pinned slot's lock comes after vm->lock; of all these only a pool's is taken under it.
 */
#ifndef FH_GLUE_H
#define FH_GLUE_H

#include <linux/atomic.h>
#include <linux/gfp.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#define FH_RUST(ret, name, ...) ret name(__VA_ARGS__)
#define FH_C(ret, name, ...) ret name(__VA_ARGS__)

/* Rust's own part of each object; opaque here. */
struct fh_vm_state;
struct fh_file_state;
struct fh_vcpu_state;
struct fh_plain_state;
struct fh_pinned_state;
struct kvm_run;
struct page;
struct file;

/* For whatever a call makes: charged to its caller, who hears of a limit and is not killed for it. */
#define FH_GFP (GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL)
/* Asked before the kernel makes a file of ours: 0 or -ENOMEM. */
int fh_room_for_a_file(void);

/* vCPUs of a VM, at most. */
#define FH_VCPUS 64
/* Pages of a plain slot that are looked up at once, at most. */
#define FH_AROUND 16

/* What wakes a vCPU that waits for an interrupt. */
struct fh_bell {
	wait_queue_head_t wait;
	atomic_t rung;
};

/* A VM: lives as long as its descriptor, a vCPU's descriptor, or a call on it. */
struct fh_vm {
	struct kref ref;
	struct list_head all;		/* every VM; under the list's lock */
	bool over;			/* it was ended before a reboot; under the list's lock */
	u64 id;				/* never used twice */
	struct mutex lock;		/* what *state says, save what never changes */
	struct mutex pool_lock;		/* comes after every other; held while el2 takes a chunk */
	struct list_head pool;		/* chunks that el2 owns, by their first page */
	struct fh_vm_state *state;
	struct fh_bell bells[FH_VCPUS];
	spinlock_t irqfd_lock;		/* taken under an eventfd's own lock; no other is taken under it */
	struct list_head irqfds;
	struct mutex resample_lock;	/* an eventfd's own lock is taken under it */
	struct list_head resamplers;
};

struct fh_vcpu {
	struct fh_vm *vm;
	struct mutex lock;		/* one thread runs it */
	struct page *run_page;
	struct kvm_run *run;
	struct fh_bell *bell;		/* in *vm */
	struct wait_queue_entry sleeper; /* the thread that runs it */
	struct fh_vcpu_state *state;
};

/* A guest_memfd. */
struct fh_file {
	struct file *file;		/* its own; not a reference */
	struct page **frames;		/* under the invalidate lock, or the attempt's that the page drains for */
	u64 pages;
	bool mappable;
	u64 since;			/* jiffies at the start of the latest attempt */
	spinlock_t faults_lock;		/* who waits in a fault; no other is taken under it */
	bool outcome;			/* poll has something to say */
	struct delayed_work drive;	/* looks at the conversion that nobody waits for */
	wait_queue_head_t wait;		/* for an attempt's outcome */
	struct fh_file_state *state;
};

/* main.c */
FH_RUST(long, fh_init, void);
FH_RUST(long, fh_system_ioctl, unsigned int cmd, unsigned long arg, bool protect);
FH_RUST(u64, fh_vms_patience, void);
FH_RUST(bool, fh_vm_halt, struct fh_vm *vm, struct fh_vm_state *state, u64 until);
FH_C(struct fh_vm *, fhc_vm_find, u64 id);
FH_C(bool, fhc_vm_alive, u64 id);
unsigned int fh_vms(void);
void fh_vms_stay_away(bool stay);
void fh_vms_halt(void);

/* sys.c */
FH_C(void, fhc_log, int level, const u8 *text, size_t len);
FH_C(void, fhc_bug, const u8 *text, size_t len);
FH_C(void *, fhc_alloc, size_t size);
FH_C(void, fhc_free, void *ptr);
FH_C(bool, fhc_copy_in, void *to, unsigned long from, size_t len);
FH_C(bool, fhc_copy_out, unsigned long to, const void *from, size_t len);
FH_C(u64, fhc_now, void);
FH_C(void, fhc_pause, u32 micros, bool deaf);
FH_C(void, fhc_doze, void);
FH_C(bool, fhc_signal, void);
FH_C(bool, fhc_called_away, void);
FH_C(bool, fhc_dying, void);
FH_C(void, fhc_breathe, void);
FH_C(u64, fhc_page_take, u32 order);
FH_C(void, fhc_page_give_back, u64 pfn, u64 count);
FH_C(void *, fhc_page_address, u64 pfn);

/* el2.c */
FH_C(int, fhc_el2_conduit, void);
FH_C(void, fhc_el2_uid, u32 *words);
FH_C(void, fhc_el2_call, u64 *regs);
FH_C(bool, fhc_el2_run, u64 *regs);

/* file.c */
FH_RUST(struct fh_file_state *, fh_file_new, u64 pages, bool shared, u64 vm);
FH_RUST(void, fh_file_drop, struct fh_file *file, struct fh_file_state *state);
FH_RUST(int, fh_file_fault, struct fh_file_state *state, u64 page);
FH_RUST(u64, fh_file_patience, struct fh_file_state *state, u64 who, bool again, u64 now, u64 since, u64 second);
FH_RUST(void, fh_file_fault_over, struct fh_file_state *state, u64 who);
FH_RUST(long, fh_file_ioctl, struct fh_file *file, struct fh_file_state *state, unsigned int cmd, unsigned long arg);
FH_RUST(bool, fh_file_drive, struct fh_file *file, struct fh_file_state *state);
FH_RUST(long, fh_file_fallocate, struct fh_file *file, struct fh_file_state *state, int punch, u64 offset, u64 len);
FH_C(int, fhc_file_open, u64 pages, bool mappable, bool shared, u64 vm);
FH_C(struct fh_file *, fhc_file_get, u32 fd, struct fh_file_state **state);
FH_C(void, fhc_file_put, struct fh_file *file);
FH_C(void, fhc_file_hold, struct fh_file *file);
FH_C(void, fhc_file_tell, struct fh_file *file, bool outcome);
FH_C(void, fhc_file_drive_later, struct fh_file *file);
FH_C(void, fhc_file_lock, struct fh_file *file);
FH_C(void, fhc_file_unlock, struct fh_file *file);
FH_C(u64, fhc_file_frame, struct fh_file *file, u64 page);
FH_C(int, fhc_file_allocate, struct fh_file *file, u64 page);
FH_C(void, fhc_file_release, struct fh_file *file, u64 page);
FH_C(int, fhc_file_freeze, struct fh_file *file, u64 page);
FH_C(void, fhc_file_thaw, struct fh_file *file, u64 page);
FH_C(void, fhc_file_shut, struct fh_file *file, u64 first, u64 count);
FH_C(bool, fhc_file_fill, struct fh_file *file, u64 page, unsigned long from);
FH_C(void, fhc_file_wake, struct fh_file *file);

/* plain.c */
struct fh_plain;
FH_RUST(void, fh_plain_changes, struct fh_plain_state *state, u64 first, u64 count);
FH_RUST(void, fh_plain_free, struct fh_plain_state *state);
FH_C(int, fhc_plain_new, struct fh_plain **made, unsigned long start, u64 pages, struct fh_plain_state *state);
FH_C(void, fhc_plain_hold, struct fh_plain *plain);
FH_C(void, fhc_plain_put, struct fh_plain *plain);
FH_C(void, fhc_plain_lock, struct fh_plain *plain);
FH_C(void, fhc_plain_unlock, struct fh_plain *plain);
FH_C(unsigned long, fhc_plain_begin, struct fh_plain *plain);
FH_C(bool, fhc_plain_passed, struct fh_plain *plain, unsigned long seq);
FH_C(int, fhc_plain_bring, struct fh_plain *plain, u64 first, u64 *frames, u32 count, bool write);
FH_C(void, fhc_plain_let_go, const u64 *frames, u32 count);

/* pinned.c */
struct fh_pinned;
FH_RUST(void, fh_pinned_free, struct fh_pinned_state *state);
FH_C(int, fhc_pinned_new, struct fh_pinned **made, unsigned long start, u64 pages, struct fh_pinned_state *state);
FH_C(void, fhc_pinned_hold, struct fh_pinned *pinned);
FH_C(void, fhc_pinned_put, struct fh_pinned *pinned);
FH_C(void, fhc_pinned_lock, struct fh_pinned *pinned);
FH_C(void, fhc_pinned_unlock, struct fh_pinned *pinned);
FH_C(int, fhc_pinned_pin, struct fh_pinned *pinned, u64 page, bool present, u64 *frame);
FH_C(void, fhc_pinned_unpin, struct fh_pinned *pinned, u64 frame);

/* event.c */
struct eventfd_ctx;
FH_C(int, fhc_event_get, struct eventfd_ctx **event, u32 fd);
FH_C(void, fhc_event_put, struct eventfd_ctx *event);
FH_C(void, fhc_event_signal, struct eventfd_ctx *event);

/* irqfd.c */
FH_RUST(void, fh_irqfd_raise, struct fh_vm *vm, struct fh_vm_state *state, u32 gsi, bool resample);
FH_C(int, fhc_irqfd_assign, struct fh_vm *vm, u32 fd, u32 gsi, bool resample, u32 resamplefd);
FH_C(int, fhc_irqfd_deassign, struct fh_vm *vm, u32 fd, u32 gsi);
FH_C(void, fhc_irqfds_ended, struct fh_vm *vm, u32 gsi);
int fh_irqfds_init(void);
void fh_irqfds_exit(void);
void fh_irqfds_drop(struct fh_vm *vm);

/* vm.c */
FH_RUST(void, fh_vm_end, struct fh_vm *vm, struct fh_vm_state *state);
FH_RUST(long, fh_vm_ioctl, struct fh_vm *vm, struct fh_vm_state *state, unsigned int cmd, unsigned long arg);
FH_RUST(long, fh_vcpu_ioctl, struct fh_vcpu *vcpu, struct fh_vcpu_state *state, unsigned int cmd, unsigned long arg);
FH_RUST(void, fh_vcpu_free, struct fh_vcpu_state *state);
FH_C(struct fh_vm *, fhc_vm_new, void);
FH_C(int, fhc_vm_open, struct fh_vm *vm, struct fh_vm_state *state);
FH_C(u64, fhc_vm_id, struct fh_vm *vm);
FH_C(struct fh_vm_state *, fhc_vm_state, struct fh_vm *vm);
FH_C(void, fhc_vm_put, struct fh_vm *vm);
FH_C(void, fhc_vm_lock, struct fh_vm *vm);
FH_C(bool, fhc_vm_lock_killable, struct fh_vm *vm);
FH_C(int, fhc_vm_lock_try, struct fh_vm *vm);
FH_C(bool, fhc_vm_is_free, struct fh_vm *vm);
FH_C(void, fhc_vm_unlock, struct fh_vm *vm);
FH_C(void, fhc_pool_lock, struct fh_vm *vm);
FH_C(void, fhc_pool_unlock, struct fh_vm *vm);
FH_C(void, fhc_pool_keep, struct fh_vm *vm, u64 pfn, u64 count);
FH_C(bool, fhc_pool_next, struct fh_vm *vm, u64 *pfn, u64 *count);
FH_C(int, fhc_vcpu_open, struct fh_vm *vm, u32 id, struct fh_vcpu_state *state);
FH_C(struct fh_vm *, fhc_vcpu_vm, struct fh_vcpu *vcpu);
FH_C(bool, fhc_run_immediate_exit, struct fh_vcpu *vcpu);
FH_C(u64, fhc_run_mmio_data, struct fh_vcpu *vcpu);
FH_C(void, fhc_run_tell, struct fh_vcpu *vcpu, u32 what, u64 a, u64 b, u64 c);

/* gic.c */
FH_RUST(void, fh_gic_closed, struct fh_vm *vm, struct fh_vm_state *state);
FH_RUST(long, fh_gic_ioctl, struct fh_vm *vm, struct fh_vm_state *state, unsigned int cmd, unsigned long arg);
FH_C(int, fhc_gic_open, struct fh_vm *vm);

/* bell.c */
FH_C(void, fhc_bell_mute, struct fh_vcpu *vcpu);
FH_C(bool, fhc_bell_rang, struct fh_vcpu *vcpu);
FH_C(void, fhc_bell_ring, struct fh_vm *vm, u64 vcpus);
FH_C(void, fhc_bell_enlist, struct fh_vcpu *vcpu);
FH_C(bool, fhc_bell_sleep, u64 nanoseconds);
FH_C(void, fhc_bell_leave, struct fh_vcpu *vcpu);
FH_C(u64, fhc_counter, void);
FH_C(u64, fhc_counter_frequency, void);
void fh_bells_init(struct fh_vm *vm);

/* file.c, for main.c */
extern atomic_t fh_files;

#endif
