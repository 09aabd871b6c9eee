// Package iso lays out and reads ISO 9660 images that boot from a CD and,
// written to a USB stick, from a disk, on BIOS and on UEFI. Build returns an
// extent map in which the contents of files stay where they are; Open reads the
// images of others, too.
//
// Four formats share one image:
//
//   - ECMA-119 (ISO 9660:1988), interchange level 3: the file system. Sectors
//     have 2048 bytes; the first 16 of them, the "system area", are free.
//   - SUSP 1.12 and RRIP 1.12 (Rock Ridge): real names, modes, owners, times
//     and symbolic links, as entries behind each directory record.
//   - El Torito 1.0: a boot catalog, from which firmware starts a CD. A BIOS
//     loads the beginning of a program; UEFI sees a FAT file system.
//   - GPT, UEFI specification chapter 5, in the system area and at the end: the
//     disk that firmware and tools see on a USB stick. Its sectors have 512 bytes.
//
// An image is, by 2048-byte sectors:
//
//	 0        boot code of a BIOS disk, protective MBR, GPT
//	16        primary volume descriptor: size, dates, root directory
//	17        boot record: where the boot catalog is
//	18        end of the descriptors
//	19        boot catalog
//	20        boot program for BIOS
//	then      path tables, directories, continuations of Rock Ridge entries
//	then      files, each contiguous
//	then      the EFI system partition, at a multiple of 1 MiB
//	the end   the second copy of the GPT
//
// Most integers are stored twice, little-endian and then big-endian.
//
// Decisions of Build's own:
//
//   - There is no Joliet. What reads neither Rock Ridge nor Joliet, and
//     Windows, sees names of up to 30 capital letters, digits and "_".
//   - Directories may be nested deeper than the eight levels of ECMA-119, as
//     no reader minds, instead of being moved elsewhere.
//   - A file larger than 4 GiB is in several extents.
//   - The boot catalog and the boot images are not files of the tree. But a file
//     whose content lies in the EFI system partition already, or within another
//     file, on a multiple of 2048 bytes there, is not stored again: both point to
//     the same place.
//   - The first GPT partition covers the files, so that no tool takes them for
//     free space. It cannot be mounted by itself; the whole disk can.
//   - Extended attributes are dropped. Times outside of the years 1900 to 2155
//     become the nearest one inside.
package iso

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
)

// Errors returned, wrapped, by Build and Open.
var (
	ErrOptions     = errors.New("invalid option")
	ErrUnsupported = errors.New("not possible in ISO 9660")
	ErrFormat      = errors.New("not an ISO 9660 image")
	ErrCorrupt     = errors.New("corrupt ISO 9660 image")
)

// SectorSize is the size of a sector of a CD in bytes.
const SectorSize = 2048

// BIOSSector is where BIOS.Image is, in sectors of 2048 bytes from the
// beginning of the image, always.
const BIOSSector = 20

// Options are the properties of an image that do not follow from its tree.
type Options struct {
	VolumeID string // at most 32 printable ASCII characters; may be empty
	Epoch    int64  // when the volume was made, in seconds since 1970

	// BIOS, if not nil, makes the image boot on a BIOS.
	BIOS *BIOS
	// EFI, if not nil, is a FAT file system with EFI/BOOT/BOOT*.EFI that makes
	// the image boot on UEFI. Its size is a multiple of 512 bytes.
	EFI extent.Source

	// The GUIDs of the disk and its two partitions. They are needed if there is
	// BIOS or EFI; the last one only if there is EFI.
	DiskID, FilesID, EFIID gpt.GUID
}

// BIOS is what a BIOS executes. Both parts know the place of Image, which is
// BIOSSector.
type BIOS struct {
	// BootCode, at most 440 bytes, is what the image begins with. A BIOS loads
	// it from a USB stick. It has to load Image itself.
	BootCode []byte
	// Image is a "no emulation" boot program. From a CD, a BIOS loads its first
	// 2048 bytes to address 0x7C00. They have to load the rest.
	Image []byte
}

func (o *Options) check() error {
	if len(o.VolumeID) > 32 {
		return fmt.Errorf("%w: volume ID %q has %d bytes, at most 32 fit", ErrOptions, o.VolumeID, len(o.VolumeID))
	}
	for _, c := range []byte(o.VolumeID) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("%w: volume ID %q, want printable ASCII characters", ErrOptions, o.VolumeID)
		}
	}
	if b := o.BIOS; b != nil {
		if len(b.BootCode) == 0 || len(b.BootCode) > bootCodeSize {
			return fmt.Errorf("%w: BIOS boot code of %d bytes, want 1 to %d", ErrOptions, len(b.BootCode), bootCodeSize)
		}
		if len(b.Image) < SectorSize {
			return fmt.Errorf("%w: BIOS boot image of %d bytes, want at least the %d that a BIOS loads", ErrOptions, len(b.Image), SectorSize)
		}
	}
	if o.EFI != nil && (o.EFI.Size() <= 0 || o.EFI.Size()%diskSector != 0) {
		return fmt.Errorf("%w: EFI image of %d bytes, want a multiple of %d", ErrOptions, o.EFI.Size(), diskSector)
	}
	return nil
}

// bootable says whether there is a boot catalog and a GPT.
func (o *Options) bootable() bool { return o.BIOS != nil || o.EFI != nil }

const (
	diskSector   = 512 // of a USB stick
	bootCodeSize = 440

	descriptors   = 16 // sector of the first volume descriptor
	catalogSector = 19

	// maxExtent is the most bytes of one extent that has another one behind it.
	maxExtent = 1<<32 - SectorSize
	// maxSectors is how many sectors a volume may have.
	maxSectors = 1<<32 - 1
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// sectors returns how many sectors n bytes take.
func sectors(n int64) int64 { return (n + SectorSize - 1) / SectorSize }

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
