package hardening

// commandLine is what the command line should say, and what it should not.
func commandLine() []rule {
	list := []rule{
		cmdline("page_alloc.shuffle", yes, "the order of pages is random").from("5.2").needing(option("SHUFFLE_PAGE_ALLOCATOR", "y")),
		cmdline("slab_merge", unset, "would merge caches of the same size"),
		cmdline("slub_merge", unset, "would merge caches of the same size"),
		cmdline("slub_debug", "ZF|FZ", "notices what is written around objects; slow").needing(option("SLUB_DEBUG", "y")).or(argument("slab_debug", "ZF|FZ")),
		cmdline("pti", "on", "processes do not map the kernel, whatever the processor says of itself").on(amd64),
		cmdline("nosmt", set, "no two threads share a core; slow").or(argument("mitigations", "auto,nosmt")),
		cmdline("mitigations", "auto,nosmt", "all mitigations, without threads on a core where these leak"),
		cmdline("vdso32", "unset|0|1", "where the vDSO of 32 bits is is not known").on(amd64),
		cmdline("cfi", "kcfi", "the stronger check of indirect calls").on(amd64).from("6.2").needing(option("CFI_CLANG", "y")),
	}
	for _, a := range []struct{ name, why, arch string }{
		{"nokaslr", "would make the kernel's address known", ""},
		{"norandmaps", "would make the addresses of programs known", ""},
		{"nosmep", "the kernel would run code of processes", amd64},
		{"nosmap", "the kernel would read data of processes by mistake", amd64},
		{"nopti", "processes would map the kernel", amd64},
		{"dis_ucode_ldr", "processors would keep their old microcode", amd64},
		{"nousershstk", "programs would have no shadow stacks", amd64},
		{"nospectre_v1", "a mitigation", ""},
		{"nospectre_v2", "a mitigation", ""},
		{"nospectre_bhb", "a mitigation", arm64},
		{"nospec_store_bypass_disable", "a mitigation", ""},
		{"arm64.nobti", "jumps would lead anywhere", arm64},
		{"arm64.nopauth", "return addresses would not be signed", arm64},
		{"arm64.nomte", "memory would not be tagged", arm64},
		{"sysrq_always_enabled", "all keys would do something", ""},
	} {
		list = append(list, cmdline(a.name, unset, a.why).on(a.arch).by(parameters))
	}
	for _, a := range []struct{ name, want, arch string }{
		{"ibt", "!off", amd64},
		{"spectre_v2", "!off", amd64},
		{"spectre_v2_user", "!off", amd64},
		{"spectre_bhi", "!off", amd64},
		{"spec_store_bypass_disable", "!off", amd64},
		{"l1tf", "!off", amd64},
		{"mds", "!off", amd64},
		{"tsx_async_abort", "!off", amd64},
		{"srbds", "!off", amd64},
		{"mmio_stale_data", "!off", amd64},
		{"retbleed", "!off", amd64},
		{"spec_rstack_overflow", "!off", amd64},
		{"gather_data_sampling", "!off", amd64},
		{"reg_file_data_sampling", "!off", amd64},
		{"kpti", "unset|true", arm64},
		{"ssbd", "!force-off", arm64},
		{"rodata", "!off", ""},
	} {
		list = append(list, cmdline(a.name, a.want, "a mitigation").on(a.arch).by(parameters))
	}
	return list
}

// sysctls is what the parameters of a running kernel should be.
func sysctls() []rule {
	return []rule{
		sysctl("kernel.kptr_restrict", "2", "nobody sees addresses of the kernel"),
		sysctl("kernel.dmesg_restrict", "1", "the log is for administrators"),
		sysctl("kernel.modules_disabled", "1", "no more modules").or(option("MODULES", unset)),
		sysctl("kernel.perf_event_paranoid", ">=3", "only administrators see what the processor counts"),
		sysctl("kernel.kexec_load_disabled", "1", "the kernel cannot be replaced"),
		sysctl("kernel.randomize_va_space", "2", "the addresses of programs are not known"),
		sysctl("kernel.yama.ptrace_scope", ">=1", "processes trace their children only; KSPP has 3, none at all"),
		sysctl("kernel.unprivileged_bpf_disabled", "1", "BPF programs are for administrators"),
		sysctl("net.core.bpf_jit_harden", "2", "BPF programs hold no constants that processes choose"),
		sysctl("kernel.oops_limit", "1", "the first fault in the kernel ends it").from("6.2").or(parameter("kernel.panic_on_oops", "1")),
		sysctl("kernel.warn_limit", "1", "the first warning of the kernel ends it").from("6.2"),
		sysctl("kernel.sysrq", "0|176", "keys that sync, unmount and restart, no others"),
		sysctl("user.max_user_namespaces", "0", "users are not root anywhere"),
		sysctl("vm.unprivileged_userfaultfd", "0", "the kernel does not wait for processes in the middle of something"),
		sysctl("vm.mmap_min_addr", ">=32768", "null pointers lead to nothing"),
		sysctl("dev.tty.ldisc_autoload", "0", "no drivers that nobody needs"),
		sysctl("dev.tty.legacy_tiocsti", "0", "no process types for another").from("6.2"),
		sysctl("fs.protected_symlinks", "1", "links of others in /tmp are not followed"),
		sysctl("fs.protected_hardlinks", "1", "files of others are not linked to"),
		sysctl("fs.protected_fifos", "2", "pipes of others in /tmp are not opened"),
		sysctl("fs.protected_regular", "2", "files of others in /tmp are not opened"),
		sysctl("fs.suid_dumpable", "0", "no dumps of programs that have changed who they are"),
	}
}
