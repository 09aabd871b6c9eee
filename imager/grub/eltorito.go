package grub

import (
	"bytes"
	"fmt"
)

// What the boot program of a CD is made of, by
//
//	grub-mkimage -O CDFormat -p CDPrefix -c FILE -o eltorito.img Modules…
//
// where FILE holds EarlyConfig. It is cdboot.img, which loads everything from a
// CD, followed by a core image as on a disk: the same program starts a CD and,
// from boot.img, a USB stick with the image of a CD. Its prefix names no device,
// so it is the one that the BIOS booted.
const (
	CDFormat = "i386-pc-eltorito"
	CDPrefix = "/boot/grub"
	// CDModules are separated by spaces.
	CDModules = "biosdisk iso9660 linux normal configfile echo serial terminal test minicmd reboot search"
)

const (
	cdSector = 2048
	// The boot information table, by which cdboot.img knows where it is, is u32
	// each: sector of the volume descriptor, own sector, size, and checksum: the
	// sum of all 32-bit words behind the table.
	infoTable    = 8
	infoTableEnd = 64
	volumeSector = 16
)

// ElTorito returns the boot program of a CD for sector lba, of 2048 bytes. On a
// disk with the same content, its core image begins at sector 4*lba+4 of 512
// bytes, which is what BootSector has to know. img is the output of
// grub-mkimage -O i386-pc-eltorito.
func ElTorito(img []byte, lba uint32) ([]byte, error) {
	if len(img) <= cdSector {
		return nil, fmt.Errorf("boot program of a CD: %w: %d bytes, want more than %d", ErrImage, len(img), cdSector)
	}
	if table := img[infoTable:infoTableEnd]; !bytes.Equal(table, make([]byte, len(table))) {
		return nil, fmt.Errorf("boot program of a CD: %w: its boot information table (offset 0x%x) is not empty; make it with grub-mkimage -O %s", ErrImage, infoTable, CDFormat)
	}
	core, err := Core(img[cdSector:], uint64(lba)*(cdSector/sectorSize)+cdSector/sectorSize)
	if err != nil {
		return nil, fmt.Errorf("boot program of a CD: behind cdboot.img: %w", err)
	}
	out := append(bytes.Clone(img[:cdSector]), core...)
	le.PutUint32(out[infoTable:], volumeSector)
	le.PutUint32(out[infoTable+4:], lba)
	le.PutUint32(out[infoTable+8:], uint32(len(out)))
	var sum uint32
	for i := infoTableEnd; i < len(out); i += 4 {
		sum += le.Uint32(out[i:])
	}
	le.PutUint32(out[infoTable+12:], sum)
	return out, nil
}
