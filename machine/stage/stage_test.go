//go:build linux

package stage

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/reset"
)

func TestPanicTime(t *testing.T) {
	for line, want := range map[string]struct {
		wait    time.Duration
		forever bool
	}{
		"":                {10 * time.Second, false},
		"kiln.panic=3":    {3 * time.Second, false},
		"kiln.panic=-1":   {0, false},
		"kiln.panic=0":    {0, true},
		"kiln.panic=soon": {10 * time.Second, false},
	} {
		wait, forever := panicTime(cmdline.Parse(line))
		if wait != want.wait || forever != want.forever {
			t.Errorf("%q: got %v, %v; want %v", line, wait, forever, want)
		}
	}
}

func TestPatience(t *testing.T) {
	for line, want := range map[string]struct {
		patience time.Duration
		err      string
	}{
		"":                    {2 * time.Minute, ""},
		"kiln.watchdog=5":     {5 * time.Second, ""},
		"kiln.watchdog=off":   {0, ""},
		"kiln.watchdog=65535": {65535 * time.Second, ""},
		"kiln.watchdog=65536": {2 * time.Minute, "kernel argument kiln.watchdog=65536: want 1 to 65535 seconds or off; it is 120"},
		"kiln.watchdog=0":     {2 * time.Minute, "kernel argument kiln.watchdog=0: want 1 to 65535 seconds or off; it is 120"},
		"kiln.watchdog":       {2 * time.Minute, "kernel argument kiln.watchdog=: want 1 to 65535 seconds or off; it is 120"},
	} {
		got, err := (&start{args: cmdline.Parse(line)}).patience()
		if text := fmt.Sprint(err); got != want.patience || err == nil && want.err != "" || err != nil && text != want.err {
			t.Errorf("%q: %v, %v; want %v, %s", line, got, err, want.patience, want.err)
		}
	}
}

func TestAnnounce(t *testing.T) {
	all := reset.Parts{State: true, Ephemeral: true}
	for _, tt := range []struct {
		parts, argument reset.Parts
		want            string
	}{
		{all, reset.Parts{}, "disk vda: erasing all, with the machine configuration and the identity on STATE, as META asks"},
		{all, all, "disk vda: erasing all, with the machine configuration and the identity on STATE, as the kernel argument kiln.reset asks, at each start with it"},
		{reset.Parts{Ephemeral: true}, reset.Parts{}, "disk vda: erasing ephemeral, as META asks"},
	} {
		if got := announce("vda", tt.parts, tt.argument); got != tt.want {
			t.Errorf("got %s\nwant %s", got, tt.want)
		}
	}
}

func TestReadList(t *testing.T) {
	kernel, err := release()
	if err != nil {
		t.Fatal(err)
	}
	list := func(release string) []byte {
		return fmt.Appendf(nil, `{"version":1,"release":%q,"kiln":"0","layers":[{"kind":"rootfs","name":"base","path":"r.sqsh","size":1,"sha256":%q}]}`,
			release, strings.Repeat("00", 32))
	}
	if l, err := readList(fstest.MapFS{"layers.json": {Data: list(kernel)}}); err != nil || l.Release != kernel {
		t.Errorf("got %v, %v", l, err)
	}
	_, err = readList(fstest.MapFS{"layers.json": {Data: list("1.2.3")}})
	if want := "the initramfs is for kernel 1.2.3, but this is " + kernel; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	for _, root := range []fs.FS{fstest.MapFS{}, fstest.MapFS{"layers.json": {Data: list(kernel)[:50]}}} {
		if _, err := readList(root); err == nil || !strings.Contains(err.Error(), "layers.json") || !strings.Contains(err.Error(), "MiB of memory of this machine are too small") {
			t.Errorf("got error %v", err)
		}
	}
}

func TestVerifyMissing(t *testing.T) {
	err := verify(layers.Layer{Kind: layers.Extension, Name: "demo", Path: "no/such/layer.sqsh", Size: 7})
	if err == nil || !strings.HasPrefix(err.Error(), "no/such/layer.sqsh (extension demo): found nothing, want 7 bytes; ") {
		t.Errorf("got error %v", err)
	}
}

func TestLoaderSays(t *testing.T) {
	slot, part, err := loaderSays(cmdline.Parse("kiln.slot=B"), false)
	if slot != "B" || part != "" || err != nil {
		t.Errorf("got %q, %q, %v", slot, part, err)
	}
	_, _, err = loaderSays(cmdline.Parse("kiln.slot=C"), false)
	if want := "kernel argument kiln.slot=C: want A or B"; err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

// TestFree makes sure that no system but an initramfs is ever emptied.
func TestFree(t *testing.T) {
	if InInitramfs() {
		t.Skip("SKIPPED: the root of this system is a tmpfs")
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := free(dir); err == nil || !strings.Contains(err.Error(), "is not an initramfs: nothing is removed") {
		t.Errorf("got error %v", err)
	}
	if _, err := os.Stat(dir + "/file"); err != nil {
		t.Error(err)
	}
}

func TestWhere(t *testing.T) {
	stack := []byte("goroutine 1 [running]:\nruntime/debug.Stack()\n\t/x.go:1 +0x5\npanic({0x1, 0x2})\n\t/panic.go:785 +0x132\nmain.broken(...)\n\t/main.go:7\n")
	if got, want := where(stack), "main.broken(...); /main.go:7; "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := where(bytes.Repeat([]byte("x\n"), 100)); strings.Count(got, "x") != 8 {
		t.Errorf("got %q", got)
	}
}

func TestExtensions(t *testing.T) {
	l := &layers.List{Layers: []layers.Layer{{Kind: layers.RootFS, Name: "base"}, {Kind: layers.Extension, Name: "a", Version: "1"}, {Kind: layers.Extension, Name: "b"}, {Kind: layers.Index, Name: "modules"}}}
	if got := extensions(l); got != "a@1,b" {
		t.Errorf("got %q", got)
	}
}
