package hardening

// Values that a fact may want, besides those themselves, numbers (">=65536") and
// what a value must not be ("!off"); "|" is between several.
const (
	unset = "unset" // not there
	set   = "set"   // there, whatever the value is
	yes   = "true"  // what the kernel takes for true
	no    = "false"
)

// A fact is a setting that has one of some values.
type fact struct {
	kind Kind
	name string
	want string
}

// A rule is a recommendation: its fact, or another that has the same effect.
type rule struct {
	fact
	why, source string

	arch         string // "" is all
	since, until string // versions of Linux: the first that has it, the first that has it no more
	needs        []fact // without which it makes no sense
	overrides    []fact // which count instead, if they are there
	alternatives []fact // any of which will do
}

func config(name, want, why string) rule {
	return rule{fact: fact{Config, name, want}, why: why, source: kspp}
}
func cmdline(name, want, why string) rule {
	return rule{fact: fact{Cmdline, name, want}, why: why, source: kspp}
}
func sysctl(name, want, why string) rule {
	return rule{fact: fact{Sysctl, name, want}, why: why, source: kspp}
}

func (r rule) on(arch string) rule       { r.arch = arch; return r }
func (r rule) from(version string) rule  { r.since = version; return r }
func (r rule) upTo(version string) rule  { r.until = version; return r }
func (r rule) by(source string) rule     { r.source = source; return r }
func (r rule) or(list ...fact) rule      { r.alternatives = append(r.alternatives, list...); return r }
func (r rule) unless(list ...fact) rule  { r.overrides = append(r.overrides, list...); return r }
func (r rule) needing(list ...fact) rule { r.needs = append(r.needs, list...); return r }

func option(name, want string) fact    { return fact{Config, name, want} }
func argument(name, want string) fact  { return fact{Cmdline, name, want} }
func parameter(name, want string) fact { return fact{Sysctl, name, want} }

// Where rules are from.
const (
	kspp       = "KSPP Recommended Settings"
	checker    = "kernel-hardening-checker"
	parameters = "Linux, admin-guide/kernel-parameters"
)

// Architectures.
const (
	amd64 = "amd64"
	arm64 = "arm64"
)

// rules returns all of them, in the order in which they are reported.
func rules() []rule {
	var all []rule
	for _, list := range [][]rule{memory(), integrity(), surface(), modules(), processors(), commandLine(), sysctls()} {
		all = append(all, list...)
	}
	return all
}

