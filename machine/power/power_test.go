//go:build linux

package power

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHasBit(t *testing.T) {
	// The ACPI power button, an AT keyboard (which has the key), one without the
	// key and a mouse, as a 64-bit kernel shows them.
	for bitmap, want := range map[string]bool{
		"10000000000000 0\n": true,
		"402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe": true,
		"402000000 3803078f800d001 feefffdfffefffff fffffffffffffffe": false,
		"1f0000 0 0 0": false,
		"0":            false,
		"":             false,
		"zz 0":         false,
	} {
		if strconv.IntSize != 64 {
			t.Skip("SKIPPED: the bitmaps are of a 64-bit kernel")
		}
		if got := hasBit(bitmap, keyPower); got != want {
			t.Errorf("hasBit(%q) = %v, want %v", bitmap, got, want)
		}
	}
}

func event(kind, code uint16, value uint32) []byte {
	e := make([]byte, eventSize)
	ne := binary.NativeEndian
	ne.PutUint16(e[eventSize-8:], kind)
	ne.PutUint16(e[eventSize-6:], code)
	ne.PutUint32(e[eventSize-4:], value)
	return e
}

func TestPressed(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []byte
		want   bool
	}{
		{"down", slices.Concat(event(4, 4, 116), event(evKey, keyPower, 1), event(0, 0, 0)), true},
		{"up", event(evKey, keyPower, 0), false},
		{"another key", event(evKey, 30, 1), false},
		{"half an event", event(evKey, keyPower, 1)[:eventSize-1], false},
		{"nothing", nil, false},
	} {
		if got := pressed(c.events); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestProcesses(t *testing.T) {
	proc := t.TempDir()
	for pid, stat := range map[string]string{
		"1":    "1 (init) S 0 1 1",
		"2":    "2 (kthreadd) S 0 0 0",
		"30":   "30 (kworker/0:1) I 2 0 0",
		"100":  "100 (a) b) c (d) S 1 100 100",
		"101":  "101 (dead) Z 1 101 101",
		"102":  "102 (x) 2",
		"self": "",
	} {
		if err := os.MkdirAll(filepath.Join(proc, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "stat"), []byte(stat), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := processes(proc); !slices.Equal(got, []int{100}) {
		t.Errorf("got %v, want [100]", got)
	}
	if !slices.Contains(processes("/proc"), os.Getpid()) {
		t.Error("this process is not among those of /proc")
	}
}

func TestRequest(t *testing.T) {
	for _, a := range []Action{Off, Restart} {
		if r := request(a.Signal()); r.Action != a {
			t.Errorf("the signal for %v asks for %v", a, r.Action)
		}
	}
	if r := request(unix.SIGINT); r.Action != Restart || r.Reason != "ctrl-alt-del" {
		t.Errorf("SIGINT asks for %v", r)
	}
}
