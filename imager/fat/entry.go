package fat

import (
	"encoding/binary"
	"strings"
	"time"
	"unicode/utf16"
)

var le = binary.LittleEndian

// A directory entry, and its fields.
const (
	entrySize = 32

	// 0: 11 bytes, the short name
	atAttr        = 11
	atCase        = 12 // bits: lowerBase, lowerExt
	atCreatedTens = 13 // 10 ms, 0 to 199
	atCreatedTime = 14
	atCreatedDate = 16
	atAccessDate  = 18
	atClusterHigh = 20
	atWriteTime   = 22
	atWriteDate   = 24
	atClusterLow  = 26
	atFileSize    = 28 // u32, 0 for a directory
)

// Attributes.
const (
	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLong     = 0x0F // a part of a long name
	attrMask     = 0x3F
)

// Bits that Windows NT introduced for short names with small letters. They are
// only read.
const (
	lowerBase = 0x08
	lowerExt  = 0x10
)

// An entry of a long name has a sequence number, 13 UTF-16 code units in three
// places, the attributes, a zero, the checksum and two zeros more.
const (
	longUnits  = 13
	longLast   = 0x40 // in the sequence number of the last part, which comes first
	atLongSum  = 13
	maxLong    = 20 // parts
	entryFree  = 0xE5
	entryEnd   = 0x00
	entryKanji = 0x05 // stands for 0xE5 as the first character
)

// longPlaces are the offsets of the code units in an entry.
var longPlaces = [longUnits]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// String returns the short name as a person would write it.
func (s shortName) String() string {
	base, ext := strings.TrimRight(string(s[:8]), " "), strings.TrimRight(string(s[8:]), " ")
	if ext == "" {
		return base
	}
	return base + "." + ext
}

func encodeLong(name string) []uint16 { return utf16.Encode([]rune(name)) }

// appendLong appends the entries of a long name, the last part first. A name
// that does not fill its last part ends with a zero, followed by ones.
func appendLong(b []byte, name []uint16, sum byte) []byte {
	parts := (len(name) + longUnits - 1) / longUnits
	for p := parts; p > 0; p-- {
		var e [entrySize]byte
		e[0] = byte(p)
		if p == parts {
			e[0] |= longLast
		}
		e[atAttr], e[atLongSum] = attrLong, sum
		for i, at := range longPlaces {
			u := uint16(0xFFFF)
			switch n := (p-1)*longUnits + i; {
			case n < len(name):
				u = name[n]
			case n == len(name):
				u = 0
			}
			le.PutUint16(e[at:], u)
		}
		b = append(b, e[:]...)
	}
	return b
}

// stamp is a time as FAT has it.
type stamp struct {
	date, time uint16
	tens       byte // units of 10 ms
}

var (
	firstTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2107, 12, 31, 23, 59, 59, 0, time.UTC)
)

func newStamp(sec int64) stamp {
	t := time.Unix(min(max(sec, firstTime.Unix()), lastTime.Unix()), 0).UTC()
	return stamp{
		date: uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day()),
		time: uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2),
		tens: byte(t.Second()%2) * 100,
	}
}

// unix returns the time in seconds since 1970; a date of zero is 1980-01-01.
func (s stamp) unix() int64 {
	month, day := max(1, int(s.date>>5&15)), max(1, int(s.date&31))
	return time.Date(1980+int(s.date>>9), time.Month(month), day,
		int(s.time>>11), int(s.time>>5&63), int(s.time&31)*2, 0, time.UTC).Unix()
}

// appendShort appends an entry with a short name.
func appendShort(b []byte, name shortName, attr byte, cluster int64, size uint32, at stamp) []byte {
	var e [entrySize]byte
	copy(e[:], name[:])
	e[atAttr] = attr
	e[atCreatedTens] = at.tens
	le.PutUint16(e[atCreatedTime:], at.time)
	le.PutUint16(e[atCreatedDate:], at.date)
	le.PutUint16(e[atAccessDate:], at.date)
	le.PutUint16(e[atClusterHigh:], uint16(cluster>>16))
	le.PutUint16(e[atWriteTime:], at.time)
	le.PutUint16(e[atWriteDate:], at.date)
	le.PutUint16(e[atClusterLow:], uint16(cluster))
	le.PutUint32(e[atFileSize:], size)
	return append(b, e[:]...)
}
