//go:build linux

package devicemapper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel takes and returns one buffer: a dm_ioctl, which is the header, and
// what belongs to the request.

// order is that of the machine.
var order = binary.NativeEndian

// align is that of records in the buffer.
const align = 8

// encode returns a request with room bytes for the answer. A table is a sequence
// of dm_target_spec, each with its arguments, a zero, and padding.
func encode(name string, flags uint32, targets []target, room int) ([]byte, error) {
	h := unix.DmIoctl{
		Version:      [3]uint32{unix.DM_VERSION_MAJOR, 0, 0},
		Data_start:   unix.SizeofDmIoctl,
		Target_count: uint32(len(targets)),
		Flags:        flags,
	}
	if len(name) >= len(h.Name) || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("the name %q cannot be that of a device: at most %d bytes, no slash", name, len(h.Name)-1)
	}
	copy(h.Name[:], name)
	var table []byte
	for _, t := range targets {
		spec := unix.DmTargetSpec{Sector_start: t.start, Length: t.n}
		if len(t.kind) >= len(spec.Target_type) {
			return nil, fmt.Errorf("the target %q has too long a name", t.kind)
		}
		copy(spec.Target_type[:], t.kind)
		size := unix.SizeofDmTargetSpec + len(t.arguments) + 1
		padding := -size & (align - 1)
		spec.Next = uint32(size + padding) // from this one
		var err error
		if table, err = binary.Append(table, order, spec); err != nil {
			return nil, err
		}
		table = append(table, t.arguments...)
		table = append(table, make([]byte, 1+padding)...)
	}
	h.Data_size = uint32(unix.SizeofDmIoctl + max(len(table), room))
	buf := make([]byte, 0, h.Data_size)
	buf, err := binary.Append(buf, order, h)
	if err != nil {
		return nil, err
	}
	buf = append(buf, table...)
	return buf[:h.Data_size], nil
}

var errAnswer = errors.New("the kernel's answer makes no sense")

// An answer is the buffer after the ioctl.
type answer struct {
	header unix.DmIoctl
	data   []byte
}

func decode(buf []byte) (*answer, error) {
	var a answer
	if _, err := binary.Decode(buf, order, &a.header); err != nil {
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	}
	start, end := uint64(a.header.Data_start), uint64(a.header.Data_size)
	if start > end || end > uint64(len(buf)) {
		// Requests without data do not set them.
		start, end = 0, 0
	}
	a.data = buf[start:end]
	return &a, nil
}

// path is that of the device's node.
func (a *answer) path() string { return nodePath(a.header.Dev) }

func nodePath(dev uint64) string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)) }

// record decodes v at offset off, and returns the string that follows it.
func (a *answer) record(off uint64, v any) (string, error) {
	size := uint64(binary.Size(v))
	if off > uint64(len(a.data)) || uint64(len(a.data))-off < size {
		return "", fmt.Errorf("%w: a record at byte %d of %d", errAnswer, off, len(a.data))
	}
	if _, err := binary.Decode(a.data[off:], order, v); err != nil {
		return "", fmt.Errorf("%w: %w", errAnswer, err)
	}
	text, _, ok := bytes.Cut(a.data[off+size:], []byte{0})
	if !ok {
		return "", fmt.Errorf("%w: the record at byte %d has no end", errAnswer, off)
	}
	return string(text), nil
}

// nameList is dm_name_list without the name. It is not padded: the name begins
// at byte 12.
type nameList struct {
	Dev  uint64
	Next uint32 // from this one, 0 in the last
}

// devices decodes the answer to DM_LIST_DEVICES.
func (a *answer) devices() ([]Device, error) {
	var list []Device
	for off := uint64(0); ; {
		var r nameList
		name, err := a.record(off, &r)
		if err != nil {
			return nil, err
		}
		if r.Dev == 0 { // there is none
			return list, nil
		}
		list = append(list, Device{name, nodePath(r.Dev)})
		if r.Next == 0 {
			return list, nil
		}
		off += uint64(r.Next)
	}
}

// kinds decodes the answer to DM_LIST_VERSIONS.
func (a *answer) kinds() ([]string, error) {
	var list []string
	for off := uint64(0); ; {
		var r unix.DmTargetVersions
		name, err := a.record(off, &r)
		if err != nil {
			return nil, err
		}
		list = append(list, name)
		if r.Next == 0 {
			return list, nil
		}
		off += uint64(r.Next)
	}
}

// targets decodes the answer to DM_TABLE_STATUS.
func (a *answer) targets() ([]TargetStatus, error) {
	var list []TargetStatus
	off := uint64(0)
	for i := range a.header.Target_count {
		var r unix.DmTargetSpec
		text, err := a.record(off, &r)
		if err != nil {
			return nil, err
		}
		list = append(list, TargetStatus{Kind: unix.ByteSliceToString(r.Target_type[:]), Text: text})
		if i+1 < a.header.Target_count && uint64(r.Next) <= off { // from the first one
			return nil, fmt.Errorf("%w: the record after that at byte %d is at byte %d", errAnswer, off, r.Next)
		}
		off = uint64(r.Next)
	}
	return list, nil
}
