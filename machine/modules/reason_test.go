//go:build linux

package modules

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/kernel/modalias"
	"github.com/kilnhq/kiln/machine/kmsg"
)

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		said  []string
		state State
		want  string
	}{
		{unix.ENOENT, []string{"kiln_b: Unknown symbol level (err -2)", "kiln-b: Unknown symbol level (err -2)", "other: Unknown symbol x (err -2)"}, Failed,
			"nothing in the kernel exports a symbol it needs (ENOENT): Unknown symbol level (err -2)"},
		{unix.ENOENT, nil, Failed, "its own start did not find something (ENOENT)"},
		{unix.EINVAL, []string{"kiln_b: disagrees about version of symbol level", "kiln_b: Unknown symbol level (err -22)"}, Failed,
			"built against another kernel, or another version of a module (EINVAL): disagrees about version of symbol level; Unknown symbol level (err -22)"},
		{unix.EINVAL, []string{"kiln_b: `x' invalid for parameter `level'"}, Failed, "bad parameter (EINVAL): `x' invalid for parameter `level'"},
		{unix.EINVAL, []string{"kiln_b: module uses symbol (x) from namespace N, but does not import it.", "kiln_b: Unknown symbol x (err -22)"}, Failed,
			"the kernel does not let it use a symbol (EINVAL): module uses symbol (x) from namespace N, but does not import it.; Unknown symbol x (err -22)"},
		{unix.ENOEXEC, []string{"kiln_b: version magic '6.1' should be '6.12'"}, Failed, "not a module for this kernel (ENOEXEC): version magic '6.1' should be '6.12'"},
		{unix.EKEYREJECTED, []string{"Loading of unsigned module is rejected"}, Failed,
			"the kernel takes modules only that are signed by a key it trusts (EKEYREJECTED): Loading of unsigned module is rejected"},
		{unix.ENOKEY, []string{"Loading of module with unavailable key is rejected"}, Failed,
			"the kernel takes modules only that are signed by a key it trusts (ENOKEY): Loading of module with unavailable key is rejected"},
		{unix.EPERM, []string{"Module kiln_b is blacklisted"}, Skipped, "the kernel refuses it, as module_blacklist= tells it to (EPERM): Module kiln_b is blacklisted"},
		{unix.EPERM, []string{"Lockdown: init: unsigned module loading is restricted; see man kernel_lockdown.7"}, Failed,
			"the kernel is locked down and takes signed modules only (EPERM): Lockdown: init: unsigned module loading is restricted; see man kernel_lockdown.7"},
		{unix.EPERM, []string{"Module other is blacklisted"}, Failed, "the kernel does not permit it: see module_blacklist=, kernel.modules_disabled and lockdown (EPERM)"},
		{unix.ENODEV, []string{"kiln_b: no frobnicator here"}, Skipped, "no such device (ENODEV): no frobnicator here"},
		{unix.EOPNOTSUPP, nil, Skipped, "this machine cannot do that (ENOTSUP)"},
		{unix.EBUSY, nil, Failed, "in use: something else has its hardware or its name (EBUSY)"},
		{unix.EBADMSG, nil, Failed, "its signature is damaged (EBADMSG)"},
		{unix.ETIMEDOUT, nil, Failed, "its hardware does not answer (ETIMEDOUT)"},
		{unix.EFAULT, nil, Failed, "bad address (EFAULT)"},
		{unix.ENOENT, []string{"kiln_b: Unknown symbol a (err -2)", "kiln_b: Unknown symbol b (err -2)", "kiln_b: Unknown symbol c (err -2)",
			"kiln_b: Unknown symbol d (err -2)", "kiln_b: Unknown symbol e (err -2)", "kiln_b: Unknown symbol f (err -2)"}, Failed,
			"nothing in the kernel exports a symbol it needs (ENOENT): Unknown symbol a (err -2); Unknown symbol b (err -2); Unknown symbol c (err -2); Unknown symbol d (err -2); 2 more"},
	} {
		var records []kmsg.Record
		for _, m := range c.said {
			records = append(records, kmsg.Record{Message: m}, kmsg.Record{Facility: 1, Message: "kiln_b: not from the kernel"})
		}
		err := explain("kiln_b", &os.PathError{Op: "finit_module", Path: "x.ko", Err: c.errno}, records)
		if err.State != c.state || err.Reason != c.want || err.Error() != "module kiln_b: "+c.want {
			t.Errorf("got %s, %v\nwant %s, %s", err.State, err, c.state, c.want)
		}
	}
	if got, want := explain("a", &os.PathError{Op: "open", Path: "/x/a.ko", Err: unix.ENOENT}, nil).Reason, "cannot read its file /x/a.ko: no such file or directory"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReports(t *testing.T) {
	l := open(t)
	l.config = &Config{}
	l.config.parse("etc/modprobe.d/a.conf", "blacklist crc32c_intel\noptions b x=1 y=\"2 3\"\n")
	var log []kmsg.Record
	l.kernelLog = func() []kmsg.Record { defer func() { log = nil }(); return log }
	l.state = func(name string) string {
		if name == "libchacha" {
			return live
		}
		return ""
	}
	l.load = func(file, _ string) error {
		switch file {
		case "M/kernel/fs/mbcache.ko.xz":
			log = append(log, kmsg.Record{Message: "mbcache: Unknown symbol x (err -2)"})
			return unix.ENOENT
		case "M/kernel/lib/libchacha20poly1305.ko":
			return unix.ENODEV
		case "M/kernel/b.ko":
			log = append(log, kmsg.Record{Message: "b: unknown parameter 'x' ignored"}, kmsg.Record{Message: "b: hello"})
		}
		return nil
	}
	if names, err := l.LoadAlias("crypto-crc32c"); err != nil || !slices.Equal(names, []string{"crc32c_generic"}) {
		t.Errorf("alias loaded %q, %v", names, err)
	}
	for _, name := range []string{"ext4", "nvme-core", "absent", "wireguard"} {
		_ = l.Load(name, "")
	}
	if err := l.Load("b", "z=4"); err != nil {
		t.Error(err)
	}
	const unknown = "nothing in the kernel exports a symbol it needs (ENOENT): Unknown symbol x (err -2)"
	want := []Report{
		{"crc32c_generic", Loaded, "", "", "M/kernel/crypto/crc32c_generic.ko.xz", false},
		{"crc32c_intel", Skipped, "blacklisted in /etc/modprobe.d/a.conf", "", "M/kernel/arch/x86/crypto/crc32c-intel.ko.zst", false},
		{"jbd2", Loaded, "", "", "M/kernel/fs/jbd2/jbd2.ko.xz", false},
		{"mbcache", Failed, unknown, "", "M/kernel/fs/mbcache.ko.xz", false},
		{"ext4", Failed, "needs module mbcache: " + unknown, "", "M/kernel/fs/ext4/ext4.ko.xz", false},
		{"nvme_core", Builtin, "", "", "", false},
		{"absent", Failed, "there is no module or alias of that name", "", "", false},
		{"libchacha", Loaded, "", "", "M/kernel/lib/libchacha.ko", true},
		{"libchacha20poly1305", Skipped, "no such device (ENODEV)", "", "M/kernel/lib/libchacha20poly1305.ko", false},
		{"wireguard", Skipped, "needs module libchacha20poly1305: no such device (ENODEV)", "", "M/kernel/net/wireguard.ko", false},
		{"b", Loaded, "unknown parameter 'x' ignored", `x=1 y="2 3" z=4`, "M/kernel/b.ko", false},
		{"a", Loaded, "", "", "M/kernel/a.ko", false},
	}
	got := l.Reports()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("report %d differs:\ngot  %+v\nwant %+v", i, got, want)
		}
	}
	// A blacklisted module is loaded by its name, unless that counts as well.
	if err := l.Load("crc32c-intel", ""); err != nil || l.reports["crc32c_intel"].State != Loaded {
		t.Errorf("%v, %+v", err, l.reports["crc32c_intel"])
	}
	strict := open(t)
	strict.config, strict.load, strict.ApplyBlacklist = l.config, func(string, string) error { return unix.EIO }, true
	if err := strict.Load("crc32c-intel", ""); err != nil || strict.reports["crc32c_intel"].State != Skipped {
		t.Errorf("%v, %+v", err, strict.reports["crc32c_intel"])
	}
}

