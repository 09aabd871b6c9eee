// SPDX-License-Identifier: GPL-2.0
/* A module with a parameter and a symbol for others. */
#include <linux/init.h>
#include <linux/module.h>

int kilna_level(void);

static int level = 1;
module_param(level, int, 0444);
MODULE_PARM_DESC(level, "what kilna_level returns");

int kilna_level(void)
{
	WARN_ON(level < 0); /* has the name of this file in it */
	return level;
}
EXPORT_SYMBOL_GPL(kilna_level);

static int __init kilna_init(void)
{
	pr_info("kilna: level %d\n", level);
	return 0;
}

static void __exit kilna_exit(void)
{
}

module_init(kilna_init);
module_exit(kilna_exit);
MODULE_DESCRIPTION("test module that exports a symbol");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
