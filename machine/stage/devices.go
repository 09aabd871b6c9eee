//go:build linux

package stage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/uevent"
	"github.com/kilnhq/kiln/machine/watchdog"
)

// devices loads drivers for the devices that are there and that come.
type devices struct {
	loader   *modules.Loader
	listener *uevent.Listener
	buttons  *power.Buttons // nil in stage 1
	nodes    nodes          // nil in stage 1
	watchdog *watchdog.Keeper
	loaded   []string
	changed  bool // modules came, or failed to, since watch last looked
}

func newDevices(loader *modules.Loader, buttons *power.Buttons, dog *watchdog.Keeper) (*devices, error) {
	listener, err := uevent.Listen()
	if err != nil {
		return nil, err
	}
	return &devices{loader: loader, listener: listener, buttons: buttons, watchdog: dog}, nil
}

// coldplug loads drivers for all devices in sysfs, then for those that the
// drivers found. Drivers that no device names but a node needs come first: the
// power button's, and the variables of UEFI.
func (d *devices) coldplug() error {
	for _, name := range []string{"button", "evdev"} {
		if err := d.loader.Load(name, ""); err != nil {
			log("%v", err)
		}
	}
	if _, err := os.Stat(efiDir); err == nil {
		if !mount.Known("efivarfs") {
			if err := d.loader.Load("efivarfs", ""); err != nil {
				return err
			}
		}
		err := mount.Mount(mount.FileSystem{Source: "efivarfs", Target: efiVars, Type: "efivarfs",
			Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC})
		if err != nil {
			return err
		}
	}
	if err := d.walk(); err != nil {
		return err
	}
	return d.settle()
}

// walk loads drivers for the devices that sysfs shows.
func (d *devices) walk() error {
	return filepath.WalkDir("/sys/devices", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // a device that goes while it is looked at
		}
		if name := e.Name(); name != "uevent" && name != "modalias" || !e.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		if e.Name() == "uevent" {
			e := uevent.ParseFile(data)
			d.load(e["MODALIAS"])
			if d.nodes != nil {
				d.nodes.Present(filepath.Dir(path), e)
			}
			return nil
		}
		for line := range strings.Lines(string(data)) {
			d.load(strings.TrimSpace(line))
		}
		return nil
	})
}

func (d *devices) load(modalias string) {
	if modalias == "" {
		return
	}
	loaded, err := d.loader.LoadAlias(modalias)
	d.loaded = append(d.loaded, loaded...)
	d.changed = d.changed || len(loaded) > 0 || err != nil
	if len(loaded) > 0 {
		d.watchdog.Renew() // some drivers take their time
	}
	if err != nil {
		log("device %s: %v", modalias, err)
	}
}

// settle handles the events that have come so far.
func (d *devices) settle() error {
	for {
		more, err := d.next(0)
		if err != nil || !more {
			return err
		}
	}
}

// next handles the next event, if there is one in the given time.
func (d *devices) next(wait time.Duration) (more bool, err error) {
	e, err := d.listener.Receive(wait)
	if errors.Is(err, uevent.ErrOverrun) {
		if d.nodes != nil {
			d.nodes.Prune()
		}
		return true, d.walk()
	}
	if err != nil || e == nil {
		return false, err
	}
	if d.nodes != nil {
		d.nodes.Handle(e)
	}
	if e["ACTION"] == "remove" {
		return true, nil
	}
	d.load(e["MODALIAS"])
	// The kernel announces each module that is live, whoever loaded it.
	d.changed = d.changed || e["SUBSYSTEM"] == "module"
	if e["SUBSYSTEM"] == "input" && d.buttons != nil {
		d.buttons.Scan()
	}
	return true, nil
}

// watch handles events for ever, and calls f when there are new modules. It is
// what keeps the watchdog alive.
func (d *devices) watch(f func()) error {
	for {
		d.watchdog.Renew()
		if _, err := d.next(d.watchdog.Interval()); err != nil {
			return err
		}
		if err := d.settle(); err != nil {
			return err
		}
		if d.changed {
			d.changed = false
			f()
		}
	}
}

// waitForDisk returns the disk the machine was started from, or nil if it runs
// from memory.
func (d *devices) waitForDisk(args cmdline.Args, partGUID string) (*disk.Disk, error) {
	diskGUID, _ := args.Get(argDisk)
	if diskGUID == disk.None {
		return nil, nil
	}
	patience := patienceUnnamed
	if diskGUID != "" || partGUID != "" {
		patience = patienceNamed
	}
	deadline := time.Now().Add(patience)
	for {
		disks, err := disk.List("/sys", "/dev")
		if err != nil {
			return nil, err
		}
		found, err := disk.Select(disks, diskGUID, partGUID)
		if errors.Is(err, disk.ErrAmbiguous) || found != nil && found.Complete {
			return found, err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return found, err
		}
		if more, err := d.next(left); err != nil || !more {
			if err != nil {
				return nil, err
			}
			continue // once more at the deadline
		}
		if err := d.settle(); err != nil {
			return nil, err
		}
	}
}
