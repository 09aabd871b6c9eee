package imager

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kilnhq/kiln/profiles"
)

// domain describes a virtual machine that boots an artifact, in the words of what
// runs it, as the profile says. It returns the suffix of the file, too; both are
// empty if the profile says nothing.
func (i *Image) domain(a *Artifact) (suffix string, content []byte, err error) {
	switch i.request.Profile.Output.Domain {
	case profiles.XL:
		return ".xl.cfg", i.xl(filepath.Base(a.Path), a.Format), nil
	case profiles.Libvirt:
		content, err = i.libvirt(filepath.Base(a.Path), a.Format)
		return ".libvirt.xml", content, err
	}
	return "", nil, nil
}

// xenImages is where the Xen project's handbook has guests' disks.
const xenImages = "/var/lib/xen/images/"

// pvh is what makes an HVM guest a PVH guest, in place of type and serial.
const pvh = `
# As a PVH guest, without emulated devices, it is booted by GRUB for PVH (package
# grub-xen-host of Debian); in place of the lines with type, firmware and serial:
#type = "pvh"
#kernel = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
`

// xl is a configuration for the xl toolstack, see xl.cfg(5). The disk has to have
// an absolute path: xl starts a guest again from the root directory when the guest
// restarts itself.
func (i *Image) xl(file, format string) []byte {
	p := i.request.Profile
	if format != "qcow2" && format != "vhd" {
		format = "raw"
	}
	name := "kiln-" + p.Name
	var b bytes.Buffer
	fmt.Fprintf(&b, "# xl create %s.xl.cfg\n# xl console -t pv %s\n", file, name)
	fmt.Fprintf(&b, "name = \"%s\"\nuuid = \"%s\"\ntype = \"hvm\"\n", name, i.id.uuid("xl"))
	if p.Machine.Firmware != "bios" {
		fmt.Fprintf(&b, "firmware = \"ovmf\"\n")
	}
	fmt.Fprintf(&b, "memory = %d\nvcpus = %d\n", p.Machine.Memory/profiles.MiB, p.Machine.CPUs)
	fmt.Fprintf(&b, "disk = [ \"format=%s, vdev=xvda, access=rw, target=%s\" ]\n", format, xenImages+file)
	fmt.Fprintf(&b, "vif = [ \"\" ]\nserial = \"pty\"\non_crash = \"restart\"\n%s", pvh)
	return b.Bytes()
}

// libvirtImages is the directory of libvirt's default storage pool.
const libvirtImages = "/var/lib/libvirt/images/"

// libvirt is the XML of a domain, see libvirt's "Domain XML format". The disk has
// to have an absolute path.
func (i *Image) libvirt(file, format string) ([]byte, error) {
	p := i.request.Profile
	type device struct {
		Type string `xml:"type,attr,omitempty"`
		Name string `xml:"name,attr,omitempty"`
		File string `xml:"file,attr,omitempty"`
		Dev  string `xml:"dev,attr,omitempty"`
		Bus  string `xml:"bus,attr,omitempty"`
	}
	type source struct {
		Network string `xml:"network,attr,omitempty"`
		File    string `xml:"file,attr,omitempty"`
	}
	type disk struct {
		Type   string `xml:"type,attr"`
		Device string `xml:"device,attr"`
		Driver device `xml:"driver"`
		Source source `xml:"source"`
		Target device `xml:"target"`
	}
	type nic struct {
		Type   string `xml:"type,attr"`
		Source source `xml:"source"`
		Model  device `xml:"model"`
	}
	type rng struct {
		Model   string `xml:"model,attr"`
		Backend struct {
			Model string `xml:"model,attr"`
			Path  string `xml:",chardata"`
		} `xml:"backend"`
	}
	type machine struct {
		Arch    string `xml:"arch,attr"`
		Machine string `xml:"machine,attr"`
		Name    string `xml:",chardata"`
	}
	type memory struct {
		Unit string `xml:"unit,attr"`
		Size int64  `xml:",chardata"`
	}
	var d struct {
		XMLName xml.Name `xml:"domain"`
		Type    string   `xml:"type,attr"`
		Name    string   `xml:"name"`
		UUID    string   `xml:"uuid"`
		Memory  memory   `xml:"memory"`
		CPUs    int      `xml:"vcpu"`
		OS      struct {
			Firmware string  `xml:"firmware,attr,omitempty"`
			Type     machine `xml:"type"`
		} `xml:"os"`
		ACPI struct{} `xml:"features>acpi"`
		CPU  struct {
			Mode string `xml:"mode,attr"`
		} `xml:"cpu"`
		Disk    disk   `xml:"devices>disk"`
		NIC     nic    `xml:"devices>interface"`
		Console device `xml:"devices>console"`
		RNG     rng    `xml:"devices>rng"`
	}
	d.Type, d.Name, d.UUID = "kvm", "kiln-"+p.Name, i.id.uuid("libvirt").String()
	d.Memory, d.CPUs = memory{"MiB", int64(p.Machine.Memory / profiles.MiB)}, p.Machine.CPUs
	d.OS.Type = machine{"x86_64", "q35", "hvm"}
	if p.Arch == "arm64" {
		d.OS.Type = machine{"aarch64", "virt", "hvm"}
	}
	if p.Machine.Firmware == "uefi" {
		d.OS.Firmware = "efi"
	}
	d.CPU.Mode = "host-passthrough"
	if format != "qcow2" && !strings.HasPrefix(format, "vmdk") && format != "vhdx" {
		format = "raw"
	}
	d.Disk = disk{"file", "disk", device{Name: "qemu", Type: strings.TrimSuffix(format, "-sparse")}, source{File: libvirtImages + file}, device{Dev: "vda", Bus: "virtio"}}
	d.NIC = nic{"network", source{Network: "default"}, device{Type: "virtio"}}
	d.Console.Type = "pty"
	d.RNG.Model, d.RNG.Backend.Model, d.RNG.Backend.Path = "virtio", "random", "/dev/urandom"
	data, err := xml.MarshalIndent(&d, "", "  ")
	return append(data, '\n'), err
}
