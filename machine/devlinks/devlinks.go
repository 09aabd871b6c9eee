// Package devlinks gives block devices names that last, and device nodes the groups and
// modes that programs expect.
//
// The kernel numbers disks as it finds them: what is /dev/sda today may be /dev/sdb
// tomorrow. Links in /dev/disk name a device by what it says of itself, by where it is,
// or by what is on it:
//
//	by-id         ata-MODEL_SERIAL, scsi-…, usb-…, nvme-…, virtio-SERIAL, mmc-…, wwn-0x…
//	by-path       pci-0000:00:04.0-ata-1.0
//	by-diskseq    the kernel's count of disks
//	by-partuuid   identifier and
//	by-partlabel  label in the partition table
//	by-uuid       identifier and
//	by-label      label of the file system, swap area or encrypted volume
//
// A partition has its disk's names in by-id and by-path, with -partN behind them. The
// rules are those of udev's 60-persistent-storage.rules, so that what people know, and
// what is written in configurations and storage classes, is true here; package
// documentation of systemd calls them Persistent Block Device Naming.
//
// If several devices have a name, as the copies of a disk have its labels, the one that
// had it first keeps it until it goes; then it is another's.
package devlinks

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/uevent"
)

// readers is how many devices are read at a time, each into less than 400 KiB.
const readers = 8

// A Keeper keeps the links of a machine as its devices come, change and go. Its methods
// may be called at any time, and do not wait for devices: one that does not answer has no
// links, and does not keep others from theirs.
type Keeper struct {
	sys, dev string
	// Fault is told what is wrong with a link or a node; nil: nobody is.
	Fault func(error)

	slots chan struct{}

	mu      sync.Mutex
	devices map[string]*state // by the kernel's name
	claims  map[string][]string
	busy    int
	idle    *sync.Cond
	inotify int
	watched map[int32]string // names by the numbers of their watches; nil: nothing is
}

// A state is that of a device.
type state struct {
	device  device
	links   []string
	running bool
	stale   bool // something happened since it was read
	gone    bool
}

// New returns a Keeper of the links in dev, with what sysfs at sys says.
func New(sys, dev string) *Keeper {
	k := &Keeper{sys: sys, dev: dev, slots: make(chan struct{}, readers), devices: map[string]*state{}, claims: map[string][]string{}}
	k.idle = sync.NewCond(&k.mu)
	return k
}

func (k *Keeper) fault(err error) {
	if k.Fault != nil && err != nil {
		k.Fault(err)
	}
}

// Present is Handle for a device that was there before, by its directory in sysfs, and
// what its file uevent says.
func (k *Keeper) Present(dir string, e uevent.Event) {
	if e["DEVNAME"] == "" {
		return
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	k.add(device{k.sys, dir}, e, true)
}

// Handle takes an event of the kernel.
func (k *Keeper) Handle(e uevent.Event) {
	if e["DEVNAME"] == "" {
		return
	}
	d := device{k.sys, filepath.Join(k.sys, filepath.Clean("/"+e["DEVPATH"]))}
	switch e["ACTION"] {
	case "remove":
		if e["SUBSYSTEM"] == "block" {
			k.remove(d.name())
		}
	case "add", "change", "move", "online":
		k.add(d, e, e["ACTION"] == "add")
	}
}

func (k *Keeper) add(d device, e uevent.Event, isNew bool) {
	subsystem := d.subsystem()
	if isNew {
		k.fault(k.permit(d, subsystem, e))
	}
	if subsystem != "block" || !isNamed(d.name()) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.devices[d.name()]
	if s == nil {
		s = &state{}
		k.devices[d.name()] = s
		k.watch(d.name())
	}
	s.device = d
	k.again(s)
}

// again reads a device once more. The caller holds mu.
func (k *Keeper) again(s *state) {
	s.stale = true
	if !s.running {
		s.running = true
		k.busy++
		go k.read(s)
	}
}

// read finds out the links of a device until nothing more has happened to it.
func (k *Keeper) read(s *state) {
	k.slots <- struct{}{}
	defer func() { <-k.slots }()
	for {
		k.mu.Lock()
		if !s.stale || s.gone {
			s.running = false
			k.busy--
			k.idle.Broadcast()
			k.mu.Unlock()
			return
		}
		s.stale = false
		d := s.device
		k.mu.Unlock()
		names := links(d, k.open)
		slices.Sort(names)
		names = slices.Compact(names)
		k.mu.Lock()
		if !s.gone {
			k.claim(s, d.name(), names)
		}
		k.mu.Unlock()
	}
}

// Prune removes the links of devices whose events were lost when they went.
func (k *Keeper) Prune() {
	k.mu.Lock()
	var gone []string
	for name, s := range k.devices {
		if _, err := os.Lstat(s.device.dir); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, name)
		}
	}
	k.mu.Unlock()
	for _, name := range gone {
		k.remove(name)
	}
}

