//go:build linux

package landlock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const asRestricted = "KILN_TEST_LANDLOCK"

// The test itself is the process that is restricted.
func TestMain(m *testing.M) {
	if dir := os.Getenv(asRestricted); dir != "" {
		os.Exit(restricted(dir))
	}
	os.Exit(m.Run())
}

// restricted prints what fails of what is still tried.
func restricted(dir string) int {
	open, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	version := 0
	if err == nil {
		version, err = Restrict(Rules{Read: []string{dir}, Listen: []uint16{0}})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("version", version)
	if version < 4 {
		return 0
	}
	file := filepath.Join(dir, "file")
	try := func(what string, err error) {
		state := "done"
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			state = "refused"
		} else if err != nil {
			state = err.Error()
		}
		fmt.Println(what, state)
	}
	_, err = os.ReadFile(file)
	try("read", err)
	_, err = os.ReadDir(dir)
	try("list", err)
	_, err = os.ReadFile("/proc/self/exe")
	try("elsewhere", err)
	try("write", os.WriteFile(file, nil, 0o600))
	try("make", os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	try("remove", os.Remove(file))
	program := exec.Command("/proc/self/exe", "-test.run=^$")
	program.Env = []string{} // not this function again
	try("start", program.Run())
	_, err = net.Listen("tcp", "127.0.0.1:0")
	try("listen", err)
	_, err = net.Dial("tcp", open.Addr().String())
	try("connect", err)
	return 0
}

func TestRestrict(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = []string{asRestricted + "=" + dir}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	var version int
	if _, err := fmt.Sscanf(string(out), "version %d", &version); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if version < 4 {
		t.Skipf("SKIPPED: landlock of version %d, want 4 or more", version)
	}
	want := "read done\nlist done\nelsewhere refused\nwrite refused\nmake refused\nremove refused\nstart refused\nlisten done\nconnect refused\n"
	if _, got, _ := strings.Cut(string(out), "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// A version can forbid what the ones before it can.
func TestHandled(t *testing.T) {
	for version, want := range map[int][3]uint64{1: {0x1fff, 0, 0}, 3: {0x7fff, 0, 0}, 4: {0x7fff, 3, 0}, 6: {0xffff, 3, 1}, 99: {0xffff, 3, 1}} {
		a := handled(version)
		if got := [3]uint64{a.Handled_access_fs, a.Handled_access_net, a.Scoped}; got != want {
			t.Errorf("version %d: %x, want %x", version, got, want)
		}
	}
}
