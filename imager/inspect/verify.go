package inspect

import (
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/machine/layers"
)

// Verify says what is wrong with an image of which the contents are known: layers
// that are missing or are not what the layer list or their hash tree says, boot
// entries without a kernel or an initramfs, and boot loaders that would start
// different systems from the same slot.
func Verify(img *Image, files []File) []string {
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	found := map[string]File{}
	for _, f := range files {
		found[f.Where+":"+f.Path] = f
	}
	if len(img.Entries) == 0 {
		bad("no boot entry: nothing of the image boots")
	}
	first := map[string]Entry{} // by slot
	sums := map[string]string{} // of its initramfs
	for _, e := range img.Entries {
		where := e.File + "/#.initrd"
		if e.Loader == "grub" {
			where = strings.TrimSuffix(e.File, "vmlinuz") + "initramfs"
			if _, ok := found[e.File]; !ok {
				bad("%s: the kernel of boot entry %q is not there", e.File, e.Title)
			}
		}
		f, ok := found[where]
		other, again := first[e.Slot]
		switch {
		case !ok:
			bad("%s: the initramfs of boot entry %q is not there", where, e.Title)
		case !again:
			first[e.Slot], sums[e.Slot] = e, f.SHA256
			checkLayers(bad, where, e, found)
		case sums[e.Slot] != f.SHA256:
			bad("%s: another initramfs than that of boot entry %q", where, other.Title)
		}
	}
	return problems
}

func checkLayers(bad func(string, ...any), where string, e Entry, found map[string]File) {
	initrd := e.Initrd
	if initrd == nil || len(initrd.Layers) == 0 {
		bad("%s: no %s: nothing says which layers there are", where, layers.Name)
		return
	}
	for _, l := range initrd.Layers {
		file := where + "/" + l.Path
		if l.Verity != nil {
			where = "BOOT:/" + e.Slot + "/" + layers.File
			file = layerPath(where, l)
		}
		switch f, ok := found[file]; {
		case !ok:
			bad("%s: layer %s is not there", where, l.Path)
		case f.Damage != "":
			bad("%s: %s", where, f.Damage)
		case f.SHA256 != l.SHA256:
			bad("%s: layer %s has the digest sha256:%.12s, the list says %.12s", where, l.Path, f.SHA256, l.SHA256)
		}
	}
}
