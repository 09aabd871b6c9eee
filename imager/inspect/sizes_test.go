package inspect

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestSizes(t *testing.T) {
	img := &Image{Size: 100 << 20, Partitions: []Partition{{Label: "EFI", Size: 50 << 20}, {Label: "BOOT", Size: 40 << 20}}}
	files := []File{
		{Where: "EFI", Path: "/EFI", Mode: 1 << 31}, // a directory
		{Where: "EFI", Path: "/EFI/a.efi", Size: 30 << 20},
		{Where: "EFI", Path: "/EFI/a.efi/#.initrd", Size: 20 << 20},
		{Where: "EFI", Path: "/EFI/a.efi/#.initrd/init", Size: 12 << 20}, // compressed to 8 MiB
		{Where: "EFI", Path: "/EFI/a.efi/#.initrd/layers/00-rootfs.sqsh", Size: 12 << 20},
		{Where: "rootfs", Path: "/usr/bin/init", Size: 30 << 20},
		{Where: "rootfs", Path: "/usr/lib/libc.so", Size: 10 << 20},
		{Where: "BOOT", Path: "/<&>", Size: 5 << 20},
	}
	root := Sizes(img, files)
	check := func(want int64, path ...string) {
		t.Helper()
		n := root
		for _, name := range path {
			n = n.child(name)
		}
		if n.Bytes != want<<20 {
			t.Errorf("%s: %d bytes, want %d MiB", strings.Join(path, "/"), n.Bytes, want)
		}
	}
	check(100)
	check(10, "partition tables")
	check(20, "EFI", "free")
	check(35, "BOOT", "free")
	check(10, "EFI", "EFI", "a.efi", "other")
	check(8, "EFI", "EFI", "a.efi", "#.initrd", "init")
	check(9, "EFI", "EFI", "a.efi", "#.initrd", "layers", "00-rootfs.sqsh", "usr", "bin")
	if root.Children[0].Name != "EFI" || root.Children[1].Name != "BOOT" {
		t.Errorf("%s comes before %s", root.Children[0].Name, root.Children[1].Name)
	}
	var text strings.Builder
	if err := root.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), "#################### 100.0%    100 MiB  disk\n##########            50.0%   50.0 MiB    EFI\n") {
		t.Errorf("text:\n%s", text.String())
	}
	var svg strings.Builder
	if err := root.WriteSVG(&svg); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(svg.String())); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg.String())
		}
	}
	if strings.Count(svg.String(), "<rect") < 10 || !strings.Contains(svg.String(), "disk/BOOT/&lt;&amp;&gt; 5.00 MiB") {
		t.Errorf("%s", svg.String())
	}
}
