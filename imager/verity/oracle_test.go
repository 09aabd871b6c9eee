package verity

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// TestVeritysetup has veritysetup make the same trees, and verify ours in a file
// together with the data.
func TestVeritysetup(t *testing.T) {
	oracle.Tool(t, "veritysetup")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	noise := disktest.Noise((128*128+1)*BlockSize, 1)
	for i, size := range []int{
		1, BlockSize - 1, BlockSize, BlockSize + 1, 127 * BlockSize, 128 * BlockSize, 128*BlockSize + 1, 129 * BlockSize,
		1000*BlockSize - 77, 128 * 128 * BlockSize, (128*128 + 1) * BlockSize,
	} {
		data := noise[:size]
		salt := [][]byte{nil, {0x5a}, bytes.Repeat([]byte{1, 2, 3, 0xff}, 8), bytes.Repeat([]byte{7}, MaxSalt)}[i%4]
		tree, err := New(t.Context(), extent.Bytes(data), salt)
		if err != nil {
			t.Fatal(err)
		}
		saltHex := hex.EncodeToString(salt)
		if saltHex == "" {
			saltHex = "-"
		}
		// veritysetup takes whole blocks only.
		write(t, file("data"), append(bytes.Clone(data), make([]byte, tree.Blocks*BlockSize-int64(size))...))

		os.Remove(file("tree"))
		if tree.Blocks > 1 { // it writes no file of 0 bytes
			disktest.Run(t, "veritysetup", "format", "--no-superblock", "--salt="+saltHex, "--root-hash-file="+file("root"), file("data"), file("tree"))
			if !bytes.Equal(read(t, file("tree")), content(t, tree)) {
				t.Errorf("%d bytes: veritysetup makes another tree", size)
			}
			if got, want := string(read(t, file("root"))), hex.EncodeToString(tree.Root[:]); got != want {
				t.Errorf("%d bytes: veritysetup has root hash %s, we %s", size, got, want)
			}
		}

		id := [16]byte{0x4d, 1, 15: byte(i)}
		uuid := fmt.Sprintf("4d010000-0000-0000-0000-%012x", i)
		sb, err := Superblock{UUID: id, Salt: salt, Blocks: tree.Blocks}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(file("tree"))
		disktest.Run(t, "veritysetup", "format", "--uuid="+uuid, "--salt="+saltHex, "--root-hash-file="+file("root"), file("data"), file("tree"))
		if theirs := read(t, file("tree")); !bytes.Equal(theirs, append(sb, content(t, tree)...)) {
			t.Errorf("%d bytes: veritysetup makes another superblock", size)
		}
		if got, want := string(read(t, file("root"))), hex.EncodeToString(tree.Root[:]); got != want {
			t.Errorf("%d bytes: veritysetup has root hash %s, we %s", size, got, want)
		}

		whole, err := extent.Concat(BlockSize, extent.Bytes(data), extent.Bytes(sb), tree)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file("whole"), content(t, whole))
		verify := []string{"verify", fmt.Sprintf("--hash-offset=%d", tree.Blocks*BlockSize), file("whole"), file("whole"), hex.EncodeToString(tree.Root[:])}
		disktest.Run(t, "veritysetup", verify...)
		if dump := disktest.Run(t, "veritysetup", "dump", verify[1], file("whole")); !strings.Contains(dump, uuid) {
			t.Errorf("veritysetup dump does not show UUID %s:\n%s", uuid, dump)
		}

		// Both find the same damage.
		damaged := bytes.Clone(data)
		damaged[size/2] ^= 1
		block := size / 2 / BlockSize
		write(t, file("whole"), append(damaged, content(t, whole)[size:]...))
		theirs, err := exec.Command(oracle.Tool(t, "veritysetup"), verify...).CombinedOutput()
		want := fmt.Sprintf("Verification failed at position %d.", block*BlockSize)
		if tree.Blocks == 1 {
			want = "Verification of root hash failed."
		}
		if err == nil || !strings.Contains(string(theirs), want) {
			t.Errorf("%d bytes: veritysetup verify says %q (%v), want %q", size, theirs, err, want)
		}
		ours := Verify(t.Context(), extent.Bytes(damaged), tree, salt, tree.Root)
		if want := fmt.Sprintf("data block %d ", block); ours == nil || !strings.Contains(ours.Error(), want) {
			t.Errorf("%d bytes: Verify says %v, want %q", size, ours, want)
		}
	}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// BenchmarkNew makes the tree of 80 MB in a file, side by side with veritysetup.
func BenchmarkNew(b *testing.B) {
	oracle.Tool(b, "veritysetup")
	path := filepath.Join(b.TempDir(), "data")
	write(b, path, disktest.Noise(80<<20, 1))
	data, err := extent.File(path)
	if err != nil {
		b.Fatal(err)
	}
	salt := make([]byte, 32)
	b.SetBytes(data.Size())
	disktest.Versus(b, func(b *testing.B, to string) {
		tree, err := New(context.Background(), data, salt)
		if err != nil {
			b.Fatal(err)
		}
		write(b, to, content(b, tree))
	}, "veritysetup", "format", "--no-superblock", "--salt="+hex.EncodeToString(salt), path)
}

func BenchmarkVerify(b *testing.B) {
	data, tree := build(b, 80<<20, make([]byte, 32))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Verify(b.Context(), extent.Bytes(data), tree, tree.Salt, tree.Root); err != nil {
			b.Fatal(err)
		}
	}
}
