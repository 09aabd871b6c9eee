//go:build linux

package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kilnhq/kiln/machine/kmsg"
)

// A cut of Debian's generic kernel.
func kernel() fstest.MapFS {
	return fstest.MapFS{
		"modules.dep": {Data: []byte(`# comment
kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz
kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/fs/jbd2/jbd2.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.zst:
kernel/net/wireguard.ko: kernel/lib/libchacha20poly1305.ko kernel/lib/libchacha.ko
kernel/lib/libchacha20poly1305.ko: kernel/lib/libchacha.ko
kernel/lib/libchacha.ko:
kernel/a.ko:
kernel/b.ko:
kernel/drivers/block/virtio_blk.ko.xz:
`)},
		"modules.builtin": {Data: []byte("kernel/fs/binfmt_elf.ko\nkernel/drivers/nvme/host/nvme-core.ko\n")},
		"modules.softdep": {Data: []byte(`# Soft dependencies extracted from modules themselves.
softdep ext4 pre: crypto-crc32c
softdep jbd2 pre: crypto-crc32c
softdep cifs gcm
softdep a pre: b absent
softdep b post: a
`)},
		"modules.alias": {Data: []byte(`alias crypto-crc32c crc32c_intel
alias crypto-crc32c crc32c_generic
alias fs-ext4 ext4
alias virtio:d00000002v* virtio_blk
alias rtnl-link-wireguard wireguard
alias broken
`)},
	}
}

func open(t *testing.T) *Loader {
	t.Helper()
	x, err := ReadIndex(kernel())
	if err != nil {
		t.Fatal(err)
	}
	return &Loader{index: x, dir: "M", reports: map[string]Report{},
		state: func(string) string { return "" }, kernelLog: func() []kmsg.Record { return nil }}
}

func TestLoadOrder(t *testing.T) {
	for _, c := range []struct {
		name string
		want string
	}{
		{"ext4", "crc32c_generic crc32c-intel jbd2 mbcache crc16 ext4"},
		{"fs-ext4", "crc32c_generic crc32c-intel jbd2 mbcache crc16 ext4"},
		{"wireguard", "libchacha libchacha20poly1305 wireguard"},
		{"rtnl_link-wireguard", "libchacha libchacha20poly1305 wireguard"},
		{"crc32c_intel", "crc32c-intel"},
		{"nvme_core", ""},
		{"a", "b a"}, // a circle of soft dependencies
		{"b", "b a"},
	} {
		l := open(t)
		var got []string
		l.load = func(file, _ string) error {
			name, _, _ := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], ".")
			got = append(got, name)
			return nil
		}
		if err := l.Load(c.name, ""); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: loaded %q, want %q", c.name, s, c.want)
		}
	}
}

func TestLoadParameters(t *testing.T) {
	l := open(t)
	l.config = &Config{}
	l.config.AddOptions("virtio-blk", "queue_depth=1")
	l.config.AddCommandLine([]string{"quiet", "virtio_blk.num_request_queues=2", "kiln.disk=x", "modprobe.blacklist=a,crc32c-intel"})
	var got string
	l.load = func(file, parameters string) error { got = file + " " + parameters; return nil }
	if err := l.Load("virtio_blk", "poll_queues=3"); err != nil {
		t.Fatal(err)
	}
	if want := "M/kernel/drivers/block/virtio_blk.ko.xz queue_depth=1 num_request_queues=2 poll_queues=3"; got != want {
		t.Errorf("loaded %q, want %q", got, want)
	}
	names, err := l.LoadAlias("crypto-crc32c")
	if want := []string{"crc32c_generic"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("alias loaded %q, %v; want %q: the other is blacklisted", names, err, want)
	}
}

func TestLoadFailure(t *testing.T) {
	l := open(t)
	boom := errors.New("boom")
	tries := 0
	l.load = func(file, _ string) error {
		if strings.Contains(file, "mbcache") || strings.Contains(file, "virtio") {
			tries++
			return boom
		}
		return nil
	}
	err := l.Load("ext4", "")
	if !errors.Is(err, boom) || err.Error() != "ext4 needs module mbcache: boom" {
		t.Errorf("got error %v", err)
	}
	if err = l.Load("rot-13", ""); !errors.Is(err, ErrNotFound) || err.Error() != "rot-13: module not found: no module or alias of that name" {
		t.Errorf("got error %v", err)
	}
	tries = 0
	for range 3 {
		names, err := l.LoadAlias("virtio:d00000002v00001AF4")
		if len(names) > 0 || tries == 1 && err == nil && l.reports["virtio_blk"].State != Failed {
			t.Errorf("got %q, %v", names, err)
		}
	}
	if tries != 1 {
		t.Errorf("a driver that fails was tried %d times for its devices, want once", tries)
	}
	// One provider that works is enough.
	l.load = func(file, _ string) error {
		if strings.Contains(file, "intel") {
			return boom
		}
		return nil
	}
	if err := l.Load("crypto-crc32c", ""); err != nil {
		t.Errorf("got error %v", err)
	}
}

