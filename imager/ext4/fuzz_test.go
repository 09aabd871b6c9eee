package ext4

import (
	"bytes"
	"io"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
)

// FuzzRewrite patches the metadata of an image, as FuzzOpen, and rewrites a
// slot. What is beside the slot must stay as it was.
func FuzzRewrite(f *testing.F) {
	image, _, _ := slots(f)
	beside := []string{"B/slot.cfg", "grub/grub.cfg", "grub/grubenv"}
	files := newSlot(5000, 60_000)
	f.Add([]byte{})
	f.Add([]byte{5, 0, 40, 0, 2})
	f.Add([]byte{6, 14, 60, 0, 9, 4, 0, 8, 6, 0})
	f.Fuzz(func(t *testing.T, patches []byte) {
		b := bytes.Clone(image)
		for ; len(patches) >= 5; patches = patches[5:] {
			off := int(patches[0]%40)*blockSize + (int(patches[1])<<8|int(patches[2]))%(blockSize-1)
			b[off], b[off+1] = patches[3], patches[4]
		}
		dev := record(b)
		e, err := edit(dev, int64(len(b)), false)
		if err != nil {
			return
		}
		before := map[string][]byte{}
		for _, name := range beside {
			before[name] = contentOf(t, e, name)
		}
		err = e.Rewrite(t.Context(), "A", files)
		if err != nil && len(dev.writes) > 0 {
			t.Fatalf("%d sectors written: %v", len(dev.writes), err)
		}
		for _, name := range beside {
			if after := contentOf(t, e, name); !bytes.Equal(before[name], after) {
				t.Errorf("%s changed", name)
			}
		}
		if c := contentOf(t, e, "A/vmlinuz"); err == nil && !bytes.Equal(c, mustRead(t, files[0].Content)) {
			t.Error("what was written is not what is read")
		}
	})
}

// contentOf returns a file's content, or nil if it cannot be read.
func contentOf(t *testing.T, e *Editor, name string) []byte {
	c, err := e.Content(name)
	if err != nil || c.Size() > mib {
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		return nil
	}
	return b
}

func mustRead(t *testing.T, src extent.Source) []byte {
	t.Helper()
	b, err := io.ReadAll(extent.Reader(src))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
