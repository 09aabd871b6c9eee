// Package profiles holds what an image should be: the platform it runs on, the
// kernel arguments, the disk layout and the file format. A profile is pure data,
// written in YAML; the built-in ones are embedded.
package profiles

import (
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/machine/meta"
)

// Version is the version of the profile format.
const Version = "v1alpha1"

// Profile says what to build.
type Profile struct {
	Version string `yaml:"version" json:"version"`
	// Extends names the profile to start from, a built-in one or a file; what is
	// said here replaces what that one says.
	Extends     string `yaml:"extends,omitempty" json:"extends,omitempty"`
	Name        string `yaml:"name" json:"name"`
	Description string `yaml:"description" json:"description"` // one line
	Platform    string `yaml:"platform" json:"platform"`       // the node reads it as kiln.platform=
	Arch        string `yaml:"arch" json:"arch"`               // amd64 or arm64
	Kernel      Kernel `yaml:"kernel" json:"kernel"`

	// Extensions are system extensions, lowest layer first: what --extension
	// takes, which come after these. Paths that begin with ./ or ../ are relative
	// to the profile.
	Extensions []string `yaml:"extensions,omitempty" json:"extensions,omitempty"`

	// ImageCache are container images that the node has without a network: what
	// --image-cache takes, which come after these. Paths that begin with ./ or
	// ../ are relative to the profile.
	ImageCache []string `yaml:"imageCache,omitempty" json:"imageCache,omitempty"`

	// MachineConfig is the machine configuration that the node starts with. It
	// is stored on STATE, and in the initramfs of what runs without a disk.
	MachineConfig Secret `yaml:"machineConfig,omitempty" json:"machineConfig,omitempty"`

	// Devices are what a machine of the platform cannot do without: disks and
	// network cards. An image without a driver for one of them is refused.
	Devices []Device `yaml:"devices,omitempty" json:"devices,omitempty"`
	Disk    Disk     `yaml:"disk" json:"disk"`
	UKI     UKI      `yaml:"uki,omitempty" json:"uki,omitzero"`
	Output  Output   `yaml:"output" json:"output"`

	// Meta are values of META, by key: a name or a number, see 'kiln meta --help'.
	Meta map[string]Secret `yaml:"meta,omitempty" json:"meta,omitempty"`

	// Machine is what the formats that describe a whole virtual machine say of
	// it: ova, xva.
	Machine Machine `yaml:"machine" json:"machine"`

	// ARM64 is what SetArch changes for arm64.
	ARM64 ARM64 `yaml:"arm64" json:"arm64"`
}

// Secret is text of which JSON has only the digest.
type Secret string

// MarshalJSON implements json.Marshaler: "sha256:…".
func (s Secret) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `"sha256:%x"`, sha256.Sum256([]byte(s))), nil
}

// Machine is a virtual machine.
type Machine struct {
	CPUs     int    `yaml:"cpus" json:"cpus"`
	Memory   Size   `yaml:"memory" json:"memory"`
	Firmware string `yaml:"firmware" json:"firmware"` // bios or uefi
}

// UKI is what unified kernel images have besides kernel, initramfs and command
// line.
type UKI struct {
	// SBAT are lines for revocation of what is signed, see shim's SBAT.md.
	SBAT string `yaml:"sbat,omitempty" json:"sbat,omitempty"`
	// Splash is a BMP file that firmware shows while the image is started. Its
	// path is relative to that of the profile.
	Splash string `yaml:"splash,omitempty" json:"splash,omitempty"`
	// Profiles are further entries of the boot menu. The first entry is the
	// image as it is without them.
	Profiles []UKIProfile `yaml:"profiles,omitempty" json:"profiles,omitempty"`
}

