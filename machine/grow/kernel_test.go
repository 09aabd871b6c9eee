//go:build linux

package grow

import "testing"

// That the kernel enlarges what is mounted is seen in a machine of its own: it
// wants CAP_SYS_RESOURCE. See test.
func TestFileSystemErrors(t *testing.T) {
	_, err := FileSystem("/proc", 1<<30)
	if want := "/proc is not on ext4 (0x9fa0)"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	_, err = FileSystem("/proc/nothing", 1<<30)
	if want := "open /proc/nothing: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
