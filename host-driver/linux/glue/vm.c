// SPDX-License-Identifier: GPL-2.0-only
/* Descriptors of VMs and vCPUs, a VM's pool of frames, and the vCPU's run page. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "glue.h"

static LIST_HEAD(all_vms);
static DEFINE_SPINLOCK(all_vms_lock);
static u64 next_id = 1;
/* The machine goes down: no VM is created any more. */
static bool halted;
/* The machine's memory may be put to disk: no VM is opened meanwhile. */
static bool away;
/* A VM has left the list. */
static DECLARE_WAIT_QUEUE_HEAD(left);

/* The last reference is gone: no descriptor, no vCPU, no call. Frames come back before the VM leaves the list. */
static void vm_release(struct kref *ref)
{
	struct fh_vm *vm = container_of(ref, struct fh_vm, ref);

	fh_irqfds_drop(vm);
	if (vm->state)
		fh_vm_end(vm, vm->state);
	spin_lock(&all_vms_lock);
	list_del(&vm->all);
	spin_unlock(&all_vms_lock);
	wake_up_all(&left);
	kfree(vm);
}

void fhc_vm_put(struct fh_vm *vm)
{
	kref_put(&vm->ref, vm_release);
}

struct fh_vm *fhc_vm_new(void)
{
	struct fh_vm *vm = kzalloc(sizeof(*vm), FH_GFP);

	if (!vm)
		return NULL;
	kref_init(&vm->ref);
	mutex_init(&vm->lock);
	mutex_init(&vm->pool_lock);
	INIT_LIST_HEAD(&vm->pool);
	spin_lock_init(&vm->irqfd_lock);
	INIT_LIST_HEAD(&vm->irqfds);
	mutex_init(&vm->resample_lock);
	INIT_LIST_HEAD(&vm->resamplers);
	fh_bells_init(vm);
	spin_lock(&all_vms_lock);
	vm->id = next_id++;
	list_add_tail(&vm->all, &all_vms);
	spin_unlock(&all_vms_lock);
	return vm;
}

/* The VM of this number with a reference, if it has not begun to end. */
struct fh_vm *fhc_vm_find(u64 id)
{
	struct fh_vm *vm, *found = NULL;

	spin_lock(&all_vms_lock);
	list_for_each_entry(vm, &all_vms, all) {
		if (vm->id == id && kref_get_unless_zero(&vm->ref)) {
			found = vm;
			break;
		}
	}
	spin_unlock(&all_vms_lock);
	return found;
}

/* Whether the VM of this number still has frames: also while it ends. */
bool fhc_vm_alive(u64 id)
{
	struct fh_vm *vm;
	bool alive = false;

	spin_lock(&all_vms_lock);
	list_for_each_entry(vm, &all_vms, all)
		alive |= vm->id == id;
	spin_unlock(&all_vms_lock);
	return alive;
}

unsigned int fh_vms(void)
{
	struct fh_vm *vm;
	unsigned int count = 0;

	spin_lock(&all_vms_lock);
	list_for_each_entry(vm, &all_vms, all)
		count++;
	spin_unlock(&all_vms_lock);
	return count;
}

/* The next VM behind `id` with a reference; the list is in the order of the numbers. */
static struct fh_vm *vm_behind(u64 id)
{
	struct fh_vm *vm, *found = NULL;

	spin_lock(&all_vms_lock);
	list_for_each_entry(vm, &all_vms, all) {
		if (vm->id > id && kref_get_unless_zero(&vm->ref)) {
			found = vm;
			break;
		}
	}
	spin_unlock(&all_vms_lock);
	return found;
}

static bool vms_over(void)
{
	struct fh_vm *vm;
	bool over = true;

	spin_lock(&all_vms_lock);
	list_for_each_entry(vm, &all_vms, all)
		over &= vm->over;
	spin_unlock(&all_vms_lock);
	return over;
}

bool fhc_vm_is_free(struct fh_vm *vm)
{
	if (!mutex_trylock(&vm->lock))
		return false;
	mutex_unlock(&vm->lock);
	return true;
}

/*
 * Before a reboot or kexec: every VM gives its frames back, scrubbed, while its descriptors are still open. One that is
 * being created either shows its state here or sees `halted` when it is opened; that one, and whichever somebody else is
 * ending, leaves the list by itself. What runs next may use every frame.
 */
