package fat

import (
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Large files begin on pages of the partition, whatever the clusters' size.
func TestLargeFilesAreAligned(t *testing.T) {
	contents := map[string]extent.Source{
		"a": extent.Bytes(make([]byte, 100)), "b.efi": extent.Bytes(noise(100_000)), "c": extent.Bytes(make([]byte, 5000)), "d.efi": extent.Bytes(noise(70_001)),
	}
	tr := tree.New()
	for name, content := range contents {
		if err := tr.Add(name, &tree.Inode{Mode: 0o644, Content: content}); err != nil {
			t.Fatal(err)
		}
	}
	options := Options{SectorSize: 512}
	least, err := MinSize(tr, options)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{least, 64 << 20, 1 << 30} {
		options.Size = size
		m, err := Build(tr, options)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"b.efi", "d.efi"} {
			if at := m.Index(contents[name]); at < 0 || at%4096 != 0 {
				t.Errorf("%d bytes: %s is at %d", size, name, at)
			}
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	return b
}
