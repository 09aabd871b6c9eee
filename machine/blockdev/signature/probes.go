package signature

import (
	"encoding/binary"
	"fmt"
)

// A probe looks for one format, or for a family of them.
type probe func(*device) (Signature, bool)

// probes are in the order of the places they look at.
var probes = []probe{
	luks, bitlocker, xfs, squashfs, bluestore, apfs, lvm, fat, exfat, ntfs,
	ext, erofs, f2fs, hfs, bcache, swap, iso9660, jfs, btrfs, reiserfs, zfs,
	linuxRAID1, linuxRAID0, ddf, intelRAID,
}

var le, be = binary.LittleEndian, binary.BigEndian

func luks(d *device) (Signature, bool) {
	if !d.is(0, "LUKS\xba\xbe") {
		return Signature{}, false
	}
	s := Signature{Type: "crypto_LUKS", UUID: d.text(168, 40)}
	if d.is(6, "\x00\x02") {
		s.Label = d.text(24, 48)
	}
	return s, true
}

func bitlocker(d *device) (Signature, bool) {
	return Signature{Type: "BitLocker"}, d.is(3, "-FVE-FS-")
}

func xfs(d *device) (Signature, bool) {
	return Signature{Type: "xfs", UUID: d.uuid(32), Label: d.text(108, 12)}, d.is(0, "XFSB")
}

func squashfs(d *device) (Signature, bool) {
	return Signature{Type: "squashfs"}, d.is(0, "hsqs")
}

func bluestore(d *device) (Signature, bool) {
	return Signature{Type: "ceph_bluestore"}, d.is(0, "bluestore block device")
}

func apfs(d *device) (Signature, bool) {
	return Signature{Type: "apfs", UUID: d.uuid(72)}, d.is(32, "NXSB")
}

// lvm finds the label of a physical volume, which is in one of the first four
// sectors.
func lvm(d *device) (Signature, bool) {
	for off := int64(0); off < 4*512; off += 512 {
		if d.is(off, "LABELONE") && d.is(off+24, "LVM2 001") {
			id := d.text(off+32, 32)
			if len(id) == 32 {
				id = id[:6] + "-" + id[6:10] + "-" + id[10:14] + "-" + id[14:18] + "-" + id[18:22] + "-" + id[22:26] + "-" + id[26:]
			}
			return Signature{Type: "LVM2_member", UUID: id}, true
		}
	}
	return Signature{}, false
}

// fat finds FAT12, FAT16 and FAT32. Their names in the boot sector are only
// informative, but all programs that format write them.
func fat(d *device) (Signature, bool) {
	var serial, label int64
	switch {
	case d.is(82, "FAT32   "):
		serial, label = 67, 71
	case d.is(54, "FAT12   "), d.is(54, "FAT16   "), d.is(54, "FAT     "):
		serial, label = 39, 43
	default:
		return Signature{}, false
	}
	if !d.is(510, "\x55\xaa") {
		return Signature{}, false
	}
	s := Signature{Type: "vfat", UUID: serial32(d.at(serial, 4)), Label: d.text(label, 11)}
	if s.Label == "NO NAME" {
		s.Label = ""
	}
	return s, true
}

func exfat(d *device) (Signature, bool) {
	if !d.is(3, "EXFAT   ") {
		return Signature{}, false
	}
	return Signature{Type: "exfat", UUID: serial32(d.at(100, 4))}, true
}

// serial32 returns the serial number of a volume as FAT's tools write it.
func serial32(b []byte) string {
	if len(b) < 4 || le.Uint32(b) == 0 {
		return ""
	}
	n := le.Uint32(b)
	return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
}

func ntfs(d *device) (Signature, bool) {
	b := d.at(72, 8)
	if !d.is(3, "NTFS    ") || b == nil {
		return Signature{}, false
	}
	return Signature{Type: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b))}, true
}

// ext tells ext2, ext3 and ext4 by their features, and a journal that is a
// device of its own.
func ext(d *device) (Signature, bool) {
	const (
		superblock = 1024
		journal    = 1 << 2 // compatible feature
		journalDev = 1 << 3 // incompatible features
		of3        = 1<<1 | 1<<2 | 1<<4
		of2        = 1<<1 | 1<<4
		of3ro      = 1<<0 | 1<<1 | 1<<2 // read-only compatible features
	)
	b := d.at(superblock, 1024)
	if b == nil || le.Uint16(b[56:]) != 0xef53 {
		return Signature{}, false
	}
	s := Signature{UUID: d.uuid(superblock + 104), Label: d.text(superblock+120, 16)}
	compat, incompat, ro := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	switch {
	case incompat&journalDev != 0:
		s.Type = "jbd"
	case incompat&^of2 == 0 && ro&^of3ro == 0 && compat&journal == 0:
		s.Type = "ext2"
	case incompat&^of3 == 0 && ro&^of3ro == 0:
		s.Type = "ext3"
	default:
		s.Type = "ext4"
	}
	return s, true
}

func erofs(d *device) (Signature, bool) {
	return Signature{Type: "erofs", UUID: d.uuid(1024 + 48), Label: d.text(1024+64, 16)}, d.is(1024, "\xe2\xe1\xf5\xe0")
}