// memory is what keeps the kernel's memory what it should be.
func memory() []rule {
	gcc, clang := option("CC_IS_GCC", "y"), option("CC_IS_CLANG", "y")
	bounds := option("UBSAN_BOUNDS", "y")
	return []rule{
		config("STRICT_KERNEL_RWX", "y", "the kernel's code cannot be written, its data not executed").or(option("DEBUG_RODATA", "y")),
		config("DEBUG_WX", "y", "tells of memory that can be written and executed"),
		config("STACKPROTECTOR", "y", "notices overwritten stacks").or(option("CC_STACKPROTECTOR", "y")),
		config("STACKPROTECTOR_STRONG", "y", "notices overwritten stacks, in more functions").or(option("CC_STACKPROTECTOR_STRONG", "y")),
		config("VMAP_STACK", "y", "guard pages around stacks"),
		config("SCHED_STACK_END_CHECK", "y", "notices stacks that overflow"),
		config("HARDENED_USERCOPY", "y", "bounds what is copied to and from processes").unless(argument("hardened_usercopy", yes)),
		config("HARDENED_USERCOPY_FALLBACK", unset, "would copy objects that are not meant to be"),
		config("HARDENED_USERCOPY_PAGESPAN", unset, "reports what is no fault"),
		config("FORTIFY_SOURCE", "y", "bounds copies within structures"),
		config("SLAB_FREELIST_RANDOM", "y", "the order of objects in a slab is not known"),
		config("SLAB_FREELIST_HARDENED", "y", "pointers within slabs are hidden"),
		config("RANDOM_KMALLOC_CACHES", "y", "objects of the same size are in several caches").from("6.6"),
		config("SLAB_MERGE_DEFAULT", unset, "caches of the same size stay apart").or(argument("slab_nomerge", set), argument("slub_nomerge", set)),
		config("SHUFFLE_PAGE_ALLOCATOR", "y", "lets the order of pages be random").from("5.2"),
		config("SLUB_DEBUG", "y", "lets slabs be checked"),
		config("PAGE_TABLE_CHECK", "y", "notices pages that are mapped twice").from("5.17").needing(option("ARCH_SUPPORTS_PAGE_TABLE_CHECK", "y")),
		config("PAGE_TABLE_CHECK_ENFORCED", "y", "notices pages that are mapped twice, without being asked").from("5.17").needing(option("PAGE_TABLE_CHECK", "y")).or(argument("page_table_check", yes)),
		config("INIT_ON_ALLOC_DEFAULT_ON", "y", "memory is empty when it is given out").from("5.3").unless(argument("init_on_alloc", yes)),
		config("INIT_ON_FREE_DEFAULT_ON", "y", "memory is emptied when it is given back").from("5.3").unless(argument("init_on_free", yes)),
		config("INIT_STACK_ALL_ZERO", "y", "variables on the stack begin as zero").or(option("GCC_PLUGIN_STRUCTLEAK_BYREF_ALL", "y")),
		config("LIST_HARDENED", "y", "notices lists whose links are wrong").from("6.6"),
		config("DEBUG_LIST", "y", "notices lists whose links are wrong, with more checks"),
		config("DEBUG_SG", "y", "notices wrong lists of DMA buffers"),
		config("DEBUG_VIRTUAL", "y", "notices wrong conversions of addresses"),
		config("DEBUG_NOTIFIERS", "y", "notices wrong entries in chains of callbacks"),
		config("DEBUG_CREDENTIALS", "y", "notices wrong credentials").upTo("6.6.8"),
		config("REFCOUNT_FULL", "y", "notices references that are counted wrongly").upTo("5.5"),
		config("BUG_ON_DATA_CORRUPTION", "y", "stops instead of going on with damaged data"),
		config("UBSAN_BOUNDS", "y", "notices indices beyond an array's end").from("5.7"),
		config("UBSAN_TRAP", "y", "stops who uses an index beyond an array's end").from("5.7").needing(bounds),
		config("UBSAN_LOCAL_BOUNDS", "y", "notices indices beyond the end, as far as Clang can tell").from("5.11").needing(bounds, clang),
		config("UBSAN_SANITIZE_ALL", "y", "notices indices beyond the end everywhere in the kernel").upTo("6.9").needing(bounds),
		config("KFENCE", "y", "finds wrong uses of memory by samples").from("5.12"),
		config("KFENCE_SAMPLE_INTERVAL", "!0", "milliseconds between samples; KSPP has 100").from("5.12").needing(option("KFENCE", "y")).unless(argument("kfence.sample_interval", "!0")),
		config("RANDSTRUCT_FULL", "y", "the layout of structures is not known").or(option("RANDSTRUCT_PERFORMANCE", "y"), option("GCC_PLUGIN_RANDSTRUCT", "y")),
		config("GCC_PLUGIN_LATENT_ENTROPY", "y", "entropy from how the start goes").needing(gcc),
		config("GCC_PLUGIN_STACKLEAK", "y", "stacks are wiped after every system call").needing(gcc).or(option("KSTACK_ERASE", "y")),
		config("STACKLEAK_METRICS", unset, "tells how deep stacks are").needing(option("GCC_PLUGIN_STACKLEAK", "y")),
		config("STACKLEAK_RUNTIME_DISABLE", unset, "turns the wiping off").needing(option("GCC_PLUGIN_STACKLEAK", "y")),
		config("ZERO_CALL_USED_REGS", "y", "functions leave nothing in registers").from("5.15"),
		config("RANDOMIZE_KSTACK_OFFSET_DEFAULT", "y", "where the stack is differs with every system call").from("5.13").unless(argument("randomize_kstack_offset", yes)),
		config("RANDOMIZE_BASE", "y", "the kernel's address is not known"),
		config("RANDOMIZE_MEMORY", "y", "the addresses of its memory are not known").on(amd64),
		config("DEFAULT_MMAP_MIN_ADDR", ">=65536", "null pointers lead to nothing").on(amd64).unless(parameter("vm.mmap_min_addr", ">=65536")),
		config("DEFAULT_MMAP_MIN_ADDR", ">=32768", "null pointers lead to nothing").on(arm64).unless(parameter("vm.mmap_min_addr", ">=32768")),
		config("COMPAT_BRK", unset, "would make the heap's address known"),
		config("COMPAT_VDSO", unset, "would make the vDSO's address known").on(amd64),
	}
}

