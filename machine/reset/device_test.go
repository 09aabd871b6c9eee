//go:build linux

package reset

import (
	"os"
	"path/filepath"
	"testing"
)

// That a device forgets what it had is seen in a machine of its own: see test.
func TestDeviceErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if _, err := OpenDevice(file); err == nil || err.Error() != "open "+file+": no such file or directory" {
		t.Error(err)
	}
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDevice(file)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size != 4096 {
		t.Errorf("size %d", d.Size)
	}
	for _, tt := range []struct {
		off, n int64
		want   string
	}{
		{0, 4096, "discard 4096 bytes at 0 of " + file + ": inappropriate ioctl for device"},
		{512, 4096, "discard 4096 bytes at 512 of " + file + ": beyond the end of the device"},
		{-1, 1, "discard 1 bytes at -1 of " + file + ": beyond the end of the device"},
		{0, 1 << 62, "discard 4611686018427387904 bytes at 0 of " + file + ": beyond the end of the device"},
	} {
		if err := d.Discard(tt.off, tt.n); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	if want := "zero 512 bytes at 0 of " + file + ": inappropriate ioctl for device"; d.Zero(0, 512).Error() != want {
		t.Errorf("want %s", want)
	}
}
