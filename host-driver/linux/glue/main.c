// SPDX-License-Identifier: GPL-2.0-only
/*
 * Module entry: looks for el2, offers its nodes only where it answered, and minds reboot and hibernation.
 *
 * /dev/freehold is always there; /dev/kvm, the same under the name that VMMs look for, where the kernel's own KVM did not
 * take it: above el2 it never does, for this kernel was not entered at EL2. /dev/kvm-protected makes every VM a protected
 * one, for VMMs that can not ask.
 */
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/memory.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/printk.h>
#include <linux/reboot.h>
#include <linux/suspend.h>

#include "glue.h"

static long system_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return fh_system_ioctl(cmd, arg, false);
}

static long protected_fops_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return fh_system_ioctl(cmd, arg, true);
}

static const struct file_operations system_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = system_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static const struct file_operations protected_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = protected_fops_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "freehold",
	.fops = &system_fops,
	.mode = 0600,
};

static struct miscdevice protected_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kvm-protected",
	.fops = &protected_fops,
	.mode = 0600,
};

/* KVM's own number: whoever comes first has it. */
static struct miscdevice kvm_device = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &system_fops,
	.mode = 0600,
};

static bool has_kvm_node;

static int on_reboot(struct notifier_block *block, unsigned long action, void *data)
{
	fh_vms_halt();
	return NOTIFY_DONE;
}

static struct notifier_block reboot_block = {
	.notifier_call = on_reboot,
};

/* VMs first: one that makes a file and goes is seen by itself before it has gone, and by its file from then on. */
static bool guests_live(void)
{
	return fh_vms() || atomic_read(&fh_files);
}

/*
 * A hibernation image would lack what the guests own, and what is frozen for a guest to come. Between the question and the
 * image nobody stops a process, so from the question on no VM is opened, and without one no file is made.
 */
static int on_sleep(struct notifier_block *block, unsigned long action, void *data)
{
	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		fh_vms_stay_away(true);
		if (!guests_live())
			break;
		/* Who says no is not asked again when it is over. */
		fh_vms_stay_away(false);
		pr_warn("freehold: no hibernation while protected VMs or their memory live\n");
		return notifier_from_errno(-EBUSY);
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		fh_vms_stay_away(false);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block sleep_block = {
	.notifier_call = on_sleep,
};

#ifdef CONFIG_MEMORY_HOTPLUG
/* A frozen page looks free to the kernel's memory offlining, and is not. */
static int on_memory(struct notifier_block *block, unsigned long action, void *data)
{
	if (action == MEM_GOING_OFFLINE && guests_live())
		return notifier_from_errno(-EBUSY);
	return NOTIFY_OK;
}

static struct notifier_block memory_block = {
	.notifier_call = on_memory,
};
#endif

static int __init freehold_init(void)
{
	int err;

	if (PAGE_SIZE != 4096) {
		pr_err("freehold: this kernel's page size is %lu; v1 serves 4096 only\n", PAGE_SIZE);
		return -ENODEV;
	}
	err = fh_init();
	if (err)
		return err;
	err = fh_irqfds_init();
	if (err)
		return err;
	err = register_reboot_notifier(&reboot_block);
	if (err)
		goto no_reboot;
	err = register_pm_notifier(&sleep_block);
	if (err)
		goto no_sleep;
#ifdef CONFIG_MEMORY_HOTPLUG
	err = register_memory_notifier(&memory_block);
	if (err)
		goto no_memory;
#endif
	err = misc_register(&device);
	if (err)
		goto no_device;
	err = misc_register(&protected_device);
	if (err)
		goto no_protected;
	err = misc_register(&kvm_device);
	has_kvm_node = !err;
	if (err)
		pr_info("freehold: /dev/kvm is this kernel's own (%d); VMMs have /dev/freehold\n", err);
	return 0;
no_protected:
	misc_deregister(&device);
no_device:
#ifdef CONFIG_MEMORY_HOTPLUG
	unregister_memory_notifier(&memory_block);
no_memory:
#endif
	unregister_pm_notifier(&sleep_block);
no_sleep:
	unregister_reboot_notifier(&reboot_block);
no_reboot:
	fh_irqfds_exit();
	return err;
}

/* Every descriptor holds the module, so no VM and no file is left here. */
static void __exit freehold_exit(void)
{
	if (has_kvm_node)
		misc_deregister(&kvm_device);
	misc_deregister(&protected_device);
	misc_deregister(&device);
#ifdef CONFIG_MEMORY_HOTPLUG
	unregister_memory_notifier(&memory_block);
#endif
	unregister_pm_notifier(&sleep_block);
	unregister_reboot_notifier(&reboot_block);
	fh_irqfds_exit();
}

module_init(freehold_init);
module_exit(freehold_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Protected virtual machines over Freehold's el2");
MODULE_VERSION(FREEHOLD_RELEASE);
