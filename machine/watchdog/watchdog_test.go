//go:build linux

package watchdog

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// That a watchdog resets a machine is seen in a machine of its own: see test.
func TestNoWatchdog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watchdog")
	if _, err := Open(file, time.Minute); err == nil || err.Error() != "open "+file+": no such file or directory" {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, time.Minute); err == nil || err.Error() != file+" is not a watchdog: inappropriate ioctl for device" {
		t.Errorf("a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || len(data) != 0 {
		t.Errorf("the file has %q, %v", data, err)
	}
	fd, err := unix.Open(file, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Inherit(fd); err == nil || !strings.HasPrefix(err.Error(), Path+" is not a watchdog: ") {
		t.Errorf("inherited file: %v", err)
	}
}

// Leave keeps the descriptor across exec, Stop ends with the magic letter.
func TestLeaveAndStop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "watchdog")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{f: f}
	fd, err := d.Leave()
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("flags %x, %v", flags, err)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "V" {
		t.Errorf("%q, %v; want V", data, err)
	}
}

// dog is a watchdog that notes when it would have reset the machine.
type dog struct {
	timeout time.Duration
	timer   *time.Timer
	reset   atomic.Pointer[time.Time]
	kept    int
	stopped bool
}

func newDog(timeout time.Duration) *dog {
	d := &dog{timeout: timeout}
	d.timer = time.AfterFunc(timeout, func() { now := time.Now(); d.reset.Store(&now) })
	return d
}

func (d *dog) Identity() string       { return "dog" }
func (d *dog) Timeout() time.Duration { return d.timeout }
func (d *dog) KeepAlive() error       { d.kept++; d.timer.Reset(d.timeout); return nil }
func (d *dog) Stop() error            { d.stopped = true; d.timer.Stop(); return nil }

// Whatever the timeout of the watchdog is, the machine is reset when patience
// ends.
func TestKeeper(t *testing.T) {
	const patience = 2 * time.Minute
	for _, timeout := range []time.Duration{time.Second, 15 * time.Second, patience, 3 * patience} {
		synctest.Test(t, func(t *testing.T) {
			d := newDog(timeout)
			k := Keep(d, patience)
			if got, want := k.Interval(), max(timeout, patience)/4; got != want {
				t.Errorf("interval %v, want %v", got, want)
			}
			for range 10 {
				time.Sleep(max(timeout, patience) - time.Second/2)
				k.Renew()
			}
			synctest.Wait()
			if d.reset.Load() != nil {
				t.Fatalf("timeout %v: reset with progress", timeout)
			}
			begin := time.Now()
			time.Sleep(time.Hour)
			synctest.Wait()
			if got, want := d.reset.Load(), begin.Add(max(timeout, patience)); got == nil || !got.Equal(want) {
				t.Errorf("timeout %v: reset at %v, want %v", timeout, got, want)
			}
		})
	}
}

// The last grant is the last, however much the rest of the program goes on.
func TestLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDog(time.Minute)
		k := Keep(d, 2*time.Minute)
		begin := time.Now()
		k.Last(10 * time.Minute)
		for range 100 {
			time.Sleep(10 * time.Second)
			k.Renew()
		}
		synctest.Wait()
		if got, want := d.reset.Load(), begin.Add(10*time.Minute); got == nil || !got.Equal(want) {
			t.Errorf("reset at %v, want %v", got, want)
		}
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDog(time.Minute)
		k := Keep(d, 2*time.Minute)
		if err := k.Stop(); err != nil || !d.stopped {
			t.Errorf("%v, stopped %v", err, d.stopped)
		}
		kept := d.kept
		k.Renew()
		k.Last(time.Minute)
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if d.kept != kept || d.reset.Load() != nil {
			t.Error("a watchdog that was stopped is used")
		}
	})
}

func TestNilKeeper(t *testing.T) {
	var k *Keeper
	k.Renew()
	k.Last(time.Second)
	if k.Stop() != nil || k.Interval() >= 0 {
		t.Error("a nil Keeper does something")
	}
}
