// Package layers describes the squashfs layers that a system is made of. The
// imager writes the description as layers.json at the root of the initramfs;
// stage 1 of init reads it, and stacks the layers.
//
// The layers are either next to the description, in the initramfs, or all of them
// in one file on the partition BOOT, each with the hash tree of dm-verity behind
// it (see imager/verity). The description holds their root hashes then, and what
// signs the initramfs signs them: neither disk nor file system has to be trusted.
//
// The kernel boots on with a truncated initramfs when memory runs out, so
// nothing in it may be trusted before its digest was checked.
package layers

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// Name is the path of the description in the initramfs.
const Name = "layers.json"

// Kinds of layers.
const (
	RootFS    = "rootfs"    // the base's root file system; always the first and lowest
	Extension = "extension" // a system extension, in the user's order
	Index     = "index"     // the merged kernel module index; the topmost
)

// List is the content of layers.json.
type List struct {
	Version int      `json:"version"` // of this format: 1
	Release string   `json:"release"` // of the kernel, as uname -r
	Kiln    string   `json:"kiln"`    // version of the tool that composed the image
	Layers  []Layer  `json:"layers"`  // lowest first
	Modules []Module `json:"modules,omitempty"`
}

// Layer is one squashfs image.
type Layer struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of an extension
	Path    string `json:"path"`              // in the initramfs, relative to its root
	Size    int64  `json:"size"`              // bytes
	SHA256  string `json:"sha256"`            // lower-case hexadecimal

	// Verity is where the layer is if it is not in the initramfs, which then has
	// nothing at Path.
	Verity *Verity `json:"verity,omitempty"`
}

// Module is a kernel module to load when the node starts.
type Module struct {
	Name       string `json:"name"`
	Parameters string `json:"parameters,omitempty"` // as on modprobe's command line
	Extension  string `json:"extension,omitempty"`  // that asks for it
}

// ErrInvalid is wrapped by the errors of Decode for a description that can be
// read but makes no sense.
var ErrInvalid = errors.New("invalid layer list")

// Encode returns l as indented JSON.
func (l *List) Encode() ([]byte, error) {
	if err := l.validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Decode parses and validates the content of layers.json.
func Decode(data []byte) (*List, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var l List
	if err := dec.Decode(&l); err != nil {
		return nil, fmt.Errorf("%s: %w", Name, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: %w: data after the list", Name, ErrInvalid)
	}
	if err := l.validate(); err != nil {
		return nil, err
	}
	return &l, nil
}

func (l *List) validate() error {
	if l.Version != 1 {
		return fmt.Errorf("%s: %w: version %d, want 1", Name, ErrInvalid, l.Version)
	}
	if len(l.Layers) == 0 || l.Layers[0].Kind != RootFS {
		return fmt.Errorf("%s: %w: the first layer must be of kind %q", Name, ErrInvalid, RootFS)
	}
	seen := map[string]bool{}
	for i, y := range l.Layers {
		switch {
		case y.Kind != RootFS && y.Kind != Extension && y.Kind != Index:
			return fmt.Errorf("%s: %w: layer %d: unknown kind %q", Name, ErrInvalid, i, y.Kind)
		case y.Kind == RootFS && i > 0:
			return fmt.Errorf("%s: %w: layer %d: a second root file system", Name, ErrInvalid, i)
		case !fs.ValidPath(y.Path) || y.Path == "." || seen[y.Path]:
			return fmt.Errorf("%s: %w: layer %d: bad path %q", Name, ErrInvalid, i, y.Path)
		case y.Size <= 0:
			return fmt.Errorf("%s: %w: layer %d: size %d", Name, ErrInvalid, i, y.Size)
		}
		if sum, err := hex.DecodeString(y.SHA256); err != nil || len(sum) != 32 {
			return fmt.Errorf("%s: %w: layer %d: bad sha256 %q", Name, ErrInvalid, i, y.SHA256)
		}
		seen[y.Path] = true
	}
	return l.validateFile()
}
