package disktest_test

import (
	"bytes"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// verdict is a test that may fail.
type verdict struct {
	testing.TB
	failed bool
}

func (v *verdict) Helper()               {}
func (v *verdict) Errorf(string, ...any) { v.failed = true }
func (v *verdict) Fatalf(string, ...any) { v.failed = true; runtime.Goexit() }

// fails reports whether f fails the test that it is given.
func fails(t *testing.T, f func(t testing.TB)) bool {
	t.Helper()
	v := &verdict{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(v)
	}()
	<-done
	return v.failed
}

// TestSame shows that it can say no, wherever the difference is.
func TestSame(t *testing.T) {
	content := disktest.Noise(300_000, 1)
	for _, want := range []*extent.Map{
		disktest.Disk(t, 1<<20, disktest.At(500_000, content)),
		disktest.Disk(t, 20<<30, disktest.At(19<<30, content)),
	} {
		at := want.Extents()[0].Offset
		if fails(t, func(t testing.TB) { disktest.Same(t, want, want) }) {
			t.Error("a disk is not the same as itself")
		}
		for _, off := range []int64{at, at + 100_003, at + int64(len(content)) - 1} {
			changed := bytes.Clone(content)
			changed[off-at]++
			if !fails(t, func(t testing.TB) {
				disktest.Same(t, disktest.Disk(t, want.Size(), disktest.At(at, changed)), want)
			}) {
				t.Errorf("a change at %d is not seen", off)
			}
		}
		for _, off := range []int64{0, at - 1, at + int64(len(content)), want.Size() - 1} {
			if !fails(t, func(t testing.TB) {
				disktest.Same(t, disktest.Disk(t, want.Size(), disktest.At(at, content), disktest.At(off, []byte{1})), want)
			}) {
				t.Errorf("a byte in the hole at %d is not seen", off)
			}
		}
		if !fails(t, func(t testing.TB) { disktest.Same(t, extent.New(want.Size()+1), want) }) {
			t.Error("another size is not seen")
		}
	}
}

// TestSparse reads back what it has written, with its holes.
func TestSparse(t *testing.T) {
	want := disktest.Disk(t, 8<<20, disktest.At(1<<20, disktest.Text(1<<20, 1)), disktest.At(7<<20, disktest.Noise(1<<20, 2)))
	path := filepath.Join(t.TempDir(), "disk.raw")
	disktest.Write(t, path, want)
	got := disktest.Sparse(t, path)
	disktest.Same(t, got, want)
	if got.Allocated() > 3<<20 {
		t.Errorf("%d bytes are not holes, want 2 MiB", got.Allocated())
	}
}

// TestJudge shows that QEMU says no to another disk.
func TestJudge(t *testing.T) {
	dir := t.TempDir()
	raw, other := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "other.raw")
	disktest.Write(t, raw, disktest.Disk(t, 2<<30, disktest.At(1<<30, disktest.Text(3000, 1))))
	disktest.Write(t, other, disktest.Disk(t, 2<<30, disktest.At(1<<30, disktest.Text(3000, 2))))
	for _, format := range []string{"qcow2", "vmdk", "vpc", "vhdx"} {
		image := filepath.Join(dir, "image."+format)
		options := map[string]string{"qcow2": "compat=1.1", "vmdk": "subformat=monolithicSparse", "vpc": "force_size=on", "vhdx": "subformat=dynamic"}[format]
		disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", format, "-o", options, raw, image)
		disktest.Judge(t, format, raw, image)
		if !fails(t, func(t testing.TB) { disktest.Judge(t, format, other, image) }) {
			t.Errorf("%s: QEMU sees no difference", format)
		}
	}
}
