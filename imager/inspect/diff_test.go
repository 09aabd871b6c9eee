package inspect

import (
	"slices"
	"strings"
	"testing"
)

func TestContentsAndDiff(t *testing.T) {
	a := disk(t, layerList)
	b := disk(t, strings.Replace(layerList, `"kiln":"devel"`, `"kiln":"other"`, 1))
	// The layer list names a layer that the archive does not have; that is for
	// Verify to say.
	filesA, err := Contents(t.Context(), a, a.Size())
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range filesA {
		paths = append(paths, f.Where+":"+f.Path)
	}
	for _, want := range []string{"BOOT:/A/initramfs", "BOOT:/A/initramfs/layers.json", "BOOT:/A/slot.cfg"} {
		if !slices.Contains(paths, want) {
			t.Errorf("contents %v, want %s", paths, want)
		}
	}
	filesB, err := Contents(t.Context(), b, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	imgA, err := Read(a, a.Size())
	if err != nil {
		t.Fatal(err)
	}
	imgB, err := Read(b, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(imgA, imgA, filesA, filesA); len(d) != 0 {
		t.Errorf("an image and itself: %v", d)
	}
	imgB.Entries[0].Cmdline = "quiet debug"
	imgB.Partitions[1].Size *= 2
	imgB.Partitions[1].Label = "NEW"
	var lines []string
	for _, c := range Diff(imgA, imgB, filesA, filesB) {
		line, _, _ := strings.Cut(c.String(), " start=")
		line, _, _ = strings.Cut(line, " -rw")
		lines = append(lines, strings.TrimSuffix(line, " -r--r--r-- 0:0"))
	}
	want := []string{
		"- partition META", "+ partition NEW", "+ kernel-arg grub debug set",
		"~ file BOOT:/A/initramfs", "~ file BOOT:/A/initramfs/layers.json",
	}
	for i := range lines {
		lines[i], _, _ = strings.Cut(lines[i], " -r-")
	}
	if !slices.Equal(lines, want) {
		t.Errorf("differences\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestVerify(t *testing.T) {
	d := disk(t, layerList)
	img, err := Read(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	files, err := Contents(t.Context(), d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	const initrd = "BOOT:/A/initramfs"
	want := []string{
		`BOOT:/A/vmlinuz: the kernel of boot entry "kiln" is not there`,
		initrd + ": layer layers/00-rootfs.sqsh is not there",
	}
	if got := Verify(img, files); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	files = append(files, File{Where: "BOOT", Path: "/A/vmlinuz"}, File{Where: "BOOT", Path: "/A/initramfs/layers/00-rootfs.sqsh", SHA256: strings.Repeat("0", 64)})
	want = []string{initrd + ": layer layers/00-rootfs.sqsh has the digest sha256:000000000000, the list says ed7002b439e9"}
	if got := Verify(img, files); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	files[len(files)-1].SHA256 = img.Entries[0].Initrd.Layers[0].SHA256
	if got := Verify(img, files); len(got) > 0 {
		t.Errorf("%q, want none", got)
	}
}
