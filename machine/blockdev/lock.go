package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long Lock waits for others to let go of a device. udev and
// programs like blkid hold one for moments, whenever it appears or is written.
const lockWait = 2 * time.Second

// A Target is a device that was opened for writing and that nobody else may
// mount, add to a RAID set, partition or probe until it is closed.
type Target struct {
	*os.File
	device Device
	host   Host
	block  bool
}

// Lock opens d for writing and locks it: with O_EXCL against mounting and
// whatever else claims a device or a part of it, also out of sight in other
// containers, and with flock(2) as systemd's BLOCK_DEVICE_LOCKING asks for,
// against udev, systemd-repart and others that only ask. Files have flock only.
//
// If d was inspected, and is not now as its Fingerprint says, Lock fails with
// ErrChanged; d may be from a plan that was made earlier, or elsewhere. It
// fails with ErrInUse if others have d and do not let go of it in two seconds.
func (h Host) Lock(ctx context.Context, d *Device) (*Target, error) {
	flags := os.O_RDWR
	switch d.Kind {
	case Disk, Loop:
		flags |= unix.O_EXCL
	case File:
	default:
		return nil, d.notDisk()
	}
	deadline := time.Now().Add(lockWait)
	for {
		t, err := h.tryLock(d, flags)
		if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
			return t, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; %w", err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (h Host) tryLock(d *Device, flags int) (*Target, error) {
	// A node that is not a block device may block when it is opened.
	if st, err := os.Stat(d.Path); err != nil {
		return nil, err
	} else if d.Kind == File != st.Mode().IsRegular() {
		return nil, d.refuse(ErrChanged, "it was a %s and has now the mode %v", d.Kind, st.Mode())
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, d.refuse(ErrInUse, "it, or a partition of it, is mounted or opened exclusively, maybe outside of this container; see 'lsblk' and 'fuser -v %s' on the host", d.Path)
	case errors.Is(err, syscall.EROFS):
		return nil, d.refuse(ErrReadOnly, "%v", err)
	case err != nil:
		return nil, explain(err)
	}
	t := &Target{File: f, device: *d, host: h, block: d.Kind != File}
	if err := t.claim(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// claim takes the lock and compares the device with what it was.
func (t *Target) claim() error {
	d := &t.device
	if t.block {
		var st unix.Stat_t
		if err := unix.Fstat(t.fd(), &st); err != nil {
			return err
		}
		if number := formatNumber(st.Rdev); st.Mode&unix.S_IFMT != unix.S_IFBLK || number != d.Number {
			return d.refuse(ErrChanged, "it is the device %s and was %s", number, d.Number)
		}
		// Most drivers let one open what cannot be written.
		if ro, err := unix.IoctlGetUint32(t.fd(), unix.BLKROGET); err == nil && ro != 0 {
			return d.refuse(ErrReadOnly, "%s", readOnlyNext)
		}
	}
	err := unix.Flock(t.fd(), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return d.refuse(ErrInUse, "another program holds a lock on it (flock); see 'fuser -v %s'", d.Path)
	}
	if err != nil {
		return fmt.Errorf("%s: locking: %w", d.Path, err)
	}
	if !t.block {
		users, err := t.host.loopsOf(d.Path)
		if err != nil {
			return err
		}
		for _, u := range users {
			return d.refuse(ErrInUse, "%s; detach it with losetup -d", u)
		}
	}
	size, err := t.size()
	if err != nil {
		return fmt.Errorf("%s: its size: %w", d.Path, err)
	}
	if d.Fingerprint == nil {
		d.Size = size
		return nil
	}
	now, err := fingerprint(t.File, size)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	if what := d.Fingerprint.differs(now); what != "" {
		return d.refuse(ErrChanged, "%s; make a new plan", what)
	}
	return nil
}

func (t *Target) fd() int { return int(t.File.Fd()) }

func (t *Target) size() (int64, error) {
	if !t.block {
		st, err := t.Stat()
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	n, err := unix.IoctlGetInt(t.fd(), unix.BLKGETSIZE64)
	return int64(n), err
}

// Size returns the size in bytes.
func (t *Target) Size() int64 { return t.device.Size }

// Device returns what the target is.
func (t *Target) Device() Device { return t.device }