void fh_vms_halt(void)
{
	u64 until = fh_vms_patience();
	struct fh_vm *vm;
	bool over;
	u64 id;

	WRITE_ONCE(halted, true);
	smp_mb(); /* with the one in fhc_vm_open */
	for (id = 0; (vm = vm_behind(id)); fhc_vm_put(vm)) {
		struct fh_vm_state *state = fhc_vm_state(vm);

		id = vm->id;
		if (!state)
			continue;
		over = fh_vm_halt(vm, state, until);
		spin_lock(&all_vms_lock);
		vm->over = over;
		spin_unlock(&all_vms_lock);
	}
	if (!wait_event_timeout(left, vms_over(), 10 * HZ))
		pr_err("freehold: the machine goes down over VMs that have not ended\n");
}

/* One that is being opened is on the list before it looks here, and is counted behind this. */
void fh_vms_stay_away(bool stay)
{
	WRITE_ONCE(away, stay);
	smp_mb(); /* with the one in fhc_vm_open */
}

u64 fhc_vm_id(struct fh_vm *vm)
{
	return vm->id;
}

struct fh_vm_state *fhc_vm_state(struct fh_vm *vm)
{
	return smp_load_acquire(&vm->state);
}

void fhc_vm_lock(struct fh_vm *vm)
{
	mutex_lock(&vm->lock);
}

/* False: the thread is being killed or the machine goes down, and it does not have the lock. */
bool fhc_vm_lock_killable(struct fh_vm *vm)
{
	if (mutex_lock_killable(&vm->lock))
		return false;
	if (!READ_ONCE(halted))
		return true;
	mutex_unlock(&vm->lock);
	return false;
}

/* 1: the thread has the lock; 0: somebody else has it; -1: the machine goes down. */
int fhc_vm_lock_try(struct fh_vm *vm)
{
	if (!mutex_trylock(&vm->lock))
		return READ_ONCE(halted) ? -1 : 0;
	if (!READ_ONCE(halted))
		return 1;
	mutex_unlock(&vm->lock);
	return -1;
}

void fhc_vm_unlock(struct fh_vm *vm)
{
	mutex_unlock(&vm->lock);
}

void fhc_pool_lock(struct fh_vm *vm)
{
	mutex_lock(&vm->pool_lock);
}

void fhc_pool_unlock(struct fh_vm *vm)
{
	mutex_unlock(&vm->pool_lock);
}

/* Chunks hang on the list by their first page, whose struct page stays the host's. The caller has the pool's lock. */
void fhc_pool_keep(struct fh_vm *vm, u64 pfn, u64 count)
{
	struct page *page = pfn_to_page(pfn);

	lockdep_assert_held(&vm->pool_lock);
	set_page_private(page, count);
	list_add(&page->lru, &vm->pool);
}

bool fhc_pool_next(struct fh_vm *vm, u64 *pfn, u64 *count)
{
	struct page *page;

	mutex_lock(&vm->pool_lock);
	page = list_first_entry_or_null(&vm->pool, struct page, lru);
	if (page)
		list_del(&page->lru);
	mutex_unlock(&vm->pool_lock);
	if (!page)
		return false;
	*pfn = page_to_pfn(page);
	*count = page_private(page);
	set_page_private(page, 0);
	return true;
}

static int vm_fops_release(struct inode *inode, struct file *file)
{
	fhc_vm_put(file->private_data);
	return 0;
}

static long vm_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct fh_vm *vm = file->private_data;

	return fh_vm_ioctl(vm, vm->state, cmd, arg);
}

