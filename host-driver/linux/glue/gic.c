// SPDX-License-Identifier: GPL-2.0-only
/* The descriptor of a VM's interrupt controller, whose attributes are all that it has. */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>

#include "glue.h"

static int gic_fops_release(struct inode *inode, struct file *file)
{
	struct fh_vm *vm = file->private_data;

	fh_gic_closed(vm, vm->state);
	fhc_vm_put(vm);
	return 0;
}

static long gic_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct fh_vm *vm = file->private_data;

	return fh_gic_ioctl(vm, vm->state, cmd, arg);
}

static const struct file_operations gic_fops = {
	.owner = THIS_MODULE,
	.release = gic_fops_release,
	.unlocked_ioctl = gic_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

/* A descriptor that is nobody's to see before it is installed; it holds a reference to the VM. */
int fhc_gic_open(struct fh_vm *vm)
{
	int fd;

	if (fh_room_for_a_file())
		return -ENOMEM;
	kref_get(&vm->ref);
	fd = anon_inode_getfd("freehold-vgic-v3", &gic_fops, vm, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fhc_vm_put(vm);
	return fd;
}
