package devlinks

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Watch makes the Keeper notice what is written onto devices, of which the kernel has no
// event: a device is read again when a program closes it that could write to it. It is
// called once, before the first device, and ends with ctx.
func (k *Keeper) Watch(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// Drives with media are asked whether there is another; most do not tell.
	_ = os.WriteFile(filepath.Join(k.sys, "module/block/parameters/events_dfl_poll_msecs"), []byte("2000"), 0)
	k.mu.Lock()
	k.inotify, k.watched = fd, map[int32]string{}
	k.mu.Unlock()
	context.AfterFunc(ctx, func() {
		k.mu.Lock()
		k.watched = nil
		k.mu.Unlock()
		f.Close()
	})
	go func() {
		buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			k.written(buf[:n])
		}
	}()
	return nil
}

// watch begins to watch the node of a device. The caller holds mu.
func (k *Keeper) watch(name string) {
	if k.watched == nil {
		return
	}
	wd, err := unix.InotifyAddWatch(k.inotify, filepath.Join(k.dev, nodeName(name)), unix.IN_CLOSE_WRITE)
	if err == nil {
		k.watched[int32(wd)] = name
	}
}

// written takes events: the number of the watch has 4 bytes, mask and cookie 4 each,
// then the length of a name that follows, in the byte order of the machine.
func (k *Keeper) written(events []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		n := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(n, len(events)):]
		name, ok := k.watched[wd]
		switch {
		case !ok:
		case mask&unix.IN_IGNORED != 0: // the node has gone
			delete(k.watched, wd)
		case k.devices[name] != nil:
			k.again(k.devices[name])
			// A table names its disk's partitions.
			for _, s := range k.devices {
				if strings.HasPrefix(s.device.dir, k.devices[name].device.dir+"/") {
					k.again(s)
				}
			}
		}
	}
}
