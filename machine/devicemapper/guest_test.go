//go:build linux

package devicemapper

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
)

// TestMain is the init of the machine that TestKernel starts, as well.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		if err := asInit(); err != nil {
			fmt.Printf("guest: failed: %v\n", err)
		}
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(m.Run())
}

// A given is what the guest knows about the layer in its initramfs.
type given struct {
	Release  string
	Files    map[string][]byte // SHA-256 of what is in the layer
	Verity   Verity            // without devices
	Size     int64             // of the layer with its tree
	Segments []Segment         // of the disk, which hold the same
}

const layerFile, mountPoint = "/layer", "/mnt"

// asInit prints "guest: NAME: RESULT" for every case. The host knows what they
// have to be.
func asInit() error {
	for _, fs := range []mount.FileSystem{{Source: "proc", Target: "/proc", Type: "proc"}, {Source: "sysfs", Target: "/sys", Type: "sysfs"}, {Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"}} {
		if err := mount.Mount(fs); err != nil {
			return err
		}
	}
	data, err := os.ReadFile("/given.json")
	if err != nil {
		return err
	}
	var g given
	if err := json.Unmarshal(data, &g); err != nil {
		return err
	}
	report := func(name string, err error) {
		if err == nil {
			err = errors.New("ok")
		}
		fmt.Printf("guest: %s: %v\n", name, err)
	}

	_, err = Open()
	report("no mapper", err)
	loader, err := modules.Open(modules.Directory("/", g.Release), nil)
	if err != nil {
		return err
	}
	for _, m := range []string{"dm_mod", "loop", "squashfs", "virtio_blk"} {
		if err := loader.Load(m, ""); err != nil {
			return err
		}
	}
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	report("no target", g.over(c, layerFile, func(string) error { return nil }))
	if err := loader.Load("dm_verity", ""); err != nil {
		return err
	}

	begin := time.Now()
	report("sound", g.over(c, layerFile, func(path string) error {
		fmt.Printf("guest: time: %d ms for loop and verity\n", time.Since(begin).Milliseconds())
		if path != "/dev/dm-0" {
			return fmt.Errorf("node %s", path)
		}
		return g.read(c, path)
	}))
	report("check", g.check(c))
	if err := g.damage(c, report); err != nil {
		return err
	}
	report("linear", g.linear(c))

	// The machine restarts in this one.
	g.Verity.OnCorruption = Restart
	if err := flipped("/restart", g.Verity.Blocks*verityBlock/2); err != nil {
		return err
	}
	return fmt.Errorf("no restart: %w", g.over(c, "/restart", func(path string) error { return g.read(c, path) }))
}

// over makes a verity device over file and calls f with its node.
func (g given) over(c *Control, file string, f func(path string) error) error {
	loop, err := mount.Loop(file)
	if err != nil {
		return err
	}
	defer loop.Close()
	v := g.Verity
	v.Data, v.Hash = loop.Name(), loop.Name()
	path, err := c.Verity("layer", v)
	if err != nil {
		return err
	}
	return errors.Join(f(path), c.Remove("layer"))
}

// read mounts the layer on the device and reads all of it.
func (g given) read(c *Control, path string) error {
	if err := mount.Mount(mount.FileSystem{Source: path, Target: mountPoint, Type: "squashfs", Flags: unix.MS_RDONLY}); err != nil {
		return err
	}
	if err := c.Remove("layer"); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("a mounted device was removed: %w", err)
	}
	err := func() error {
		for name, want := range g.Files {
			f, err := os.Open(mountPoint + "/" + name)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			if !bytes.Equal(h.Sum(nil), want) {
				return fmt.Errorf("%s has other content", name)
			}
		}
		return nil
	}()
	s, e := c.Status("layer")
	if e == nil && (s.Open != 1 || !s.ReadOnly || s.Suspended || len(s.Targets) != 1 || s.Targets[0].Kind != "verity" || s.Path != path) {
		e = fmt.Errorf("status %+v", s)
	}
	if e == nil && err != nil {
		err = fmt.Errorf("%w, status %s", err, s.Targets[0].Text)
	} else if e == nil && s.Targets[0].Text != "V" {
		e = fmt.Errorf("status %q of a sound device", s.Targets[0].Text)
	}
	return errors.Join(err, e, unix.Unmount(mountPoint, 0))
}

