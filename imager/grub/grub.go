// Package grub makes GRUB 2 for BIOS (the platform i386-pc) boot from a GPT disk
// without grub-install, and writes and reads its configuration.
//
// GRUB starts in three steps. The BIOS loads sector 0 of the disk; its first 440
// bytes are boot.img, which loads the first sector of the core image; that
// (diskboot.img) loads the rest of the core image, which reads its
// configuration from a file system. The first two only know sector numbers, and
// these are what this package patches in:
//
//	boot.img  0x05C  8 bytes  sector of the core image's beginning
//	boot.img  0x066  2 bytes  jump over a check of the BIOS's drive number
//	core.img  0x1F4  8 bytes  sector of the core image's second sector
//
// All numbers are little-endian. A sector has 512 bytes, as for the BIOS; a
// disk with larger ones cannot be booted this way. The core image fills a BIOS
// boot partition (type 21686148-6449-6E6F-744E-656564454649) from its beginning.
//
// boot.img and the modules come with GRUB; the core image is made once, with
//
//	grub-mkimage -O Format -p Prefix -c FILE -o core.img Modules…
//
// where FILE holds EarlyConfig.
package grub

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// What a core image is made of.
const (
	Format = "i386-pc"
	// Prefix is the directory of grub.cfg: on the third partition of the disk
	// that the BIOS booted, whatever other disks there are.
	Prefix = "(,gpt3)/grub"
	// Modules are separated by spaces.
	Modules = "biosdisk part_gpt ext2 fat linux normal configfile echo serial terminal test minicmd loadenv reboot search"
	// EarlyConfig is the configuration inside the core image.
	EarlyConfig = "configfile $prefix/grub.cfg\n"
)

// ErrImage is wrapped by the errors for a file that is not the GRUB image it has
// to be.
var ErrImage = errors.New("not the right GRUB image")

const (
	sectorSize = 512

	bootCodeSize   = 440  // then the disk signature and the partition table
	bootCoreSector = 0x5C // u64
	bootDrive      = 0x64 // u8, 0xFF is the drive the BIOS says it booted
	bootDriveCheck = 0x66 // 2 bytes
	bootSignature  = 0x1FE

	// The first sector of the core image ends with a list of the sectors that
	// follow, which grows towards the beginning: 12 bytes each, u64 sector, u16
	// count, u16 segment to load them to. A count of 0 ends it.
	coreList     = 0x1F4
	coreCount    = coreList + 8
	coreSegment  = coreList + 10
	coreListSize = 12
	loadSegment  = 0x820 // after the first sector, which is at 0x8000
)

var le = binary.LittleEndian

// BootSector returns the 440 bytes of boot code for sector 0 of a disk whose
// core image begins at sector coreLBA. bootImg is GRUB's boot.img as it is
// shipped, 512 bytes.
func BootSector(bootImg []byte, coreLBA uint64) ([]byte, error) {
	if len(bootImg) != sectorSize {
		return nil, fmt.Errorf("boot.img: %w: %d bytes, want %d", ErrImage, len(bootImg), sectorSize)
	}
	for _, f := range []struct {
		name   string
		offset int
		want   []byte
	}{
		{"jump over the BIOS parameter block", 0, []byte{0xEB, 0x63}},
		{"sector of the core image", bootCoreSector, []byte{1, 0, 0, 0, 0, 0, 0, 0}},
		{"boot drive", bootDrive, []byte{0xFF}},
		{"drive check", bootDriveCheck, []byte{0xEB, 0x05}},
		{"signature", bootSignature, []byte{0x55, 0xAA}},
	} {
		if got := bootImg[f.offset:][:len(f.want)]; !bytes.Equal(got, f.want) {
			return nil, fmt.Errorf("boot.img: %w: %s (offset 0x%x) is % x, want % x; use %s/boot.img as it is shipped with GRUB", ErrImage, f.name, f.offset, got, f.want, Format)
		}
	}
	if coreLBA == 0 {
		return nil, errors.New("boot.img: the core image cannot be at sector 0, where boot.img is")
	}
	code := bytes.Clone(bootImg[:bootCodeSize])
	le.PutUint64(code[bootCoreSector:], coreLBA)
	// Two NOPs make it check the drive number it got from the BIOS, of which
	// some give a wrong one. The drive is a hard disk, so that the check is right.
	code[bootDriveCheck], code[bootDriveCheck+1] = 0x90, 0x90
	return code, nil
}

// Core returns the core image for a partition that begins at sector coreLBA,
// padded to whole sectors. coreImg is the output of grub-mkimage -O i386-pc.
func Core(coreImg []byte, coreLBA uint64) ([]byte, error) {
	if len(coreImg) <= sectorSize {
		return nil, fmt.Errorf("core image: %w: %d bytes, want more than %d", ErrImage, len(coreImg), sectorSize)
	}
	if coreLBA == 0 {
		return nil, errors.New("core image: it cannot be at sector 0, where boot.img is")
	}
	// diskboot.img begins with push %dx; push %si; cdboot.img and pxeboot.img,
	// which begin core images for other media, do not.
	if !bytes.HasPrefix(coreImg, []byte("RV")) {
		return nil, fmt.Errorf("core image: %w: begins with % x, want 52 56 (diskboot.img); make it with grub-mkimage -O %s", ErrImage, coreImg[:2], Format)
	}
	sectors := (len(coreImg) + sectorSize - 1) / sectorSize
	first, count, segment := le.Uint64(coreImg[coreList:]), le.Uint16(coreImg[coreCount:]), le.Uint16(coreImg[coreSegment:])
	switch {
	case first != 2:
		return nil, fmt.Errorf("core image: %w: its second sector is said to be at %d, want 2; it was patched before", ErrImage, first)
	case int(count) != sectors-1:
		return nil, fmt.Errorf("core image: %w: it says that %d sectors follow the first, but it has %d bytes, which is %d more sectors; is it cut off?", ErrImage, count, len(coreImg), sectors-1)
	case segment != loadSegment:
		return nil, fmt.Errorf("core image: %w: load segment 0x%x, want 0x%x", ErrImage, segment, loadSegment)
	}
	if more := le.Uint16(coreImg[coreCount-coreListSize:]); more != 0 {
		return nil, fmt.Errorf("core image: %w: it is in more than one run of sectors", ErrImage)
	}
	core := make([]byte, sectors*sectorSize)
	copy(core, coreImg)
	le.PutUint64(core[coreList:], coreLBA+1)
	return core, nil
}