// UKIProfile is an entry of the boot menu with other kernel arguments.
type UKIProfile struct {
	ID     string   `yaml:"id" json:"id"`       // one word
	Title  string   `yaml:"title" json:"title"` // for the menu
	Append []string `yaml:"append,omitempty" json:"append,omitempty"`
	Remove []string `yaml:"remove,omitempty" json:"remove,omitempty"`
}

// Device is a device, and how it announces itself to the kernel. Drivers are
// module names: a kernel does not tell which devices its built-in drivers are for.
type Device struct {
	Name     string   `yaml:"name" json:"name"`         // for people
	Modalias string   `yaml:"modalias" json:"modalias"` // as in sysfs
	Drivers  []string `yaml:"drivers" json:"drivers"`   // any of which will do, if it is built in
}

// Kernel is what the kernel is told.
type Kernel struct {
	Args []string `yaml:"args" json:"args"`

	// Append and Remove change the arguments of the profile that this one
	// extends. Remove names whole arguments, or what is left of their '='. Both
	// are empty once a profile has been read.
	Append []string `yaml:"append,omitempty" json:"append,omitempty"`
	Remove []string `yaml:"remove,omitempty" json:"remove,omitempty"`

	// SignedModules makes the kernel refuse modules that are not signed by a key
	// it trusts, and kiln images with such modules.
	SignedModules bool `yaml:"signedModules" json:"signedModules"`
}

// MetaValues returns the values of META by their keys.
func (p *Profile) MetaValues() (meta.Values, error) {
	values := meta.Values{}
	for name, value := range p.Meta {
		key, err := meta.ParseKey(name)
		if err != nil {
			return nil, err
		}
		if _, ok := values[key]; ok {
			return nil, fmt.Errorf("key %v is there twice", key)
		}
		values[key] = []byte(value)
	}
	if _, err := meta.Encode(values); err != nil {
		return nil, err
	}
	return values, nil
}

// edit carries out Append and Remove.
func (k *Kernel) edit() {
	k.Args = slices.DeleteFunc(slices.Clone(k.Args), func(arg string) bool {
		key, _, _ := strings.Cut(arg, "=")
		return slices.Contains(k.Remove, arg) || slices.Contains(k.Remove, key)
	})
	k.Args = append(k.Args, k.Append...)
	k.Append, k.Remove = nil, nil
}

// With returns the kernel's arguments with some appended and removed, as Append
// and Remove do.
func (k Kernel) With(add, remove []string) Kernel {
	k.Append, k.Remove = add, remove
	k.edit()
	return k
}

// CommandLine returns the words of the kernel's command line.
func (k Kernel) CommandLine() []string {
	if k.SignedModules {
		return append(slices.Clone(k.Args), "module.sig_enforce=1")
	}
	return k.Args
}

// Disk is the layout of the disk.
type Disk struct {
	// BootLoader says which firmware can boot the disk: "dual" (GRUB for BIOS
	// and systemd-boot for UEFI), "uefi" or "bios".
	BootLoader string `yaml:"bootLoader" json:"bootLoader"`
	// Layers says where the layers of the root file system are while the node
	// runs: "ram" (in the initramfs) or "boot" (on the partition BOOT, proven by
	// dm-verity, which takes less memory and makes smaller UKIs). What runs
	// without a disk has them in RAM.
	Layers string `yaml:"layers" json:"layers"`
	// SectorSize is the logical sector size in bytes, 512 or 4096.
	SectorSize int64 `yaml:"sectorSize" json:"sectorSize"`
	// Size is the size of the whole disk; 0 is the smallest the payload allows.
	// What the other partitions leave goes to EPHEMERAL.
	Size Size `yaml:"size" json:"size"`
	// Multiple is what the platform wants the size to be a multiple of; the disk
	// is made larger to be one.
	Multiple Size `yaml:"multiple" json:"multiple"`
	// Minimum and Maximum are the limits that the platform has for Size; 0 is
	// none.
	Minimum Size `yaml:"minimum" json:"minimum"`
	Maximum Size `yaml:"maximum" json:"maximum"`
	// Partitions are sizes of single partitions.
	Partitions Partitions `yaml:"partitions" json:"partitions"`
}

