package verity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// build returns the tree of n bytes of noise.
func build(t testing.TB, n int, salt []byte) ([]byte, *Tree) {
	t.Helper()
	data := disktest.Noise(n, 1)
	tree, err := New(t.Context(), extent.Bytes(data), salt)
	if err != nil {
		t.Fatal(err)
	}
	return data, tree
}

// content returns the bytes of src, which may be none.
func content(t testing.TB, src extent.Source) []byte {
	t.Helper()
	b, err := io.ReadAll(extent.Reader(src))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLayout computes a tree of two levels by hand.
func TestLayout(t *testing.T) {
	salt := []byte("salt")
	data, tree := build(t, 128*BlockSize+5, salt)
	digest := func(block []byte) []byte {
		block = append(bytes.Clone(block), make([]byte, BlockSize-len(block))...)
		sum := sha256.Sum256(append([]byte("salt"), block...))
		return sum[:]
	}
	var low, top []byte
	for i := range 128 {
		low = append(low, digest(data[i*BlockSize:(i+1)*BlockSize])...)
	}
	low = append(low, digest(data[128*BlockSize:])...)
	low = append(low, make([]byte, 2*BlockSize-len(low))...)
	top = append(digest(low[:BlockSize]), digest(low[BlockSize:])...)
	top = append(top, make([]byte, BlockSize-len(top))...)

	if !bytes.Equal(content(t, tree), append(bytes.Clone(top), low...)) {
		t.Error("the tree is not the root block followed by the blocks of the lower level")
	}
	if !bytes.Equal(tree.Root[:], digest(top)) {
		t.Errorf("root hash %x, want %x", tree.Root, digest(top))
	}
	if tree.Blocks != 129 {
		t.Errorf("%d data blocks, want 129", tree.Blocks)
	}
}

func TestOneBlock(t *testing.T) {
	data, tree := build(t, 7, nil)
	want := sha256.Sum256(append(data, make([]byte, BlockSize-7)...))
	if tree.Root != want || tree.Size() != 0 || tree.Blocks != 1 {
		t.Errorf("root %x, tree of %d bytes, %d blocks; want %x, 0, 1", tree.Root, tree.Size(), tree.Blocks, want)
	}
}

func TestSize(t *testing.T) {
	const b = BlockSize
	for _, tc := range []struct{ data, want int64 }{
		{1, 0},
		{b, 0},
		{b + 1, b},
		{128 * b, b},
		{128*b + 1, 3 * b},
		{128 * 128 * b, 129 * b},
		{128*128*b + 1, (1 + 2 + 129) * b},
		{MaxSize, (2097152 + 16384 + 128 + 1) * b},
	} {
		if got, err := Size(tc.data); err != nil || got != tc.want {
			t.Errorf("Size(%d) = %d, %v; want %d", tc.data, got, err, tc.want)
		}
	}
}

// TestProcessors compares the trees that different numbers of processors build.
func TestProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	_, want := build(t, 700*BlockSize+1, []byte{1})
	for _, n := range []int{2, 5, 16} {
		runtime.GOMAXPROCS(n)
		_, got := build(t, 700*BlockSize+1, []byte{1})
		if got.Root != want.Root || !bytes.Equal(content(t, got), content(t, want)) {
			t.Errorf("%d processors build another tree than 1", n)
		}
	}
}