func f2fs(d *device) (Signature, bool) {
	return Signature{Type: "f2fs", UUID: d.uuid(1024 + 108), Label: d.text16(1024+124, 512)}, d.is(1024, "\x10\x20\xf5\xf2")
}

func hfs(d *device) (Signature, bool) {
	return Signature{Type: "hfsplus"}, d.is(1024, "H+\x00\x04") || d.is(1024, "HX\x00\x05")
}

// bcache finds backing and cache devices of bcache, and bcachefs, which has its
// superblock in the same place.
func bcache(d *device) (Signature, bool) {
	switch {
	case d.is(4096+24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"):
		return Signature{Type: "bcache", UUID: d.uuid(4096 + 40)}, true
	case d.is(4096+24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"):
		return Signature{Type: "bcachefs", UUID: d.uuid(4096 + 56), Label: d.text(4096+72, 32)}, true
	}
	return Signature{}, false
}

// swap looks at the end of the first page, whose size depends on the machine
// that made it.
func swap(d *device) (Signature, bool) {
	for page := int64(4096); page <= 65536; page *= 2 {
		switch {
		case d.is(page-10, "SWAPSPACE2"), d.is(page-10, "SWAP-SPACE"):
			return Signature{Type: "swap", UUID: d.uuid(1036), Label: d.text(1052, 16)}, true
		case d.is(page-10, "S1SUSPEND"):
			return Signature{Type: "swsuspend", UUID: d.uuid(1036), Label: d.text(1052, 16)}, true
		}
	}
	return Signature{}, false
}

func iso9660(d *device) (Signature, bool) {
	switch {
	case d.is(32769, "CD001"):
		s := Signature{Type: "iso9660", Label: d.text(32808, 32)}
		// The time of creation: it is what blkid takes for an identifier.
		if t := d.text(32768+813, 16); len(t) == 16 && t != "0000000000000000" {
			s.UUID = t[:4] + "-" + t[4:6] + "-" + t[6:8] + "-" + t[8:10] + "-" + t[10:12] + "-" + t[12:14] + "-" + t[14:]
		}
		return s, true
	case d.is(32769, "BEA01"), d.is(32769, "NSR02"), d.is(32769, "NSR03"):
		return Signature{Type: "udf"}, true
	}
	return Signature{}, false
}

func jfs(d *device) (Signature, bool) {
	return Signature{Type: "jfs"}, d.is(32768, "JFS1")
}

func btrfs(d *device) (Signature, bool) {
	return Signature{Type: "btrfs", UUID: d.uuid(65536 + 32), Label: d.text(65536+299, 256)}, d.is(65536+64, "_BHRfS_M")
}

func reiserfs(d *device) (Signature, bool) {
	for _, off := range []int64{8192 + 52, 65536 + 52} {
		if d.is(off, "ReIsErFs") || d.is(off, "ReIsEr2Fs") || d.is(off, "ReIsEr3Fs") {
			return Signature{Type: "reiserfs", UUID: d.uuid(off - 52 + 84), Label: d.text(off-52+100, 16)}, true
		}
	}
	return Signature{}, false
}

// zfs finds one of the uberblocks, 1 KiB or more apart, in the first label.
func zfs(d *device) (Signature, bool) {
	for off := int64(128 << 10); off < 256<<10; off += 1 << 10 {
		if d.is(off, "\x0c\xb1\xba\x00\x00\x00\x00\x00") || d.is(off, "\x00\x00\x00\x00\x00\xba\xb1\x0c") {
			return Signature{Type: "zfs_member"}, true
		}
	}
	return Signature{}, false
}

const raidMagic = 0xa92b4efc

// linuxRAID1 finds the version 1 metadata of md: at the start (1.1), 4 KiB
// behind it (1.2) or 8 to 12 KiB before the end (1.0).
func linuxRAID1(d *device) (Signature, bool) {
	for _, off := range []int64{0, 4096, (d.size - 8192) &^ 4095} {
		b := d.at(off, 64)
		if b != nil && le.Uint32(b) == raidMagic && le.Uint32(b[4:]) == 1 {
			return Signature{Type: "linux_raid_member", UUID: d.uuid(off + 16), Label: d.text(off+32, 32)}, true
		}
	}
	return Signature{}, false
}

// linuxRAID0 finds the version 0.90 metadata of md, in the last 64 KiB that
// are aligned to 64 KiB.
func linuxRAID0(d *device) (Signature, bool) {
	b := d.at(d.size&^(64<<10-1)-64<<10, 64)
	if b == nil {
		return Signature{}, false
	}
	for _, order := range []binary.ByteOrder{le, be} {
		if order.Uint32(b) == raidMagic && order.Uint32(b[4:]) == 0 {
			return Signature{Type: "linux_raid_member"}, true
		}
	}
	return Signature{}, false
}

// ddf and intelRAID find what the firmware of RAID controllers leaves at the
// end of a disk.
func ddf(d *device) (Signature, bool) {
	return Signature{Type: "ddf_raid_member"}, d.is(d.size-512, "\xde\x11\xde\x11")
}

func intelRAID(d *device) (Signature, bool) {
	return Signature{Type: "isw_raid_member"}, d.is(d.size-1024, "Intel Raid ISM Cfg Sig. ")
}