// Partitions are partition sizes. They are honoured exactly; 0 is the default:
// what the payload needs for EFI, BOOT and IMAGECACHE, 100 MiB for STATE, and the smallest
// useful file system for EPHEMERAL.
type Partitions struct {
	EFI       Size `yaml:"efi" json:"efi"`
	BOOT      Size `yaml:"boot" json:"boot"`
	State     Size `yaml:"state" json:"state"`
	Ephemeral Size `yaml:"ephemeral" json:"ephemeral"`
	// ImageCache is there only if it has a size or there are images.
	ImageCache Size `yaml:"imageCache,omitempty" json:"imageCache,omitempty"`
}

// Output is the form in which the disk is written.
type Output struct {
	Format string `yaml:"format" json:"format"` // one of Formats
	// Name is the name of the file, without directories. NAME, ARCH and EXT in
	// braces stand for the profile, the architecture and the format's suffix.
	Name string `yaml:"name" json:"name"`
	// Domain is what the machine that boots the file is described for, beside it:
	// "xl" (Xen), "libvirt" or nothing.
	Domain string `yaml:"domain,omitempty" json:"domain,omitempty"`
	// Compression is that of clusters within a qcow2 image: none, zlib, zstd.
	Compression string `yaml:"compression" json:"compression"`
	// Level is how hard raw.zst, raw.xz and raw.gz are compressed, 1 to 9; 0 is
	// the format's default.
	Level int `yaml:"level" json:"level"`
}

// Formats lists the output formats.
func Formats() []string {
	return []string{"raw", "raw.zst", "raw.gz", "raw.xz", "qcow2", "vmdk", "vmdk-sparse", "vhd", "vhd-dynamic", "vhdx",
		"ova", "gce", "xva", "containerdisk", "vagrant", "iso", "uki", "pxe", "kernel", "initramfs", "cmdline", "installer"}
}

// What Output.Domain may be.
const (
	XL      = "xl"
	Libvirt = "libvirt"
)

// Boot loader choices of Disk.BootLoader.
const (
	Dual = "dual"
	UEFI = "uefi"
	BIOS = "bios"
)

// Choices of Disk.Layers.
const (
	InRAM  = "ram"
	OnBoot = "boot"
)

// MainUKIProfile is the ID of the first profile of an image with several.
const MainUKIProfile = "main"

const wordLetters = "abcdefghijklmnopqrstuvwxyz0123456789-"

// maxMachineConfig bounds the machine configuration, in bytes.
const maxMachineConfig = 1 << 20

//go:embed *.yaml
var builtin embed.FS

// ErrUnknown is wrapped by the error of Load for a name that is neither a
// built-in profile nor a file.
var ErrUnknown = errors.New("unknown profile")

// ErrInvalid is wrapped by the errors of Validate.
var ErrInvalid = errors.New("invalid profile")

// Names lists the built-in profiles in alphabetical order.
func Names() []string {
	entries, _ := fs.ReadDir(builtin, ".") // an embedded directory can be read
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	slices.Sort(names)
	return names
}

// Load returns the built-in profile of the given name or, if the name ends in
// .yaml or .yml or has a slash in it, the profile in that file, with defaults
// filled in and validated.
func Load(name string) (*Profile, error) { return load(name, []string{name}) }

func load(name string, below []string) (*Profile, error) {
	if strings.ContainsRune(name, '/') || strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("profile: %w", err)
		}
		p, err := parse(name, data, below)
		if err != nil {
			return nil, err
		}
		return p, p.resolve(name, data)
	}
	data, err := builtin.ReadFile(name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("%w %q%s (or give a file, for example ./%s.yaml)", ErrUnknown, name, spelling.Hint(name, Names()), name)
	}
	return parse(name+".yaml", data, below)
}

