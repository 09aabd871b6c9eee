package fat

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// run returns what a program prints; it must exit with 0. Names are in UTF-8
// and times in UTC.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLSRC=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// fsck returns an error unless fsck.fat has nothing to say but its totals.
func fsck(t testing.TB, name string) error {
	out, err := exec.Command(oracle.Tool(t, "fsck.fat"), "-n", name).CombinedOutput()
	clean := regexp.MustCompile(`^fsck\.fat [0-9.]+ \([0-9-]+\)\n` + regexp.QuoteMeta(name) + `: [0-9]+ files, [0-9]+/[0-9]+ clusters\n$`)
	if err != nil || !clean.Match(out) {
		return fmt.Errorf("fsck.fat: %v\n%s", err, out)
	}
	return nil
}

// sameFiles compares a directory with a tree.
func sameFiles(t *testing.T, dir string, tr *tree.Tree) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		rel, _ := filepath.Rel(dir, name)
		ino := tr.Lookup(filepath.ToSlash(rel))
		if ino == nil {
			t.Errorf("%q is not in the tree", rel)
			return nil
		}
		if d.IsDir() != ino.Mode.IsDir() {
			t.Errorf("%s: %v, want %v", rel, d.Type(), ino.Mode.Type())
		}
		if d.IsDir() || ino.Size() == 0 {
			return nil
		}
		got, err := os.ReadFile(name)
		want := make([]byte, ino.Size())
		ino.Content.ReadAt(want, 0)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: content differs (%v)", rel, err)
		}
		if fi, err := d.Info(); err != nil || fi.Size() != ino.Size() || fi.ModTime().Unix() != when.Unix()-1 {
			t.Errorf("%s: %d bytes, %s, want %d, %s (%v)", rel, fi.Size(), fi.ModTime().UTC(), ino.Size(), when, err)
		}
		return nil
	})
	if err != nil || n != tr.Len() {
		t.Errorf("%d of %d paths (%v)", n, tr.Len(), err)
	}
}

// TestOracles lets fsck.fat and mtools judge all sizes and both sector sizes.
func TestOracles(t *testing.T) {
	mcopy, mdir, minfo := oracle.Tool(t, "mcopy"), oracle.Tool(t, "mdir"), oracle.Tool(t, "minfo")
	few := tree.New()
	add(t, few, "EFI/BOOT/BOOTX64.EFI", data(1, 200_001))
	add(t, few, "loader/loader.conf", []byte("timeout 0\n"))
	all := everything(t)
	least, err := MinSize(all, options(0, 512))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		tree    *tree.Tree
		size    int64
		sector  int
		cluster int
	}{
		{few, 33 * mib, 512, 512}, {few, 67111 * 512, 512, 512} /* not all of it in use */, {all, least, 512, 512}, {all, 64 * mib, 512, 512}, {all, 100 * mib, 512, 1024},
		{all, 512 * mib, 512, 4096}, {all, 2 << 30, 512, 4096}, {few, 20 << 30, 512, 16384},
		{few, 260 * mib, 4096, 4096}, {all, 260*mib - 4096, 4096, 4096}, {all, 2 << 30, 4096, 4096},
	} {
		t.Run(fmt.Sprintf("%d by %d", tt.size, tt.sector), func(t *testing.T) {
			img := writeImage(t, build(t, tt.tree, options(tt.size, tt.sector)))
			if err := fsck(t, img); err != nil {
				t.Error(err)
			}
			dir := t.TempDir()
			run(t, mcopy, "-s", "-n", "-m", "-i", img, "::/", dir)
			sameFiles(t, dir, tt.tree)
			info := run(t, minfo, "-i", img, "::")
			for _, want := range []string{
				fmt.Sprintf("sector size: %d bytes\n", tt.sector), fmt.Sprintf("cluster size: %d sectors\n", tt.cluster/tt.sector),
				"fats: 2\n", "max available root directory slots: 0\n", "media descriptor byte: 0xf8\n", "hidden sectors: 2048\n",
				"physical drive id: 0x80\n", "serial number: CAFE1234\n", "disk label=\"EFI        \"\n", "disk type=\"FAT32   \"\n",
				"infoSector location=1\n", "backup boot sector=6\n", "signature=0x41615252\n",
			} {
				if !strings.Contains(info, want) {
					t.Errorf("minfo does not say %q:\n%s", want, info)
				}
			}
			if list := run(t, mdir, "-/", "-a", "-i", img, "::"); !strings.Contains(list, "Volume in drive : is EFI") ||
				!strings.Contains(list, "Volume Serial Number is CAFE-1234") || !strings.Contains(list, "2024-02-29  23:58") {
				t.Errorf("mdir: %.600s", list)
			}
		})
	}
}