// integrity is about who may change the kernel, and what a process may do.
func integrity() []rule {
	selinux := option("SECURITY_SELINUX", "y")
	return []rule{
		config("BUG", "y", "what is wrong is reported, and who did it ended"),
		config("SECCOMP", "y", "processes can give up system calls"),
		config("SECCOMP_FILTER", "y", "processes can filter their system calls"),
		config("SECURITY", "y", "security modules can refuse what users may do"),
		config("SECURITY_YAMA", "y", "not every process may trace others"),
		config("SECURITY_LANDLOCK", "y", "processes can give up files").from("5.13"),
		config("SECURITY_SELINUX_BOOTPARAM", unset, "SELinux cannot be turned off by an argument").needing(selinux),
		config("SECURITY_SELINUX_DEVELOP", unset, "SELinux cannot be made permissive").needing(selinux),
		config("SECURITY_SELINUX_DEBUG", unset, "SELinux tells more than it should").needing(selinux),
		config("SECURITY_SELINUX_DISABLE", unset, "SELinux cannot be turned off").needing(selinux),
		config("SECURITY_WRITABLE_HOOKS", unset, "hooks of security modules are read-only"),
		config("SECURITY_LOCKDOWN_LSM", "y", "a line between root and the kernel").from("5.4"),
		config("SECURITY_LOCKDOWN_LSM_EARLY", "y", "the line between root and the kernel is there from the beginning").from("5.4"),
		config("LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY", "y", "nobody reads or changes the kernel's memory").from("5.4").or(argument("lockdown", "confidentiality")),
		config("STATIC_USERMODEHELPER", "y", "the kernel starts one program only"),
		config("SCHED_CORE", "y", "processes can have a core for themselves").from("5.14"),
		config("WERROR", "y", "the kernel was built without warnings").from("5.15"),
		config("PANIC_ON_OOPS", "y", "a fault in the kernel ends it").or(parameter("kernel.panic_on_oops", "1"), argument("oops", "panic")),
		config("PANIC_TIMEOUT", "!0", "the machine restarts when the kernel has ended; KSPP has -1, at once").unless(argument("panic", "!0"), parameter("kernel.panic", "!0")),
		config("SECURITY_DMESG_RESTRICT", "y", "the log is for administrators").or(parameter("kernel.dmesg_restrict", "1")),
		config("HW_RANDOM_TPM", "y", "entropy from a TPM"),
		config("RANDOM_TRUST_BOOTLOADER", "y", "entropy from the boot loader").upTo("6.2"),
		config("RANDOM_TRUST_CPU", "y", "entropy from the processor").upTo("6.2"),
		config("RESET_ATTACK_MITIGATION", "y", "firmware empties the memory after a reset").needing(option("EFI", "y")),
		config("EFI_DISABLE_PCI_DMA", "y", "devices reach no memory before the IOMMU is up").needing(option("EFI", "y")),
		config("IOMMU_SUPPORT", "y", "devices reach only what they are given"),
		config("IOMMU_DEFAULT_DMA_STRICT", "y", "devices do not reach what they have given back").unless(argument("iommu.strict", yes)),
		config("IOMMU_DEFAULT_PASSTHROUGH", unset, "would let devices reach all memory").unless(argument("iommu.passthrough", no)),
		config("INTEL_IOMMU", "y", "devices reach only what they are given, with Intel's IOMMU").on(amd64),
		config("INTEL_IOMMU_DEFAULT_ON", "y", "Intel's IOMMU is used").on(amd64).or(argument("intel_iommu", "on"), option("INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF", "y")),
		config("INTEL_IOMMU_SVM", "y", "devices can have a process's memory").on(amd64),
		config("AMD_IOMMU", "y", "devices reach only what they are given, with AMD's IOMMU").on(amd64),
		config("AMD_IOMMU_V2", "y", "devices can have a process's memory").on(amd64).upTo("6.7").or(option("AMD_IOMMU_V2", "m")),
	}
}