func TestRefused(t *testing.T) {
	ctx := t.Context()
	one := extent.Bytes([]byte{1})
	var root [sha256.Size]byte
	long := make([]byte, MaxSalt+1)
	newTree := func(data extent.Source, salt []byte) error {
		_, err := New(ctx, data, salt)
		return err
	}
	for _, tc := range []struct {
		err  error
		is   error
		want string
	}{
		{newTree(extent.Bytes(nil), nil), ErrSize, "data of 0 bytes cannot have a hash tree: want 1 to 1099511627776"},
		{newTree(extent.New(MaxSize+1), nil), ErrSize, "data of 1099511627777 bytes cannot have a hash tree: want 1 to 1099511627776"},
		{newTree(one, long), nil, "a salt of 257 bytes is too long: at most 256"},
		{Verify(ctx, one, extent.Bytes(nil), long, root), nil, "a salt of 257 bytes is too long: at most 256"},
		{Verify(ctx, extent.Bytes(nil), extent.Bytes(nil), nil, root), ErrSize, "data of 0 bytes cannot have a hash tree: want 1 to 1099511627776"},
		{Verify(ctx, one, one, nil, root), nil, "a hash tree of 1 bytes is not that of 1 bytes of data: want 0"},
		{newTree(short{}, nil), io.ErrUnexpectedEOF, "read 524288 bytes at 0, got 10: unexpected EOF"},
		{newTree(disktest.Broken(3*chunk), nil), disktest.ErrRead, ""},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) || (tc.is != nil && !errors.Is(tc.err, tc.is)) {
			t.Errorf("error %v, want %q (%v)", tc.err, tc.want, tc.is)
		}
	}
	if _, err := Size(0); !errors.Is(err, ErrSize) {
		t.Errorf("Size(0): %v, want %v", err, ErrSize)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := New(done, one, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("New with a context that is done: %v", err)
	}
}

// short is a source that ends before its size.
type short struct{}

func (short) Size() int64 { return chunk }
func (short) ReadAt(p []byte, off int64) (int, error) {
	return 10, io.EOF
}

func TestVerify(t *testing.T) {
	const blocks = 130*128 + 3 // three levels: blocks 0, 1 to 2 and 3 to 133 of the tree
	salt := []byte{9, 8}
	data, tree := build(t, (blocks-1)*BlockSize+17, salt)
	hashes := content(t, tree)
	flip := func(b []byte, at ...int) []byte {
		b = bytes.Clone(b)
		for _, i := range at {
			b[i] ^= 0x10
		}
		return b
	}
	wrong := tree.Root
	wrong[31] ^= 1
	for _, tc := range []struct {
		name       string
		data, tree []byte
		salt       []byte
		root       [sha256.Size]byte
		want       DamagedError
		text       string
	}{
		{"sound", data, hashes, salt, tree.Root, DamagedError{}, ""},
		{"one bit", flip(data, 9765*BlockSize+100), hashes, salt, tree.Root,
			DamagedError{Block: 9765, Count: 1}, "data block 9765 (bytes 39997440 to 40001535) is damaged: found digest "},
		{"several", flip(data, 16000*BlockSize, 300*BlockSize, 301*BlockSize), hashes, salt, tree.Root,
			DamagedError{Block: 300, Count: 3}, "; 3 data blocks are"},
		{"last byte", flip(data, len(data)-1), hashes, salt, tree.Root, DamagedError{Block: blocks - 1, Count: 1}, ""},
		{"tree, lowest level", data, flip(hashes, 3*BlockSize, 133*BlockSize+95), salt, tree.Root,
			DamagedError{Tree: true, Block: 3, Count: 2}, "hash block 3 (bytes 12288 to 16383) is damaged: found digest "},
		{"tree, padding", data, flip(hashes, len(hashes)-1), salt, tree.Root, DamagedError{Tree: true, Block: 133, Count: 1}, ""},
		{"tree, second level", flip(data, 0), flip(hashes, 2*BlockSize), salt, tree.Root, DamagedError{Tree: true, Block: 2, Count: 1}, ""},
		{"tree, top", flip(data, 0), flip(hashes, 0), salt, tree.Root, DamagedError{Tree: true, Block: 0, Count: 1, top: true}, ""},
		{"root", data, hashes, salt, wrong, DamagedError{Tree: true, Block: 0, Count: 1, top: true},
			fmt.Sprintf("found digest %x, want %x, the root hash; if all of the data is, root hash or salt are those of other data", tree.Root, wrong)},
		{"salt", data, hashes, []byte{9, 9}, tree.Root, DamagedError{Tree: true, Block: 0, Count: 1, top: true}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Verify(t.Context(), extent.Bytes(tc.data), extent.Bytes(tc.tree), tc.salt, tc.root)
			if tc.name == "sound" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var got *DamagedError
			if !errors.As(err, &got) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("error %v, want one with %q", err, tc.text)
			}
			if got.Found == got.Want {
				t.Error("found and wanted digest are the same")
			}
			place := *got
			place.Found, place.Want = tc.want.Found, tc.want.Want
			if place != tc.want {
				t.Errorf("damage is at %+v, want %+v", place, tc.want)
			}
		})
	}
	_, one := build(t, 5, nil)
	err := Verify(t.Context(), extent.Bytes([]byte("other")), one, nil, one.Root)
	if want := "data block 0 (bytes 0 to 4095) is damaged"; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "the root hash") {
		t.Errorf("error %v, want %q and the root hash", err, want)
	}
}