// damage reads layers that are not what they should be.
func (g given) damage(c *Control, report func(string, error)) error {
	data := g.Verity.Blocks * verityBlock
	for _, tc := range []struct {
		name string
		at   int64
	}{{"superblock", 40}, {"data", data / 2}, {"top of the tree", data}, {"leaf of the tree", data + 2*verityBlock}} {
		if err := flipped("/damaged", tc.at); err != nil {
			return err
		}
		report(tc.name, g.over(c, "/damaged", func(path string) error { return g.read(c, path) }))
	}
	other := g
	other.Verity.Root[31] ^= 1
	report("root hash", other.over(c, layerFile, func(path string) error { return g.read(c, path) }))
	other = g
	other.Verity.Salt = []byte("another")
	report("salt", other.over(c, layerFile, func(path string) error { return g.read(c, path) }))
	return nil
}

// check makes devices that cannot be.
func (g given) check(c *Control) error {
	return g.over(c, layerFile, func(path string) error {
		var errs []error
		want := func(err, is error, text string) {
			if err == nil || !errors.Is(err, is) || !strings.Contains(err.Error(), text) {
				errs = append(errs, fmt.Errorf("error %v, want %q", err, text))
			}
		}
		v := g.Verity
		v.Data, v.Hash = path, path
		_, err := c.Verity("layer", v)
		want(err, unix.EBUSY, `verity device "layer": create: device or resource busy: there is a device of that name`)
		_, err = c.Verity("larger", v)
		want(err, unix.E2BIG, `verity device "larger": load the table: argument list too long: /dev/dm-0 is too small for the hash tree`)
		_, err = c.Linear("longer", true, []Segment{{Device: path, Offset: v.Blocks * verityBlock, Length: sector}})
		want(err, unix.EINVAL, `linear device "longer": load the table: invalid argument: the kernel log says what is wrong with "0 1 linear /dev/dm-0 6152"`)
		v.Data = "/dev/nowhere"
		_, err = c.Verity("nowhere", v)
		want(err, unix.ENOENT, `verity device "nowhere": load the table: no such file or directory: /dev/nowhere: not there`)
		if e := mount.Mount(mount.FileSystem{Source: path, Target: mountPoint, Type: "squashfs", Flags: unix.MS_RDONLY}); e != nil {
			return e
		}
		_, err = c.Linear("busy", true, []Segment{{Device: path, Length: sector}})
		want(err, unix.EBUSY, path+": mounted, or used by another device")
		want(c.Remove("layer"), unix.EBUSY, `mapped device "layer": remove: device or resource busy: it is open, or something is mounted from it`)
		if e := unix.Unmount(mountPoint, 0); e != nil {
			return e
		}
		want(c.Remove("nobody"), unix.ENXIO, `mapped device "nobody": remove: no such device or address: there is no device of that name`)
		_, err = c.Status("nobody")
		want(err, unix.ENXIO, `mapped device "nobody": status: no such device or address: there is no device of that name`)
		// None of them has left a device.
		list, err := c.List()
		if err != nil || len(list) != 1 || list[0] != (Device{"layer", path}) {
			errs = append(errs, fmt.Errorf("devices %v, %v", list, err))
		}
		return errors.Join(errs...)
	})
}

// linear makes the layer of segments of the disk, and verity over it.
func (g given) linear(c *Control) error {
	var err error
	for range 100 {
		if _, err = os.Stat(g.Segments[0].Device); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	v := g.Verity
	if v.Data, err = c.Linear("below", true, g.Segments); err != nil {
		return err
	}
	v.Hash = v.Data
	path, err := c.Verity("layer", v)
	if err != nil {
		return err
	}
	if err := g.read(c, path); err != nil {
		return err
	}
	list, err := c.List()
	if err != nil || len(list) != 2 || list[0].Name != "below" || list[1].Name != "layer" {
		return fmt.Errorf("devices %v, %w", list, err)
	}
	s, err := c.Status("below")
	if err != nil || len(s.Targets) != len(g.Segments) || s.Targets[1].Kind != "linear" || s.Open != 1 || !s.ReadOnly {
		return fmt.Errorf("status %+v, %w", s, err)
	}
	return errors.Join(c.Remove("layer"), c.Remove("below"))
}

// flipped writes a copy of the layer with one bit changed.
func flipped(name string, at int64) error {
	data, err := os.ReadFile(layerFile)
	if err != nil {
		return err
	}
	data[at] ^= 1
	return os.WriteFile(name, data, 0o600)
}
