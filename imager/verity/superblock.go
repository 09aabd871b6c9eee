package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrSuperblock is wrapped by errors for a block that is no superblock, or the
// superblock of a tree that this package does not know.
var ErrSuperblock = errors.New("not a superblock of dm-verity with SHA-256 and blocks of 4096 bytes")

// A Superblock is what veritysetup(8) puts in front of a tree. Neither kernel nor
// Verify need it, and nothing in it is to be trusted.
type Superblock struct {
	UUID   [16]byte
	Salt   []byte
	Blocks int64 // of data
}

// superblock is the layout on the device, little endian.
type superblock struct {
	Signature     [8]byte
	Version       uint32
	Type          uint32 // of the tree: 1, or 0 for that of Chrome OS
	UUID          [16]byte
	Algorithm     [32]byte
	DataBlockSize uint32
	HashBlockSize uint32
	DataBlocks    uint64
	SaltSize      uint16
	_             [6]byte
	Salt          [MaxSalt]byte
	_             [168]byte
}

var (
	signature = [8]byte{'v', 'e', 'r', 'i', 't', 'y'}
	algorithm = [32]byte{'s', 'h', 'a', '2', '5', '6'}
)

// Encode returns the superblock, filled up with zeros to BlockSize bytes; the
// tree follows.
func (s Superblock) Encode() ([]byte, error) {
	if err := checkSalt(s.Salt); err != nil {
		return nil, err
	}
	b := superblock{
		Signature:     signature,
		Version:       1,
		Type:          1,
		UUID:          s.UUID,
		Algorithm:     algorithm,
		DataBlockSize: BlockSize,
		HashBlockSize: BlockSize,
		DataBlocks:    uint64(s.Blocks),
		SaltSize:      uint16(len(s.Salt)),
	}
	copy(b.Salt[:], s.Salt)
	data, err := binary.Append(nil, binary.LittleEndian, b)
	return append(data, make([]byte, BlockSize-len(data))...), err
}

// DecodeSuperblock decodes the superblock at the start of data.
func DecodeSuperblock(data []byte) (Superblock, error) {
	var b superblock
	if _, err := binary.Decode(data, binary.LittleEndian, &b); err != nil {
		return Superblock{}, fmt.Errorf("%w: it has %d bytes, want %d", ErrSuperblock, len(data), binary.Size(b))
	}
	no := func(what string, found, want any) (Superblock, error) {
		return Superblock{}, fmt.Errorf("%w: the %s is %v, want %v", ErrSuperblock, what, found, want)
	}
	text := func(b []byte) string {
		name, _, _ := bytes.Cut(b, []byte{0})
		return fmt.Sprintf("%q", name)
	}
	switch {
	case b.Signature != signature:
		return no("signature", text(b.Signature[:]), text(signature[:]))
	case b.Version != 1:
		return no("version", b.Version, 1)
	case b.Type != 1:
		return no("type of the tree", b.Type, 1)
	case b.Algorithm != algorithm:
		return no("algorithm", text(b.Algorithm[:]), text(algorithm[:]))
	case b.DataBlockSize != BlockSize:
		return no("size of a data block", b.DataBlockSize, BlockSize)
	case b.HashBlockSize != BlockSize:
		return no("size of a hash block", b.HashBlockSize, BlockSize)
	case b.DataBlocks == 0 || b.DataBlocks > MaxSize/BlockSize:
		return no("number of data blocks", b.DataBlocks, fmt.Sprintf("1 to %d", MaxSize/BlockSize))
	case b.SaltSize > MaxSalt:
		return no("size of the salt", b.SaltSize, fmt.Sprintf("0 to %d", MaxSalt))
	}
	return Superblock{UUID: b.UUID, Salt: bytes.Clone(b.Salt[:b.SaltSize]), Blocks: int64(b.DataBlocks)}, nil
}
