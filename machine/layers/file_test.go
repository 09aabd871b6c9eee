package layers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/verity"
)

// fileOf makes a file with layers of the given sizes, and its list.
func fileOf(t testing.TB, sizes ...int) (*List, []byte) {
	t.Helper()
	list := &List{Version: 1, Release: "6.12.0", Kiln: "devel"}
	var parts []extent.Source
	at := int64(0)
	for i, size := range sizes {
		data := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(i), byte(len(sizes))}).Read(data)
		sum := sha256.Sum256(data)
		tree, err := verity.New(t.Context(), extent.Bytes(data), sum[:])
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, extent.Bytes(data), tree)
		y := Layer{Kind: Extension, Name: fmt.Sprint("layer", i), Path: fmt.Sprintf("layers/%02d-layer%d.sqsh", i, i), Size: int64(size), SHA256: hex.EncodeToString(sum[:]),
			Verity: &Verity{Offset: at, Salt: hex.EncodeToString(sum[:]), Root: hex.EncodeToString(tree.Root[:])}}
		if i == 0 {
			y.Kind = RootFS
		}
		list.Layers = append(list.Layers, y)
		_, at = y.Span()
	}
	m, err := extent.Concat(verity.BlockSize, parts...)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return list, b.Bytes()
}

func TestFile(t *testing.T) {
	// A layer of one block has no tree; one of 129 has two levels.
	list, file := fileOf(t, 128*4096+1, 100, 3*4096)
	if want := int64(129+3+1+3+1) * 4096; list.FileSize() != want || int64(len(file)) != want {
		t.Fatalf("the file has %d bytes, the list says %d; want %d", len(file), list.FileSize(), want)
	}
	data, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if list, err = Decode(data); err != nil || !list.OnBoot() {
		t.Fatalf("%v, %v", list, err)
	}
	if err := list.Match(bytes.NewReader(file), int64(len(file))); err != nil {
		t.Error(err)
	}
	for _, y := range list.Layers {
		if err := y.VerifyTree(t.Context(), extent.Bytes(file)); err != nil {
			t.Error(err)
		}
		content, err := y.Content(extent.Bytes(file))
		if err != nil {
			t.Fatal(err)
		}
		if err := y.Verify(extent.Reader(content)); err != nil {
			t.Error(err)
		}
	}
}

// Match looks at what it can read quickly, VerifyTree at everything.
func TestFileDamage(t *testing.T) {
	list, sound := fileOf(t, 128*4096+1, 100, 3*4096)
	for _, c := range []struct {
		name  string
		block int
		match string // error, "" for none
		layer int
		tree  string
	}{
		{"data", 5, "", 0, "layers/00-layer0.sqsh (rootfs layer0) at 0: layer is damaged: data block 5 (bytes 20480 to 24575) is damaged"},
		{"leaf of the tree", 130, "", 0, "layer is damaged: hash block 1 "},
		{"top of the tree", 129, "not the layers of this system: rootfs layer0 has the root hash ", 0, "layer is damaged: hash block 0 "},
		{"single block", 132, "not the layers of this system: extension layer1 has the root hash ", 1, "(extension layer1) at 540672: layer is damaged: data block 0 "},
		{"last tree", 136, "not the layers of this system: extension layer2 has the root hash ", 2, "layer is damaged: hash block 0 "},
	} {
		file := bytes.Clone(sound)
		file[c.block*4096+17] ^= 1
		err := list.Match(bytes.NewReader(file), int64(len(file)))
		if c.match == "" && err != nil || c.match != "" && (!errors.Is(err, ErrOther) || !strings.HasPrefix(err.Error(), c.match)) {
			t.Errorf("%s: Match: %v, want %q", c.name, err, c.match)
		}
		err = list.Layers[c.layer].VerifyTree(t.Context(), extent.Bytes(file))
		var damaged *verity.DamagedError
		if !errors.Is(err, ErrDamaged) || !errors.As(err, &damaged) || !strings.Contains(err.Error(), c.tree) {
			t.Errorf("%s: VerifyTree: %v, want %q", c.name, err, c.tree)
		}
	}
	other, file := fileOf(t, 128*4096+1, 100)
	if err := list.Match(bytes.NewReader(file), int64(len(file))); !errors.Is(err, ErrOther) || !strings.HasSuffix(err.Error(), "544768 bytes, want 561152") {
		t.Errorf("another system: %v", err)
	}
	if err := other.Match(bytes.NewReader(nil), 0); !errors.Is(err, ErrOther) {
		t.Errorf("no file: %v", err)
	}
	if err := list.Layers[2].VerifyTree(t.Context(), extent.Bytes(file)); !errors.Is(err, ErrDamaged) {
		t.Errorf("short file: %v", err)
	}
}

func TestFileInvalid(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(l *List)
		want   string
	}{
		{"mixed", func(l *List) { l.Layers[1].Verity = nil }, "layer 1: some layers are in the initramfs, others are not"},
		{"mixed the other way", func(l *List) { l.Layers[0].Verity = nil }, "layer 1: some layers are in the initramfs, others are not"},
		{"gap", func(l *List) { l.Layers[1].Verity.Offset = 8192 }, "layer 1: at 8192 of the file, want 4096"},
		{"overlap", func(l *List) { l.Layers[0].Size = 4097 }, "layer 1: at 4096 of the file, want 12288"},
		{"negative", func(l *List) { l.Layers[0].Verity.Offset = -4096 }, "layer 0: at -4096 of the file, want 0"},
		{"size", func(l *List) { l.Layers[1].Size = verity.MaxSize + 1 }, "layer 1: size 1099511627777"},
		{"salt", func(l *List) { l.Layers[1].Verity.Salt = "x" }, `layer 1: bad salt "x"`},
		{"root", func(l *List) { l.Layers[1].Verity.Root = "00" }, `layer 1: bad root hash "00"`},
	} {
		list, _ := fileOf(t, 4096, 4096)
		c.change(list)
		if _, err := list.Encode(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	list, _ := fileOf(f, 128*4096+1, 100)
	data, err := list.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"layers":[{"kind":"rootfs","name":"r","path":"p","size":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := Decode(data)
		if err != nil {
			return
		}
		if _, err := list.Encode(); err != nil {
			t.Fatal(err)
		}
		size := list.FileSize()
		if err := list.Match(bytes.NewReader(data), int64(len(data))); list.OnBoot() && err == nil && size != int64(len(data)) {
			t.Fatalf("%d bytes match %d", len(data), size)
		}
	})
}