func (k *Keeper) remove(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.devices[name]; s != nil {
		s.gone = true
		k.claim(s, name, nil)
		delete(k.devices, name)
	}
}

// claim makes names the links of a device.
func (k *Keeper) claim(s *state, device string, names []string) {
	for _, link := range s.links {
		if slices.Contains(names, link) {
			continue
		}
		rest := slices.DeleteFunc(k.claims[link], func(n string) bool { return n == device })
		if len(rest) == 0 {
			delete(k.claims, link)
		} else {
			k.claims[link] = rest
		}
		k.fault(k.point(link))
	}
	for _, link := range names {
		if !slices.Contains(k.claims[link], device) {
			k.claims[link] = append(k.claims[link], device)
		}
		k.fault(k.point(link))
	}
	s.links = names
}

// point makes a link lead to the first device that has the name, or removes it.
func (k *Keeper) point(link string) error {
	name := filepath.Join(k.dev, "disk", link)
	claims := k.claims[link]
	if len(claims) == 0 {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		_ = os.Remove(filepath.Dir(name)) // if it was the last one
		return nil
	}
	target := "../../" + nodeName(claims[0])
	if now, err := os.Readlink(name); err == nil && now == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	// In one step: whoever looks finds the old device or the new one.
	temporary := filepath.Join(filepath.Dir(name), ".#"+filepath.Base(name))
	_ = os.Remove(temporary)
	if err := os.Symlink(target, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}

// Settle waits until the links of the devices that are known are there, for at most the
// given time, and reports whether they are.
func (k *Keeper) Settle(limit time.Duration) bool {
	over := false
	timer := time.AfterFunc(limit, func() {
		k.mu.Lock()
		over = true
		k.idle.Broadcast()
		k.mu.Unlock()
	})
	defer timer.Stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.busy > 0 && !over {
		k.idle.Wait()
	}
	return k.busy == 0
}

// HDIO_GET_IDENTITY of linux/hdreg.h; CDROM_DRIVE_STATUS of linux/cdrom.h with CDSL_CURRENT
// and one of its answers, CDS_DISC_OK.
const (
	identifyCommand = 0x030d
	statusCommand   = 0x5326
	currentSlot     = 1<<31 - 1
	mediumIsThere   = 4
)

// nodeName returns the name of a node in /dev; the kernel's own has no slashes.
func nodeName(kernel string) string { return strings.ReplaceAll(kernel, "!", "/") }

// open opens a device node of that name.
func (k *Keeper) open(name string) (*medium, func(), error) {
	f, err := os.OpenFile(filepath.Join(k.dev, nodeName(name)), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	if strings.HasPrefix(name, "sr") {
		// Without a medium a drive has the size of the last one.
		status, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), statusCommand, currentSlot)
		if errno != 0 || status != mediumIsThere {
			size = 0
		}
	}
	ask := func() []byte {
		var data [identifySize]byte
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), identifyCommand, uintptr(unsafe.Pointer(&data))); errno != 0 {
			return nil
		}
		return data[:]
	}
	return &medium{f, size, ask}, func() { f.Close() }, nil
}
