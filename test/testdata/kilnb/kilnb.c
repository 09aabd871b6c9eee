// SPDX-License-Identifier: GPL-2.0
/* A module that uses the symbol of kilna. */
#include <linux/init.h>
#include <linux/module.h>

int kilna_level(void);

static int __init kilnb_init(void)
{
	pr_info("kilnb: kilna has level %d\n", kilna_level());
	return 0;
}

static void __exit kilnb_exit(void)
{
}

module_init(kilnb_init);
module_exit(kilnb_exit);
MODULE_DESCRIPTION("test module that needs kilna");
MODULE_LICENSE("GPL");
