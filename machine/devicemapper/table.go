//go:build linux

package devicemapper

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	sector      = 512  // bytes, the unit of tables
	verityBlock = 4096 // bytes
)

// The names of targets. The module of the one, dm_verity, is loaded by hand;
// the other is part of dm_mod.
const (
	verityKind = "verity"
	linearKind = "linear"
)

// A target says what a run of sectors is.
type target struct {
	kind      string // name of the target
	start, n  uint64 // sectors of the mapped device
	arguments string
	devices   []string // in the arguments
}

// String returns the target as dmsetup(8) shows it.
func (t target) String() string {
	return fmt.Sprintf("%d %d %s %s", t.start, t.n, t.kind, t.arguments)
}

// Corruption is what the kernel does when it reads a block that is damaged. In
// any case its log names the block.
type Corruption string

const (
	Fail    Corruption = ""                      // the read fails with EIO
	Restart Corruption = "restart_on_corruption" // the machine restarts
	Panic   Corruption = "panic_on_corruption"   // the kernel panics
)

// Verity is a target that checks what is read against a hash tree: version 1,
// SHA-256, blocks of 4096 bytes.
type Verity struct {
	Data   string // path of the block device with the data
	Hash   string // path of the block device with the tree; it may be that with the data
	Blocks int64  // of data, in blocks
	Start  int64  // of the tree on its device, after a superblock if there is one, in blocks
	Root   [32]byte
	Salt   []byte

	OnCorruption Corruption
	// IgnoreZeroBlocks makes blocks whose digest is that of zeros be zeros
	// without reading them.
	IgnoreZeroBlocks bool
}

// maxBlocks keeps the number of sectors in 63 bits.
const maxBlocks = 1<<63/verityBlock - 1

func (v Verity) target() (target, error) {
	if v.Blocks < 1 || v.Blocks > maxBlocks {
		return target{}, fmt.Errorf("it cannot have %d blocks: want 1 to %d", v.Blocks, int64(maxBlocks))
	}
	if v.Start < 0 || v.Start > maxBlocks {
		return target{}, fmt.Errorf("its tree cannot begin at block %d: want 0 to %d", v.Start, int64(maxBlocks))
	}
	if v.Data == v.Hash && v.Start < v.Blocks {
		return target{}, fmt.Errorf("its tree cannot begin at block %d of %s: the data end at %d", v.Start, v.Hash, v.Blocks)
	}
	if err := word(v.Data, v.Hash); err != nil {
		return target{}, err
	}
	salt := "-"
	if len(v.Salt) > 0 {
		salt = hex.EncodeToString(v.Salt)
	}
	arguments := fmt.Sprintf("1 %s %s %d %d %d %d sha256 %x %s", v.Data, v.Hash, verityBlock, verityBlock, v.Blocks, v.Start, v.Root, salt)
	var options []string
	switch v.OnCorruption {
	case Fail:
	case Restart, Panic:
		options = append(options, string(v.OnCorruption))
	default:
		return target{}, fmt.Errorf("it cannot do %q when a block is damaged: want %q, %q or nothing", v.OnCorruption, Restart, Panic)
	}
	if v.IgnoreZeroBlocks {
		options = append(options, "ignore_zero_blocks")
	}
	if len(options) > 0 {
		arguments += " " + strconv.Itoa(len(options)) + " " + strings.Join(options, " ")
	}
	return target{kind: verityKind, n: uint64(v.Blocks) * (verityBlock / sector), arguments: arguments, devices: []string{v.Data, v.Hash}}, nil
}

// A Segment is a run of bytes of a block device. Offset and Length are multiples
// of 512.
type Segment struct {
	Device         string // path
	Offset, Length int64
}

// linear returns the table of a device of the segments.
func linear(segments []Segment) ([]target, error) {
	if len(segments) == 0 {
		return nil, errors.New("it has no segments")
	}
	var targets []target
	var at uint64
	for i, s := range segments {
		if s.Offset < 0 || s.Length <= 0 || s.Offset%sector != 0 || s.Length%sector != 0 {
			return nil, fmt.Errorf("segment %d of %d bytes at %d of %s is not of whole sectors of %d bytes", i, s.Length, s.Offset, s.Device, sector)
		}
		if err := word(s.Device); err != nil {
			return nil, err
		}
		n := uint64(s.Length) / sector
		targets = append(targets, target{
			kind: linearKind, start: at, n: n,
			arguments: fmt.Sprintf("%s %d", s.Device, s.Offset/sector),
			devices:   []string{s.Device},
		})
		at += n
	}
	return targets, nil
}

// word says what is wrong with paths that are to be single words in a table.
func word(paths ...string) error {
	for _, p := range paths {
		if p == "" || strings.ContainsAny(p, " \t\n\v\f\r\\\x00") {
			return fmt.Errorf("the path %q of a device cannot be in a table: want one without white space and backslashes", p)
		}
	}
	return nil
}
