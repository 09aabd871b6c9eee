package iso

import "math"

// The platforms of El Torito.
const (
	platformBIOS = 0x00
	platformUEFI = 0xEF
)

const (
	elTorito = "EL TORITO SPECIFICATION" // from byte 7 of the boot record
	// atCatalog is the sector of the boot catalog, u32, in the boot record.
	atCatalog = 0x47

	catalogEntry  = 32
	entryHeader   = 0x90 // a section with entries follows, and then others
	entryLast     = 0x91 // the last section
	entryExtra    = 0x44 // more about the entry before it
	entryBootable = 0x88
)

func (v *volume) bootRecord(d []byte) {
	copy(d[7:], elTorito)
	le.PutUint32(d[atCatalog:], catalogSector)
}

// catalog returns the boot catalog. Its first entry says for which platform the
// second is; further ones are in sections.
func (v *volume) catalog() []byte {
	b := make([]byte, SectorSize)
	first := b[:catalogEntry]
	first[0] = 1
	first[30], first[31] = 0x55, 0xAA
	rest := b[catalogEntry:]
	if v.opts.BIOS != nil {
		bootEntry(rest, SectorSize/diskSector, BIOSSector)
		rest = rest[catalogEntry:]
	} else {
		first[1] = platformUEFI
	}
	// The sum of all 16-bit words is 0.
	var sum uint16
	for i := 0; i < catalogEntry; i += 2 {
		sum += le.Uint16(first[i:])
	}
	le.PutUint16(first[28:], -sum)
	if v.opts.EFI == nil {
		return b
	}
	if v.opts.BIOS != nil {
		rest[0], rest[1] = entryLast, platformUEFI
		le.PutUint16(rest[2:], 1) // entries
		rest = rest[catalogEntry:]
	}
	// The number of sectors has 16 bits; 0 is up to the end of the medium (UEFI,
	// 13.3.2.1).
	count := v.opts.EFI.Size() / diskSector
	if count > math.MaxUint16 {
		count = 0
	}
	bootEntry(rest, uint16(count), uint32(v.efi))
	return b
}

// bootEntry fills an entry for an image that emulates no disk, from which so
// many sectors of 512 bytes are loaded.
func bootEntry(b []byte, count uint16, at uint32) {
	b[0] = entryBootable
	le.PutUint16(b[6:], count)
	le.PutUint32(b[8:], at)
}