static const struct file_operations fh_vm_fops = {
	.owner = THIS_MODULE,
	.release = vm_fops_release,
	.unlocked_ioctl = vm_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

/* Gives the VM its state, for good, and a descriptor; on failure the caller's reference stays the caller's. */
int fhc_vm_open(struct fh_vm *vm, struct fh_vm_state *state)
{
	struct file *file;
	int fd;

	/* What the state holds is written before others find it by the VM's number. */
	smp_store_release(&vm->state, state);
	smp_mb(); /* with those in fh_vms_halt and fh_vms_stay_away */
	if (READ_ONCE(halted))
		return -ESHUTDOWN;
	if (READ_ONCE(away))
		return -EBUSY;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	file = fh_room_for_a_file() ? ERR_PTR(-ENOMEM) : anon_inode_getfile("freehold-vm", &fh_vm_fops, vm, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;
}

static int vcpu_fops_release(struct inode *inode, struct file *file)
{
	struct fh_vcpu *vcpu = file->private_data;

	fh_vcpu_free(vcpu->state);
	__free_page(vcpu->run_page);
	fhc_vm_put(vcpu->vm);
	kfree(vcpu);
	return 0;
}

static long vcpu_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct fh_vcpu *vcpu = file->private_data;
	long ret;

	if (mutex_lock_killable(&vcpu->lock))
		return -EINTR;
	ret = fh_vcpu_ioctl(vcpu, vcpu->state, cmd, arg);
	mutex_unlock(&vcpu->lock);
	return ret;
}

static vm_fault_t run_fault(struct vm_fault *vmf)
{
	struct fh_vcpu *vcpu = vmf->vma->vm_file->private_data;

	if (vmf->pgoff != 0)
		return VM_FAULT_SIGBUS;
	get_page(vcpu->run_page);
	vmf->page = vcpu->run_page;
	return 0;
}

static const struct vm_operations_struct run_vm_ops = {
	.fault = run_fault,
};

static int vcpu_fops_mmap(struct file *file, struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &run_vm_ops;
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.release = vcpu_fops_release,
	.unlocked_ioctl = vcpu_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = vcpu_fops_mmap,
	.llseek = noop_llseek,
};

/* A descriptor for a vCPU; takes a reference to the VM. On failure the state stays the caller's. */
int fhc_vcpu_open(struct fh_vm *vm, u32 id, struct fh_vcpu_state *state)
{
	struct fh_vcpu *vcpu;
	char name[32];
	struct file *file;
	int fd = -ENOMEM;

	BUILD_BUG_ON(sizeof(struct kvm_run) > PAGE_SIZE);
	if (WARN_ON_ONCE(id >= FH_VCPUS))
		return -EINVAL;
	vcpu = kzalloc(sizeof(*vcpu), FH_GFP);
	if (!vcpu)
		return -ENOMEM;
	vcpu->run_page = alloc_page(FH_GFP | __GFP_ZERO);
	if (!vcpu->run_page)
		goto free;
	vcpu->run = page_address(vcpu->run_page);
	vcpu->vm = vm;
	vcpu->state = state;
	vcpu->bell = &vm->bells[id];
	mutex_init(&vcpu->lock);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto free_page;
	snprintf(name, sizeof(name), "freehold-vcpu:%u", id);
	kref_get(&vm->ref);
	file = fh_room_for_a_file() ? ERR_PTR(-ENOMEM) : anon_inode_getfile(name, &vcpu_fops, vcpu, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		fhc_vm_put(vm);
		goto free_page;
	}
	fd_install(fd, file);
	return fd;
free_page:
	__free_page(vcpu->run_page);
free:
	kfree(vcpu);
	return fd;
}

struct fh_vm *fhc_vcpu_vm(struct fh_vcpu *vcpu)
{
	return vcpu->vm;
}

/* The second byte of the ABI's structure; the kernel's own name for the field differs between releases. */
bool fhc_run_immediate_exit(struct fh_vcpu *vcpu)
{
	return READ_ONCE(((u8 *)vcpu->run)[1]) != 0;
}

/* Read once: the VMM may write meanwhile. */
u64 fhc_run_mmio_data(struct fh_vcpu *vcpu)
{
	u64 data;

	memcpy(&data, vcpu->run->mmio.data, sizeof(data));
	barrier();
	return data;
}

/* Fills the run page. `what` is the exit reason, the rest what that reason has. */
void fhc_run_tell(struct fh_vcpu *vcpu, u32 what, u64 a, u64 b, u64 c)
{
	struct kvm_run *run = vcpu->run;

	switch (what) {
	case KVM_EXIT_MMIO:
		run->mmio.phys_addr = a;
		run->mmio.len = b & 0xf;
		run->mmio.is_write = b >> 8 & 1;
		memcpy(run->mmio.data, &c, sizeof(c));
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		memset(&run->system_event, 0, sizeof(run->system_event));
		run->system_event.type = a;
		run->system_event.ndata = b;
		run->system_event.data[0] = c;
		break;
	case KVM_EXIT_FAIL_ENTRY:
		run->fail_entry.hardware_entry_failure_reason = a;
		run->fail_entry.cpu = raw_smp_processor_id();
		break;
	case KVM_EXIT_MEMORY_FAULT:
		run->memory_fault.flags = 0;
		run->memory_fault.gpa = a;
		run->memory_fault.size = b;
		break;
	}
	WRITE_ONCE(run->exit_reason, what);
}
