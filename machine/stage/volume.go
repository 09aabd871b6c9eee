//go:build linux

package stage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/fsck"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
	"github.com/kilnhq/kiln/machine/platform/store"
	"github.com/kilnhq/kiln/machine/reaper"
	"github.com/kilnhq/kiln/machine/reset"
)

// volumes mounts the partitions that a node keeps its data on. One that cannot be
// used is no reason not to start: a node that nobody can reach can be repaired by
// nobody.
type volumes struct {
	start    *start
	disk     string // name; "" if there is none
	children *reaper.Reaper
	loader   *modules.Loader
	damaged  map[string]string // what is wrong, by the partition's label
}

const stateFlags = unix.MS_NOSUID | unix.MS_NODEV

// state mounts STATE, or memory in its place: without a disk, and when STATE cannot
// be read. It is never made anew here, for it has the node's identity.
func (v *volumes) state(p disk.Partition) (on string, err error) {
	s := v.start
	s.begin("state")
	memory := mount.FileSystem{Source: "tmpfs", Target: stateDir, Type: "tmpfs", Flags: stateFlags, Data: "mode=0755"}
	on = memory.Type
	switch err := v.mount(p, stateDir, stateFlags); {
	case err == nil && v.disk != "":
		on = p.Name
	case err == nil:
		if err := mount.Mount(memory); err != nil {
			return "", err
		}
	default:
		v.give(disk.State, fmt.Sprintf("%v; it stays as it is, and the node keeps nothing: %s=state makes it anew, without the configuration and the identity on it", err, argReset))
		if err := mount.Mount(memory); err != nil {
			return "", err
		}
	}
	s.done(console.F("on", on))
	return on, nil
}

// ephemeral mounts EPHEMERAL, or memory without a disk. If it cannot be used the
// configuration on STATE says what becomes of it.
func (v *volumes) ephemeral(p, state disk.Partition) (on string, err error) {
	s := v.start
	s.begin("ephemeral")
	if v.disk == "" {
		m := mount.FileSystem{Source: "tmpfs", Target: ephemeralDir, Type: "tmpfs", Data: "mode=0755"}
		if err := mount.Mount(m); err != nil {
			return "", err
		}
		s.done(console.F("on", m.Type))
		return m.Type, nil
	}
	err = v.mount(p, ephemeralDir, 0)
	if err != nil && policy(store.Store{Dir: stateDir}) == config.DamagedRecreate {
		s.console.Note(fmt.Sprintf("%s: %v; it is made anew, as the configuration says", disk.Ephemeral, err))
		if err = v.recreate(state); err == nil {
			err = v.mount(p, ephemeralDir, 0)
		}
	}
	if err != nil {
		v.give(disk.Ephemeral, fmt.Sprintf("%v; it stays as it is, and nothing is mounted on %s: %s=ephemeral makes it anew, "+
			"as does a configuration of kind Volume with damaged: %s", err, ephemeralDir, argReset, config.DamagedRecreate))
		s.done(console.F("on", ""))
		return "", nil
	}
	s.done(console.F("on", p.Name))
	return p.Name, nil
}

// recreate makes EPHEMERAL anew. STATE is not mounted meanwhile: nobody else uses a
// disk when something is erased on it.
func (v *volumes) recreate(state disk.Partition) error {
	if err := unix.Unmount(stateDir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", stateDir, err)
	}
	_, err := erase("/dev/"+v.disk, reset.Parts{Ephemeral: true}, v.start.watchdog.Renew)
	return errors.Join(err, v.mount(state, stateDir, stateFlags))
}

func (v *volumes) give(label, text string) {
	v.damaged[label] = text
	v.start.console.Note(label + ": " + text)
}

// policy is what becomes of an EPHEMERAL that cannot be repaired.
func policy(state store.Store) config.DamagedPolicy {
	for _, load := range []func() ([]byte, error){state.Load, state.Previous} {
		data, err := load()
		if err != nil {
			continue
		}
		c, err := config.Parse(config.Placeholder, data)
		if err != nil {
			continue
		}
		for _, volume := range c.Volumes {
			if volume.Name == config.Ephemeral {
				return volume.Damaged
			}
		}
		break
	}
	return config.DamagedKeep
}

// mount mounts a partition; before that it repairs one that asks for it, or that
// cannot be mounted. Without a disk there is nothing to do.
func (v *volumes) mount(p disk.Partition, dir string, flags uintptr) error {
	if v.disk == "" {
		return nil
	}
	if !mount.Known("ext4") {
		if err := v.loader.Load("ext4", ""); err != nil {
			return err
		}
	}
	fs := mount.FileSystem{Source: p.Device, Target: dir, Type: "ext4", Flags: flags}
	asks, err := asksForCheck(p.Device)
	if err != nil {
		return err
	}
	if !asks {
		if err = mount.Mount(fs); err == nil {
			return nil
		}
	} else {
		err = errors.New("the kernel has found errors in it")
	}
	v.start.console.Note(fmt.Sprintf("%s: %v; it is checked, which may take long", p.Label, err))
	done, broken := v.repair(p.Device)
	for _, line := range done[:min(len(done), 8)] {
		v.start.console.Note(fmt.Sprintf("%s: e2fsck: %s", p.Label, line))
	}
	if broken != nil {
		return fmt.Errorf("%w; %w", err, broken)
	}
	return mount.Mount(fs)
}

func asksForCheck(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return fsck.Asks(f)
}

// repair keeps the watchdog alive: a check of a large disk takes minutes.
func (v *volumes) repair(device string) (done []string, err error) {
	alive, end := time.NewTicker(time.Second), make(chan struct{})
	defer alive.Stop()
	go func() {
		defer close(end)
		done, err = fsck.Repair(fsck.Program, device, func(c *exec.Cmd) error { return v.children.Run(c) })
	}()
	for {
		select {
		case <-end:
			if err != nil {
				err = errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			return done, err
		case <-alive.C:
			v.start.watchdog.Renew()
		}
	}
}
