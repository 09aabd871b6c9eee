//go:build linux

package efi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
)

// TestMain is the init of the machine that TestFirmware starts, as well.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		command := unix.LINUX_REBOOT_CMD_RESTART
		again, err := asInit()
		if err != nil {
			fmt.Printf("guest: failed: %v\n", err)
		}
		if err != nil || !again {
			command = unix.LINUX_REBOOT_CMD_POWER_OFF
		}
		_ = unix.Reboot(command)
	}
	os.Exit(m.Run())
}

const (
	moduleFile = "/efivarfs.ko"
	entryFile  = "/entry.json"
)

// asInit prints "guest: NAME: RESULT" for every case, and says whether to start
// the machine again. The host knows what the results have to be.
func asInit() (again bool, err error) {
	for _, m := range []mount.FileSystem{{Source: "proc", Target: "/proc", Type: "proc"}, {Source: "sysfs", Target: "/sys", Type: "sysfs"}} {
		if err := mount.Mount(m); err != nil {
			return false, err
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false, err
	}
	report("started", strings.TrimSpace(string(cmdline)))
	data, err := os.ReadFile(entryFile)
	if err != nil {
		return false, err
	}
	var e Entry
	if err := json.Unmarshal(data, &e); err != nil {
		return false, err
	}
	if _, err := Open(); !errors.Is(err, ErrNoVariables) {
		return false, fmt.Errorf("Open without efivarfs: %w", err)
	} else {
		report("no efivarfs", err)
	}
	if err := loadModule(); err != nil {
		return false, err
	}
	v, err := Open()
	if err != nil {
		return false, err
	}
	defer v.Close()
	if strings.Contains(string(cmdline), "esp=1") {
		return true, firstStart(v, e)
	}
	return false, secondStart(v, e)
}

func report(name string, result any) { fmt.Printf("guest: %s: %v\n", name, result) }

func loadModule() error {
	f, err := os.Open(moduleFile)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// firstStart registers the entry among others, and tries what efivarfs refuses.
func firstStart(v *Variables, e Entry) error {
	gone := e
	gone.Partition.ID[0]++
	if _, err := Register(v, gone); err != nil {
		return err
	}
	stale, _, err := v.find(gone)
	if err != nil {
		return err
	}
	gone.Description = "Other OS"
	if _, err := Register(v, gone); err != nil {
		return err
	}
	e.Present = []uuid.UUID{e.Partition.ID}
	number, err := Register(v, e)
	if err != nil {
		return err
	}
	report("stale number used again", number == stale)
	_, first, err := v.find(e)
	report("first", first)
	if err != nil {
		return err
	}
	if number, err = Register(v, e); err != nil {
		return err
	}
	report("idempotent", number == stale)

	// efivarfs protects these variables, and not those of above.
	for _, id := range []string{"one", "another"} {
		if err := SetLoaderEntry(v, LoaderEntryOneShot, id); err != nil {
			return err
		}
	}
	s, err := LoaderString(v.FS(), LoaderEntryOneShot)
	report("written twice", fmt.Sprint(s, " ", err))
	err = os.Remove(v.dir + "/" + Name{LoaderEntryOneShot, LoaderVendor}.String())
	report("protected", errors.Is(err, os.ErrPermission))
	if err := SetLoaderEntry(v, LoaderEntryOneShot, ""); err != nil {
		return err
	}
	s, err = LoaderString(v.FS(), LoaderEntryOneShot)
	report("deleted", fmt.Sprintf("%q %v", s, err))
	if err := SetLoaderEntry(v, LoaderEntryDefault, "kiln-1-a.efi"); err != nil {
		return err
	}

	report("malformed", v.Write(bootName(0xfff0), Persistent, []byte{1, 2, 3}))
	_, _, err = v.Read(bootName(0xfff0))
	report("left", err)

	if err := mount.Mount(mount.FileSystem{Source: "efivarfs", Target: mountPoint, Type: "efivarfs", Flags: unix.MS_RDONLY}); err != nil {
		return err
	}
	mounted, err := Open()
	if err != nil {
		return err
	}
	report("mounted", mounted.mount == nil)
	report("read-only", mounted.Delete(bootOrder()))
	return nil
}

// secondStart is what the firmware boots then.
func secondStart(v *Variables, e Entry) error {
	number, first, err := v.find(e)
	if err != nil {
		return err
	}
	_, current, err := v.Read(Name{"BootCurrent", GlobalVendor})
	if err != nil {
		return err
	}
	report("entry started", binary.LittleEndian.Uint16(current) == number)
	report("still first", first)
	s, err := LoaderString(v.FS(), LoaderEntryDefault)
	report("default", fmt.Sprint(s, " ", err))
	if err := Unregister(v, e); err != nil {
		return err
	}
	_, _, err = v.find(e)
	report("unregistered", err)
	return nil
}

// find returns the number of our entry of the partition, and says whether it is
// the first in BootOrder.
func (v *Variables) find(e Entry) (number uint16, first bool, err error) {
	entries, order, err := readEntries(v)
	if err != nil {
		return 0, false, err
	}
	e.Present = nil
	ours := staleOf(entries, order, e)
	if len(ours) != 1 {
		return 0, false, fmt.Errorf("%d entries", len(ours))
	}
	return ours[0].number, len(order) > 0 && order[0] == ours[0].number, nil
}
