package profiles

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// requirement is what a platform wants of an image: what its documentation says,
// which the profile names, and not what the profile happens to say.
type requirement struct {
	platform string
	format   string
	firmware string // dual where the platform has machines of both kinds
	sector   int64  // 0 is 512
	multiple Size   // 0 is any multiple of 1 MiB
	least    Size
	most     Size
	consoles []string // in order; init writes to the last
	arm64    []string // consoles of arm64 machines; none if there are none
	args     []string // other arguments
	without  []string
	zlib     bool // compression that any QEMU reads
	drivers  []string
}

var (
	// A serial port that is not there is passed over: the screen is next.
	screenSerial = []string{"console=tty0", "console=ttyS0,115200"}
	serialScreen = []string{"console=ttyS0,115200", "console=tty0"}
	armConsoles  = []string{"console=tty0", "console=ttyAMA0,115200"}

	anyMachine = []string{"nvme", "ahci", "sd_mod", "virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"}
	virtio     = []string{"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net"}
	seed       = append(slices.Clone(virtio), "ahci", "sr_mod") // configuration on a CD
	xen        = []string{"xen_blkfront", "xen_netfront"}
)

var requirements = map[string]requirement{
	"metal":         {platform: "metal", format: "raw", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: anyMachine},
	"metal-4k":      {platform: "metal", format: "raw", firmware: UEFI, sector: 4096, consoles: screenSerial, arm64: armConsoles, drivers: anyMachine},
	"iso":           {platform: "metal", format: "iso", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: append(slices.Clone(anyMachine), "sr_mod")},
	"pxe":           {platform: "metal", format: "pxe", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: anyMachine},
	"uki":           {platform: "metal", format: "uki", firmware: UEFI, consoles: screenSerial, arm64: armConsoles, drivers: anyMachine},
	"installer":     {platform: "metal", format: "installer", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: anyMachine},
	"kvm":           {platform: "nocloud", format: "qcow2", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: virtio},
	"nocloud":       {platform: "nocloud", format: "raw", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: seed},
	"libvirt":       {platform: "nocloud", format: "qcow2", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: seed},
	"vagrant":       {platform: "nocloud", format: "vagrant", firmware: Dual, multiple: GiB, consoles: screenSerial, arm64: armConsoles, drivers: seed},
	"proxmox":       {platform: "nocloud", format: "qcow2", firmware: Dual, consoles: screenSerial, drivers: append(slices.Clone(seed), "ata_piix")},
	"kubevirt":      {platform: "nocloud", format: "containerdisk", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: seed},
	"openstack":     {platform: "openstack", format: "qcow2", firmware: Dual, zlib: true, consoles: screenSerial, arm64: armConsoles, drivers: seed},
	"cloudstack":    {platform: "cloudstack", format: "qcow2", firmware: Dual, zlib: true, consoles: screenSerial, arm64: armConsoles, drivers: virtio},
	"opennebula":    {platform: "opennebula", format: "qcow2", firmware: Dual, zlib: true, consoles: screenSerial, drivers: append(slices.Clone(seed), "ata_piix")},
	"digital-ocean": {platform: "digital-ocean", format: "raw.gz", firmware: Dual, most: 100e9, consoles: screenSerial, drivers: virtio},
	"hcloud":        {platform: "hcloud", format: "raw.zst", firmware: Dual, consoles: screenSerial, arm64: armConsoles, drivers: virtio},
	"scaleway":      {platform: "scaleway", format: "qcow2", firmware: Dual, zlib: true, consoles: screenSerial, arm64: armConsoles, drivers: virtio},
	"vultr":         {platform: "vultr", format: "raw", firmware: Dual, consoles: screenSerial, drivers: virtio},
	"upcloud":       {platform: "upcloud", format: "raw.gz", firmware: Dual, consoles: screenSerial, drivers: virtio},
	"exoscale":      {platform: "exoscale", format: "qcow2", firmware: Dual, least: 10 * GiB, most: 100e9, zlib: true, consoles: screenSerial, drivers: virtio},
	"oracle":        {platform: "oracle", format: "qcow2", firmware: Dual, most: 400e9, zlib: true, consoles: screenSerial, arm64: armConsoles, drivers: virtio},
	"akamai":        {platform: "akamai", format: "raw.gz", firmware: Dual, most: 6e9, consoles: screenSerial, drivers: virtio},
	"alibaba": {platform: "alibaba", format: "qcow2", firmware: Dual, zlib: true, consoles: screenSerial, arm64: armConsoles,
		args: []string{"nvme_core.io_timeout=4294967295"}, drivers: append(slices.Clone(virtio), "nvme")},
	"aws": {platform: "aws", format: "raw", firmware: Dual, multiple: GiB, consoles: screenSerial, arm64: []string{"console=ttyS0,115200"},
		args: []string{"nvme_core.io_timeout=4294967295"}, drivers: append(slices.Clone(xen), "nvme", "ena")},
	"gcp": {platform: "gcp", format: "gce", firmware: Dual, multiple: GiB, consoles: screenSerial, arm64: armConsoles,
		drivers: []string{"virtio_pci", "virtio_scsi", "sd_mod", "nvme", "virtio_net", "gve"}},
	"azure": {platform: "azure", format: "vhd", firmware: Dual, most: 1023 * GiB,
		consoles: []string{"console=tty0", "console=ttyS0,115200n8"}, arm64: []string{"console=tty0", "console=ttyAMA0,115200n8"},
		args: []string{"earlyprintk=ttyS0,115200", "rootdelay=300"}, without: []string{"quiet"},
		drivers: []string{"hv_vmbus", "hv_storvsc", "sd_mod", "hv_netvsc", "pci_hyperv", "nvme"}},
	"hyperv": {platform: "nocloud", format: "vhdx", firmware: Dual, most: 64 * TiB, consoles: serialScreen,
		drivers: []string{"hv_vmbus", "hv_storvsc", "sd_mod", "hv_netvsc"}},
	"vmware": {platform: "vmware", format: "ova", firmware: Dual, most: 62 * TiB, consoles: screenSerial,
		drivers: []string{"vmw_pvscsi", "sd_mod", "vmxnet3"}},
	"xen":    {platform: "nocloud", format: "raw", firmware: Dual, consoles: []string{"console=tty0", "console=hvc0"}, drivers: xen},
	"xcp-ng": {platform: "nocloud", format: "xva", firmware: Dual, most: 2040 * GiB, consoles: []string{"console=hvc0", "console=tty0"}, drivers: xen},
}