// TestFsckMinds shows that the judge can say no.
func TestFsckMinds(t *testing.T) {
	m := build(t, everything(t), options(64*mib, 512))
	g := newGeometry(m.Size()/512, 512, 512)
	for what, at := range map[string]int64{
		"free count":  512 + atFree,
		"second FAT":  (g.reserved+g.fatSize)*512 + 16,
		"backup":      6*512 + atVolumeID,
		"directory":   g.data()*512 + entrySize + atClusterLow,
		"long name":   g.offset(5) + 2*entrySize + atLongSum,
		"dirty mark":  g.reserved*512 + 7,
		"label":       atLabel,
		"parent link": g.offset(3) + entrySize + atClusterLow,
	} {
		name := writeImage(t, m)
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		_, err = f.ReadAt(b, at)
		if err == nil {
			b[0] ^= 0x0A
			_, err = f.WriteAt(b, at)
		}
		if f.Close(); err != nil {
			t.Fatal(err)
		}
		if fsck(t, name) == nil {
			t.Errorf("fsck.fat does not mind a wrong %s", what)
		}
	}
}

// TestReadMtools reads what mkfs.fat and mtools write.
func TestReadMtools(t *testing.T) {
	mkfs, mcopy := oracle.Tool(t, "mkfs.fat"), oracle.Tool(t, "mcopy")
	src := t.TempDir()
	tr := tree.New()
	for name, content := range map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": data(1, 300_000), "EFI/Linux/kiln-A+3.efi": data(2, 100_001), "loader/loader.conf": []byte("timeout 0\n"),
		"empty": nil, "lower.txt": []byte("x"), "UPPER.low": []byte("y"), "grüße/日本語.txt": []byte("z"),
	} {
		add(t, tr, name, content)
		file := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, time.Time{}, when); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		bits int
		size int64
		args []string
	}{
		{12, 2 * mib, nil}, {12, 1440 << 10, nil}, {16, 16 * mib, nil}, {16, 300 * mib, []string{"-S", "4096"}}, {32, 64 * mib, []string{"-s", "1"}}, {32, 600 * mib, nil}, {32, 300 * mib, []string{"-S", "4096"}},
	} {
		name := writeImage(t, extent.New(tt.size))
		run(t, mkfs, append([]string{"-F", fmt.Sprint(tt.bits), "-n", "LABEL 1", "-i", "12ab34cd", name}, tt.args...)...)
		entries, err := os.ReadDir(src)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-s", "-m", "-i", name}
		for _, e := range entries {
			args = append(args, filepath.Join(src, e.Name()))
		}
		run(t, mcopy, append(args, "::/")...)
		f, err := extent.File(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Open(f, f.Size())
		if err != nil {
			t.Errorf("FAT%d: %v", tt.bits, err)
			continue
		}
		if got.Bits != tt.bits || got.Label != "LABEL 1" || got.VolumeID != 0x12ab34cd {
			t.Errorf("FAT%d of %d bytes: %+v", tt.bits, tt.size, got)
		}
		if l, want := listing(t, got.Tree, 0), listing(t, tr, 0); l != want {
			t.Errorf("FAT%d: got\n%s\nwant\n%s", tt.bits, l, want)
		}
		if ino := got.Tree.Lookup("lower.txt"); ino == nil || ino.ModTime == 0 {
			t.Errorf("FAT%d: lower.txt is %+v", tt.bits, ino)
		}
	}
	undersized := writeImage(t, extent.New(40*mib))
	run(t, mkfs, "-F", "32", "-s", "8", undersized)
	f, err := extent.File(undersized)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f, f.Size()); err == nil || !strings.Contains(err.Error(), "fewer than 65525: firmware takes it for FAT16; use smaller clusters") {
		t.Errorf("an undersized FAT32: %v", err)
	}
}
