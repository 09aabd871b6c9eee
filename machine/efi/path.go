package efi

import (
	"encoding/binary"
	"strings"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/gpt"
)

// Node is a node of a device path: a step of the way to a device, or to a file
// on it (UEFI specification 2.10, section 10.3). It is stored as type, subtype,
// the length of all in 16 bits, and the data.
type Node struct {
	Type, SubType byte
	Data          []byte
}

// DevicePath is the way to a device. It is stored as its nodes and one of the
// type 0x7F, subtype 0xFF that ends it, which is not part of a DevicePath.
type DevicePath []Node

// Types of nodes, and subtypes.
const (
	typeMedia   = 4
	mediaDrive  = 1
	mediaFile   = 4
	typeEnd     = 0x7f
	endEntire   = 0xff
	nodeHeader  = 4
	driveData   = 38 // number u32, start u64, size u64, signature [16], format u8, kind of signature u8
	formatGPT   = 2
	signatureID = 2 // the signature is the partition's GUID
)

// HardDrive is a partition of a GPT. A device path may begin with one: firmware
// finds the partition on whatever disk it is, by its ID.
type HardDrive struct {
	Number uint32 // from 1
	Start  uint64 // in sectors
	Size   uint64 // in sectors
	ID     uuid.UUID
}

// SystemPartition returns the EFI system partition in a partition table, the
// first one. It reports false if there is none.
func SystemPartition(t *gpt.Table) (HardDrive, bool) {
	for i, p := range t.Partitions {
		if p.Type == gpt.EFISystem {
			return HardDrive{uint32(i + 1), uint64(p.Start / t.SectorSize), uint64(p.Size / t.SectorSize), p.ID}, true
		}
	}
	return HardDrive{}, false
}

// Node returns the partition as a node.
func (h HardDrive) Node() Node {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, h.Number)
	b = le.AppendUint64(b, h.Start)
	b = le.AppendUint64(b, h.Size)
	// A GUID's first three fields are little-endian.
	b = le.AppendUint32(b, binary.BigEndian.Uint32(h.ID[0:]))
	b = le.AppendUint16(b, binary.BigEndian.Uint16(h.ID[4:]))
	b = le.AppendUint16(b, binary.BigEndian.Uint16(h.ID[6:]))
	b = append(b, h.ID[8:]...)
	return Node{typeMedia, mediaDrive, append(b, formatGPT, signatureID)}
}

// HardDrive returns the partition that n is, if it is one of a GPT.
func (n Node) HardDrive() (h HardDrive, ok bool) {
	if n.Type != typeMedia || n.SubType != mediaDrive || len(n.Data) != driveData || n.Data[36] != formatGPT || n.Data[37] != signatureID {
		return HardDrive{}, false
	}
	le, id := binary.LittleEndian, n.Data[20:36]
	h = HardDrive{Number: le.Uint32(n.Data), Start: le.Uint64(n.Data[4:]), Size: le.Uint64(n.Data[12:])}
	binary.BigEndian.PutUint32(h.ID[0:], le.Uint32(id))
	binary.BigEndian.PutUint16(h.ID[4:], le.Uint16(id[4:]))
	binary.BigEndian.PutUint16(h.ID[6:], le.Uint16(id[6:]))
	copy(h.ID[8:], id[8:])
	return h, true
}

// FilePath returns the node for a file on the device. Directories are separated
// by slashes or, as UEFI has it, backslashes.
func FilePath(path string) (Node, error) {
	data, err := appendString(nil, `\`+strings.TrimLeft(strings.ReplaceAll(path, "/", `\`), `\`))
	if err != nil {
		return Node{}, err
	}
	return Node{typeMedia, mediaFile, data}, nil
}

// FilePath returns the path of the file that n is, if it is one, with backslashes.
func (n Node) FilePath() (path string, ok bool) {
	if n.Type != typeMedia || n.SubType != mediaFile {
		return "", false
	}
	path, rest, ended := cutString(n.Data)
	return path, ended && len(rest) == 0
}

// appendTo appends the path and the node that ends it.
func (p DevicePath) appendTo(b []byte) ([]byte, error) {
	for _, n := range p {
		if n.Type == typeEnd && n.SubType == endEntire {
			return nil, invalid("a device path with an end inside")
		}
		length := nodeHeader + len(n.Data)
		if length > 0xffff {
			return nil, invalid("a node of %d bytes, want at most 65535", length)
		}
		b = append(b, n.Type, n.SubType)
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
		b = append(b, n.Data...)
	}
	return append(b, typeEnd, endEntire, nodeHeader, 0), nil
}

// cutPath decodes the device path at the beginning of data and returns what
// follows. The path refers to data.
func cutPath(data []byte) (p DevicePath, rest []byte, err error) {
	for {
		if len(data) < nodeHeader {
			return nil, nil, invalid("a device path without an end")
		}
		n, length := Node{Type: data[0], SubType: data[1]}, int(binary.LittleEndian.Uint16(data[2:]))
		if length < nodeHeader || length > len(data) {
			return nil, nil, invalid("a node of %d bytes in a device path that has %d more", length, len(data))
		}
		n.Data, data = data[nodeHeader:length], data[length:]
		if n.Type == typeEnd && n.SubType == endEntire {
			if len(n.Data) > 0 {
				return nil, nil, invalid("a device path whose end has %d bytes, want %d", length, nodeHeader)
			}
			return p, data, nil
		}
		p = append(p, n)
	}
}