// surface is what should not be there to be attacked.
func surface() []rule {
	return []rule{
		config("SYN_COOKIES", "y", "a flood of connections leaves room for others"),
		config("DEVMEM", unset, "would give root the physical memory"),
		config("STRICT_DEVMEM", "y", "root reaches only the physical memory of devices").or(option("DEVMEM", unset)),
		config("IO_STRICT_DEVMEM", "y", "root reaches only the physical memory of devices without a driver").or(option("DEVMEM", unset)),
		config("DEVKMEM", unset, "would give root the kernel's memory"),
		config("PROC_KCORE", unset, "would give root the kernel's memory"),
		config("ACPI_CUSTOM_METHOD", unset, "would give root the physical memory"),
		config("KEXEC", unset, "would let root replace the kernel").or(parameter("kernel.kexec_load_disabled", "1")),
		config("HIBERNATION", unset, "would let root replace the kernel").or(argument("nohibernate", set), argument("hibernate", "no")),
		config("LDISC_AUTOLOAD", unset, "would load drivers that nobody needs").from("5.1").or(parameter("dev.tty.ldisc_autoload", "0")),
		config("LEGACY_PTYS", unset, "a fixed number of old terminals"),
		config("LEGACY_TIOCSTI", unset, "would let a process type for another").from("6.2").unless(parameter("dev.tty.legacy_tiocsti", "0")),
		config("INET_DIAG", unset, "tells about sockets"),
		config("BINFMT_MISC", unset, "lets more files be programs"),
		config("COMPAT", unset, "system calls of 32 bits").or(option("IA32_EMULATION", unset), argument("ia32_emulation", no)).on(amd64),
		config("COMPAT", unset, "system calls of 32 bits").on(arm64),
		config("IA32_EMULATION", unset, "system calls of 32 bits").on(amd64).unless(argument("ia32_emulation", no)).or(option("IA32_EMULATION_DEFAULT_DISABLED", "y")),
		config("X86_X32_ABI", unset, "system calls that nobody uses").on(amd64).or(option("X86_X32_DISABLED", "y")),
		config("MODIFY_LDT_SYSCALL", unset, "segments of 16 bits").on(amd64),
		config("X86_MSR", unset, "registers of the processor that root can write").on(amd64),
		config("LEGACY_VSYSCALL_NONE", "y", "no code at an address that everybody knows").on(amd64).unless(argument("vsyscall", "none")).or(option("X86_VSYSCALL_EMULATION", unset)),
		config("MAGIC_SYSRQ_DEFAULT_ENABLE", "0|0x0|176|0xb0", "keys that sync, unmount and restart, no others").needing(option("MAGIC_SYSRQ", "y")).unless(parameter("kernel.sysrq", "0|176")),
		config("DEBUG_FS", unset, "tells what drivers do").by(checker).or(option("DEBUG_FS_ALLOW_NONE", "y"), argument("debugfs", "off")),
	}
}

