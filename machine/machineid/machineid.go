// Package machineid is the identifier of a node, machine-id(5): 128 bits, as 32
// hexadecimal digits in small letters and a newline in /etc/machine-id.
//
// It is made once and kept. On a virtual machine it is the UUID that the hypervisor gave
// it, in SMBIOS, so that a machine whose disk is made anew is the same to those who know
// it; elsewhere it is random, as the UUIDs of mainboards are not always unique.
package machineid

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/machine/platform/smbios"
)

// Name is that of the file below the directory in which it is kept.
const Name = "machine-id"

// An ID is an identifier; the zero one is none.
type ID [16]byte

// String returns the digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Hostname returns the name of a node that nobody has named.
func (id ID) Hostname() string { return "kiln-" + id.String()[:8] }

// File returns the text of /etc/machine-id.
func (id ID) File() []byte { return []byte(id.String() + "\n") }

// Parse reads the text of /etc/machine-id.
func Parse(text string) (ID, error) {
	var id ID
	digits := strings.TrimSuffix(text, "\n")
	if n, err := hex.Decode(id[:], []byte(cut(digits))); err != nil || n != len(id) || len(digits) != 2*len(id) || digits != strings.ToLower(digits) {
		return ID{}, fmt.Errorf("found %.40q, want 32 hexadecimal digits in small letters", text)
	}
	if id == (ID{}) {
		return ID{}, errors.New("found zeros, which identify nothing")
	}
	return id, nil
}

func cut(s string) string { return s[:min(len(s), 2*len(ID{}))] }

// hypervisors are the makers and products of machines whose UUID the hypervisor keeps
// unique, as they begin in SMBIOS.
var hypervisors = []string{"QEMU", "KVM", "KubeVirt", "OpenStack", "Amazon EC2", "Xen", "Google"}

// FromFirmware returns the identifier of a virtual machine; the zero one if the machine is
// none, or has none.
func FromFirmware(s *smbios.System) ID {
	for _, h := range hypervisors {
		if !strings.HasPrefix(s.Manufacturer, h) && !strings.HasPrefix(s.Product, h) {
			continue
		}
		if id, err := Parse(strings.ReplaceAll(s.UUID, "-", "")); err == nil {
			return id
		}
	}
	return ID{}
}

// Keep returns the identifier kept in dir. If there is none, it keeps the one that is
// given or, if that is zero, one made of random bytes. One that cannot be read, or kept,
// is returned nevertheless, with the error.
func Keep(dir string, given ID, random io.Reader) (ID, error) {
	name := filepath.Join(dir, Name)
	data, err := os.ReadFile(name)
	if err == nil {
		id, e := Parse(string(data))
		if e == nil {
			return id, nil
		}
		err = fmt.Errorf("%s: %w; the node has another identity now", name, e)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	id := given
	if id == (ID{}) {
		if _, e := io.ReadFull(random, id[:]); e != nil {
			return ID{}, errors.Join(err, e)
		}
		// As UUIDs of version 4 are marked (RFC 9562), which machine-id(5) asks for.
		id[6] = id[6]&0x0f | 0x40
		id[8] = id[8]&0x3f | 0x80
	}
	if e := atomicfile.WriteFile(name, id.File(), 0o444); e != nil {
		return id, errors.Join(err, fmt.Errorf("the machine's identity is not kept: %w", e))
	}
	return id, err
}
