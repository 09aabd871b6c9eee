//go:build linux

package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/efi"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/reaper"
	"github.com/kilnhq/kiln/machine/slots"
)

// How long to wait for the disk: long for one that is named and must be there,
// short for one that may well not be. Drivers finish probing before their
// modules are loaded; only what comes later, as on USB, is waited for.
const (
	patienceNamed   = 30 * time.Second
	patienceUnnamed = 3 * time.Second
)

// grace is what processes get to end in before the machine turns off.
const grace = 10 * time.Second

const (
	efiDir  = "/sys/firmware/efi"
	efiVars = efiDir + "/efivars"
)

// Facts are what stage 2 has found out when the node's disk is mounted.
type Facts struct {
	Args     cmdline.Args
	Console  *console.Console
	Children *reaper.Reaper
	Power    func(power.Request)

	Version  string // of the image
	Release  string // of the kernel
	Slot     string // that was started, "" if no boot loader says so
	Disk     string // device that the node was started from, "" if there is none
	StateDir string // where STATE is mounted, or memory
	Image    string // file with the configuration that was built into the image
	RunDir   string // for what other programs may know
	Modules  string // file with what became of the extensions' modules
	Layers   string // file with the layers
	// Load loads the modules that the machine configuration asks for. What became of
	// them is in Modules.
	Load func([]layers.Module) error

	Damaged map[string]string // what is wrong with partitions that are not mounted, by label
}

// A System is all that a node does besides keeping its devices and its disk.
type System interface {
	// Await returns when others can manage the node.
	Await(context.Context) error
	// Ready is called when the node is up.
	Ready()
	// Shutdown ends it, before the disk goes away.
	Shutdown()
}

// Two is stage 2. It does not return. When the disk is there it calls begin.
func Two(begin func(Facts) (System, error)) {
	run("mounts", func() error { return nil }, (*start).inherit, func(s *start) error { return two(s, begin) })
}

func two(s *start, begin func(Facts) (System, error)) error {
	children := reaper.New()
	requests := make(chan power.Request, 8)
	power.Signals(requests)
	go s.guard(func() error { return s.obey(requests) })

	list, from, err := readWord()
	if err != nil {
		return err
	}
	uefi, err := mounts()
	if err != nil {
		return err
	}
	s.done(s.watched()...)

	s.begin("devices")
	asked, err := askedFor(list, os.DirFS("/"), from)
	if err != nil {
		return err
	}
	loader, err := configure(s, modules.Directory("/", list.Release), asked)
	if err != nil {
		return err
	}
	inventory := &inventory{loader: loader, from: from.Modules, asked: asked}
	devices, err := newDevices(loader, power.NewButtons(requests), s.watchdog)
	if err != nil {
		return err
	}
	links := devices.keepLinks(modules.Directory("/", list.Release))
	if err := devices.coldplug(); err != nil {
		return err
	}
	s.done(console.F("modules", len(devices.loaded)), console.F("buttons", devices.buttons.Scan()))

	s.begin("modules")
	names, failed := loadAsked(loader, asked)
	if err := devices.settle(); err != nil {
		return err
	}
	if _, err := inventory.update(s.console, modulesFile, false); err != nil {
		return err
	}
	s.done(console.F("asked", strings.Join(names, ",")), console.F("failed", strings.Join(failed, ",")))

	if _, ok := s.args.Get(argInstallDisk); ok {
		links.Settle(linked)
		return s.install(devices, children, requests)
	}

	s.begin("disk")
	slot, partGUID, err := loaderSays(s.args, uefi)
	if err != nil {
		return err
	}
	d, err := devices.waitForDisk(s.args, partGUID)
	if err != nil {
		return err
	}
	var state, ephemeral disk.Partition
	onDisk, name := false, disk.None
	if d != nil {
		name = d.Name
		if state, ephemeral, onDisk, err = d.Data(); err != nil {
			return err
		}
		if onDisk {
			s.fit(d)
		}
		s.done(console.F("name", name), console.F("guid", d.GUID))
		if onDisk {
			if err := s.reset(d); err != nil {
				return err
			}
		}
	} else {
		s.done(console.F("name", name))
	}
	data := &volumes{start: s, children: children, loader: loader, damaged: map[string]string{}}
	if onDisk {
		data.disk = d.Name
	}
	stateOn, err := data.state(state)
	if err != nil {
		return err
	}
	ephemeralOn, err := data.ephemeral(ephemeral, state)
	if err != nil {
		return err
	}
	if onDisk && ephemeralOn != "" {
		s.grow(ephemeral)
	}

	s.begin("system")
	facts := Facts{
		Args: s.args, Console: s.console, Children: children, Power: func(r power.Request) { requests <- r },
		Version: list.Kiln, Release: list.Release, Slot: slot, StateDir: stateDir, Image: filepath.Join(runDir, configName),
		RunDir: runDir, Modules: modulesFile, Layers: layersFile, Damaged: data.damaged,
		Load: func(wanted []layers.Module) error {
			return inventory.want(s.console, filepath.Dir(optionsFile), modulesFile, wanted)
		},
	}
	if d != nil {
		facts.Disk = "/dev/" + d.Name
	}
	system, err := begin(facts)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.system = system
	s.mu.Unlock()
	if err := s.await(system); err != nil {
		return err
	}
	s.done()

	s.begin("ready")
	if err := devices.settle(); err != nil {
		return err
	}
	links.Settle(linked)
	found, err := inventory.update(s.console, modulesFile, true)
	if err != nil {
		return err
	}
	firmware := "bios"
	if uefi {
		firmware = "uefi"
	}
	settled := s.settling()
	s.console.Ready(console.F("version", list.Kiln), console.F("release", list.Release), console.F("slot", slot),
		console.F("firmware", firmware), console.F("disk", name), console.F("state", stateOn),
		console.F("ephemeral", ephemeralOn), console.F("config", configFrom(stateDir, runDir)), console.F("extensions", extensions(list)),
		console.F("modules", named(found, modules.Loaded)), console.F("skipped", named(found, modules.Skipped)),
		console.F("failed", named(found, modules.Failed)))
	system.Ready()
	if onDisk && slot != "" {
		s.good(d, slot)
	}
	close(settled)
	if v, _ := s.args.Get(argPowerOff); v == "ready" {
		requests <- power.Request{Action: power.Off, Reason: argPowerOff + "=ready"}
	}
	s.begin("watch")
	return devices.watch(func() {
		if _, err := inventory.update(s.console, modulesFile, true); err != nil {
			log("%v", err)
		}
	})
}

