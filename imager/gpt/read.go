package gpt

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// maxTableBytes bounds the partition entries that Read takes: 8192 of them.
const maxTableBytes = 1 << 20

// Read reads the partition table of a disk of size bytes. It tries sectors of
// 512, then of 4096 bytes, and takes the primary table if it is intact, else the
// backup in the disk's last sector; Table.Damaged then says why. CRCs, bounds
// and overlaps are checked.
//
// The disk may be larger than its table says, as after an image was written to
// it: Table.Size is the size given, and Map's result has the backup at the end.
//
// Read fails with ErrNone if there is no GPT, and with ErrDamaged if there is no
// intact one.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	boot := make([]byte, 512)
	if size < int64(len(boot)) {
		return nil, fmt.Errorf("%w: the disk has %d bytes", ErrNone, size)
	}
	if err := readAt(r, boot, 0); err != nil {
		return nil, err
	}
	protected, err := checkMBR(boot)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, backup := range []bool{false, true} {
		for _, sector := range []int64{512, 4096} {
			d := disk{r: r, sector: sector, sectors: size / sector}
			lba := int64(1)
			if backup {
				lba = d.sectors - 1
			}
			h, err := d.header(lba)
			switch {
			case errors.Is(err, ErrNone):
				continue
			case err != nil:
				faults = append(faults, err)
				continue
			}
			t := &Table{DiskID: h.diskID, SectorSize: sector, Size: d.sectors * sector, Partitions: h.partitions}
			if code := boot[:bootCodeSize]; !bytes.Equal(code, make([]byte, bootCodeSize)) {
				t.BootCode = code
			}
			t.Damaged = d.otherDamage(h, backup, protected, faults)
			return t, nil
		}
	}
	if len(faults) == 0 {
		return nil, fmt.Errorf("%w: no header in sector 1 or in the last one, with sectors of 512 or 4096 bytes", ErrNone)
	}
	return nil, errors.Join(faults...)
}

// checkMBR says whether LBA 0 is a protective MBR. One that has partitions of
// its own means that whatever GPT is left on the disk is not in use.
func checkMBR(b []byte) (bool, error) {
	if b[mbrSignature] != 0x55 || b[mbrSignature+1] != 0xAA {
		return false, nil
	}
	used := 0
	for i := range 4 {
		switch kind := b[mbrPartitions+16*i+4]; kind {
		case typeProtective:
			return true, nil
		case 0:
		default:
			used++
		}
	}
	if used > 0 {
		return false, fmt.Errorf("%w: the MBR has %d partitions and none of the type 0x%x that protects a GPT", ErrNone, used, typeProtective)
	}
	return false, nil
}

// otherDamage describes what is wrong on a disk on which one table is good.
func (d disk) otherDamage(good *header, isBackup, protected bool, faults []error) error {
	var damage []error
	if isBackup {
		if len(faults) == 0 {
			faults = []error{damaged("there is no primary header in sector 1")}
		}
		damage = faults
	} else {
		h, err := d.header(good.alternate)
		switch {
		case errors.Is(err, ErrNone):
			damage = append(damage, damaged("there is no backup header in sector %d", good.alternate))
		case err != nil:
			damage = append(damage, err)
		case h.diskID != good.diskID || h.entriesCRC != good.entriesCRC:
			damage = append(damage, damaged("the backup in sector %d is another table than the primary", good.alternate))
		}
	}
	if !protected {
		damage = append(damage, damaged("there is no protective MBR in sector 0"))
	}
	return errors.Join(damage...)
}

// disk is a device with a sector size to try.
type disk struct {
	r       io.ReaderAt
	sector  int64
	sectors int64
}

// header is a header that was found to be intact, with its entries.
type header struct {
	diskID     GUID
	alternate  int64 // sector of the other header, within the disk
	entriesCRC uint32
	partitions []Partition
}

// header reads the header in a sector, and the entries it points to.
func (d disk) header(lba int64) (*header, error) {
	if lba < 1 || lba >= d.sectors {
		return nil, ErrNone
	}
	b := make([]byte, d.sector)
	err := readAt(d.r, b, lba*d.sector)
	if err == nil && string(b[:len(signature)]) != signature {
		return nil, ErrNone
	}
	var h *header
	if err == nil {
		h, err = d.decode(b, lba)
	}
	if err != nil {
		return nil, fmt.Errorf("header in sector %d (of %d bytes): %w", lba, d.sector, err)
	}
	return h, nil
}