// modules is about drivers that are loaded later.
func modules() []rule {
	none := option("MODULES", unset)
	return []rule{
		config("MODULES", unset, "would let root change the kernel"),
		config("STRICT_MODULE_RWX", "y", "modules' code cannot be written, their data not executed").or(none, option("DEBUG_SET_MODULE_RONX", "y")),
		config("MODULE_SIG", "y", "modules can be signed").or(none),
		config("MODULE_SIG_FORCE", "y", "modules must be signed").or(none, argument("module.sig_enforce", yes+"|"), argument("lockdown", "integrity|confidentiality")),
		config("MODULE_SIG_ALL", "y", "the kernel's own modules are signed when it is built").or(none),
		config("MODULE_SIG_SHA512", "y", "modules' signatures have a long digest").or(none, option("MODULE_SIG_SHA3_512", "y")),
		config("MODULE_FORCE_LOAD", unset, "would load modules of other kernels"),
	}
}

// processors is what a processor's own means are used for.
func processors() []rule {
	return []rule{
		config("MITIGATION_PAGE_TABLE_ISOLATION", "y", "processes do not map the kernel").on(amd64).or(option("PAGE_TABLE_ISOLATION", "y")),
		config("MITIGATION_SLS", "y", "nothing is speculated behind a jump").on(amd64).from("5.17").or(option("SLS", "y")),
		config("MITIGATION_RETPOLINE", "y", "indirect jumps are not speculated").on(amd64).by(checker).or(option("RETPOLINE", "y")),
		config("X86_KERNEL_IBT", "y", "jumps lead to where functions begin").on(amd64).from("5.18"),
		config("X86_USER_SHADOW_STACK", "y", "programs can have shadow stacks").on(amd64).from("6.6"),
		config("CFI_CLANG", "y", "indirect calls lead to functions of the same type").from("6.1").needing(option("CC_IS_CLANG", "y")),
		config("CFI_PERMISSIVE", unset, "what calls others is ended, not only told of").needing(option("CFI_CLANG", "y")),
		config("ARM64_SW_TTBR0_PAN", "y", "the kernel does not reach processes by mistake").on(arm64).or(option("ARM64_PAN", "y")),
		config("UNMAP_KERNEL_AT_EL0", "y", "processes do not map the kernel").on(arm64),
		config("SHADOW_CALL_STACK", "y", "return addresses are kept apart").on(arm64).needing(option("CC_HAVE_SHADOW_CALL_STACK", "y")),
		config("UNWIND_PATCH_PAC_INTO_SCS", "y", "return addresses are kept apart where the processor cannot sign them").on(arm64).from("6.2").needing(option("SHADOW_CALL_STACK", "y"), option("CC_IS_CLANG", "y")),
		config("ARM64_PTR_AUTH", "y", "programs can sign return addresses").on(arm64).from("5.0"),
		config("ARM64_PTR_AUTH_KERNEL", "y", "the kernel signs return addresses").on(arm64).from("5.14"),
		config("ARM64_BTI", "y", "jumps lead to where functions begin").on(arm64).from("5.8"),
		config("ARM64_BTI_KERNEL", "y", "jumps in the kernel lead to where functions begin").on(arm64).from("5.8"),
		config("ARM64_MTE", "y", "programs can tag their memory").on(arm64).from("5.10"),
		config("KASAN_HW_TAGS", "y", "the kernel tags its memory").on(arm64).from("5.11"),
		config("ARM64_E0PD", "y", "processes cannot find the kernel by the time a fault takes").on(arm64).from("5.6"),
		config("ARM64_EPAN", "y", "the kernel does not read code that only can be run").on(arm64).from("5.13"),
	}
}