// resolve makes paths that the profile in a file names ones from where that is.
func (p *Profile) resolve(name string, data []byte) error {
	var own Profile
	if err := strictyaml.Decode(name, data, &own); err != nil {
		return err
	}
	dir := filepath.Dir(name)
	if s := own.UKI.Splash; s != "" && !filepath.IsAbs(s) {
		p.UKI.Splash = filepath.Join(dir, s)
	}
	for i, ref := range own.Extensions { // a list replaces the one below
		if strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../") {
			p.Extensions[i] = filepath.Join(dir, ref)
		}
	}
	for i, ref := range own.ImageCache {
		p.ImageCache[i] = inDirectory(dir, ref)
	}
	return nil
}

// inDirectory is PATH or NAME=PATH with the path below dir, if it says so.
func inDirectory(dir, ref string) string {
	name, file, named := strings.Cut(ref, "=")
	if !named {
		name, file = "", ref
	}
	if !strings.HasPrefix(file, "./") && !strings.HasPrefix(file, "../") {
		return ref
	}
	file = filepath.Join(dir, file)
	if named {
		return name + "=" + file
	}
	return file
}

// Parse decodes, completes and validates a profile. name stands for it in
// errors.
func Parse(name string, data []byte) (*Profile, error) {
	return parse(name, data, nil)
}

