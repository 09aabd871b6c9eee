package vm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// firmware is an UEFI: its code, and what its variables are at first. The two
// belong together.
type firmware struct{ code, vars string }

// ovmf returns where distributions have UEFI for amd64, best first. Those that
// enforce Secure Boot are not among them.
func ovmf() []firmware {
	return []firmware{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	}
}

// aavmf returns the same for arm64.
func aavmf() []firmware {
	return []firmware{
		{"/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"},
		{"/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"},
	}
}

// ErrMissing is wrapped by errors for a program or firmware that is not
// installed.
var ErrMissing = errors.New("not installed")

// program returns the path of QEMU.
func (a arch) program() (string, error) {
	p, err := exec.LookPath(a.qemu)
	if err != nil {
		return "", fmt.Errorf("%s: %w; it is in the package %s", a.qemu, ErrMissing, a.qemuPackage)
	}
	return p, nil
}

// uefi returns the firmware that is installed.
func (a arch) uefi() (firmware, error) {
	var tried []string
	for _, f := range a.firmware {
		_, err := os.Stat(f.code)
		if err == nil {
			_, err = os.Stat(f.vars)
		}
		if err == nil {
			return f, nil
		}
		tried = append(tried, f.code)
	}
	return firmware{}, fmt.Errorf("UEFI firmware: %w: no %s; it is in the package %s", ErrMissing, strings.Join(tried, ", no "), a.firmwarePackage)
}

// copyVars copies the variables for one machine. Variables that another machine
// has left make the firmware look for disks that are not there.
func copyVars(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("copy of %s: %w", src, err)
	}
	return out.Close()
}
