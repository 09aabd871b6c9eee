package inspect

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/uki"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/slots"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// File is one file of an image, wherever it lies. Where is the label of its
// partition or the name of its layer; a section of a UKI is a file "#NAME" below
// the UKI, and an initramfs and a file with layers are directories of what they
// hold.
type File struct {
	Where  string      `json:"where"`
	Path   string      `json:"path"`
	Mode   fs.FileMode `json:"mode"`
	UID    uint32      `json:"uid"`
	GID    uint32      `json:"gid"`
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256,omitempty"` // of a file's content, lower-case hexadecimal
	Target string      `json:"target,omitempty"` // of a symbolic link
	Damage string      `json:"damage,omitempty"` // what the hash tree of a layer says is wrong with it
}

// Contents lists the files in the partitions of a disk image and, once each, in
// the layers of its systems, and digests them. Nothing is unpacked to anywhere.
func Contents(ctx context.Context, r io.ReaderAt, size int64) ([]File, error) {
	table, err := gpt.Read(r, size)
	if err != nil {
		return nil, err
	}
	l := lister{ctx: ctx, seen: map[string]bool{}, lists: map[string]*layers.List{}, slots: map[string]string{}}
	var boot *tree.Tree
	for i, p := range table.Partitions {
		if p.Type == (gpt.GUID{}) {
			continue
		}
		part := io.NewSectionReader(r, p.Start, p.Size)
		var t *tree.Tree
		switch p.Name {
		case "EFI":
			var fsys *fat.FileSystem
			if fsys, err = fat.Open(part, p.Size); err == nil {
				t = fsys.Tree
			}
		case "BOOT", "STATE", "EPHEMERAL", "IMAGECACHE":
			var fsys *ext4.FileSystem
			if fsys, err = ext4.Open(part, p.Size); err == nil {
				t = fsys.Tree
			}
		default:
			continue
		}
		if p.Name == "BOOT" {
			boot = t
		}
		if err == nil {
			err = l.tree(p.Name, "", t)
		}
		if err != nil {
			return nil, fmt.Errorf("partition %d (%s): %w", i+1, p.Name, err)
		}
	}
	if boot != nil {
		if err := l.onBoot(boot); err != nil {
			return nil, fmt.Errorf("BOOT: %w", err)
		}
	}
	slices.SortFunc(l.files, func(a, b File) int {
		return strings.Compare(a.Where+"\x00"+a.Path, b.Where+"\x00"+b.Path)
	})
	return l.files, nil
}

type lister struct {
	ctx   context.Context
	files []File
	seen  map[string]bool // digests of what was opened already

	lists map[string]*layers.List // by the digest of the initramfs
	slots map[string]string       // digest of the initramfs, by slot
}

func (l *lister) tree(where, dir string, t *tree.Tree) error {
	for name, ino := range t.All() {
		if name == "." {
			continue
		}
		if err := l.file(where, dir+"/"+name, ino); err != nil {
			return fmt.Errorf("%s/%s: %w", dir, name, err)
		}
	}
	return nil
}

