// Package inspect reads disk images without mounting or unpacking them and says
// what is in them: partitions, boot entries, the sections of UKIs, and the
// layers in an initramfs.
package inspect

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/imagecache"
	"github.com/kilnhq/kiln/imager/uki"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/slots"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Image is what was found in a disk image.
type Image struct {
	Size       int64       `json:"size"`       // bytes
	SectorSize int64       `json:"sectorSize"` // bytes
	DiskID     string      `json:"diskID"`
	Partitions []Partition `json:"partitions"`
	Entries    []Entry     `json:"entries"`

	// ContainerImages are those of the image cache.
	ContainerImages []ContainerImage `json:"containerImages,omitempty"`
}

// ContainerImage is an image for containers.
type ContainerImage struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256:…
}

// Partition is one partition; sizes and offsets are in bytes.
type Partition struct {
	Number     int    `json:"number"` // from 1
	Label      string `json:"label"`
	Type       string `json:"type"`
	ID         string `json:"id"`
	Start      int64  `json:"start"`
	Size       int64  `json:"size"`
	FileSystem string `json:"fileSystem,omitempty"`
	Used       int64  `json:"used,omitempty"` // bytes of files
}

// Entry is a way to boot.
type Entry struct {
	Loader   string    `json:"loader"` // "grub" or "systemd-boot"
	Title    string    `json:"title"`
	File     string    `json:"file"`            // partition and path
	Slot     string    `json:"slot,omitempty"`  // A or B
	State    string    `json:"state,omitempty"` // of the slot, for this loader: "boots", "on trial, 3 tries left", "failed"
	Release  string    `json:"release,omitempty"`
	Arch     string    `json:"arch,omitempty"` // of a UKI, as Go names it
	Cmdline  string    `json:"cmdline"`
	Sections []Section `json:"sections,omitempty"` // of a UKI
	Initrd   *Initrd   `json:"initramfs,omitempty"`
}

// Section is a section of a UKI.
type Section struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Initrd is an initramfs: its archives and the layers they carry.
type Initrd struct {
	Size     int64          `json:"size"`
	Segments []Segment      `json:"segments"`
	Layers   []layers.Layer `json:"layers,omitempty"`
	// Modules are the kernel modules to load at boot.
	Modules []layers.Module `json:"modules,omitempty"`

	list *layers.List
}

// Segment is one cpio archive of an initramfs.
type Segment struct {
	Compression string `json:"compression"`
	Size        int64  `json:"size"`
	Files       int    `json:"files"`
}

// maxText bounds what is read as text: configurations and command lines.
const maxText = 1 << 20

// Read inspects the disk image of size bytes in r.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	table, err := gpt.Read(r, size)
	if err != nil {
		return nil, err
	}
	img := &Image{Size: size, SectorSize: table.SectorSize, DiskID: table.DiskID.String()}
	for i, p := range table.Partitions {
		if p.Type == (gpt.GUID{}) {
			continue
		}
		part := Partition{Number: i + 1, Label: p.Name, Type: gpt.TypeName(p.Type), ID: p.ID.String(), Start: p.Start, Size: p.Size}
		if err := img.partition(&part, io.NewSectionReader(r, p.Start, p.Size)); err != nil {
			return nil, fmt.Errorf("partition %d (%s): %w", i+1, p.Name, err)
		}
		img.Partitions = append(img.Partitions, part)
	}
	return img, nil
}

// partition looks into the file systems that kiln writes.
func (img *Image) partition(p *Partition, r *io.SectionReader) error {
	switch p.Label {
	case "EFI":
		fsys, err := fat.Open(r, r.Size())
		if err != nil {
			return err
		}
		p.FileSystem, p.Used = fmt.Sprintf("FAT%d", fsys.Bits), used(fsys.Tree)
		return img.efi(fsys.Tree)
	case "BOOT", "STATE", "EPHEMERAL", "IMAGECACHE":
		fsys, err := ext4.Open(r, r.Size())
		if err != nil {
			return err
		}
		p.FileSystem, p.Used = "ext4", used(fsys.Tree)
		switch p.Label {
		case "BOOT":
			return img.boot(fsys.Tree)
		case "IMAGECACHE":
			return img.containerImages(fsys.Tree)
		}
	}
	return nil
}

// containerImages reads the index of an image cache. A file system without one is
// empty.
func (img *Image) containerImages(t *tree.Tree) error {
	ino := t.Lookup("index.json")
	if ino == nil {
		return nil
	}
	data, err := text(ino.Content)
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	index, err := v1.ParseIndexManifest(strings.NewReader(data))
	if err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	for _, d := range index.Manifests {
		img.ContainerImages = append(img.ContainerImages, ContainerImage{d.Annotations[imagecache.AnnotationName], d.Digest.String()})
	}
	return nil
}

// used is the number of bytes in files.
func used(t *tree.Tree) int64 {
	var n int64
	for _, ino := range t.All() {
		n += ino.Size()
	}
	return n
}

