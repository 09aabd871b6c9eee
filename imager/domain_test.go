package imager

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/profiles"
)

func described(t *testing.T, profile, set, path, format string) (suffix, text string) {
	t.Helper()
	p, err := profiles.Load(profile)
	if err != nil {
		t.Fatal(err)
	}
	if set != "" {
		if err := p.Set(set); err != nil {
			t.Fatal(err)
		}
	}
	i := &Image{request: Request{Profile: p}}
	suffix, content, err := i.domain(&Artifact{Path: path, Format: format})
	if err != nil {
		t.Fatal(err)
	}
	return suffix, string(content)
}

func TestXL(t *testing.T) {
	suffix, got := described(t, "xen", "", "images/xen.raw", "raw")
	const want = `# xl create xen.raw.xl.cfg
# xl console -t pv kiln-xen
name = "kiln-xen"
uuid = "e94b4b8f-ae2b-8f0a-a3c3-7e43ec5d7d4a"
type = "hvm"
memory = 2048
vcpus = 2
disk = [ "format=raw, vdev=xvda, access=rw, target=/var/lib/xen/images/xen.raw" ]
vif = [ "" ]
serial = "pty"
on_crash = "restart"

# As a PVH guest, without emulated devices, it is booted by GRUB for PVH (package
# grub-xen-host of Debian); in place of the lines with type, firmware and serial:
#type = "pvh"
#kernel = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
`
	lines := func(s string) string { // but for the identifier
		before, rest, _ := strings.Cut(s, "uuid = ")
		_, after, _ := strings.Cut(rest, "\n")
		return before + after
	}
	if suffix != ".xl.cfg" || lines(got) != lines(want) {
		t.Errorf("%s is\n%s", suffix, got)
	}
	if _, got := described(t, "xen", "machine.firmware=uefi", "x.qcow2", "qcow2"); !strings.Contains(got, "\nfirmware = \"ovmf\"\n") || !strings.Contains(got, "format=qcow2,") {
		t.Errorf("with UEFI:\n%s", got)
	}
}

func TestLibvirt(t *testing.T) {
	suffix, got := described(t, "libvirt", "", "images/kiln.qcow2", "qcow2")
	if suffix != ".libvirt.xml" {
		t.Errorf("suffix %s", suffix)
	}
	for d := xml.NewDecoder(strings.NewReader(got)); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		`<domain type="kvm">`, `<os firmware="efi">`, `<type arch="x86_64" machine="q35">hvm</type>`, `<memory unit="MiB">2048</memory>`,
		`<source file="/var/lib/libvirt/images/kiln.qcow2">`, `<driver type="qcow2" name="qemu">`, `<target dev="vda" bus="virtio">`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if suffix, got := described(t, "metal", "", "m.raw", "raw"); suffix != "" || got != "" {
		t.Errorf("metal has %s", suffix)
	}
}
