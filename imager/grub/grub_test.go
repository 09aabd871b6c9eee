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

const bootPath = "/usr/lib/grub/i386-pc/boot.img"

func readBoot(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(oracle.File(t, filepath.Join(filepath.Dir(bootPath), name)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// makeCore returns a core image as the package comment says to make it.
func makeCore(t *testing.T, format string) []byte {
	t.Helper()
	oracle.File(t, bootPath)
	dir := t.TempDir()
	early, out := filepath.Join(dir, "early.cfg"), filepath.Join(dir, "core.img")
	if err := os.WriteFile(early, []byte(EarlyConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-O", format, "-p", Prefix, "-c", early, "-o", out}, strings.Fields(Modules)...)
	if msg, err := exec.Command(oracle.Tool(t, "grub-mkimage"), args...).CombinedOutput(); err != nil {
		t.Fatalf("grub-mkimage: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// differences returns the ranges in which a and b differ, as "offset: bytes of
// b" in hexadecimal.
func differences(a, b []byte) map[int]byte {
	d := map[int]byte{}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			d[i] = b[i]
		}
	}
	return d
}

func TestBootSector(t *testing.T) {
	boot := readBoot(t, "boot.img")
	code, err := BootSector(boot, 0x1122334455667788)
	if err != nil {
		t.Fatal(err)
	}
	if len(code) != 440 {
		t.Fatalf("%d bytes, want 440", len(code))
	}
	got := differences(boot, code)
	for i, want := range []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11} {
		if got[0x5C+i] != want {
			t.Errorf("byte 0x%x is %x, want %x", 0x5C+i, code[0x5C+i], want)
		}
	}
	if code[0x66] != 0x90 || code[0x67] != 0x90 || len(got) != 10 {
		t.Errorf("changes %x", got)
	}
}

func TestCore(t *testing.T) {
	image := makeCore(t, Format)
	core, err := Core(image, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if len(core)%512 != 0 || len(core)-len(image) >= 512 {
		t.Errorf("%d bytes of %d", len(core), len(image))
	}
	// 2 becomes 2049.
	if got := differences(image, core); len(got) != 2 || got[0x1F4] != 0x01 || got[0x1F5] != 0x08 {
		t.Errorf("changes %x", got)
	}
	if len(core) > 1<<20 {
		t.Errorf("%d bytes do not fit into a partition of 1 MiB", len(core))
	}
}

func TestBootSectorRefuses(t *testing.T) {
	boot := readBoot(t, "boot.img")
	patched, err := BootSector(boot, 2048)
	if err != nil {
		t.Fatal(err)
	}
	patched = append(patched, boot[440:]...)
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"short", boot[:511], "511 bytes, want 512"},
		{"diskboot.img", readBoot(t, "diskboot.img"), "jump over the BIOS parameter block (offset 0x0) is 52 56, want eb 63"},
		{"boot_hybrid.img", readBoot(t, "boot_hybrid.img"), "sector of the core image (offset 0x5c) is 00 00 00 00 00 00 00 00, want 01 00"},
		{"patched", patched, "sector of the core image (offset 0x5c) is 00 08 00"},
		{"no signature", append(bytes.Clone(boot[:510]), 0, 0), "signature (offset 0x1fe) is 00 00, want 55 aa"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := BootSector(tt.image, 2048)
			if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "boot.img: ") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := BootSector(boot, 0); err == nil {
		t.Error("sector 0 was accepted")
	}
}

func TestCoreRefuses(t *testing.T) {
	image := makeCore(t, Format)
	patched, err := Core(image, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(image)
	other[0x1FF] = 9
	runs := bytes.Clone(image)
	runs[0x1FC-12] = 1
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"short", image[:512], "512 bytes, want more than 512"},
		{"for a CD", makeCore(t, "i386-pc-eltorito"), "begins with e8 00, want 52 56 (diskboot.img); make it with grub-mkimage -O i386-pc"},
		{"patched", patched, "its second sector is said to be at 2049, want 2; it was patched before"},
		{"cut off", image[:10000], "but it has 10000 bytes, which is 19 more sectors; is it cut off?"},
		{"segment", other, "load segment 0x920, want 0x820"},
		{"several runs", runs, "it is in more than one run of sectors"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Core(tt.image, 2048)
			if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "core image: ") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Core(image, 0); err == nil {
		t.Error("sector 0 was accepted")
	}
}