func TestClosure(t *testing.T) {
	x, err := ReadIndex(kernel())
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.Closure("ext4")
	if want := []string{"crc16", "crc32c_generic", "crc32c_intel", "ext4", "jbd2", "mbcache"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestReadIndexErrors(t *testing.T) {
	if _, err := ReadIndex(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no modules.dep: got error %v", err)
	}
	_, err := ReadIndex(fstest.MapFS{"modules.dep": {Data: []byte("a.ko:\nnonsense\n")}})
	if want := `modules.dep: line 2: found "nonsense", want "FILE: DEPENDENCY…"`; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if x, err := ReadIndex(fstest.MapFS{"modules.dep": {Data: []byte("a.ko:\n")}}); err != nil || !x.modulesOnly("a") {
		t.Errorf("only modules.dep: %v", err)
	}
}

func (x *Index) modulesOnly(name string) bool {
	names, err := x.Resolve(name)
	return err == nil && slices.Equal(names, []string{name})
}

func FuzzIndex(f *testing.F) {
	k := kernel()
	f.Add(k["modules.dep"].Data, k["modules.softdep"].Data, k["modules.alias"].Data, "fs-ext4")
	f.Add([]byte("a.ko: b.ko\nb.ko: a.ko\n"), []byte("softdep a pre: b post: a\n"), []byte("alias * a\nalias a* b\n"), "a")
	f.Fuzz(func(t *testing.T, dep, soft, alias []byte, name string) {
		x, err := ReadIndex(fstest.MapFS{"modules.dep": {Data: dep}, "modules.softdep": {Data: soft}, "modules.alias": {Data: alias}})
		if err != nil {
			return
		}
		_, _ = x.Closure(name)
		scanned, _ := x.Aliased(name)
		if err := x.Prepare(); err != nil {
			t.Fatal(err)
		}
		if found, _ := x.Aliased(name); !slices.Equal(found, scanned) {
			t.Errorf("prepared, %q stands for %q, else for %q", name, found, scanned)
		}
		l := &Loader{index: x, reports: map[string]Report{}, state: func(string) string { return "" },
			load: func(string, string) error { return nil }, kernelLog: func() []kmsg.Record { return nil }}
		_ = l.Load(name, "")
	})
}

func benchIndex(b *testing.B) fstest.MapFS {
	var dep, alias strings.Builder
	for i := range 4200 {
		fmt.Fprintf(&dep, "kernel/drivers/net/driver-%d.ko.xz: kernel/lib/a-%d.ko.xz kernel/lib/b%d.ko.xz\n", i, i, i)
	}
	for i := range 27000 {
		fmt.Fprintf(&alias, "alias pci:v%08Xd%08Xsv*sd*bc*sc*i* driver_%d\n", 0x8086+i%50, i, i%4200)
	}
	b.ReportAllocs()
	return fstest.MapFS{"modules.dep": {Data: []byte(dep.String())}, "modules.alias": {Data: []byte(alias.String())}}
}

// BenchmarkResolve is a modprobe of the kernel's, with a name that is nothing.
func BenchmarkResolve(b *testing.B) {
	files := benchIndex(b)
	for b.Loop() {
		x, err := ReadIndex(files)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := x.Resolve("crypto-sha256-all"); !errors.Is(err, ErrNotFound) {
			b.Fatal(err)
		}
	}
}

// BenchmarkAliased is one device of a coldplug.
func BenchmarkAliased(b *testing.B) {
	x, err := ReadIndex(benchIndex(b))
	if err != nil {
		b.Fatal(err)
	}
	if err := x.Prepare(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		names, err := x.Aliased("pci:v00008087d00000001sv00001AF4sd00001100bc01sc06i01")
		if err != nil || len(names) != 1 {
			b.Fatal(names, err)
		}
	}
}