func (l *lister) file(where, path string, ino *tree.Inode) error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	f := File{Where: where, Path: path, Mode: ino.Mode, UID: ino.UID, GID: ino.GID, Size: ino.Size(), Target: ino.Target}
	if ino.Mode.IsRegular() {
		h := sha256.New()
		if ino.Content != nil {
			if _, err := io.Copy(h, io.NewSectionReader(ino.Content, 0, ino.Size())); err != nil {
				return err
			}
		}
		f.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	l.files = append(l.files, f)
	if ino.Content == nil {
		return nil
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	if slot := slotOf(path, name); slot != "" {
		l.slots[slot] = f.SHA256
	}
	if l.seen[f.SHA256] {
		return nil
	}
	switch {
	case strings.HasSuffix(strings.ToLower(name), ".efi"):
		l.seen[f.SHA256] = true
		return l.uki(where, path, ino.Content)
	case name == "initramfs" || name == "#.initrd":
		l.seen[f.SHA256] = true
		list, err := l.initramfs(where, path, ino.Content)
		l.lists[f.SHA256] = list
		return err
	}
	return nil
}

// slotOf returns the slot that an initramfs is of, or "".
func slotOf(path, name string) string {
	dir := strings.TrimSuffix(path, "/"+name)
	switch name {
	case "initramfs":
		return strings.TrimPrefix(dir, "/")
	case "#.initrd":
		if n, err := slots.ParseName(dir); err == nil {
			return n.Slot
		}
	}
	return ""
}

// onBoot lists what is in the layers that are on BOOT.
func (l *lister) onBoot(t *tree.Tree) error {
	for _, slot := range []string{grub.SlotA, grub.SlotB} {
		name := slot + "/" + layers.File
		ino, list := t.Lookup(name), l.lists[l.slots[slot]]
		if ino == nil || ino.Size() == 0 || list == nil || !list.OnBoot() {
			continue
		}
		for _, y := range list.Layers {
			if err := l.layer("/"+name, y, ino.Content); err != nil {
				return fmt.Errorf("%s: %s: %w", name, y.Path, err)
			}
		}
	}
	return nil
}

// layer lists a layer in a file with several, unless it is damaged.
func (l *lister) layer(file string, y layers.Layer, src extent.Source) error {
	if _, end := y.Span(); end > src.Size() {
		return nil // Verify says that it is not there
	}
	data, err := y.Content(src)
	if err != nil {
		return err
	}
	if err := l.file("BOOT", layerPath(file, y), &tree.Inode{Mode: 0o444, Content: data}); err != nil {
		return err
	}
	f := &l.files[len(l.files)-1]
	if err := y.VerifyTree(l.ctx, src); errors.Is(err, layers.ErrDamaged) {
		f.Damage = err.Error()
		return nil
	} else if err != nil {
		return err
	}
	if l.seen[f.SHA256] {
		return nil
	}
	l.seen[f.SHA256] = true
	t, err := squashfs.Open(data, y.Size)
	if err != nil {
		return err
	}
	return l.tree(y.Name, "", t)
}

// layerPath is the path of a layer in a file with several.
func layerPath(file string, y layers.Layer) string {
	return file + "/" + path.Base(y.Path)
}

// uki lists the sections that boot; a boot loader has none of them.
func (l *lister) uki(where, path string, src tree.Content) error {
	pe, err := uki.Read(src, src.Size())
	if err != nil {
		return err
	}
	for _, s := range pe.Sections {
		switch s.Name {
		case ".osrel", ".cmdline", ".initrd", ".linux", ".uname", ".sbat", ".splash", ".profile", ".dtb", ".ucode":
			if err := l.file(where, path+"/#"+s.Name, &tree.Inode{Mode: 0o444, Content: s.Content}); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	return nil
}

func (l *lister) initramfs(where, path string, src extent.Source) (list *layers.List, err error) {
	segments, err := cpio.Read(src, src.Size(), maxUnpacked)
	if err != nil {
		return nil, err
	}
	names := map[string]string{} // of layers, by path
	for _, s := range segments {
		for _, e := range s.Entries {
			if e.Name == layers.Name {
				data, err := text(e.Inode.Content)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", layers.Name, err)
				}
				if list, err = layers.Decode([]byte(data)); err != nil {
					return nil, err
				}
				for _, layer := range list.Layers {
					names[layer.Path] = layer.Name
				}
			}
		}
	}
	for _, s := range segments {
		for _, e := range s.Entries {
			if e.Name == "." {
				continue
			}
			if err := l.file(where, path+"/"+e.Name, e.Inode); err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name, err)
			}
			name, isLayer := names[e.Name]
			sum := l.files[len(l.files)-1].SHA256
			if !isLayer || l.seen[sum] {
				continue
			}
			l.seen[sum] = true
			t, err := squashfs.Open(e.Inode.Content, e.Inode.Size())
			if err == nil {
				err = l.tree(name, "", t)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name, err)
			}
		}
	}
	return list, nil
}
