package iso

import (
	"encoding/binary"
	"time"
)

// The fields of a directory record (ECMA-119, 9.1).
const (
	atExtent    = 2  // u32 twice, sector
	atLength    = 10 // u32 twice, bytes
	atDate      = 18 // 7 bytes
	atFlags     = 25
	atUnitSize  = 26 // of an interleaved file
	atVolume    = 28 // u16 twice, number in a set of volumes
	atIDLength  = 32
	recordFixed = 33 // bytes before the identifier

	maxRecord = 254 // the length is one byte and even

	flagDir        = 1 << 1
	flagAssociated = 1 << 2
	flagMore       = 1 << 7 // the next record continues the file
)

// recordSize returns the size of a directory record, without the system use
// behind it, for an identifier of n bytes.
func recordSize(n int) int { return recordFixed + n + 1 - n%2 }

// appendRecord appends a directory record. The system use has an even number of
// bytes.
func appendRecord(b []byte, id string, at int64, size uint32, mtime int64, flags byte, use []byte) []byte {
	n := recordSize(len(id)) + len(use)
	start := len(b)
	b = append(b, make([]byte, n)...)
	r := b[start:]
	r[0] = byte(n)
	both32(r[atExtent:], uint32(at))
	both32(r[atLength:], size)
	date := shortDate(mtime)
	copy(r[atDate:], date[:])
	r[atFlags] = flags
	both16(r[atVolume:], 1)
	r[atIDLength] = byte(len(id))
	copy(r[recordFixed:], id)
	copy(r[recordSize(len(id)):], use)
	return b
}

// dirBytes returns the content of a directory.
func (v *volume) dirBytes(d *dir) []byte {
	b := make([]byte, 0, d.size)
	add := func(id string, at int64, size uint32, mtime int64, flags byte, use []byte) {
		if n := recordSize(len(id)) + len(use); len(b)%SectorSize+n > SectorSize {
			b = append(b, make([]byte, SectorSize-len(b)%SectorSize)...)
		}
		b = appendRecord(b, id, at, size, mtime, flags, use)
	}
	add("\x00", d.at, uint32(d.size), d.inode.ModTime, flagDir, d.self)
	add("\x01", d.parent.at, uint32(d.parent.size), d.parent.inode.ModTime, flagDir, d.up)
	for _, e := range d.entries {
		if e.dir != nil {
			add(e.id, e.dir.at, uint32(e.dir.size), e.inode.ModTime, flagDir, e.use)
			continue
		}
		at, size := v.places[e.inode], e.inode.Size()
		for size > maxExtent {
			add(e.id, at, maxExtent, e.inode.ModTime, flagMore, e.use)
			at += maxExtent / SectorSize
			size -= maxExtent
		}
		add(e.id, at, uint32(size), e.inode.ModTime, 0, e.use)
	}
	return append(b, make([]byte, int(d.size)-len(b))...)
}

// pathRecordSize returns the size of a directory's record in the path table.
func pathRecordSize(id string) int { return 8 + len(id) + len(id)%2 }

// pathTableBytes returns the path table, the list of all directories (ECMA-119,
// 9.4).
func (v *volume) pathTableBytes(order binary.ByteOrder) []byte {
	b := make([]byte, v.pathTable)
	r := b
	for _, d := range v.dirs {
		r[0] = byte(len(d.id))
		order.PutUint32(r[2:], uint32(d.at))
		order.PutUint16(r[6:], d.parent.number)
		copy(r[8:], d.id)
		r = r[pathRecordSize(d.id):]
	}
	return b
}

// The types of volume descriptors and the fields of the primary one (ECMA-119,
// 8.4).
const (
	bootRecord = 0
	primary    = 1
	terminator = 255
	standardID = "CD001" // from byte 1 of each, then the version

	atVolumeID    = 40 // 32 bytes
	atVolumeSize  = 80 // u32 twice, sectors
	atSetSize     = 120
	atSetNumber   = 124
	atBlockSize   = 128
	atTableSize   = 132
	atTableLE     = 140
	atTableBE     = 148
	atRoot        = 156 // a directory record of 34 bytes
	atTexts       = 190 // names of people and files, up to the dates
	atCreated     = 813 // 17 bytes
	atModified    = 830
	atExpires     = 847
	atEffective   = 864
	atFileVersion = 881
)

// descriptors returns the volume descriptors.
func (v *volume) descriptors() []byte {
	var b []byte
	add := func(kind byte) []byte {
		b = append(b, make([]byte, SectorSize)...)
		d := b[len(b)-SectorSize:]
		d[0], d[6] = kind, 1
		copy(d[1:], standardID)
		return d
	}
	v.primary(add(primary))
	if v.opts.bootable() {
		v.bootRecord(add(bootRecord))
	}
	add(terminator)
	return b
}

// primary fills the primary volume descriptor. What is not known is spaces in
// texts and the digit 0 in dates.
func (v *volume) primary(d []byte) {
	spaces(d[8:72])
	copy(d[atVolumeID:], v.opts.VolumeID)
	both32(d[atVolumeSize:], uint32(v.end))
	both16(d[atSetSize:], 1)
	both16(d[atSetNumber:], 1)
	both16(d[atBlockSize:], SectorSize)
	both32(d[atTableSize:], uint32(v.pathTable))
	le.PutUint32(d[atTableLE:], uint32(v.tables[0]))
	be.PutUint32(d[atTableBE:], uint32(v.tables[1]))
	root := v.dirs[0]
	copy(d[atRoot:], appendRecord(nil, root.id, root.at, uint32(root.size), root.inode.ModTime, flagDir, nil))
	spaces(d[atTexts:atCreated])
	made := longDate(v.opts.Epoch)
	copy(d[atCreated:], made[:])
	copy(d[atModified:], made[:])
	copy(d[atExpires:], "0000000000000000\x00")
	copy(d[atEffective:], "0000000000000000\x00")
	d[atFileVersion] = 1
}

func spaces(b []byte) {
	for i := range b {
		b[i] = ' '
	}
}

// shortDate returns a time, in seconds since 1970, as directory records have
// it: years since 1900 to seconds, each a byte, in UTC.
func shortDate(sec int64) [7]byte {
	t := time.Unix(clamp(sec, 1900, 2155), 0).UTC()
	return [7]byte{byte(t.Year() - 1900), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0}
}

// longDate returns a time as volume descriptors have it: digits from years to
// hundredths of a second, in UTC.
func longDate(sec int64) [17]byte {
	var b [17]byte
	copy(b[:], time.Unix(clamp(sec, 1, 9999), 0).UTC().Format("20060102150405")+"00\x00")
	return b
}

// clamp returns the time in seconds since 1970 that is nearest to sec and in
// one of the years.
func clamp(sec int64, first, last int) int64 {
	lo, hi := time.Date(first, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(last+1, 1, 1, 0, 0, 0, 0, time.UTC).Unix()-1
	return min(max(sec, lo), hi)
}

// both16 stores a number little-endian and then big-endian.
func both16(b []byte, n uint16) {
	le.PutUint16(b, n)
	be.PutUint16(b[2:], n)
}

// both32 stores a number little-endian and then big-endian.
func both32(b []byte, n uint32) {
	le.PutUint32(b, n)
	be.PutUint32(b[4:], n)
}
