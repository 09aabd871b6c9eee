package disk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// ErrNoGPT is returned by ReadGUIDs for a disk without a GUID partition table.
var ErrNoGPT = errors.New("no GUID partition table")

// maxEntries bounds the partition entries that are read, in bytes. The usual
// table is 128 entries of 128 bytes.
const maxEntries = 1 << 20

// GUIDs are the identifiers in a GUID partition table, as lower-case text.
type GUIDs struct {
	Disk       string
	Partitions map[int]string // unique GUIDs by partition number, from 1
}

// ReadGUIDs reads the GUID partition table of a disk of the given size with
// sectors of sectorSize bytes (512 or 4096): the header in sector 1 or, when
// that is damaged, its copy in the last sector (UEFI specification 2.10,
// section 5.3).
func ReadGUIDs(r io.ReaderAt, size, sectorSize int64) (*GUIDs, error) {
	if sectorSize < 512 || sectorSize > 64<<10 || size < 3*sectorSize {
		return nil, fmt.Errorf("%w: %d bytes in sectors of %d bytes", ErrNoGPT, size, sectorSize)
	}
	last := size/sectorSize - 1
	g, err := readHeader(r, 1, last, sectorSize)
	if err == nil {
		return g, nil
	}
	if g, err2 := readHeader(r, last, last, sectorSize); err2 == nil {
		return g, nil
	}
	return nil, err
}

func readHeader(r io.ReaderAt, lba, last, sectorSize int64) (*GUIDs, error) {
	h := make([]byte, sectorSize)
	if _, err := r.ReadAt(h, lba*sectorSize); err != nil {
		return nil, fmt.Errorf("sector %d: %w", lba, err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != "EFI PART" {
		return nil, fmt.Errorf("%w: sector %d has no signature", ErrNoGPT, lba)
	}
	length := int64(le.Uint32(h[12:]))
	if length < 92 || length > sectorSize {
		return nil, fmt.Errorf("%w: sector %d: header of %d bytes", ErrNoGPT, lba, length)
	}
	want := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if found := crc32.ChecksumIEEE(h[:length]); found != want {
		return nil, fmt.Errorf("%w: sector %d: header checksum %08x, want %08x", ErrNoGPT, lba, found, want)
	}
	start, count, size := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if int64(le.Uint64(h[24:])) != lba || size < 128 || size%8 != 0 || count > maxEntries/size || start > uint64(last) {
		return nil, fmt.Errorf("%w: sector %d: %d entries of %d bytes from sector %d", ErrNoGPT, lba, count, size, start)
	}
	entries := make([]byte, count*size)
	if _, err := r.ReadAt(entries, int64(start)*sectorSize); err != nil {
		return nil, fmt.Errorf("partition entries: %w", err)
	}
	if found, want := crc32.ChecksumIEEE(entries), le.Uint32(h[88:]); found != want {
		return nil, fmt.Errorf("%w: partition entries checksum %08x, want %08x", ErrNoGPT, found, want)
	}
	g := &GUIDs{Disk: guid(h[56:72]), Partitions: map[int]string{}}
	for i := range int(count) {
		e := entries[int64(i)*size:]
		if [16]byte(e[:16]) != [16]byte{} {
			g.Partitions[i+1] = guid(e[16:32])
		}
	}
	return g, nil
}

// guid formats the 16 bytes of a GUID, of which the first three fields are
// little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%s-%s", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]),
		hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:16]))
}

func sameGUID(a, b string) bool { return a != "" && strings.EqualFold(a, b) }