func TestSuperblock(t *testing.T) {
	s := Superblock{UUID: [16]byte{1, 2, 15: 3}, Salt: []byte{0xaa, 0}, Blocks: 0x123456789 >> 8}
	sound, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(sound) != BlockSize {
		t.Fatalf("%d bytes, want %d", len(sound), BlockSize)
	}
	got, err := DecodeSuperblock(sound)
	if err != nil || got.UUID != s.UUID || !bytes.Equal(got.Salt, s.Salt) || got.Blocks != s.Blocks {
		t.Errorf("decoded %+v, %v; want %+v", got, err, s)
	}
	for _, tc := range []struct {
		at   int
		b    string
		want string
	}{
		{0, "V", `the signature is "Verity", want "verity"`},
		{8, "\x02", "the version is 2, want 1"},
		{12, "\x00", "the type of the tree is 0, want 1"},
		{32, "sha512", `the algorithm is "sha512", want "sha256"`},
		{64, "\x00\x04", "the size of a data block is 1024, want 4096"},
		{68, "\x00\x20", "the size of a hash block is 8192, want 4096"},
		{72, "\x00\x00\x00\x00", "the number of data blocks is 0, want 1 to 268435456"},
		{79, "\x80", "the number of data blocks is 9223372036873864551, want 1 to 268435456"},
		{80, "\x01\x01", "the size of the salt is 257, want 0 to 256"},
	} {
		b := bytes.Clone(sound)
		copy(b[tc.at:], tc.b)
		if _, err := DecodeSuperblock(b); !errors.Is(err, ErrSuperblock) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want %q", err, tc.want)
		}
	}
	if _, err := DecodeSuperblock(sound[:511]); !errors.Is(err, ErrSuperblock) || !strings.Contains(err.Error(), "it has 511 bytes, want 512") {
		t.Errorf("half a superblock: %v", err)
	}
	if _, err := (Superblock{Salt: make([]byte, MaxSalt+1)}).Encode(); err == nil {
		t.Error("a salt that has no room was encoded")
	}
}

func FuzzDecodeSuperblock(f *testing.F) {
	sound, err := Superblock{Salt: []byte{1}, Blocks: 5}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound[:512])
	f.Add([]byte("verity\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSuperblock(data)
		if err != nil {
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeSuperblock(again); err != nil || hex.EncodeToString(got.Salt) != hex.EncodeToString(s.Salt) || got.UUID != s.UUID || got.Blocks != s.Blocks {
			t.Fatalf("decoded %+v, after encoding it %+v, %v", s, got, err)
		}
	})
}

// FuzzVerify damages data and tree in any way.
func FuzzVerify(f *testing.F) {
	data := disktest.Noise(130*BlockSize+1, 1)
	tree, err := New(context.Background(), extent.Bytes(data), nil)
	if err != nil {
		f.Fatal(err)
	}
	hashes := make([]byte, tree.Size())
	if _, err := tree.ReadAt(hashes, 0); err != nil && err != io.EOF {
		f.Fatal(err)
	}
	f.Add([]byte{}, []byte{}, uint32(0))
	f.Add([]byte{1}, []byte{}, uint32(BlockSize))
	f.Add([]byte{}, []byte{1}, uint32(2*BlockSize))
	f.Fuzz(func(t *testing.T, d, h []byte, at uint32) {
		overlay := func(base, with []byte) []byte {
			b := bytes.Clone(base)
			copy(b[int(at)%len(b):], with)
			return b
		}
		gotData, gotHashes := overlay(data, d), overlay(hashes, h)
		sound := bytes.Equal(gotData, data) && bytes.Equal(gotHashes, hashes)
		if err := Verify(t.Context(), extent.Bytes(gotData), extent.Bytes(gotHashes), nil, tree.Root); (err == nil) != sound {
			t.Fatalf("sound is %v, error %v", sound, err)
		}
	})
}