// obey carries out the first request. What fails from then on, because things
// go away under it, is no failure.
func (s *start) obey(requests <-chan power.Request) error {
	r := <-requests
	s.ending.Do(func() {
		s.watchdog.Last(ending)
		s.settle()
		s.console.Stage("shutdown", console.F("action", r.Action), console.F("reason", r.Reason))
		s.mu.Lock()
		system := s.system
		s.mu.Unlock()
		if system != nil {
			system.Shutdown()
		}
		s.console.Failed("shutdown", power.Do(r.Action, grace, stateDir, ephemeralDir))
	})
	select {}
}

// manageable is how long others may have to wait until they can manage the node.
// A system that nobody can manage is not one to keep: in a slot on trial, the
// other slot is better.
const manageable = 2 * time.Minute

func (s *start) await(system System) error {
	ctx, cancel := context.WithTimeout(context.Background(), manageable)
	defer cancel()
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	up := make(chan error, 1)
	go func() { up <- system.Await(ctx) }()
	for {
		select {
		case err := <-up:
			return err
		case <-alive.C:
			s.watchdog.Renew()
		}
	}
}

// readWord reads what stage 1 left.
func readWord() (*layers.List, origins, error) {
	var from origins
	data, err := os.ReadFile(layersFile)
	if err != nil {
		return nil, from, fmt.Errorf("stage 1 did not run: %w", err)
	}
	list, err := layers.Decode(data)
	if err != nil {
		return nil, from, err
	}
	if data, err = os.ReadFile(originsFile); err != nil {
		return nil, from, err
	}
	if err := json.Unmarshal(data, &from); err != nil {
		return nil, from, fmt.Errorf("%s: %w", originsFile, err)
	}
	return list, from, nil
}

// mounts mounts the file systems that programs expect, and reports whether the
// firmware is UEFI.
func mounts() (uefi bool, err error) {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, err
		}
	}
	for _, m := range []mount.FileSystem{
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "mode=0620,ptmxmode=0666"},
		{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		{Source: "cgroup2", Target: "/sys/fs/cgroup", Type: "cgroup2", Flags: safe, Data: "nsdelegate,memory_recursiveprot"},
	} {
		if err := mount.Mount(m); err != nil {
			return false, err
		}
	}
	// These depend on how the kernel was configured.
	for _, m := range []mount.FileSystem{
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: safe},
		{Source: "securityfs", Target: "/sys/kernel/security", Type: "securityfs", Flags: safe},
		{Source: "bpf", Target: "/sys/fs/bpf", Type: "bpf", Flags: safe, Data: "mode=0700"},
	} {
		if _, err := os.Stat(m.Target); err != nil || !mount.Known(m.Type) {
			continue
		}
		if err := mount.Mount(m); err != nil {
			return false, err
		}
	}
	// Shared, so that mounts on the node reach the containers that ask for it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return false, fmt.Errorf("make / shared: %w", err)
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return false, err
		}
	}
	_, err = os.Stat(efiDir)
	return err == nil, nil
}

// loaderSays returns the slot and the GUID of the partition that the boot
// loader was started from, as far as a loader said so.
func loaderSays(args cmdline.Args, uefi bool) (slot, partGUID string, err error) {
	if v, ok := args.Get(argSlot); ok {
		if v != "A" && v != "B" {
			return "", "", fmt.Errorf("kernel argument %s=%s: want A or B", argSlot, v)
		}
		slot = v
	}
	if !uefi {
		return slot, "", nil
	}
	vars := os.DirFS(efiVars)
	if partGUID, err = efi.LoaderString(vars, efi.LoaderDevicePartUUID); err != nil {
		return "", "", err
	}
	for _, name := range []string{efi.StubImageIdentifier, efi.LoaderEntrySelected} {
		if slot != "" {
			break
		}
		v, err := efi.LoaderString(vars, name)
		if err != nil {
			return "", "", err
		}
		if n, err := slots.ParseName(v); err == nil {
			slot = n.Slot
		}
	}
	return slot, partGUID, nil
}

// configFrom says where the machine configuration is: on STATE, in the
// initramfs, or nowhere.
func configFrom(state, run string) string {
	for _, place := range []struct{ dir, name string }{{state, "state"}, {run, "initramfs"}} {
		if fi, err := os.Lstat(filepath.Join(place.dir, configName)); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 {
			return place.name
		}
	}
	return "none"
}

// extensions names the extensions of an image, in their order.
func extensions(list *layers.List) string {
	var names []string
	for _, y := range list.Layers {
		if y.Kind != layers.Extension {
			continue
		}
		name := y.Name
		if y.Version != "" {
			name += "@" + y.Version
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}
