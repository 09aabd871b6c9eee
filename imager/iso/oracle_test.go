package iso

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// complaints are the lines of xorriso that say that something is wrong.
// That boot images are not among the files is no fault.
func complaints(out string) []string {
	lines := regexp.MustCompile(`(?m)^(xorriso|libisofs|libburn) ?: (WARNING|SORRY|MISHAP|FAILURE|FATAL|HINT).*$`).FindAllString(out, -1)
	return slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "libisofs: WARNING : Found hidden El-Torito image. Its size could not be figured out")
	})
}

func report(t *testing.T, name string) string {
	t.Helper()
	out := run(t, oracle.Tool(t, "xorriso"), "-no_rc", "-indev", "stdio:"+name, "-pvd_info", "-report_el_torito", "plain", "-report_system_area", "plain")
	if c := complaints(out); len(c) > 0 {
		t.Errorf("xorriso: %s", c)
	}
	return out
}

func TestXorrisoReport(t *testing.T) {
	opts := options()
	opts.BIOS, opts.EFI = bios(), partition(t, loader(t))
	tr := everything(t)
	m := build(t, tr, opts)
	name := write(t, m)
	out := report(t, name)
	sectors := extent.Align(opts.EFI.Size(), mib) / 512
	for _, want := range []string{
		`Volume Id    : KILN_TEST`,
		`Creation Time: 2026010100000000`,
		`El Torito catalog  : 19  1`,
		`El Torito images   :   N  Pltf  B   Emul  Ld_seg  Hdpt  Ldsiz         LBA`,
		`El Torito boot img :   1  BIOS  y   none  0x0000  0x00      4          20`,
		`El Torito boot img :   2  UEFI  y   none  0x0000  0x00      0         512`,
		`System area summary: MBR protective-msdos-label cyl-align-off GPT`,
		`GPT                :   N  Info`,
		`GPT disk GUID      : +[0-9a-f]{32}`,
		`GPT partname local :   1  ISO9660`,
		`GPT start and size :   1  64  1984`,
		`GPT type GUID      :   2  28732ac11ff8d211ba4b00a0c93ec93b`,
		`GPT start and size :   2  2048  ` + fmt.Sprint(sectors),
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(out) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	out = run(t, oracle.Tool(t, "sgdisk"), "-v", "-p", name)
	if !strings.Contains(out, "No problems found") || regexp.MustCompile("Caution|Warning|Problem:|Creating").MatchString(out) {
		t.Errorf("sgdisk: %s", out)
	}
}

func TestXorrisoReportUEFI(t *testing.T) {
	opts := options()
	opts.EFI = partition(t, loader(t))
	out := report(t, write(t, build(t, everything(t), opts)))
	if want := `(?m)^El Torito boot img :   1  UEFI  y   none `; !regexp.MustCompile(want).MatchString(out) {
		t.Errorf("want %q in\n%s", want, out)
	}
	opts.EFI = nil
	out = report(t, write(t, build(t, everything(t), opts)))
	if strings.Contains(out, "El Torito images") || strings.Contains(out, "System area summary") {
		t.Errorf("an image that does not boot has boot information:\n%s", out)
	}
}

// TestXorrisoFiles compares every file as xorriso sees it.
func TestXorrisoFiles(t *testing.T) {
	tr := everything(t)
	opts := options()
	opts.BIOS = bios()
	name := write(t, build(t, tr, opts))
	dir := filepath.Join(t.TempDir(), "x")
	out := run(t, oracle.Tool(t, "xorriso"), "-no_rc", "-osirrox", "on", "-indev", "stdio:"+name,
		"-hardlinks", "on", "-find", "/", "-exec", "lsdl", "--", "-extract_l", "/", dir, "/EFI", "/many", "/hard", "/deep", "/three", "/empty", "/.hidden", "/one more", "/links", "--")
	if c := complaints(out); len(c) > 0 {
		t.Errorf("xorriso: %s", c)
	}
	lines := strings.Split(out, "\n")
	for name, ino := range tr.All() {
		if ino.Target != "" || name == "." {
			continue // compared below
		}
		found := false
		for _, l := range lines {
			if strings.HasSuffix(l, " '/"+name+"'") {
				f := strings.Fields(l)
				mode := strings.Replace(posixText(ino), "?", "", 1)
				if f[0] != mode || f[2] != fmt.Sprint(ino.UID) || f[3] != fmt.Sprint(ino.GID) ||
					(ino.Mode.IsRegular() && f[4] != fmt.Sprint(ino.Size())) {
					t.Errorf("xorriso: %q, want %s %d %d %d", l, mode, ino.UID, ino.GID, ino.Size())
				}
				found = true
			}
		}
		if !found {
			t.Errorf("xorriso does not list %q", name)
		}
	}
	n := 0
	for name, ino := range tr.All() {
		full := filepath.Join(dir, name)
		fi, err := os.Lstat(full)
		if err != nil || ino.Mode.IsDir() {
			continue
		}
		n++
		if ino.Target != "" {
			if got, err := os.Readlink(full); got != ino.Target {
				t.Errorf("%s: link to %q, want %q, %v", name, got, ino.Target, err)
			}
			continue
		}
		got, err := os.ReadFile(full)
		if err != nil || string(got) != readAll(t, ino) || fi.ModTime().Unix() != ino.ModTime {
			t.Errorf("%s: %d bytes of %v, %v", name, len(got), fi.ModTime(), err)
		}
	}
	if n < 310 {
		t.Errorf("only %d files were extracted:\n%s", n, out)
	}
}

// readAll returns the content of a file that may be empty.
func readAll(t *testing.T, ino *tree.Inode) string {
	if ino.Content == nil {
		return ""
	}
	return string(content(t, ino))
}

// posixText returns a mode as ls shows it.
func posixText(ino *tree.Inode) string {
	m := posixMode(ino.Mode)
	b := []byte{map[uint32]byte{0o100000: '-', 0o040000: 'd', 0o060000: 'b', 0o020000: 'c', 0o010000: 'p', 0o140000: 's'}[m&0o170000]}
	for i := 8; i >= 0; i-- {
		c := "xwr"[i%3]
		if m>>i&1 == 0 {
			c = '-'
		}
		b = append(b, c)
	}
	for _, s := range []struct {
		bit  uint32
		at   int
		char byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if m&s.bit != 0 {
			b[s.at] = s.char
		}
	}
	return string(b)
}

// TestGRUB reads files with GRUB's own drivers.
func TestGRUB(t *testing.T) {
	tr := everything(t)
	name := write(t, build(t, tr, options()))
	tool := oracle.Tool(t, "grub-fstest")
	for _, file := range []string{"EFI/BOOT/BOOTX64.EFI", "one more", "grüße", "deep/" + strings.Repeat("d/", 40) + "file", "hard/two"} {
		got := run(t, tool, name, "cat", "(loop0)/"+file)
		if want := string(content(t, tr.Lookup(file))); got != want {
			t.Errorf("GRUB: %s has %d bytes, want %d", file, len(got), len(want))
		}
	}
	list := run(t, tool, name, "ls", "(loop0)/many/")
	if n := strings.Count(list, "number "); n != 300 {
		t.Errorf("GRUB lists %d files, want 300: %s", n, list)
	}
}

// TestOthers reads what xorriso writes.
func TestOthers(t *testing.T) {
	want := tree.New()
	dir := t.TempDir()
	for name, text := range map[string]string{"a/b/c/d/e/f/g/h/i/j": "deep", "EFI/BOOT/BOOTX64.EFI": strings.Repeat("loader", 999), "empty": "", strings.Repeat("n", 200): "long"} {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		add(t, want, name, file(text))
	}
	if err := os.Symlink("../a/./"+strings.Repeat("t", 200), filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "EFI/BOOT/BOOTX64.EFI"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	efi := write(t, partition(t, loader(t)))
	for _, args := range [][]string{
		{"-r", "-J"},
		{"-R", "-J", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", "-append_partition", "2", "0xef", efi, "-appended_part_as_gpt", "-partition_offset", "16"},
		{"-R", "-disallow_dir_id_ext", "-hfsplus"},
	} {
		name := filepath.Join(t.TempDir(), "other.iso")
		run(t, oracle.Tool(t, "xorriso"), append(append([]string{"-as", "mkisofs", "-V", "OTHER", "-o", name}, args...), dir)...)
		src, err := extent.File(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Open(src)
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		sameContents(t, got.Tree, want)
		if l := got.Tree.Lookup("a/link"); l == nil || l.Target != "../a/./"+strings.Repeat("t", 200) {
			t.Errorf("%q: link %+v", args, l)
		}
		if got.VolumeID != "OTHER" || !got.RockRidge {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