// parse is Parse, below the profiles that extend this one.
func parse(name string, data []byte, below []string) (*Profile, error) {
	p := &Profile{
		Arch:    "amd64",
		Disk:    Disk{BootLoader: Dual, Layers: InRAM, SectorSize: 512, Multiple: MiB, Partitions: Partitions{State: 100 * MiB}},
		Output:  Output{Format: "raw", Name: "kiln-{NAME}-{ARCH}.{EXT}", Compression: "zstd"},
		Machine: Machine{CPUs: 2, Memory: 2 * GiB, Firmware: "uefi"},
	}
	if err := strictyaml.Decode(name, data, p); err != nil {
		return nil, err
	}
	if extends := p.Extends; extends != "" {
		if slices.Contains(below, extends) {
			return nil, fmt.Errorf("%w: %s: profiles extend each other: %s", ErrInvalid, name, strings.Join(append(below, extends), ", "))
		}
		var err error
		if p, err = load(extends, append(below, extends)); err != nil {
			return nil, fmt.Errorf("%s: extends: %w", name, err)
		}
		p.Description = ""
		// The architecture comes first, for the rest is said with it in mind.
		var above Profile
		if err := strictyaml.Decode(name, data, &above); err != nil {
			return nil, err
		}
		if above.Arch != "" {
			if err := p.SetArch(above.Arch); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := strictyaml.Decode(name, data, p); err != nil {
			return nil, err
		}
	}
	p.Kernel.edit()
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// Validate says what is wrong with p, or nil.
func (p *Profile) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...)))
	}
	oneOf := func(what, got string, known ...string) {
		if !slices.Contains(known, got) {
			bad("%s %q%s", what, got, spelling.Hint(got, known))
		}
	}
	oneOf("version", p.Version, Version)
	oneOf("arch", p.Arch, "amd64", "arm64")
	oneOf("disk.bootLoader", p.Disk.BootLoader, Dual, UEFI, BIOS)
	oneOf("disk.layers", p.Disk.Layers, InRAM, OnBoot)
	oneOf("output.format", p.Output.Format, Formats()...)
	oneOf("output.domain", p.Output.Domain, "", XL, Libvirt)
	oneOf("output.compression", p.Output.Compression, "none", "zlib", "zstd")
	oneOf("machine.firmware", p.Machine.Firmware, "bios", "uefi")
	if n := p.Output.Name; n == "" || strings.ContainsAny(n, "/\x00\n") || n == "." || n == ".." {
		bad("output.name %q: want a file name without directories", n)
	}
	if l := p.Output.Level; l < 0 || l > 9 {
		bad("output.level %d: want 1 to 9, or 0 for the default", l)
	}
	if m := p.Machine; m.CPUs < 1 || m.CPUs > 1024 || m.Memory < 256*MiB || m.Memory%MiB != 0 {
		bad("machine: %d CPUs and %s of memory: want at least 1 and 256MiB, whole MiB", m.CPUs, m.Memory)
	}
	if _, err := p.MetaValues(); err != nil {
		bad("meta: %v", err)
	}
	if n := len(p.MachineConfig); n > maxMachineConfig {
		bad("machineConfig: %d bytes, want at most %d", n, maxMachineConfig)
	}
	for what, word := range map[string]string{"name": p.Name, "platform": p.Platform} {
		if word == "" || strings.ContainsAny(word, " \t\n/\"'") {
			bad("%s %q: want one word", what, word)
		}
	}
	if s := p.Disk.SectorSize; s != 512 && s != 4096 {
		bad("disk.sectorSize %d: want 512 or 4096", s)
	}
	if p.Disk.SectorSize == 4096 && p.Disk.BootLoader != UEFI {
		bad("disk.sectorSize 4096 with disk.bootLoader %s: no BIOS boots from 4096-byte sectors; set disk.bootLoader: uefi", p.Disk.BootLoader)
	}
	if p.Arch == "arm64" && p.Disk.BootLoader != UEFI {
		bad("arch arm64 with disk.bootLoader %s: arm64 machines have no BIOS; set disk.bootLoader: uefi", p.Disk.BootLoader)
	}
	ids := map[string]bool{MainUKIProfile: true}
	for i, u := range p.UKI.Profiles {
		if u.ID == "" || strings.Trim(u.ID, wordLetters) != "" || ids[u.ID] {
			bad("uki.profiles[%d].id %q: want a word of small letters, digits and '-' that no other profile has (the first is %q)", i, u.ID, MainUKIProfile)
		}
		if u.Title == "" || strings.ContainsAny(u.Title, "\n\r\x00") {
			bad("uki.profiles[%d].title %q: want one line", i, u.Title)
		}
		ids[u.ID] = true
	}
	if s := p.UKI.SBAT; s != "" && !strings.HasSuffix(s, "\n") {
		bad("uki.sbat: want lines, each ended")
	}
	for i, d := range p.Devices {
		if d.Name == "" || !strings.Contains(d.Modalias, ":") || strings.ContainsAny(d.Modalias, " \t\n*?[") {
			bad("devices[%d] %q, modalias %q: want a name and a modalias as in sysfs, for example virtio:d00000002v00001AF4", i, d.Name, d.Modalias)
		}
	}
	sizes := []struct {
		what string
		size Size
	}{
		{"disk.size", p.Disk.Size}, {"disk.multiple", p.Disk.Multiple}, {"disk.partitions.efi", p.Disk.Partitions.EFI}, {"disk.partitions.boot", p.Disk.Partitions.BOOT},
		{"disk.partitions.state", p.Disk.Partitions.State}, {"disk.partitions.ephemeral", p.Disk.Partitions.Ephemeral},
	}
	for _, s := range sizes {
		if s.size < 0 || s.size%MiB != 0 {
			bad("%s %s: want a multiple of 1MiB, to which partitions are aligned", s.what, s.size)
		}
	}
	if m := p.Disk.Multiple; m > 0 && p.Disk.Size%m != 0 {
		bad("disk.size %s: the platform wants a multiple of %s", p.Disk.Size, m)
	}
	if least := p.Disk.Minimum; p.Disk.Size > 0 && p.Disk.Size < least {
		bad("disk.size %s: the platform wants at least %s", p.Disk.Size, least)
	}
	if most := p.Disk.Maximum; most > 0 && p.Disk.Size > most {
		bad("disk.size %s: the platform takes no more than %s", p.Disk.Size, most)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
