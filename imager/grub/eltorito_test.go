package grub

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// cdImage makes the boot program of a CD with GRUB's own tool.
func cdImage(t *testing.T, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	early, out := filepath.Join(dir, "early.cfg"), filepath.Join(dir, "out")
	if err := os.WriteFile(early, []byte(EarlyConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	oracle.File(t, "/usr/lib/grub/i386-pc/cdboot.img")
	args := append([]string{"-O", format, "-p", CDPrefix, "-c", early, "-o", out}, strings.Fields(CDModules)...)
	if msg, err := exec.Command(oracle.Tool(t, "grub-mkimage"), args...).CombinedOutput(); err != nil {
		t.Fatalf("grub-mkimage: %v\n%s", err, msg)
	}
	img, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestElTorito(t *testing.T) {
	img := cdImage(t, CDFormat)
	const lba = 20
	got, err := ElTorito(img, lba)
	if err != nil {
		t.Fatal(err)
	}
	if len(got)%512 != 0 || len(got)-len(img) < 0 || len(got)-len(img) >= 512 {
		t.Errorf("%d bytes from %d", len(got), len(img))
	}
	for _, f := range []struct {
		offset int
		want   uint32
	}{{8, 16}, {12, lba}, {16, uint32(len(got))}, {2548, 4*lba + 5}, {2552, 0}} {
		if n := le.Uint32(got[f.offset:]); n != f.want {
			t.Errorf("offset %d is %d, want %d", f.offset, n, f.want)
		}
	}
	var sum uint32
	for i := 64; i < len(got); i += 4 {
		sum += le.Uint32(got[i:])
	}
	if n := le.Uint32(got[20:]); n != sum {
		t.Errorf("checksum %08x, want %08x", n, sum)
	}
	copy(got[8:24], make([]byte, 16))
	copy(got[2548:2556], []byte{2, 0, 0, 0, 0, 0, 0, 0})
	if !bytes.Equal(got[:len(img)], img) {
		t.Error("more was patched than the four fields")
	}

	for _, tt := range []struct {
		img  []byte
		want string
	}{
		{img[:2048], "boot program of a CD: not the right GRUB image: 2048 bytes, want more than 2048"},
		{cdImage(t, Format), "boot program of a CD: not the right GRUB image: its boot information table (offset 0x8) is not empty; make it with grub-mkimage -O i386-pc-eltorito"},
		{append(bytes.Clone(img[:2048]), img...), "boot program of a CD: behind cdboot.img: core image: not the right GRUB image: begins with e8 00, want 52 56 (diskboot.img); make it with grub-mkimage -O i386-pc"},
		{img[:len(img)-1000], "is it cut off?"},
	} {
		if _, err := ElTorito(tt.img, lba); !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ElTorito: %v, want %q", err, tt.want)
		}
	}
}