// efi finds the UKIs where systemd-boot does.
func (img *Image) efi(t *tree.Tree) error {
	const dir = "EFI/Linux"
	for name, ino := range t.All() {
		if !strings.HasPrefix(strings.ToLower(name), strings.ToLower(dir)+"/") || !strings.HasSuffix(strings.ToLower(name), ".efi") || ino.Content == nil {
			continue
		}
		e, err := readUKI(ino.Content)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		e.Loader, e.File = "systemd-boot", "EFI:/"+name
		if n, err := slots.ParseName(name); err == nil {
			e.Slot = n.Slot
			switch {
			case n.Counted && n.Left == 0:
				e.State = "failed"
			case n.Counted:
				e.State = fmt.Sprintf("on trial, %d tries left", n.Left)
			}
		}
		img.Entries = append(img.Entries, *e)
	}
	return nil
}

func readUKI(src tree.Content) (*Entry, error) {
	pe, err := uki.Read(src, src.Size())
	if err != nil {
		return nil, err
	}
	e := &Entry{Arch: pe.Arch}
	for _, s := range pe.Sections {
		e.Sections = append(e.Sections, Section{Name: s.Name, Size: s.Content.Size()})
		switch s.Name {
		case ".cmdline":
			if e.Cmdline == "" { // that of the first profile
				e.Cmdline, err = text(s.Content)
			}
		case ".uname":
			e.Release, err = text(s.Content)
		case ".osrel":
			var release string
			release, err = text(s.Content)
			e.Title = prettyName(release)
		case ".initrd":
			e.Initrd, err = readInitrd(s.Content)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return e, nil
}

// prettyName is PRETTY_NAME of an os-release file.
func prettyName(release string) string {
	for line := range strings.Lines(release) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// boot finds the slots that GRUB boots.
func (img *Image) boot(t *tree.Tree) error {
	state, err := grubState(t)
	if err != nil {
		return err
	}
	for _, slot := range []string{grub.SlotA, grub.SlotB} {
		name := slot + "/" + grub.SlotConfigName
		ino := t.Lookup(name)
		if ino == nil || ino.Size() == 0 {
			continue
		}
		if t.Lookup("grub") == nil && t.Lookup(slot+"/initramfs") == nil {
			continue // only the layers of what systemd-boot boots
		}
		data, err := text(ino.Content)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		g, err := grub.ParseSlot([]byte(data))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		e := Entry{Loader: "grub", Title: g.Title, File: "BOOT:" + g.Linux, Cmdline: g.Args, Slot: slot}
		switch slot {
		case state.Slot:
			e.State = "boots"
		case state.Trial:
			e.State = fmt.Sprintf("on trial, %d tries left", state.Tries)
		case state.Failed:
			e.State = "failed"
		}
		initrd := t.Lookup(strings.TrimPrefix(g.Initrd, "/"))
		if initrd == nil || initrd.Content == nil {
			return fmt.Errorf("%s: %s: %w", name, g.Initrd, fs.ErrNotExist)
		}
		if e.Initrd, err = readInitrd(initrd.Content); err != nil {
			return fmt.Errorf("%s: %w", g.Initrd, err)
		}
		if e.Initrd.list != nil {
			e.Release = e.Initrd.list.Release
		}
		img.Entries = append(img.Entries, e)
	}
	return nil
}

// grubState is what GRUB goes by, also if its environment is damaged.
func grubState(t *tree.Tree) (grub.State, error) {
	ino := t.Lookup("grub/grubenv")
	if ino == nil {
		return grub.Env(nil).State(), nil
	}
	data, err := text(ino.Content)
	if err != nil {
		return grub.State{}, fmt.Errorf("grub/grubenv: %w", err)
	}
	env, err := grub.ParseEnv([]byte(data))
	if err != nil {
		env = nil
	}
	return env.State(), nil
}

// maxUnpacked bounds what an initramfs is unpacked to.
const maxUnpacked = 512 << 20

func readInitrd(src extent.Source) (*Initrd, error) {
	segments, err := cpio.Read(src, src.Size(), maxUnpacked)
	if err != nil {
		return nil, err
	}
	out := &Initrd{Size: src.Size()}
	for _, s := range segments {
		out.Segments = append(out.Segments, Segment{Compression: s.Compression, Size: s.Size, Files: len(s.Entries)})
		i := slices.IndexFunc(s.Entries, func(e cpio.Entry) bool { return e.Name == layers.Name })
		if i < 0 {
			continue
		}
		data, err := text(s.Entries[i].Inode.Content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", layers.Name, err)
		}
		if out.list, err = layers.Decode([]byte(data)); err != nil {
			return nil, err
		}
		out.Layers, out.Modules = out.list.Layers, out.list.Modules
	}
	return out, nil
}

func text(src tree.Content) (string, error) {
	if src == nil {
		return "", nil
	}
	if src.Size() > maxText {
		return "", fmt.Errorf("%d bytes, want at most %d", src.Size(), maxText)
	}
	data := make([]byte, src.Size())
	if len(data) == 0 {
		return "", nil
	}
	_, err := io.ReadFull(io.NewSectionReader(src, 0, src.Size()), data)
	return strings.TrimRight(string(data), "\x00"), err
}
