package profiles

import (
	"fmt"
	"slices"
)

// ARM64 is what is different for the arm64 machines of a platform. That they
// have no BIOS needs no saying.
type ARM64 struct {
	None   bool     `yaml:"none" json:"none"`     // the platform has no such machines
	Append []string `yaml:"append" json:"append"` // kernel arguments, as in Kernel
	Remove []string `yaml:"remove" json:"remove"`
}

// SetArch makes p, which is for amd64, a profile for the given architecture: the
// disk boots from UEFI only on arm64, and the consoles have other names. It does
// nothing if p is for that architecture already. The profile is not validated.
func (p *Profile) SetArch(arch string) error {
	switch {
	case arch == p.Arch:
		return nil
	case arch == "arm64" && p.Arch == "amd64":
		if p.ARM64.None {
			return fmt.Errorf("%w: arch arm64: profile %s is for a platform without arm64 machines", ErrInvalid, p.Name)
		}
		p.Arch, p.Disk.BootLoader, p.Machine.Firmware = arch, UEFI, "uefi"
		p.Kernel.Remove = slices.Concat(p.Kernel.Remove, p.ARM64.Remove)
		p.Kernel.Append = slices.Concat(p.Kernel.Append, p.ARM64.Append)
		p.Kernel.edit()
		return nil
	case arch == "amd64" && p.Arch == "arm64":
		return fmt.Errorf("%w: arch amd64: profile %s is for arm64; use one for amd64, which can be made one for arm64", ErrInvalid, p.Name)
	}
	p.Arch = arch // Validate knows the names
	return nil
}
