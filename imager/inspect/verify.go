package inspect

import (
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/machine/layers"
)

// Verify says what is wrong with an image of which the contents are known: layers
// that are missing or are not what the layer list says, boot entries without a
// kernel or an initramfs, and boot loaders that would start different systems.
func Verify(img *Image, files []File) []string {
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	sums := map[string]string{}
	for _, f := range files {
		sums[f.Where+":"+f.Path] = f.SHA256
	}
	if len(img.Entries) == 0 {
		bad("no boot entry: nothing of the image boots")
	}
	first := ""
	for _, e := range img.Entries {
		where := e.File + "/#.initrd"
		if e.Loader == "grub" {
			where = strings.TrimSuffix(e.File, "vmlinuz") + "initramfs"
			if _, ok := sums[e.File]; !ok {
				bad("%s: the kernel of boot entry %q is not there", e.File, e.Title)
			}
		}
		sum, ok := sums[where]
		switch {
		case !ok:
			bad("%s: the initramfs of boot entry %q is not there", where, e.Title)
			continue
		case first == "":
			first = sum
			checkLayers(bad, where, e.Initrd, sums)
		case first != sum:
			bad("%s: another initramfs than that of boot entry %q", where, img.Entries[0].Title)
		}
	}
	return problems
}

func checkLayers(bad func(string, ...any), where string, initrd *Initrd, sums map[string]string) {
	if initrd == nil || len(initrd.Layers) == 0 {
		bad("%s: no %s: nothing says which layers there are", where, layers.Name)
		return
	}
	for _, l := range initrd.Layers {
		switch got, ok := sums[where+"/"+l.Path]; {
		case !ok:
			bad("%s: layer %s is not there", where, l.Path)
		case got != l.SHA256:
			bad("%s: layer %s has the digest sha256:%.12s, the list says %.12s", where, l.Path, got, l.SHA256)
		}
	}
}
