package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/gpt"
)

// ErrStale is wrapped by Reread's error if the kernel keeps partitions that are
// no longer in the table. What was written is not affected.
var ErrStale = errors.New("the kernel keeps the old partitions until the next boot")

// chunk is how much is erased with one call, which cannot be interrupted.
const chunk = 1 << 30

// Discard tells the device that n bytes from off are not needed. What they read
// as afterwards is not defined. A device that cannot do that returns an error
// that wraps errors.ErrUnsupported.
func (t *Target) Discard(ctx context.Context, off, n int64) error {
	request := uint(unix.BLKDISCARD)
	return t.inChunks(ctx, off, n, func(off, n int64) error {
		if !t.block {
			return t.punch(off, n)
		}
		return t.ioctlRange(request, off, n)
	})
}

// Zero makes n bytes from off zeros: the device does it if it can, without
// any being sent to it; files get a hole.
func (t *Target) Zero(ctx context.Context, off, n int64) error {
	var zeros []byte
	return t.inChunks(ctx, off, n, func(off, n int64) error {
		var err error
		if t.block {
			err = t.ioctlRange(unix.BLKZEROOUT, off, n)
		} else {
			err = t.punch(off, n)
		}
		// EINVAL is for ranges that are not whole sectors.
		if !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		if zeros == nil {
			zeros = make([]byte, 1<<20)
		}
		for n > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			m, err := t.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
			if err != nil {
				return err
			}
			off, n = off+int64(m), n-int64(m)
		}
		return nil
	})
}

func (t *Target) inChunks(ctx context.Context, off, n int64, do func(off, n int64) error) error {
	if off < 0 || n < 0 || off > t.Size()-n {
		return fmt.Errorf("%s: %d bytes from %d are not within its %d bytes", t.Name(), n, off, t.Size())
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := min(n, chunk)
		if err := do(off, m); err != nil {
			return fmt.Errorf("%s: erasing %d bytes from %d: %w", t.Name(), m, off, err)
		}
		off, n = off+m, n-m
	}
	return nil
}

// ioctlRange calls BLKDISCARD or BLKZEROOUT of linux/fs.h.
func (t *Target) ioctlRange(request uint, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	return t.ioctl(request, unsafe.Pointer(&arg))
}

func (t *Target) ioctl(request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.fd()), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (t *Target) punch(off, n int64) error {
	return unix.Fallocate(t.fd(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Reread makes the kernel read the partition table again. If it cannot, because
// partitions are in use, it is told of those that are gone or new one by one.
// Where the kernel makes no partitions, as for files and most loop devices,
// there is nothing to do. The error is not a reason to write again: the table
// on the device counts at the next boot; it wraps ErrStale.
func (t *Target) Reread() error {
	if !t.block {
		return nil
	}
	err := t.ioctl(unix.BLKRRPART, nil)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY):
		return nil
	case errors.Is(err, unix.EBUSY):
		err = t.adjust()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", t.Name(), ErrStale, err)
	}
	return nil
}

// A node is a partition as the kernel has it.
type node struct {
	number      int
	start, size int64
}

// adjust removes the kernel's partitions that are not in the GUID partition
// table, and adds those that it does not have. What is the same stays, in use
// or not.
func (t *Target) adjust() error {
	table, err := gpt.Read(t, t.Size())
	if err != nil {
		return err
	}
	var want []node
	for i, p := range table.Partitions {
		if p.Size > 0 {
			want = append(want, node{i + 1, p.Start, p.Size})
		}
	}
	have, err := t.host.nodes(t.device.Name)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range have {
		if !slices.Contains(want, n) {
			if err := t.tell(unix.BLKPG_DEL_PARTITION, n); err != nil {
				errs = append(errs, fmt.Errorf("removing partition %d: %w", n.number, err))
			}
		}
	}
	for _, n := range want {
		if !slices.Contains(have, n) {
			if err := t.tell(unix.BLKPG_ADD_PARTITION, n); err != nil {
				errs = append(errs, fmt.Errorf("adding partition %d: %w", n.number, err))
			}
		}
	}
	return errors.Join(errs...)
}

// nodes returns the partitions that the kernel has of a disk.
func (h Host) nodes(disk string) ([]node, error) {
	dir := filepath.Join(h.class(), disk)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var nodes []node
	for _, e := range entries {
		a := attributes(filepath.Join(dir, e.Name()))
		if n := a.number("partition"); n > 0 && strings.HasPrefix(e.Name(), disk) {
			nodes = append(nodes, node{int(n), a.number("start") * 512, a.number("size") * 512})
		}
	}
	return nodes, nil
}

// blkpg is BLKPG of linux/blkpg.h: _IO(0x12, 105).
const blkpg = 0x1269

func (t *Target) tell(operation int32, n node) error {
	part := unix.BlkpgPartition{Start: n.start, Length: n.size, Pno: int32(n.number)}
	arg := unix.BlkpgIoctlArg{Op: operation, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	return t.ioctl(blkpg, unsafe.Pointer(&arg))
}