func (d disk) decode(b []byte, lba int64) (*header, error) {
	if v := le.Uint32(b[atRevision:]); v != revision {
		return nil, damaged("revision 0x%08x, want 0x%08x", v, revision)
	}
	n := le.Uint32(b[atHeaderSize:])
	if n < headerSize || int64(n) > d.sector {
		return nil, damaged("header of %d bytes, want %d up to a sector", n, headerSize)
	}
	want := le.Uint32(b[atHeaderCRC:])
	le.PutUint32(b[atHeaderCRC:], 0)
	if got := crc32.ChecksumIEEE(b[:n]); got != want {
		return nil, damaged("its CRC is 0x%08x, it says 0x%08x", got, want)
	}
	if my := le.Uint64(b[atMyLBA:]); my != uint64(lba) {
		return nil, damaged("it says that it is in sector %d", my)
	}
	last := uint64(d.sectors - 1)
	h := &header{diskID: swap(GUID(b[atDiskID:][:16])), entriesCRC: le.Uint32(b[atEntriesCRC:])}
	alternate, lo, hi := le.Uint64(b[atAlternate:]), le.Uint64(b[atFirstUsable:]), le.Uint64(b[atLastUsable:])
	if alternate > last || lo > hi || hi > last {
		return nil, damaged("the disk has %d sectors, the table is for one with sectors %d to %d usable and the other header in sector %d; was the image cut off?", d.sectors, lo, hi, alternate)
	}
	h.alternate = int64(alternate)
	if alternate == uint64(lba) || uint64(lba) >= lo && uint64(lba) <= hi {
		return nil, damaged("sectors %d to %d are for partitions and the other header is in sector %d", lo, hi, alternate)
	}

	size, count := uint64(le.Uint32(b[atEntrySize:])), uint64(le.Uint32(b[atEntries:]))
	if size < entrySize || size&(size-1) != 0 || size*count > maxTableBytes {
		return nil, damaged("%d entries of %d bytes, want at most %d bytes and a power of two from %d", count, size, maxTableBytes, entrySize)
	}
	at := le.Uint64(b[atEntriesLBA:])
	sectors := (size*count + uint64(d.sector) - 1) / uint64(d.sector)
	if at < 1 || at > last || sectors > last+1-at || at <= hi && at+sectors > lo {
		return nil, damaged("%d sectors of entries at sector %d, of which %d to %d are for partitions and %d is the last", sectors, at, lo, hi, last)
	}
	entries := make([]byte, size*count)
	if err := readAt(d.r, entries, int64(at)*d.sector); err != nil {
		return nil, err
	}
	if got := crc32.ChecksumIEEE(entries); got != h.entriesCRC {
		return nil, damaged("the CRC of its entries is 0x%08x, it says 0x%08x", got, h.entriesCRC)
	}
	return h, h.decodeEntries(entries, int(size), d.sector, lo, hi)
}

// decodeEntries fills in the partitions; lo and hi are the usable sectors.
func (h *header) decodeEntries(entries []byte, size int, sector int64, lo, hi uint64) error {
	for i := 0; i*size < len(entries); i++ {
		e := entries[i*size:][:entrySize]
		kind := swap(GUID(e[:16]))
		if kind == (GUID{}) {
			continue
		}
		first, last := le.Uint64(e[atFirstLBA:]), le.Uint64(e[atLastLBA:])
		if first > last || first < lo || last > hi {
			return damaged("partition %d is from sector %d to %d, usable are %d to %d", i+1, first, last, lo, hi)
		}
		h.partitions = append(h.partitions, make([]Partition, i-len(h.partitions))...)
		h.partitions = append(h.partitions, Partition{
			Type: kind, ID: swap(GUID(e[atPartitionID:][:16])), Name: decodeName(e[atName:]),
			Start: int64(first) * sector, Size: int64(last-first+1) * sector, Attributes: le.Uint64(e[atAttributes:]),
		})
	}
	if a, b := overlap(h.partitions); a != b {
		return damaged("%s overlaps %s", span(h.partitions, a), span(h.partitions, b))
	}
	return nil
}

// decodeName decodes UTF-16 up to the first zero. Lone surrogates become U+FFFD.
func decodeName(b []byte) string {
	var units []uint16
	for i := range nameUnits {
		u := le.Uint16(b[2*i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// readAt fills p. What cannot be read is as good as damaged.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: read of %d bytes at %d: %w", ErrDamaged, len(p), off, err)
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}