func TestPlatforms(t *testing.T) {
	for _, name := range Names() {
		if _, ok := requirements[name]; !ok {
			t.Errorf("nothing is said of what profile %s has to be", name)
		}
	}
	for name, want := range requirements {
		t.Run(name, func(t *testing.T) {
			p, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			if p.Name != name || p.Description == "" || p.Arch != "amd64" {
				t.Errorf("profile %s, description %q, for %s", p.Name, p.Description, p.Arch)
			}
			if p.Platform != want.platform || p.Output.Format != want.format || p.Disk.BootLoader != want.firmware {
				t.Errorf("platform %s, format %s, boot loader %s; want %s, %s, %s",
					p.Platform, p.Output.Format, p.Disk.BootLoader, want.platform, want.format, want.firmware)
			}
			if want.zlib && p.Output.Compression != "zlib" {
				t.Errorf("compression %s, want zlib", p.Output.Compression)
			}
			checkDisk(t, p, want)
			consoles := prefixed(p.Kernel.Args, "console=")
			if !slices.Equal(consoles, want.consoles) {
				t.Errorf("consoles %v, want %v", consoles, want.consoles)
			}
			for _, arg := range append(want.args, "panic=10") {
				if !slices.Contains(p.Kernel.Args, arg) {
					t.Errorf("kernel arguments %v, want %s", p.Kernel.Args, arg)
				}
			}
			for _, arg := range want.without {
				if slices.Contains(p.Kernel.Args, arg) {
					t.Errorf("kernel arguments %v, want no %s", p.Kernel.Args, arg)
				}
			}
			checkDevices(t, p, want.drivers)
		})
	}
}

func checkDisk(t *testing.T, p *Profile, want requirement) {
	sector, multiple := want.sector, max(want.multiple, MiB)
	if sector == 0 {
		sector = 512
	}
	if p.Disk.SectorSize != sector || p.Disk.Multiple != multiple || p.Disk.Minimum != want.least || p.Disk.Maximum != want.most {
		t.Errorf("disk %+v, want sectors of %d bytes, a multiple of %s, at least %s, at most %s", p.Disk, sector, multiple, want.least, want.most)
	}
	if p.Disk.Size < want.least {
		t.Errorf("size %s, want %s", p.Disk.Size, want.least)
	}
	// A size that the platform does not take is refused.
	for _, size := range []Size{multiple / 2, want.least - multiple, (want.most/multiple + 1) * multiple} {
		if size <= 0 || size == multiple && want.most == 0 {
			continue
		}
		q := *p
		q.Disk.Size = size
		if err := q.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "disk.size "+size.String()) {
			t.Errorf("disk of %s: %v, want a refusal", size, err)
		}
	}
}

