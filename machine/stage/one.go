//go:build linux

package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/machine/mount"
)

// Directories that stage 1 makes in the initramfs. The layers' names are short
// because all of them must fit in the options of one mount.
const (
	layerDir = "/l"
	newRoot  = "/r"
)

// nextInit is stage 2, in the root file system.
const nextInit = "/usr/bin/init"

// pseudo are the file systems without which nothing works; stage 2 inherits
// them.
func pseudo() []mount.FileSystem {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mount.FileSystem{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: safe},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: safe},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
	}
}

// One is stage 1. It does not return.
func One() {
	run("initramfs", func() error {
		for _, p := range pseudo() {
			if err := os.MkdirAll(p.Target, 0o755); err != nil {
				return err
			}
			if err := mount.Mount(p); err != nil {
				return err
			}
		}
		sparing()
		// Should this process die of what it cannot catch, the kernel restarts
		// the machine too.
		_ = os.WriteFile("/proc/sys/kernel/panic", []byte(strconv.Itoa(defaultPanic)), 0o644)
		return nil
	}, (*start).arm, one)
}

func one(s *start) error {
	list, err := readList(os.DirFS("/"))
	if err != nil {
		return err
	}
	loader, err := drivers(list)
	if err != nil {
		return err
	}
	s.done(append(s.watched(), console.F("release", list.Release), console.F("memory", memory()>>20))...)

	s.begin("layers")
	attach := imageLayer
	total := int64(0)
	for _, y := range list.Layers {
		total += y.Size
	}
	fields := []console.Field{console.F("count", len(list.Layers)), console.F("bytes", total)}
	if list.OnBoot() {
		found, err := findLayers(s.args, list, loader, s.watchdog)
		if err != nil {
			return err
		}
		attach = found.mount
		fields = append(fields, console.F("from", "boot"), console.F("slot", found.slot), console.F("on", found.partition.Name))
	} else {
		for _, y := range list.Layers {
			if err := verify(y); err != nil {
				return err
			}
			s.watchdog.Renew()
		}
	}
	s.done(fields...)

	s.begin("root")
	from, err := stack(list, attach)
	if err != nil {
		return err
	}
	if err := leaveWord(list, from); err != nil {
		return err
	}
	if err := enter(s); err != nil {
		return err
	}
	env := []string{"PATH=/usr/bin:/usr/sbin", "HOME=/", "TERM=linux"}
	env = append(env, s.leave()...)
	return &os.PathError{Op: "exec", Path: nextInit, Err: unix.Exec(nextInit, []string{nextInit}, env)}
}

// memory is the machine's memory in bytes, as far as the kernel has it.
func memory() uint64 {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0
	}
	return uint64(i.Totalram) * uint64(i.Unit)
}

// truncated explains what is missing from the initramfs.
func truncated(err error) error {
	return fmt.Errorf("%w; the kernel boots on with an initramfs that it could unpack only in part: either the image is damaged, or the %d MiB of memory of this machine are too small", err, memory()>>20)
}

func readList(root fs.FS) (*layers.List, error) {
	data, err := fs.ReadFile(root, layers.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, truncated(fmt.Errorf("/%s is missing from the initramfs", layers.Name))
	}
	if err != nil {
		return nil, err
	}
	list, err := layers.Decode(data)
	if err != nil {
		return nil, truncated(err)
	}
	kernel, err := release()
	if err != nil {
		return nil, err
	}
	if kernel != list.Release {
		return nil, fmt.Errorf("the initramfs is for kernel %s, but this is %s", list.Release, kernel)
	}
	return list, nil
}

// drivers loads what the layers are mounted with, unless the kernel has it. The
// loader is nil if there was nothing to load.
func drivers(list *layers.List) (*modules.Loader, error) {
	var names []string
	if !mount.Known("squashfs") {
		names = append(names, "squashfs")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil && !list.OnBoot() {
		names = append(names, "loop")
	}
	if len(list.Layers) > 1 && !mount.Known("overlay") {
		names = append(names, "overlay")
	}
	if len(names) == 0 && !list.OnBoot() {
		return nil, nil
	}
	loader, err := modules.Open(modules.Directory("/", list.Release), nil)
	if err != nil {
		return nil, truncated(err)
	}
	for _, n := range names {
		if err := loader.Load(n, ""); err != nil {
			return nil, err
		}
	}
	return loader, nil
}

func verify(y layers.Layer) error {
	f, err := os.Open("/" + y.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return truncated(fmt.Errorf("%s (%s %s): found nothing, want %d bytes", y.Path, y.Kind, y.Name, y.Size))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := y.Verify(f); err != nil {
		if errors.Is(err, layers.ErrDamaged) {
			return truncated(err)
		}
		return err
	}
	return nil
}

// imageLayer mounts a layer of the initramfs on a directory.
func imageLayer(y layers.Layer, dir string) error { return mount.Image("/"+y.Path, dir) }

// stack mounts the layers on newRoot and returns which extensions the kernel
// modules outside of the base come from.
func stack(list *layers.List, attach func(y layers.Layer, dir string) error) (origins, error) {
	from := origins{Modules: map[string]string{}, Files: map[string]string{}}
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return from, err
	}
	if len(list.Layers) == 1 {
		return from, attach(list.Layers[0], newRoot)
	}
	var dirs []string
	for i, y := range list.Layers {
		dir := layerDir + "/" + strconv.Itoa(i)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return from, err
		}
		if err := attach(y, dir); err != nil {
			return from, err
		}
		dirs = append(dirs, dir)
		if y.Kind == layers.Extension {
			if err := from.add(os.DirFS(dir), list.Release, y.Name); err != nil {
				return from, fmt.Errorf("%s: %w", y.Path, err)
			}
		}
	}
	if err := mount.Overlay(dirs, newRoot); err != nil {
		return from, err
	}
	// The overlay has its own hold on the layers.
	for _, d := range dirs {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			return from, fmt.Errorf("unmount %s: %w", d, err)
		}
	}
	return from, nil
}

func leaveWord(list *layers.List, from origins) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	data, err := list.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(layersFile, data, 0o444); err != nil {
		return err
	}
	if data, err = json.Marshal(from); err != nil {
		return err
	}
	if err := os.WriteFile(originsFile, data, 0o444); err != nil {
		return err
	}
	data, err = os.ReadFile("/" + configName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(runDir+"/"+configName, data, 0o600)
}

// enter moves into newRoot and frees the initramfs. The layers' memory stays:
// their loop devices hold them.
func enter(s *start) error {
	if info, err := os.Stat(newRoot + nextInit); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("the root file system has no program %s", nextInit)
	}
	for _, p := range pseudo() {
		if err := unix.Mount(p.Target, newRoot+p.Target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the root file system: %w", p.Target, err)
		}
	}
	if err := free("/"); err != nil {
		return err
	}
	if err := mount.SwitchRoot(newRoot); err != nil {
		return err
	}
	s.done()
	return nil
}

// free removes everything in the file system of dir, not what is mounted in it.
func free(dir string) error {
	if !InInitramfs() {
		return fmt.Errorf("%s is not an initramfs: nothing is removed", dir)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	return remove(dir, st.Dev)
}

func remove(dir string, dev uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || uint64(st.Dev) != dev {
			continue
		}
		if e.IsDir() {
			if err := remove(p, dev); err != nil {
				return err
			}
		}
		_ = os.Remove(p) // a directory with a mount in it stays
	}
	return nil
}
