//go:build linux

package grow

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernel interfaces that golang.org/x/sys/unix does not have: include/uapi/linux
// of the kernel, blkpg.h and ext4.h.
const (
	blkpg                = 0x1269     // BLKPG
	blkpgResizePartition = 3          // BLKPG_RESIZE_PARTITION
	ext4ResizeFS         = 0x40086610 // EXT4_IOC_RESIZE_FS
)

// struct blkpg_ioctl_arg
type blkpgArg struct {
	op, flags, length int32
	_                 [4]byte
	data              *blkpgPartition
}

// struct blkpg_partition
type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [128]byte // names that the kernel does not read
	_             [4]byte
}

// Partition tells the kernel that partition number n of disk has another size.
// It may be in use.
func Partition(disk *os.File, n int, start, size int64) error {
	p := blkpgPartition{start: start, length: size, number: int32(n)}
	arg := blkpgArg{op: blkpgResizePartition, length: int32(unsafe.Sizeof(p)), data: &p}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), blkpg, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("tell the kernel that partition %d of %s has %d bytes now: %w", n, disk.Name(), size, errno)
	}
	return nil
}

// FileSystem enlarges the ext4 file system that is mounted on dir to size bytes,
// and reports whether there was anything to do.
func FileSystem(dir string, size int64) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	if s.Type != unix.EXT4_SUPER_MAGIC {
		return false, fmt.Errorf("%s is not on ext4 (0x%x)", dir, s.Type)
	}
	blocks := uint64(size / s.Bsize)
	before := s.Blocks
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return false, fmt.Errorf("enlarge the file system on %s to %d bytes: %w", dir, size, errno)
	}
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	return s.Blocks > before, nil
}
