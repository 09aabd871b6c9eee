package hardening

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/kernel/kconfig"
)

// find returns the result of a check.
func find(t *testing.T, r Report, kind Kind, name string) Result {
	t.Helper()
	var found []Result
	for _, x := range r.Results {
		if x.Kind == kind && x.Name == name && !strings.HasPrefix(x.Reason, "only on ") {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d results for %s %s", len(found), kind, name)
	}
	return found[0]
}

func TestVerdicts(t *testing.T) {
	sysctls := func(values ...string) func(string) (string, bool) {
		return func(name string) (string, bool) {
			for i := 0; i < len(values); i += 2 {
				if values[i] == name {
					return values[i+1], true
				}
			}
			return "", false
		}
	}
	x86, arm := kconfig.Config{"X86_64": "y"}, kconfig.Config{"ARM64": "y"}
	with := func(base kconfig.Config, more ...string) kconfig.Config {
		c := kconfig.Config{}
		for k, v := range base {
			c[k] = v
		}
		for i := 0; i < len(more); i += 2 {
			c[more[i]] = more[i+1]
		}
		return c
	}
	for _, tc := range []struct {
		system  System
		kind    Kind
		name    string
		verdict Verdict
		found   string
		reason  string
	}{
		// Not set, or not there.
		{System{Config: x86}, Config, "DEVMEM", OK, "is not set", ""},
		{System{Config: with(x86, "DEVMEM", "y")}, Config, "DEVMEM", Fail, "y", ""},
		{System{Config: with(x86, "INET_DIAG", "m")}, Config, "INET_DIAG", Fail, "m", ""},
		{System{Config: x86}, Config, "STRICT_DEVMEM", OK, "CONFIG_DEVMEM is not set", ""},
		{System{Config: with(x86, "DEVMEM", "y")}, Config, "STRICT_DEVMEM", Fail, "is not set", ""},

		// A default that the command line overrides, either way.
		{System{Config: with(x86, "INIT_ON_ALLOC_DEFAULT_ON", "y")}, Config, "INIT_ON_ALLOC_DEFAULT_ON", OK, "y", ""},
		{System{Config: with(x86, "INIT_ON_ALLOC_DEFAULT_ON", "y"), Args: []string{"quiet"}}, Config, "INIT_ON_ALLOC_DEFAULT_ON", OK, "y", ""},
		{System{Config: with(x86, "INIT_ON_ALLOC_DEFAULT_ON", "y"), Args: []string{"init_on_alloc=0"}}, Config, "INIT_ON_ALLOC_DEFAULT_ON", Fail, "init_on_alloc=0", ""},
		{System{Config: x86, Args: []string{"init_on_alloc=on"}}, Config, "INIT_ON_ALLOC_DEFAULT_ON", OK, "init_on_alloc=on", ""},
		{System{Config: x86, Args: []string{"init-on-alloc=Y", "init_on_alloc=0"}}, Config, "INIT_ON_ALLOC_DEFAULT_ON", Fail, "init_on_alloc=0", ""},
		{System{Config: x86, Args: []string{"init_on_alloc=1"}, Release: "5.2.1"}, Config, "INIT_ON_ALLOC_DEFAULT_ON", NotApplicable, "-", "since Linux 5.3"},
		{System{Config: with(x86, "SLAB_MERGE_DEFAULT", "y"), Args: []string{"slab_nomerge"}}, Config, "SLAB_MERGE_DEFAULT", OK, "slab_nomerge", ""},
		{System{Config: with(x86, "LEGACY_VSYSCALL_XONLY", "y")}, Config, "LEGACY_VSYSCALL_NONE", OK, "CONFIG_X86_VSYSCALL_EMULATION is not set", ""},
		{System{Config: with(x86, "X86_VSYSCALL_EMULATION", "y"), Args: []string{"vsyscall=none"}}, Config, "LEGACY_VSYSCALL_NONE", OK, "vsyscall=none", ""},
		{System{Config: with(x86, "X86_VSYSCALL_EMULATION", "y", "LEGACY_VSYSCALL_NONE", "y"), Args: []string{"vsyscall=emulate"}}, Config, "LEGACY_VSYSCALL_NONE", Fail, "vsyscall=emulate", ""},
		{System{Config: with(x86, "MODULES", "y"), Args: []string{"module.sig_enforce"}}, Config, "MODULE_SIG_FORCE", OK, "module.sig_enforce", ""},
		{System{Config: with(x86, "MODULES", "y"), Args: []string{"module.sig_enforce=0"}}, Config, "MODULE_SIG_FORCE", Fail, "is not set", ""},

		// A default that a parameter overrides.
		{System{Config: x86, Sysctl: sysctls("kernel.dmesg_restrict", "1\n")}, Config, "SECURITY_DMESG_RESTRICT", OK, "kernel.dmesg_restrict=1", ""},
		{System{Config: with(x86, "MAGIC_SYSRQ", "y", "MAGIC_SYSRQ_DEFAULT_ENABLE", "0x01b6"), Sysctl: sysctls("kernel.sysrq", "176")}, Config, "MAGIC_SYSRQ_DEFAULT_ENABLE", OK, "kernel.sysrq=176", ""},
		{System{Config: x86}, Config, "MAGIC_SYSRQ_DEFAULT_ENABLE", NotApplicable, "-", "without CONFIG_MAGIC_SYSRQ=y, which is not set"},
		{System{Config: with(x86, "PANIC_TIMEOUT", "0"), Args: []string{"panic=10"}}, Config, "PANIC_TIMEOUT", OK, "panic=10", ""},
		{System{Config: with(x86, "PANIC_TIMEOUT", "-1"), Args: []string{"panic=0"}}, Config, "PANIC_TIMEOUT", Fail, "panic=0", ""},

		// Options that came, went and changed their names.
		{System{Config: x86, Release: "6.6.7"}, Config, "DEBUG_CREDENTIALS", Fail, "is not set", ""},
		{System{Config: x86, Release: "6.6.8-1-cloud"}, Config, "DEBUG_CREDENTIALS", NotApplicable, "-", "until Linux 6.6.8"},
		{System{Config: x86, Release: "7.0-rc1"}, Config, "DEBUG_CREDENTIALS", NotApplicable, "-", "until Linux 6.6.8"},
		{System{Config: with(x86, "PAGE_TABLE_ISOLATION", "y"), Release: "6.1.2"}, Config, "MITIGATION_PAGE_TABLE_ISOLATION", OK, "CONFIG_PAGE_TABLE_ISOLATION=y", ""},
		{System{Config: x86, Release: "6.12"}, Config, "CFI_CLANG", NotApplicable, "-", "without CONFIG_CC_IS_CLANG=y, which is not set"},
		{System{Config: arm, Release: "6.12"}, Config, "ARM64_BTI", Fail, "is not set", ""},
		{System{Config: with(arm, "DEFAULT_MMAP_MIN_ADDR", "32768")}, Config, "DEFAULT_MMAP_MIN_ADDR", OK, "32768", ""},
		{System{Config: with(x86, "DEFAULT_MMAP_MIN_ADDR", "32768")}, Config, "DEFAULT_MMAP_MIN_ADDR", Fail, "32768", ""},

		// The command line.
		{System{Arch: "amd64", Args: []string{}}, Cmdline, "nokaslr", OK, "is not set", ""},
		{System{Arch: "amd64", Args: []string{"nokaslr"}}, Cmdline, "nokaslr", Fail, "is set", ""},
		{System{Arch: "amd64", Args: []string{"page_alloc.shuffle=Y"}}, Cmdline, "page_alloc.shuffle", OK, "Y", ""},
		{System{Arch: "amd64", Args: []string{"mitigations=auto,nosmt"}}, Cmdline, "nosmt", OK, "mitigations=auto,nosmt", ""},
		{System{Arch: "amd64", Args: []string{"mds=off"}}, Cmdline, "mds", Fail, "off", ""},
		{System{Arch: "amd64", Args: []string{"vdso32=2"}}, Cmdline, "vdso32", Fail, "2", ""},

		// Parameters.
		{System{Arch: "amd64", Sysctl: sysctls("kernel.yama.ptrace_scope", "1")}, Sysctl, "kernel.yama.ptrace_scope", OK, "1", ""},
		{System{Arch: "amd64", Sysctl: sysctls("kernel.yama.ptrace_scope", "0")}, Sysctl, "kernel.yama.ptrace_scope", Fail, "0", ""},
		{System{Arch: "amd64", Sysctl: sysctls()}, Sysctl, "kernel.yama.ptrace_scope", NotApplicable, "is not set", "this kernel has no such parameter"},
		{System{Arch: "amd64", Sysctl: sysctls("kernel.oops_limit", "10000", "kernel.panic_on_oops", "1")}, Sysctl, "kernel.oops_limit", OK, "kernel.panic_on_oops=1", ""},
	} {
		got := find(t, Check(tc.system), tc.kind, tc.name)
		if got.Verdict != tc.verdict || got.Found != tc.found || tc.reason != "" && got.Reason != tc.reason {
			t.Errorf("%+v %s: %+v\nwant %s, found %q, %s", tc.system, tc.name, got, tc.verdict, tc.found, tc.reason)
		}
	}
}

// What is not known is not judged.
func TestUnknown(t *testing.T) {
	for kind, s := range map[Kind]System{
		Config: {Config: kconfig.Config{"X86_64": "y"}}, Cmdline: {Arch: "amd64", Args: []string{}},
		Sysctl: {Arch: "amd64", Sysctl: func(string) (string, bool) { return "", false }},
	} {
		r := Check(s)
		if len(r.Results) == 0 || slices.ContainsFunc(r.Results, func(x Result) bool { return x.Kind != kind }) {
			t.Errorf("%d results that are not all of kind %s", len(r.Results), kind)
		}
		if r.Arch != "amd64" || int(r.OK+r.Failed+r.NotApplicable) != len(r.Results) {
			t.Errorf("%s: %d, %d, %d of %d", r.Arch, r.OK, r.Failed, r.NotApplicable, len(r.Results))
		}
	}
	if r := Check(System{}); r.Results == nil || len(r.Results) > 0 {
		t.Errorf("%+v", r)
	}
}

// Every rule says what it is about in one line, once for each architecture.
func TestRules(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules() {
		key := fmt.Sprint(r.kind, r.name, r.arch)
		if seen[key] {
			t.Errorf("%s %s is there twice", r.kind, r.name)
		}
		seen[key] = true
		if r.why == "" || r.source == "" || r.want == "" || strings.ContainsAny(r.why, "\n") {
			t.Errorf("%s %s: %+v", r.kind, r.name, r)
		}
		for _, v := range []string{r.since, r.until} {
			if n := numbers(v); v != "" && n[0] == 0 {
				t.Errorf("%s: version %q", r.name, v)
			}
		}
	}
}

// hardened is the command line of an image, as far as it matters.
var hardened = []string{"panic=10", "init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1", "randomize_kstack_offset=on", "vsyscall=none", "nohibernate"}

// Debian's kernels are known: what they have, and what they have not.
func TestKernels(t *testing.T) {
	list := os.Getenv("KILN_TEST_KERNELS")
	if list == "" {
		t.Skip("SKIPPED: KILN_TEST_KERNELS is not set to directories of unpacked kernel packages")
	}
	for _, dir := range filepath.SplitList(list) {
		files, err := filepath.Glob(filepath.Join(dir, "boot/config-*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%s: %v, %v, want one configuration", dir, files, err)
		}
		data, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		c, err := kconfig.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		cloud := strings.Contains(files[0], "cloud")
		for name, tc := range map[string]struct {
			args []string
			ok   string
			fail string
		}{
			"as Debian starts it": {[]string{"quiet"},
				"STRICT_KERNEL_RWX STACKPROTECTOR_STRONG HARDENED_USERCOPY INIT_ON_ALLOC_DEFAULT_ON RANDOMIZE_KSTACK_OFFSET_DEFAULT LEGACY_VSYSCALL_NONE " +
					"STRICT_DEVMEM LIST_HARDENED BUG_ON_DATA_CORRUPTION SECURITY_LOCKDOWN_LSM SECURITY_DMESG_RESTRICT MITIGATION_PAGE_TABLE_ISOLATION X86_X32_ABI nokaslr mds",
				"SLAB_MERGE_DEFAULT HIBERNATION PANIC_TIMEOUT INIT_ON_FREE_DEFAULT_ON DEVMEM MODULE_SIG_FORCE KEXEC page_alloc.shuffle mitigations"},
			"as images do": {hardened,
				"SLAB_MERGE_DEFAULT HIBERNATION PANIC_TIMEOUT page_alloc.shuffle INIT_ON_ALLOC_DEFAULT_ON",
				"INIT_ON_FREE_DEFAULT_ON DEVMEM MODULES IA32_EMULATION pti"},
			"as nobody should": {[]string{"init_on_alloc=0", "randomize_kstack_offset=off", "vsyscall=emulate", "hardened_usercopy=0", "nokaslr", "mds=off", "mitigations=off"},
				"STRICT_KERNEL_RWX",
				"INIT_ON_ALLOC_DEFAULT_ON RANDOMIZE_KSTACK_OFFSET_DEFAULT LEGACY_VSYSCALL_NONE HARDENED_USERCOPY nokaslr mds mitigations"},
		} {
			r := Check(System{Release: kconfig.Release(data), Config: c, Args: tc.args})
			if r.Arch != "amd64" || before(r.Release, "6.12") || r.OK < 80 || r.Failed < 30 {
				t.Errorf("%s: Linux %q for %s: %d ok, %d fail", dir, r.Release, r.Arch, r.OK, r.Failed)
			}
			for verdict, names := range map[Verdict]string{OK: tc.ok, Fail: tc.fail} {
				for n := range strings.FieldsSeq(names) {
					kind := Cmdline
					if n == strings.ToUpper(n) {
						kind = Config
					}
					if x := find(t, r, kind, n); x.Verdict != verdict {
						t.Errorf("%s, %s: %+v, want %s", dir, name, x, verdict)
					}
				}
			}
			// The cloud kernel is for virtual machines.
			if x := find(t, r, Config, "AMD_IOMMU"); (x.Verdict == Fail) != cloud {
				t.Errorf("%s: %+v", dir, x)
			}
		}
	}
}