var modalias = regexp.MustCompile(`^(pci:v[0-9A-F]{8}d[0-9A-F]{8}sv[0-9A-F]{8}sd[0-9A-F]{8}bc[0-9A-F]{2}sc[0-9A-F]{2}i[0-9A-F]{2}` +
	`|virtio:d[0-9A-F]{8}v[0-9A-F]{8}|vmbus:[0-9a-f]{32}|xen:(vbd|vif)|acpi:[0-9A-Z]+:|scsi:t-0x0[05])$`)

func checkDevices(t *testing.T, p *Profile, drivers []string) {
	var got []string
	for _, d := range p.Devices {
		if !modalias.MatchString(d.Modalias) {
			t.Errorf("%s: modalias %s is not how the kernel writes it", d.Name, d.Modalias)
		}
		if len(d.Drivers) == 0 {
			t.Errorf("%s: no driver: a kernel with it built in would be refused", d.Name)
		}
		got = append(got, d.Drivers...)
	}
	slices.Sort(got)
	want := slices.Clone(drivers)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("drivers %v, want %v", got, want)
	}
}

func TestPlatformsOnARM64(t *testing.T) {
	for name, want := range requirements {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		err = p.SetArch("arm64")
		if want.arm64 == nil {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "profile "+name+" is for a platform without arm64 machines") {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil {
			err = p.Validate()
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if consoles := prefixed(p.Kernel.Args, "console="); !slices.Equal(consoles, want.arm64) {
			t.Errorf("%s: consoles %v, want %v", name, consoles, want.arm64)
		}
		if p.Arch != "arm64" || p.Disk.BootLoader != UEFI || p.Machine.Firmware != "uefi" || len(prefixed(p.Kernel.Args, "earlyprintk=")) > 0 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestSetArch(t *testing.T) {
	p, err := Load("metal")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Set("arch=arm64"); err != nil || p.Disk.BootLoader != UEFI {
		t.Errorf("%v, %+v", err, p)
	}
	if err := p.SetArch("amd64"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "profile metal is for arm64") {
		t.Errorf("back again: %v", err)
	}
	p, err = Parse("p", []byte("version: v1alpha1\nextends: aws\nname: graviton\narch: arm64\nkernel: {append: [a=b]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"panic=10", "quiet", "init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1", "randomize_kstack_offset=on", "nohibernate", "nvme_core.io_timeout=4294967295", "console=ttyS0,115200", "a=b"}; !slices.Equal(p.Kernel.Args, want) {
		t.Errorf("arguments %v, want %v", p.Kernel.Args, want)
	}
	_, err = Parse("p", []byte("version: v1alpha1\nextends: xen\nname: x\narch: arm64\n"))
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "p: invalid profile: arch arm64: profile xen is for a platform without arm64 machines") {
		t.Errorf("%v", err)
	}
}

// TestPlatformsAreDocumented wants every profile to say what its platform
// requires and who says so, and to have a line in docs/platforms.md.
func TestPlatformsAreDocumented(t *testing.T) {
	table, err := os.ReadFile("../docs/platforms.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		data, err := builtin.ReadFile(name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		comment, _, _ := strings.Cut(string(data), "\nversion:")
		for _, what := range []string{"Format", "Size", "Sectors", "Firmware", "Console", "Drivers", "File", "Source"} {
			if !regexp.MustCompile(`(?m)^# ` + what + `: +\S`).MatchString(comment) {
				t.Errorf("%s.yaml: the comment does not say %s", name, what)
			}
		}
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`(?m)^\| ` + "`" + regexp.QuoteMeta(name) + "` \\| `" + regexp.QuoteMeta(p.Output.Format) + "`").Match(table) {
			t.Errorf("docs/platforms.md has no line with profile %s and format %s", name, p.Output.Format)
		}
	}
}

func prefixed(args []string, prefix string) []string {
	var out []string
	for _, a := range args {
		if strings.HasPrefix(a, prefix) {
			out = append(out, a)
		}
	}
	return out
}

// Images of every platform have what kiln kernel check wants of the command line,
// and only arguments that the architecture's kernels know.
func TestHardenedArguments(t *testing.T) {
	want := []string{"init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1", "randomize_kstack_offset=on", "nohibernate"}
	for _, name := range Names() {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, arch := range []string{"amd64", "arm64"} {
			if err := p.SetArch(arch); err != nil {
				continue // there are no such machines
			}
			for _, a := range want {
				if !slices.Contains(p.Kernel.Args, a) {
					t.Errorf("%s, %s: %s is missing in %v", name, arch, a, p.Kernel.Args)
				}
			}
			if has := slices.Contains(p.Kernel.Args, "vsyscall=none"); has != (arch == "amd64") {
				t.Errorf("%s, %s: vsyscall=none is there: %v", name, arch, has)
			}
		}
	}
}