// fakeKernel loads modules as Linux does: each once, however many ask.
type fakeKernel struct {
	mu    sync.Mutex
	files map[string]string // states of the modules: coming or live
	loads map[string]int
}

func (k *fakeKernel) load(name string) error {
	k.mu.Lock()
	if k.files[name] != "" {
		k.mu.Unlock()
		return unix.EEXIST // at once, as older kernels did while it was coming
	}
	k.files[name] = "coming"
	k.loads[name]++
	k.mu.Unlock()
	time.Sleep(time.Millisecond)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[name] = live
	return nil
}

func (k *fakeKernel) state(name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.files[name]
}

// PID 1 and many modprobes of the kernel's at once, which is many Loaders, and
// several devices with one.
func TestConcurrentLoad(t *testing.T) {
	k := &fakeKernel{files: map[string]string{}, loads: map[string]int{}}
	var wg sync.WaitGroup
	for range 8 {
		l := open(t)
		l.load = func(file, _ string) error {
			name := modalias.Name(file)
			if name == "ext4" && k.state("jbd2") != live {
				return unix.ENOENT // what it needs must be there, and started
			}
			return k.load(name)
		}
		l.state = k.state
		for _, name := range []string{"ext4", "fs-ext4", "jbd2"} {
			wg.Go(func() {
				if err := l.Load(name, ""); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if k.state("jbd2") != live {
					t.Errorf("%s is loaded but jbd2 is %q", name, k.state("jbd2"))
				}
				l.Reports()
			})
		}
		wg.Go(func() {
			if _, err := l.LoadAlias("crypto-crc32c"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for name, n := range k.loads {
		if n != 1 {
			t.Errorf("%s was started %d times", name, n)
		}
	}
	// EEXIST of a module's own start is no success.
	l := open(t)
	l.load, l.state = func(string, string) error { return unix.EEXIST }, func(string) string { return "" }
	if err := l.Load("a", ""); fmt.Sprint(err) != "module a: something else in the kernel has its name (EEXIST)" {
		t.Errorf("got error %v", err)
	}
}
