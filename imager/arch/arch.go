// Package arch holds what differs between processor architectures, as data.
package arch

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kilnhq/kiln/internal/spelling"
)

// Arch are the facts about one architecture.
type Arch struct {
	Name      string // as Go, Debian and OCI name it
	Stub      string // file name of systemd-stub
	Loader    string // file name of systemd-boot
	Removable string // the loader's path on an EFI system partition, UEFI specification 3.5.1.1
	BIOS      bool   // machines with a BIOS exist
}

var known = map[string]Arch{
	"amd64": {"amd64", "linuxx64.efi.stub", "systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI", true},
	"arm64": {"arm64", "linuxaa64.efi.stub", "systemd-bootaa64.efi", "EFI/BOOT/BOOTAA64.EFI", false},
}

// For returns the facts about the named architecture.
func For(name string) (Arch, error) {
	a, ok := known[name]
	if !ok {
		return Arch{}, fmt.Errorf("architecture %q%s", name, spelling.Hint(name, slices.Collect(maps.Keys(known))))
	}
	return a, nil
}
