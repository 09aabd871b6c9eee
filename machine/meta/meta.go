// Package meta reads and writes META, the partition on which a node keeps a few
// values from before it has a file system, and across reinstallation: what an
// upgrade has to remember, network settings, a request to reset.
//
// The format is that of Talos Linux (github.com/siderolabs/go-adv, package talos,
// v1.0.0), so that either system finds what the other has written. META has 1 MiB,
// of which two copies of 256 KiB are used:
//
//	0x00000  first copy
//	0x40000  second copy
//	0xffc00  1 KiB that old versions of Talos used; never touched here
//
// A copy is, with all integers 32 bits and big-endian:
//
//	+0x00000  0x5a4b3c2d
//	+0x00004  values, one after the other: key, length in bytes, bytes; a key of
//	          0, or fewer than 8 bytes of room, ends them; the rest is zero
//	+0x3ffdc  SHA-256 of the copy, 32 bytes, made with zeros in their place
//	+0x3fffc  0xa5b4c3d2
//
// Values take at most 262,104 bytes, their headers of 8 bytes included. Keys have
// 8 bits, as in Talos, which ignores the other 24 of them. A reader takes the
// first copy if it is whole, else the second. META that was never written is all
// zeros and has no values.
//
// Nothing in a copy says how old it is. What makes a write safe is its order: see
// Write.
package meta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Sizes in bytes.
const (
	Size     = 1 << 20   // of the partition
	CopySize = 256 << 10 // of a copy

	// MaxBytes is what all values may take together, with ValueOverhead for each.
	MaxBytes      = CopySize - 4 - trailerSize
	ValueOverhead = 8

	sumSize     = sha256.Size
	trailerSize = sumSize + 4
	copies      = 2
)

// Label is the label of the partition in a GPT.
const Label = "META"

const (
	magicBegin = 0x5a4b3c2d
	magicEnd   = 0xa5b4c3d2
)

// Errors returned, wrapped, by this package.
var (
	// ErrDamaged is for META of which neither copy can be trusted.
	ErrDamaged = errors.New("META is damaged")
	// ErrTooLarge is for values that do not fit.
	ErrTooLarge = errors.New("META is full")
	// ErrNone is for something that has no META.
	ErrNone = errors.New("no META")
	// ErrKey is for what is not a key.
	ErrKey = errors.New("invalid META key")
)

// Values are what META holds.
type Values map[Key][]byte

// Keys returns the keys in ascending order.
func (v Values) Keys() []Key { return slices.Sorted(maps.Keys(v)) }

// Encode returns both copies of v: what META begins with. The rest of it is
// zeros. It depends on nothing but v. It fails with ErrTooLarge, and names the
// key of the largest value.
func Encode(v Values) ([]byte, error) {
	one, err := encode(v)
	if err != nil {
		return nil, err
	}
	return append(one, one...), nil
}

func encode(v Values) ([]byte, error) {
	total, largest := 0, Key(0)
	for _, k := range v.Keys() {
		if k == 0 {
			return nil, fmt.Errorf("%w: 0 marks the end of the values", ErrKey)
		}
		total += ValueOverhead + len(v[k])
		if len(v[k]) > len(v[largest]) {
			largest = k
		}
	}
	if total > MaxBytes {
		return nil, fmt.Errorf("%w: the values take %d bytes with %d for each, at most %d fit; the largest is that of key %v with %d bytes", ErrTooLarge, total, ValueOverhead, MaxBytes, largest, len(v[largest]))
	}
	b := make([]byte, 0, copies*CopySize) // for both copies
	b = binary.BigEndian.AppendUint32(b, magicBegin)
	for _, k := range v.Keys() {
		b = binary.BigEndian.AppendUint32(b, uint32(k))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v[k])))
		b = append(b, v[k]...)
	}
	b = b[:CopySize]
	binary.BigEndian.PutUint32(b[CopySize-4:], magicEnd)
	sum := checksum(b)
	copy(b[CopySize-trailerSize:], sum[:])
	return b, nil
}

// checksum returns what belongs into the checksum field of a copy.
func checksum(b []byte) (sum [sumSize]byte) {
	h := sha256.New()
	h.Write(b[:CopySize-trailerSize])
	h.Write(sum[:])
	h.Write(b[CopySize-4:])
	h.Sum(sum[:0])
	return sum
}

// errBlank is for a copy of zeros.
var errBlank = errors.New("it is all zeros")

// decode reads a copy. The values do not share its memory.
func decode(b []byte) (Values, error) {
	begin, end := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[CopySize-4:])
	switch {
	case begin == 0 && end == 0 && len(bytes.Trim(b, "\x00")) == 0:
		return nil, errBlank
	case begin != magicBegin:
		return nil, fmt.Errorf("it begins with %#08x, want %#x", begin, uint32(magicBegin))
	case end != magicEnd:
		return nil, fmt.Errorf("it ends with %#08x, want %#x", end, uint32(magicEnd))
	}
	sum := checksum(b)
	data := b[4 : CopySize-trailerSize]
	if found := b[CopySize-trailerSize : CopySize-4]; !bytes.Equal(sum[:], found) {
		return nil, fmt.Errorf("its SHA-256 is %x…, want %x…", sum[:4], found[:4])
	}
	v := Values{}
	for len(data) >= ValueOverhead {
		key, n := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
		if key == 0 {
			break
		}
		data = data[ValueOverhead:]
		if key > MaxKey {
			return nil, fmt.Errorf("it has the key %#x, at most %#x is known", key, MaxKey)
		}
		if int64(n) > int64(len(data)) {
			return nil, fmt.Errorf("the value of key %v has %d bytes where %d are left", Key(key), n, len(data))
		}
		v[Key(key)] = slices.Clone(data[:n:n])
		data = data[n:]
	}
	return v, nil
}
